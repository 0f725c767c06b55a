"""The grounded layer: measured maps, imputation of what is missing."""

import itertools

import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.evaluation.dependence import explained_variance
from fusion.grounded.ions import Noise
from fusion.grounded.spectral import Spectrum
from fusion.grounded.subspaces import dissociate
from fusion.layers.cell_gmf import CellGMF, _mean_energy

DIMS = {"a": 12, "b": 8, "c": 6}


@pytest.fixture(scope="module")
def features():
    return shared_private(3000, DIMS, shared=3, private=3, noise=0.4, seed=0)[0].modalities


@pytest.fixture(scope="module")
def fitted(features):
    layer = CellGMF(DIMS)
    layer.fit(features)
    return layer


def test_it_has_no_parameters_and_gmf_s_shapes(fitted, features):
    out = fitted(features)
    assert sum(p.numel() for p in fitted.parameters()) == 0
    assert {name: part.shape[-1] for name, part in out.fused.items()} == {"a": 18, "b": 14, "c": 12}
    assert {part.shape[-1] for part in out.invariant.values()} == {6}
    assert {name: part.shape[-1] for name, part in out.specific.items()} == DIMS
    # The invariant part of the next modality, in a circle, before the own specific part.
    torch.testing.assert_close(out.fused["c"], torch.cat([out.invariant["a"], out.specific["c"]], dim=-1))


def test_its_operators_are_the_gates_of_the_subspaces(features):
    layer = CellGMF(DIMS)
    subspaces = layer.fit(features)
    for name, one in subspaces.channels.items():
        invariant = layer.maps[name].invariant
        expected = one.basis.mT @ (one.gates.unsqueeze(-1) * one.basis)
        # Directions that are not shared with the anchor's coordinates are left out of the others' invariant part.
        tolerance = 1e-10 if name == "c" else 0.02
        torch.testing.assert_close(invariant.mT @ invariant, expected, rtol=0, atol=tolerance)


def test_invariant_parts_can_stand_in_for_each_other(fitted, features):
    """As well as the common coordinates of the subspaces, which are found by generalised Procrustes rotations."""
    double = {name: values.double() for name, values in features.items()}
    ours, theirs = fitted(double).invariant, dissociate(double).common(double)
    for one, other in (("a", "b"), ("b", "c"), ("c", "a")):
        found, best = ((part[one] - part[other]).square().sum() for part in (ours, theirs))
        assert found < 1.02 * best


def test_a_missing_modality_is_imputed_by_its_regression_on_those_present(fitted, features):
    double = {name: values.double() for name, values in features.items()}
    present = {"a": torch.zeros(3000, dtype=torch.bool)}
    out = fitted(double, present)
    # Least squares of the invariant part of `a` on the raw features of the others, solved independently.
    full = fitted(double).invariant["a"]
    others = torch.cat([double["b"], double["c"]], dim=-1)
    others = torch.cat([others, torch.ones(3000, 1)], dim=-1)
    expected = others @ torch.linalg.lstsq(others, full).solution
    error = (out.invariant["a"] - expected).norm() / expected.norm()
    assert error < 0.02  # the regression is not shrunk
    assert float(out.specific["a"].abs().max()) == 0.0
    torch.testing.assert_close(out.invariant["b"], fitted(double).invariant["b"])


def test_patterns_of_presence_may_differ_from_sample_to_sample(fitted, features):
    few = {name: values[:8] for name, values in features.items()}
    present = {
        "a": torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool),
        "b": torch.tensor([1, 1, 0, 1, 0, 0, 1, 1], dtype=torch.bool),
    }
    together = fitted(few, present)
    for index in range(8):
        alone = fitted(
            {name: values[index] for name, values in few.items()},
            {name: p[index] for name, p in present.items()},
        )
        for name in DIMS:
            torch.testing.assert_close(together.fused[name][index], alone.fused[name], rtol=1e-5, atol=1e-6)


def test_fitted_weights_can_be_saved_and_loaded(fitted, features):
    other = CellGMF(DIMS)
    missing = {"b": torch.zeros(3000, dtype=torch.bool)}
    other.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(
        other(features, missing).concatenated(), fitted(features, missing).concatenated()
    )


def test_loading_other_weights_forgets_the_imputations_of_the_old_ones(features):
    missing = {"b": torch.zeros(3000, dtype=torch.bool)}
    first, second = CellGMF(DIMS), CellGMF(DIMS)
    first.fit(features)
    second.fit({name: values.flip(-1) + 1 for name, values in features.items()})
    first(features, missing)
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(
        first(features, missing).concatenated(), second(features, missing).concatenated()
    )


def test_it_must_be_fitted_first(features):
    with pytest.raises(RuntimeError, match="call fit"):
        CellGMF(DIMS)(features)


def double(features):
    return {name: values.double() for name, values in features.items()}


def made(features=None, **settings):
    """A layer in float64, fitted if there are features."""
    layer = CellGMF(DIMS, **settings).double()
    if features is not None:
        layer.fit(features)
    return layer


@pytest.mark.parametrize(
    "settings", [{}, {"form": "rotation"}, {"train": ["gain"]}, {"anchor": "b"}], ids=str
)
def test_the_two_parts_give_the_features_back(features, settings):
    layer = made(features, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.3)
    values = {name: one.double() * 100 + 5 for name, one in features.items()}
    layer.fit(values)
    out = layer(values)
    back = layer.reconstruct(out.invariant, out.specific)
    for name in DIMS:
        torch.testing.assert_close(back[name], values[name], rtol=1e-10, atol=1e-10)


def test_the_power_of_the_parts_adds_up(fitted, features):
    out = fitted(double(features))
    for name, values in double(features).items():
        whitened = fitted.maps[name].whiten(values)
        power = out.invariant[name].square().sum(-1) + out.specific[name].square().sum(-1)
        torch.testing.assert_close(power, whitened.square().sum(-1))


def test_nothing_jumps_where_channels_change_places():
    """Two shared directions whose correlations cross: eigenvectors swap, the outputs move smoothly."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(4000, 7, generator=generator, dtype=torch.float64)

    def outputs(first, second):
        strength = torch.tensor([first, second], dtype=torch.float64)
        features = {
            "a": torch.cat([latents * strength, torch.zeros(4000, 2).double()], -1) + noise[:, :4],
            "b": torch.cat([latents, torch.zeros(4000, 1).double()], -1) + noise[:, 4:],
        }
        layer = CellGMF({"a": 4, "b": 3}, seed=1).double()
        layer.fit(features)
        shown = {name: values[:50] for name, values in features.items()}
        return layer(shown).concatenated()

    steps = torch.linspace(-0.02, 0.02, 21).tolist()
    path = [outputs(1.5 + step, 1.5 - step) for step in steps]
    moves = [float((one - other).abs().max()) for one, other in itertools.pairwise(path)]
    assert max(moves) < 2 * sorted(moves)[len(moves) // 2] < 0.05


def test_a_rotation_at_the_eigenbasis_is_the_operator(features):
    operator, rotation = made(features), made(features, form="rotation")
    coherence = operator._kept_coherence()
    with torch.no_grad():
        for name in DIMS:
            # A rotation proper: Cayley's map reaches no reflections.
            vectors = Spectrum.of(coherence.predictability(name)).vectors.mT.clone()
            vectors[0] *= torch.linalg.det(vectors)
            rotation.maps[name].rotation.weight = vectors
    rotation.fit(features)
    values = double(features)
    torch.testing.assert_close(
        rotation(values).concatenated(), operator(values).concatenated(), rtol=1e-6, atol=1e-6
    )


def test_the_free_energy_turns_any_basis_into_the_eigenbasis(features):
    """Minimised over rotations it finds the canonical directions (Schur-concavity), and falls on the way."""
    torch.manual_seed(0)
    layer = made(features, form="rotation", voltage=4.0).train()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    energies = []
    for _ in range(150):
        loss = layer(double(features)).losses["rotation_free_energy"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        energies.append(float(loss.detach()))
    operator = made(features, voltage=4.0)
    best = float(
        _mean_energy(operator._settled(operator._kept_coherence(), noise_of(operator), with_gradients=False))
    )
    assert energies[0] > best + 0.01
    assert energies[-1] == pytest.approx(best, abs=1e-4)
    assert min(energies) > best - 1e-9  # nothing is lower than the eigenbasis
    shown = {name: values[:200] for name, values in double(features).items()}
    torch.testing.assert_close(
        layer.eval()(shown).concatenated(), operator(shown).concatenated(), rtol=0, atol=0.05
    )


def noise_of(layer):
    return {name: layer.maps[name].noise for name in DIMS}


@pytest.mark.parametrize("gaps", [False, True])
def test_the_energy_pulls_at_features_as_at_covariances(features, monkeypatch, gaps):
    """With a memory of one batch the gradient is that of the energy of this very batch, by finite differences."""
    # Noise level, shrinkage and what pairs of modalities need to fit together are constants to the gradient.
    monkeypatch.setattr(Noise, "above", lambda *_: Noise(0.3, 3.0))
    monkeypatch.setattr("fusion.grounded.moments.oracle_shrinkage", lambda *_: 0.1)
    identity = torch.eye(sum(DIMS.values()), dtype=torch.float64)
    within = torch.block_diag(*(torch.ones(length, length) for length in DIMS.values())).bool()
    if gaps:
        monkeypatch.setattr(
            "fusion.grounded.moments.positive_definite",
            lambda matrix, _: torch.where(within, identity, 0.5 * matrix),
        )
    count = 240 if gaps else 80
    few = {name: values[:count].double() for name, values in features.items()}
    lacks = torch.arange(count) % 3
    present = {name: lacks != place for place, name in enumerate(DIMS)} if gaps else None

    def energy(moved):
        layer = CellGMF(DIMS, memory=count).double().train()
        layer.follow(gaps=gaps)
        return layer(few | {"a": moved}, present).losses["free_energy"]

    leaf = few["a"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(leaf), leaf)
    step = 1e-3 * gradient / gradient.norm()
    rise = float(energy(leaf.detach() + step) - energy(leaf.detach() - step)) / 2e-3
    # The grid follows the charges, which the gradient leaves out.
    assert rise == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_running_covariances_come_to_what_is_measured_at_once(features):
    follower = CellGMF(DIMS, memory=3000, refresh=1).double().train()
    for start in range(0, 3000, 100):
        follower({name: values[start : start + 100].double() for name, values in features.items()})
    follower.eval()
    assert not follower.measured
    fitted = made(features)
    for name in DIMS:
        ours, theirs = follower.maps[name].invariant, fitted.maps[name].invariant
        torch.testing.assert_close(ours.mT @ ours, theirs.mT @ theirs, rtol=0, atol=0.1)
    assert follower.moments.samples == pytest.approx(3000)


def test_samples_with_gaps_do_not_count(features):
    present = {"a": torch.arange(100) < 40}
    few = {name: values[:100].double() for name, values in features.items()}
    few["a"][40:] = torch.nan
    layer = CellGMF(DIMS, memory=500).double().train()
    out = layer(few, present)
    assert layer.moments.samples == pytest.approx(40)
    assert bool(torch.isfinite(out.concatenated()).all())


@pytest.mark.parametrize("name", ["voltage", "ground", "debye_length"])
def test_settings_of_the_cell_are_trained_with_the_right_gradients(features, name):
    few = {name: values[:60].double() for name, values in features.items()}
    layer = made(features, train=[name], voltage=2.0, debye_length=0.3).train()
    weights = torch.randn(layer.out_features, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shift = getattr(layer.maps["b"], f"{name}_shift")

    def loss():
        return (layer(few).concatenated().square() @ weights).mean()

    (gradient,) = torch.autograd.grad(loss(), shift)
    found = []
    for step in (1e-3, -1e-3):
        shift.data += step
        found.append(float(loss().detach()))
        shift.data -= step
    # The grid moves with the settings, which the gradient leaves out.
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(float(gradient), rel=1e-3)


def test_channels_at_the_edge_of_the_noise_leave_open_gates_open():
    """Half open, they turn common coordinates a little: a hundredth of the shared part is enough for a regression."""
    dims = {"a": 32, "b": 28, "c": 24}
    made, latents = shared_private(3000, dims, shared=5, private=5, noise=0.2, nonlinear=True, seed=3)
    layer = CellGMF(dims)
    found = layer.fit(made.modalities)
    assert any(((one.gates > 0.1) & (one.gates < 0.9)).any() for one in found.channels.values())
    out = layer.eval()(made.modalities)
    for name in dims:
        assert explained_variance(out.specific[name], latents["shared"]) < 0.01
        assert explained_variance(out.invariant[name], latents["shared"]) > 0.8


def test_the_charge_present_is_the_share_that_can_be_known(fitted, features):
    present = {
        "a": torch.tensor([True, True, False]),
        "b": torch.tensor([True, False, False]),
        "c": torch.tensor([True, True, True]),
    }
    share = fitted.charge_present(present)
    assert float(share[0]) == pytest.approx(1.0)
    assert 0 < float(share[2]) < float(share[1]) < 1
    # By definition: the explained power of the invariant parts over their power, on the training samples.
    values = double(features)
    full = fitted(values).invariant
    imputed = fitted(
        values, {name: torch.full((3000,), bool(one[1])) for name, one in present.items()}
    ).invariant
    power = sum(float((full[name] * imputed[name]).mean(0).sum()) for name in DIMS)
    assert float(share[1]) == pytest.approx(
        power / sum(float(one.square().mean(0).sum()) for one in full.values()), rel=0.02
    )


def test_settings_out_of_range_are_refused():
    for wrong, message in (
        ({"form": "free"}, "form must be one of operator, rotation, got 'free'"),
        ({"anchor": "z"}, "anchor must be one of a, b, c, got 'z'"),
        ({"memory": 1}, "memory must be at least 2 samples"),
        ({"refresh": 0}, "refresh must be an integer of 1 or more, got 0"),
        ({"free_energy_weight": -1.0}, "free_energy_weight must be 0 or more"),
        ({"train": ["charge"]}, "train must be one of voltage, ground, debye_length, gain, got 'charge'"),
        ({"safety": 0.5}, "safety must be above 1 and finite, got 0.5"),
        ({"memory": 100, "ground": 1.5}, "ground must lie between 0 and 1, got 1.5"),
        ({"debye_length": 0.0}, "debye_length must be above 0 and finite, got 0"),
        ({"voltage": -1.0}, "voltage must be above 0 and finite, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            CellGMF(DIMS, **wrong)
    with pytest.raises(TypeError, match="grund"):
        CellGMF(DIMS, memory=100, grund=0.4)


@pytest.mark.parametrize("anchor", ["c", "b"])
def test_a_modality_wider_than_all_others_is_fitted_as_any_other(monkeypatch, anchor):
    """Without eigenvectors of the whole; where it is not so wide, both ways are open and give the same maps."""
    dims = {"a": 6, "b": 30, "c": 5}
    made, _ = shared_private(400, dims, shared=2, private=2, pairwise=1, noise=0.3)
    values = {name: one.double() for name, one in made.modalities.items()}
    monkeypatch.setattr("fusion.grounded.covariance.WIDE", 10)
    quick, ordinary = CellGMF(dims, anchor=anchor), CellGMF(dims, anchor=anchor)
    quick.fit(values)
    with monkeypatch.context() as patch:
        patch.setattr("fusion.grounded.covariance.Coherence.is_wide", lambda *_: False)
        ordinary.fit(values)
    for name in dims:
        for part in ("invariant", "specific"):
            found, expected = (getattr(layer.maps[name], part) for layer in (quick, ordinary))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert 2.5 < float(quick.maps["b"].invariant.square().sum()) < 4.1  # two of all, one with each
    # What is trained needs gradients, which the quick way does not have.
    trained = CellGMF(dims, anchor=anchor, train=["ground"]).train()
    trained.fit(values)
    trained(values).concatenated().square().sum().backward()
    assert trained.maps["b"].ground_shift.grad is not None


def test_no_sample_needs_to_have_every_modality():
    made = shared_private(6000, DIMS, shared=3, private=3, noise=0.4, seed=0)[0].modalities
    turn = torch.arange(6000) % 3
    present = {name: turn != index for index, name in enumerate(DIMS)}
    holes = {name: torch.where(present[name][:, None], values, torch.nan) for name, values in made.items()}
    # Every pair is seen by samples of its own, and shuffling does not know what that makes of three together.
    layer, whole = CellGMF(DIMS, memory=500, safety=3.0), CellGMF(DIMS)
    found = layer.fit(holes, present=present)
    whole.fit(made)
    assert not layer.moments.seen.any()  # nothing complete to follow from
    for name, one in found.channels.items():
        assert one.invariant_dimension == pytest.approx(3.0, abs=0.1)
        # Maps of four thousand samples with pairs of two thousand are near those of all.
        expected = whole.maps[name].invariant
        assert (layer.maps[name].invariant - expected).norm() < 0.15 * expected.norm()
