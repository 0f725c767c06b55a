"""The free energy of a division: its value, its gradient, and that it keeps a GMF separated."""

import pytest
import torch

import fusion
from fusion.grounded.transport import channel_cell, equilibrate, separation_energy
from fusion.layers import divided_energy
from fusion.layers.divided_energy import DividedEnergy

DIMS = {"a": 7, "b": 5}


@pytest.fixture(scope="module")
def features():
    made, _ = fusion.shared_private(1500, DIMS, shared=2, private=2, noise=0.3, label_from="both")
    return made.with_split(0)


@pytest.fixture(scope="module")
def cell(features):
    layer = fusion.CellGMF(DIMS)
    layer.fit({name: values.double() for name, values in features.modalities.items()})
    return layer


def divided_by_sign(cell):
    """For each modality the valences, and maps of features to the channels of either sign."""
    maps, valences = {}, {}
    for name, (unwhiten, charge) in cell.charges(standardised=True).items():
        valences[name], vectors = torch.linalg.eigh(charge)
        back = torch.linalg.inv(unwhiten)
        maps[name] = tuple(vectors[:, side].mT @ back for side in (valences[name] > 0, valences[name] <= 0))
    return maps, valences


def test_charges_are_those_of_the_dissociation(cell, features):
    found = fusion.dissociate({name: values.double() for name, values in features.modalities.items()})
    for name, (unwhiten, charge) in cell.charges().items():
        torch.testing.assert_close(torch.linalg.eigvalsh(charge), found.channels[name].valences.sort().values)
        # Whitened features that come back are the features less their mean.
        values = features.modalities[name].double()
        whitened = found.coherence.whitenings[name].apply(values)
        torch.testing.assert_close(whitened @ unwhiten.mT, values - values.mean(0))


def test_the_division_of_the_cell_has_the_energy_of_its_strong_field_and_no_other_has_less(cell, monkeypatch):
    monkeypatch.setattr(divided_energy, "LEAST", 1e-12)
    energy = DividedEnergy(cell, standardised=True)
    maps, valences = divided_by_sign(cell)
    lowest = energy(maps)
    torch.testing.assert_close(
        lowest, -torch.stack([one.abs().mean() for one in valences.values()]).mean(), rtol=1e-6, atol=0
    )
    strong = [
        separation_energy(equilibrate(channel_cell(one, voltage=3000.0, debye_length=20.0)))
        for one in valences.values()
    ]
    torch.testing.assert_close(lowest, torch.stack(strong).mean(), rtol=0.03, atol=0)
    torch.manual_seed(0)

    def mixed(part):
        return torch.randn(len(part), len(part), dtype=torch.float64) @ part * 30

    # The parts may be in any basis, of any scale.
    again = {name: tuple(mixed(part) for part in parts) for name, parts in maps.items()}
    torch.testing.assert_close(energy(again), lowest, rtol=1e-6, atol=0)
    swapped = {name: parts[::-1] for name, parts in maps.items()}
    torch.testing.assert_close(energy(swapped), -lowest, rtol=1e-6, atol=0)
    for _ in range(50):
        drawn = {
            name: tuple(torch.randn(size, DIMS[name], dtype=torch.float64) for size in (3, 4))
            for name in DIMS
        }
        assert energy(drawn) > lowest


def test_gradients_are_right(cell):
    energy = DividedEnergy(cell, standardised=False)
    torch.manual_seed(1)
    parts = [
        torch.randn(size, length, dtype=torch.float64, requires_grad=True)
        for length in DIMS.values()
        for size in (3, length)
    ]
    assert torch.autograd.gradcheck(lambda a, b, c, d: energy({"a": (a, b), "b": (c, d)}), parts)


def test_a_gmf_that_starts_separated_stays_so(cell, features):
    def energy_after(weight):
        run = fusion.train(
            lambda _: fusion.GMF.from_cell(cell, free_energy_weight=weight),
            features,
            recipe=fusion.Recipe(epochs=6, hidden=16),
            progress=False,
        )
        layer = fusion.GMF.from_cell(cell, free_energy_weight=1.0)
        layer.load_state_dict(run.model.layer.state_dict(), strict=False)
        return float(layer(features.modalities).losses["free_energy"].detach())

    start = fusion.GMF.from_cell(cell, free_energy_weight=1.0)(features.modalities).losses["free_energy"]
    lowest = float(DividedEnergy(cell, standardised=True)(divided_by_sign(cell)[0]))
    assert float(start.detach()) < 0.97 * lowest
    assert energy_after(100.0) < 0.97 * lowest
    assert energy_after(0.0) > 0.9 * lowest


def test_the_loss_has_its_weight_and_steps_of_sequences_have_it_too(cell):
    layer = fusion.GMF.from_cell(cell, free_energy_weight=2.0)
    single = fusion.GMF.from_cell(cell, free_energy_weight=1.0)
    values = {name: torch.randn(4, length) for name, length in DIMS.items()}
    loss = layer(values).losses["free_energy"]
    torch.testing.assert_close(loss, 2 * single(values).losses["free_energy"])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(values).losses["free_energy"], loss)
    assert "free_energy" not in fusion.GMF.from_cell(cell)(values).losses
    stacked = fusion.Stacked(layer, fusion.find_layer("mbt"))
    steps = {name: torch.randn(4, 3, length) for name, length in DIMS.items()}
    lengths = {name: torch.full((4,), 3) for name in DIMS}
    torch.testing.assert_close(stacked(steps, None, lengths).losses["free_energy"], loss)
    with pytest.raises(ValueError, match="free_energy_weight must be 0 or more, got -1"):
        fusion.GMF.from_cell(cell, free_energy_weight=-1)
    with pytest.raises(RuntimeError, match="call fit"):
        DividedEnergy(fusion.CellGMF(DIMS), standardised=True)
