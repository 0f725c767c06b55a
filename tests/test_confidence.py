"""Confidence: a probability that is right, and an error that tells when it is not."""

import pytest
import torch

import fusion
from fusion.evaluation.confidence import calibrate, calibration_error

DIMS = {"a": 8, "b": 6}


@pytest.fixture(scope="module")
def features():
    made, _ = fusion.shared_private(1600, DIMS, shared=3, private=2, noise=0.5, label_from="both")
    return made.with_split(0)


def trained(layer, features):
    # No missing case in training: the model is then much too sure of itself when something is missing.
    recipe = fusion.Recipe(epochs=12, hidden=32, random_subsets=False, each_alone=False)
    return fusion.train(layer, features, recipe=recipe, progress=False)


def right(run, features, present=None):
    return run.predict(features, present) == features.label


def test_what_is_calibrated_is_a_probability(features):
    run = trained("concat", features)
    confidence = calibrate(run, features)
    test = features.test
    claims, claimed, truth = [], [], []
    for missing in (None, "a", "b"):
        present = None if missing is None else {missing: torch.zeros(len(test), dtype=torch.bool)}
        claims.append(run.logits(test, present).softmax(-1).amax(-1))
        claimed.append(confidence(test, present))
        truth.append(right(run, test, present))
    claims, claimed, truth = (torch.cat(one) for one in (claims, claimed, truth))
    assert ((claimed > 0) & (claimed < 1)).all()
    assert abs(float(claimed.mean() - truth.double().mean())) < 0.05
    assert calibration_error(claimed, truth) < 0.06
    assert calibration_error(claims, truth) > 1.5 * calibration_error(claimed, truth)
    assert 0 < confidence.slope < 1  # it claimed too much


def test_the_error_of_known_confidences():
    truth = torch.tensor([True, False, True, True])
    assert calibration_error(torch.full((4,), 0.75), truth, bins=1) == pytest.approx(0.0)
    assert calibration_error(torch.tensor([0.9, 0.1, 0.9, 0.9]), truth, bins=2) == pytest.approx(0.05)
    assert calibration_error(truth.double(), truth, bins=4) == 0.0
    assert calibration_error(1 - truth.double(), truth, bins=4) == pytest.approx(1.0)
    # Of samples drawn with the probabilities that are claimed, the error is that of chance.
    torch.manual_seed(0)
    drawn = torch.rand(20000, dtype=torch.float64)
    assert calibration_error(drawn, torch.rand(20000, dtype=torch.float64) < drawn) < 0.015
    with pytest.raises(ValueError, match=r"needs two vectors of at least 9 samples .* \(4,\) and \(4,\)"):
        calibration_error(truth.double(), truth, bins=9)


def test_what_cannot_be_calibrated_is_said(features):
    run = trained("concat", features)
    with pytest.raises(ValueError, match="part must be one of"):
        calibrate(run, features, part="tests")
    easy = fusion.Features(
        {
            name: torch.ones(60, length) * torch.arange(60)[:, None].remainder(2)
            for name, length in DIMS.items()
        },
        label=torch.arange(60).remainder(2),
    )
    with pytest.raises(ValueError, match="decisions on the validation samples are all right"):
        calibrate(trained("concat", easy.with_split(0)), easy.with_split(0))
    numbers = fusion.Features(easy.modalities, label=torch.linspace(0, 1, 60))
    with pytest.raises(ValueError, match="only a classification can be right or wrong, got a regression"):
        calibrate(trained("concat", numbers.with_split(0)), numbers.with_split(0))
