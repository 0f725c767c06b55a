"""Ready encoders: valid steps only, in any company, and inside a model of somebody else's."""

import pytest
import torch
from torch import nn

import fusion
from fusion.encoders import AttentionEncoder, RecurrentEncoder, ResidualEncoder, VectorEncoder, positions

SEQUENTIAL = [RecurrentEncoder, AttentionEncoder]


def sequences(samples=5, steps=6):
    lengths = torch.tensor([6, 1, 3, 4, 6])[:samples]
    return torch.randn(samples, steps, 3), lengths


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("maker", SEQUENTIAL)
def test_padded_steps_influence_nothing(maker, tokens):
    encoder, (values, lengths) = maker(3, 7, tokens=tokens, width=8), sequences()
    spoilt = values.clone()
    for row, length in zip(spoilt, lengths, strict=True):
        row[length:] = torch.nan
    spoilt.requires_grad_()
    found = encoder(spoilt, lengths)
    assert torch.equal(found, encoder(values, lengths))
    assert found.shape == ((5, 6, 7) if tokens else (5, 7))
    found.square().sum().backward()
    assert torch.isfinite(spoilt.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("maker", SEQUENTIAL)
def test_a_sequence_is_encoded_the_same_alone_and_cut(maker):
    encoder, (values, lengths) = maker(3, 7, tokens=True, width=8).eval(), sequences()
    together, means = encoder(values, lengths), maker(3, 7, width=8)
    means.load_state_dict(encoder.state_dict())
    for i, length in enumerate(lengths):
        alone = encoder(values[i, :length])
        torch.testing.assert_close(together[i, :length], alone)
        assert not together[i, length:].any()
        torch.testing.assert_close(means(values, lengths)[i], alone.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", SEQUENTIAL)
def test_steps_know_their_order(maker):
    encoder, values = maker(3, 7, width=8).eval(), sequences()[0]
    assert not torch.allclose(encoder(values), encoder(values.flip(1)), atol=1e-3)


@pytest.mark.parametrize("maker", SEQUENTIAL)
def test_no_step_gives_zeros(maker):
    encoder, (values, _) = maker(3, 7, width=8), sequences()
    found = encoder(values, torch.tensor([0, 2, 0, 1, 6]))
    assert not found[[0, 2]].any()
    assert found[[1, 3, 4]].all()


@pytest.mark.parametrize("maker", SEQUENTIAL)
def test_batch_axes(maker):
    encoder, (values, lengths) = maker(3, 7, width=8).eval(), sequences(4)
    arranged = encoder(values.reshape(2, 2, 6, 3), lengths.reshape(2, 2))
    torch.testing.assert_close(arranged.flatten(0, 1), encoder(values, lengths))


def test_recurrent_encoder_runs_both_ways():
    encoder = RecurrentEncoder(3, 7, tokens=True, width=8)
    values = torch.randn(1, 6, 3, requires_grad=True)
    for step in (0, 3, 5):
        (gradient,) = torch.autograd.grad(encoder(values)[0, step].sum(), values)
        assert gradient.abs().amax(-1).all()


def test_positions_are_sines_and_cosines():
    found = positions(50, 6)
    step = torch.arange(50.0)
    for pair in range(3):
        rate = 10_000 ** (-2 * pair / 6)
        torch.testing.assert_close(found[:, 2 * pair], torch.sin(rate * step))
        torch.testing.assert_close(found[:, 2 * pair + 1], torch.cos(rate * step))


def test_vector_encoder_is_a_perceptron():
    encoder = VectorEncoder(3, 7, width=8, depth=2)
    assert [type(part).__name__ for part in encoder] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    assert encoder(torch.randn(2, 5, 3)).shape == (2, 5, 7)


def test_residual_encoder_corrects_what_comes_in():
    encoder, values = ResidualEncoder(6, width=8), torch.randn(2, 5, 6)
    torch.testing.assert_close(encoder(values), values + encoder.perceptron(values))
    nn.init.zeros_(encoder.perceptron[-1].weight)
    nn.init.zeros_(encoder.perceptron[-1].bias)
    assert torch.equal(encoder(values), values)


def test_two_lines_in_a_model_of_your_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.audio = fusion.RecurrentEncoder(3, 16)
            self.fuse = fusion.GMF({"audio": 16, "image": 5})
            self.head = nn.Linear(self.fuse.out_features, 2)

        def forward(self, audio, lengths, image):
            fused = self.fuse({"audio": self.audio(audio, lengths), "image": image})
            return self.head(fused.concatenated()), fused.losses["reconstruction"]

    values, lengths = sequences()
    logits, loss = Own()(values, lengths, torch.randn(5, 5))
    assert logits.shape == (5, 2)
    assert loss > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VectorEncoder(0, 7), "inputs must be an integer of 1 or more, got 0"),
        (lambda: ResidualEncoder(0), "inputs must be an integer of 1 or more, got 0"),
        (lambda: VectorEncoder(3, 7, dropout=1), "dropout must be from 0 to below 1, got 1"),
        (lambda: RecurrentEncoder(3, 7, depth=0), "depth must be an integer of 1 or more, got 0"),
        (lambda: AttentionEncoder(3, 7, width=9, heads=3), "width must be even, got 9"),
        (
            lambda: RecurrentEncoder(3, 7)(torch.ones(5, 6, 4)),
            r"sequences of 3 channels, \(\*batch, T, 3\), got",
        ),
        (lambda: RecurrentEncoder(3, 7)(torch.ones(3)), r"got the shape \(3,\)"),
        (
            lambda: AttentionEncoder(3, 7)(torch.ones(5, 6, 3), torch.ones(4).long()),
            r"lengths must have the shape \(5,\) of the batch, got \(4,\)",
        ),
        (
            lambda: RecurrentEncoder(3, 7)(torch.ones(2, 6, 3), torch.tensor([2, 7])),
            "lengths must be from 0 to the 6 steps of the sequences, got 2 to 7",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
