"""Cyclic reduction against dense solves."""

import pytest
import torch

from pnp.solvers.block_tridiagonal import BlockTridiagonal, solved


def random_blocks(nodes: int, size: int, batch: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    lower, diagonal, upper = torch.randn(3, *batch, nodes, size, size, dtype=torch.float64)
    return lower, diagonal + 6 * size * torch.eye(size, dtype=torch.float64), upper


def dense(lower: torch.Tensor, diagonal: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    nodes, size = diagonal.shape[-3], diagonal.shape[-1]
    full = torch.zeros(*diagonal.shape[:-3], nodes, size, nodes, size, dtype=torch.float64)
    for k in range(nodes):
        full[..., k, :, k, :] = diagonal[..., k, :, :]
        if k > 0:
            full[..., k, :, k - 1, :] = lower[..., k, :, :]
        if k < nodes - 1:
            full[..., k, :, k + 1, :] = upper[..., k, :, :]
    return full.flatten(-2).flatten(-3, -2)


def error(blocks: tuple[torch.Tensor, ...], rhs: torch.Tensor) -> float:
    found = BlockTridiagonal(*blocks).solve(rhs).flatten(-3, -2)
    wanted = torch.linalg.solve(dense(*blocks), rhs.flatten(-3, -2))
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [1, 3, 5])
def test_agrees_with_dense_for_every_number_of_nodes(size):
    for nodes in range(1, 41):
        rhs = torch.randn(nodes, size, 2, dtype=torch.float64)
        assert error(random_blocks(nodes, size), rhs) < 1e-13, nodes


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
@pytest.mark.parametrize("size", [1, 3])
def test_agrees_with_dense_in_a_batch(size, batch):
    assert (
        error(random_blocks(13, size, batch), torch.randn(*batch, 13, size, 4, dtype=torch.float64)) < 1e-13
    )


@pytest.mark.parametrize("size", [1, 3])
def test_rows_of_very_different_size(size):
    blocks = random_blocks(21, size)
    scale = 10 ** torch.linspace(-12, 12, 21 * size, dtype=torch.float64).reshape(21, size, 1)
    scale = scale.reshape(-1)[torch.randperm(21 * size)].reshape(21, size, 1)
    rhs = torch.randn(21, size, 1, dtype=torch.float64)
    plain = BlockTridiagonal(*blocks).solve(rhs)
    scaled = BlockTridiagonal(*(block * scale for block in blocks)).solve(rhs * scale)
    assert torch.allclose(plain, scaled, rtol=1e-12, atol=1e-14)


def test_outer_blocks_are_not_used():
    lower, diagonal, upper = random_blocks(6, 2)
    rhs = torch.randn(6, 2, 1, dtype=torch.float64)
    before = BlockTridiagonal(lower, diagonal, upper).solve(rhs)
    lower[0], upper[-1] = 3.0, -2.0
    assert torch.allclose(BlockTridiagonal(lower, diagonal, upper).solve(rhs), before, rtol=1e-13)


@pytest.mark.parametrize(("nodes", "size"), [(1, 2), (2, 1), (7, 1), (8, 3)])
def test_gradient_of_the_right_hand_side(nodes, size):
    matrix = BlockTridiagonal(*random_blocks(nodes, size))
    rhs = torch.randn(nodes, size, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix.solve, (rhs,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize(("nodes", "size", "batch"), [(1, 2, ()), (2, 1, (3,)), (7, 1, ()), (4, 3, (2,))])
def test_gradients_of_a_solution(nodes, size, batch):
    """First and second ones, by the blocks and the right-hand side, in rows that are far from symmetric."""
    given = *random_blocks(nodes, size, batch), torch.randn(*batch, nodes, size, 2, dtype=torch.float64)
    assert torch.equal(solved(*given), BlockTridiagonal(*given[:3]).solve(given[3]))
    given = [one.requires_grad_() for one in given]
    assert torch.autograd.gradcheck(solved, given, eps=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(solved, given, eps=1e-6, atol=1e-7)


def test_one_factorisation_serves_many_right_hand_sides():
    blocks = random_blocks(10, 3)
    matrix, full = BlockTridiagonal(*blocks), dense(*blocks)
    for _ in range(3):
        rhs = torch.randn(10, 3, 1, dtype=torch.float64)
        product = (full @ matrix.solve(rhs).flatten(0, 1)).reshape(rhs.shape)
        assert torch.allclose(product, rhs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [None, 1, 2])
def test_sums_of_rows_keep_what_the_diagonal_loses(first):
    """Nodes that exchange a billion million times what holds them, here each by a number of its own."""
    nodes, size = 13, 3
    eye = torch.eye(size, dtype=torch.float64)
    lower, upper = -1e15 * eye.expand(2, nodes, -1, -1).clone()
    lower[0], upper[-1] = 0.0, 0.0
    held = torch.rand(nodes, size, size, dtype=torch.float64) + 3 * eye
    rhs = torch.randn(nodes, size, 1, dtype=torch.float64)
    found = BlockTridiagonal(lower, held, upper, sums=True, first=first).solve(rhs)
    # All nodes are one.
    wanted = torch.linalg.solve(held.sum(0), rhs.sum(0))
    assert torch.allclose(found, wanted.expand(nodes, -1, -1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("nodes", [1, 2, 7, 8])
def test_sums_of_rows_are_the_same_equations(nodes):
    lower, diagonal, upper = random_blocks(nodes, 3)
    lower[0], upper[-1] = 0.0, 0.0
    rhs = torch.randn(nodes, 3, 2, dtype=torch.float64)
    wanted = BlockTridiagonal(lower, diagonal, upper).solve(rhs)
    found = BlockTridiagonal(lower, lower + diagonal + upper, upper, sums=True, first=2).solve(rhs)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)
