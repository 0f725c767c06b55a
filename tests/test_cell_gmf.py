"""The grounded layer: measured maps, imputation of what is missing."""

import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.grounded.subspaces import dissociate
from fusion.layers.cell_gmf import CellGMF

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
    layer = CellGMF(DIMS, safety=0.5)
    with pytest.raises(ValueError, match="safety must be above 1"):
        layer.fit(features)
