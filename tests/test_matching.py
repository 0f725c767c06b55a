"""Retrieval, conflicts and parts shared by some, against closed forms and latents that are known."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from fusion.data.datasets import shared_private
from fusion.evaluation.retrieval import ranking_scores, retrieval_scores
from fusion.grounded.sharing import joint_diagonaliser, share_out
from fusion.grounded.subspaces import dissociate

DIMS = {"a": 9, "b": 7, "c": 5}


def draw(samples=2000, seed=0, noise=0.5, dims=DIMS, **more):
    return shared_private(samples, dims, shared=2, private=3, noise=noise, seed=seed, **more)


@pytest.fixture(scope="module")
def known():
    """Features of three modalities and what dissociation makes of them."""
    features = draw()[0].modalities
    return features, dissociate(features)


def model(found, names):
    """The covariance of gated channels, written out with numpy."""
    where, matrix = found.coherence.slices(), found.coherence.matrix.numpy()
    rows = []
    for one in names:
        mine, blocks = found.channels[one], []
        for other in names:
            theirs = found.channels[other]
            block = mine.basis.numpy() @ matrix[where[one], where[other]] @ theirs.basis.numpy().T
            gates = np.outer(mine.gates.numpy() ** 0.5, theirs.gates.numpy() ** 0.5)
            blocks.append(np.eye(len(mine.gates)) if one == other else gates * block)
        rows.append(blocks)
    return np.block(rows)


def log_density(covariance, channels):
    return multivariate_normal(cov=covariance).logpdf(channels)


@pytest.mark.parametrize("names", [("a", "b"), ("c", "a"), ("a", "b", "c")])
def test_conflict_is_the_log_likelihood_ratio_of_the_canonical_model(known, names):
    features, found = known
    some = {name: features[name][:50] for name in names}
    channels = {name: found.whiten(features)[name][:50].numpy() for name in names}
    expected = np.zeros(50)  # of more than two, the sum over pairs
    for pair in combinations(names, 2):
        expected -= log_density(model(found, pair), np.concatenate([channels[one] for one in pair], axis=1))
        expected += sum(log_density(np.eye(channels[one].shape[1]), channels[one]) for one in pair)
    np.testing.assert_allclose(found.conflict(some), expected, atol=1e-9)
    assert found.conflict({name: values[0] for name, values in some.items()}).shape == ()


@pytest.mark.parametrize(("asked", "offered"), [(("a",), ("b",)), (("c", "a"), ("b",)), (("b",), ("a", "c"))])
def test_retrieval_ranks_by_the_log_likelihood_ratio(known, asked, offered):
    features, found = known
    channels = {name: u.numpy() for name, u in found.whiten(features).items()}
    queries, gallery = (
        np.concatenate([channels[name][rows] for name in names], axis=1)
        for names, rows in ((asked, slice(0, 6)), (offered, slice(0, 40)))
    )
    pairs = np.concatenate([np.repeat(queries, 40, axis=0), np.tile(gallery, (6, 1))], axis=1)
    expected = log_density(model(found, (*asked, *offered)), pairs).reshape(6, 40)
    expected -= log_density(model(found, asked), queries)[:, None]
    expected -= log_density(model(found, offered), gallery)
    ranking = found.retrieve(
        {name: features[name][:6] for name in asked}, {name: features[name][:40] for name in offered}, k=40
    )
    np.testing.assert_allclose(ranking.similarities, -np.sort(-expected, axis=1), atol=1e-9)
    assert torch.equal(ranking.indices[:, 0], torch.tensor(expected.argmax(axis=1)))


def test_cosine_is_that_of_weighted_variates(known):
    features, found = known
    ranking = found.retrieve({"a": features["a"]}, {"b": features["b"]}, k=5, similarity="cosine")
    assert bool((ranking.similarities.abs() <= 1 + 1e-12).all())
    # The common coordinates of two modalities are those variates but for the weights.
    two = dissociate({name: features[name] for name in ("a", "b")})
    common = two.common(features)
    rho = (common["a"] * common["b"]).mean(0).abs() / two.channels["a"].gates[:7].clamp(min=1e-6)
    weighted = [values * rho.sqrt() for values in common.values()]
    mine = two.retrieve({"a": features["a"]}, {"b": features["b"]}, k=10, similarity="cosine")
    labels = torch.arange(2000)
    expected = retrieval_scores(weighted[0], labels, weighted[1], labels)
    assert ranking_scores(mine.indices, labels, labels) == pytest.approx(expected, abs=2e-3)


def test_retrieval_finds_the_sample_and_several_modalities_find_it_better(known):
    features, found = known
    labels = torch.arange(len(features["a"]))

    def score(asked, **how):
        ranking = found.retrieve({name: features[name] for name in asked}, {"b": features["b"]}, **how)
        return ranking_scores(ranking.indices, labels, labels)["recall@10"]

    assert score(["a"]) > 5 * 10 / len(labels)
    assert score(["a", "c"]) > 1.1 * score(["a"])
    assert score(["a"]) >= score(["a"], similarity="cosine")
    assert found.retrieve({"a": features["a"][:3]}, {"b": features["b"][:2]}).indices.shape == (3, 2)


def test_conflict_is_as_good_as_the_true_model_and_silent_about_unrelated_modalities():
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(3)
    mixing = torch.randn(12, 16, dtype=torch.float64) / 3
    mixing[4:8, 9:] = mixing[8:, :9] = 0  # four shared latents, and four of either
    covariance = (mixing.T @ mixing + 0.1 * torch.eye(16)).numpy()
    rows = torch.tensor(np.random.default_rng(0).multivariate_normal(np.zeros(16), covariance, 6000))
    features = {"a": rows[:, :9], "b": rows[:, 9:]}
    found = dissociate({name: values[:3000] for name, values in features.items()})
    test = {name: values[3000:] for name, values in features.items()}
    swapped = torch.arange(3000) < 1500
    test["b"] = torch.where(swapped[:, None], test["b"].roll(1500, 0), test["b"])
    joint = torch.cat(list(test.values()), dim=1).numpy()
    apart = covariance.copy()
    apart[:9, 9:] = apart[9:, :9] = 0
    best = roc_auc_score(swapped, log_density(apart, joint) - log_density(covariance, joint))
    assert 0.8 < best < 0.99
    assert roc_auc_score(swapped, found.conflict(test)) > best - 0.01
    unrelated = {"a": features["a"], "b": features["b"].roll(11, 0)}
    assert float(dissociate(unrelated).conflict(unrelated).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, f: s.conflict({"a": f["a"]}), r"at least two modalities are needed, got \['a'\]"),
        (
            lambda s, f: s.conflict({"a": f["a"], "z": f["b"]}),
            r"must be some of \['a', 'b', 'c'\], got \['z'\]",
        ),
        (lambda s, f: s.retrieve({"a": f["a"]}, {"a": f["a"]}), r"different modalities, got \['a'\] in both"),
        (lambda s, f: s.retrieve({}, {"a": f["a"]}), r"must be some of .* got \[\]"),
        (lambda s, f: s.retrieve({"a": f["a"]}, {"b": f["b"]}, k=0), "k must be 1 or more, got 0"),
        (
            lambda s, f: s.retrieve({"a": f["a"]}, {"b": f["b"]}, similarity="dot"),
            "'likelihood' or 'cosine', got 'dot'",
        ),
    ],
)
def test_errors_say_what_is_wrong(known, call, message):
    with pytest.raises(ValueError, match=message):
        call(known[1], known[0])


@pytest.mark.parametrize("noise", [0.2, 0.5])
@pytest.mark.parametrize("samples", [1000, 10_000])
def test_parts_shared_by_some_are_found_and_named(samples, noise):
    dims = {"a": 30, "b": 24, "c": 20}
    for seed in range(3):
        features, latents = draw(samples, seed, noise, dims, pairwise=2)
        found = dissociate(features.modalities)
        whitened = found.coherence.whiten(features.modalities)
        for name, sharing in found.shared_by().items():
            pairs = ["+".join(pair) for pair in combinations(dims, 2) if name in pair]
            assert sharing.counts == {"a+b+c": 2} | dict.fromkeys(pairs, 2)
            for part in pairs:
                rows = sharing.directions[[one == part for one in sharing.names]]
                assert explained(whitened[name] @ rows.mT, latents[part]) > 0.6
                assert explained(whitened[name] @ rows.mT, latents["shared"]) < 0.05


def explained(inputs, targets):
    """R² of a linear regression."""
    inputs, targets = inputs - inputs.mean(0), (targets - targets.mean(0)).double()
    rest = targets - inputs @ torch.linalg.lstsq(inputs, targets).solution
    return float(1 - rest.square().sum() / targets.square().sum())


def test_parts_of_equal_strength_are_told_apart():
    # The predictability is 0.8 times the identity: any basis is as good as another.
    torch.manual_seed(4)
    strength = 0.8**0.5
    across = {
        "b": torch.diag(torch.tensor([1.0, 1, 0, 0])).double() * strength,
        "c": torch.diag(torch.tensor([0.0, 0, 1, 1])).double() * strength,
    }
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    sharing = share_out("a", turn, across, 0.1, ["a", "b", "c"])
    assert sharing.counts == {"a+b": 2, "a+c": 2}
    for other, values in sharing.r_squared.items():
        expected = [0.8 * (other in name) for name in sharing.names]
        assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_matrices_of_common_eigenvectors_become_diagonal():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    values = torch.rand(3, 6, dtype=torch.float64)
    values[2] = 1 - values[0] - values[1]  # their sum is the identity and says nothing
    found = joint_diagonaliser(turn @ torch.diag_embed(values) @ turn.mT)
    permutation = (found @ turn).abs()
    torch.testing.assert_close(permutation.sort(-1).values[:, -1], torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(found @ found.mT, torch.eye(6, dtype=torch.float64))
    assert joint_diagonaliser(torch.zeros(2, 0, 0)).shape == (0, 0)
