"""What a kernel is told about a batch of cells."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .lanes import lanes_in, part, put


class Numbers(NamedTuple):
    """Everything that equilibria of B cells depend on; derivatives with respect to it have the same form."""

    permittivity: Any  # (B, E or 1)
    spacings: Any  # (B, E)
    volumes: Any  # (B, N)
    fixed_charge: Any  # (B, N or 1)
    valences: Any  # (B, S)
    amounts: Any  # (B, S); in cells with a bath what it holds
    ends: Any  # (B, 7): potential, spring and charge of the left end, of the right end; potential of the bath


def each_tensor(change: Callable[[Tensor], Any], *arguments: Any) -> tuple[Any, ...]:
    """Arguments of a kernel with every tensor in them changed."""

    def changed(one: Any) -> Any:
        if isinstance(one, Tensor):
            return change(one)
        if hasattr(one, "_fields"):  # a named tuple
            return type(one)(*map(changed, one))
        return tuple(map(changed, one)) if isinstance(one, tuple) else one

    return tuple(map(changed, arguments))


@part
def pack_cells(work: Any, own: int, valence: int, group: Any, numbers: Numbers, charged: bool) -> None:
    """Put the numbers of whole cells side by side, at the rows from `own` on.

    What the ends add to Gauss's law, spring times potential less charge, in four rows, with the charges that are
    given if `charged`; and from row `own + valence` on valences and amounts.
    """
    species = numbers.valences.shape[1]
    for lane in range(lanes_in(work)):
        cell = group[lane]
        for side in range(2):
            level, spring = numbers.ends[cell, 3 * side], numbers.ends[cell, 3 * side + 1]
            given = numbers.ends[cell, 3 * side + 2] if charged else 0.0
            put(work, own + 2 * side, lane, spring)
            put(work, own + 2 * side + 1, lane, spring * level + given)
        for s in range(species):
            put(work, own + valence + s, lane, numbers.valences[cell, s])
            put(work, own + valence + species + s, lane, numbers.amounts[cell, s])
