r"""Nodes on :math:`0 \le x \le L`, uniform or refined towards the boundaries.

A node sits at each end, and one at the ground *b* where the cell has one. The control volume of a node
reaches to the middle of its two edges. Spacings near a wall are computed from the distance to that wall,
never as differences of `x`, which would lose the digits that a double layer needs.
"""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from .boundaries import Boundary, ChargedWall, Electrode, Periodic, Reservoir
from .cell import Cell
from .elementary import cosh, evenly, exp, expm1, log, sinh, tanh
from .quantity import Quantity, as_quantity
from .waveforms import extremes

WALL_SPACING = 0.02
"""Spacing at the wall over the inner Debye length, for 200 nodes."""
UNKNOWN_DROP = 10.0
"""Potential drop, in thermal voltages, that a grid resolves at an electrode whose current is given."""


@dataclass(frozen=True, eq=False)
class Grid:
    r"""Positions, edges and control volumes of the nodes of a batch of cells.

    Arguments:
        nodes: Increasing positions from 0 to the cell's length [m], shape `(*batch, node)`.
        spacings: Lengths of the edges [m], `(*batch, edge)`; default: differences of `nodes`.
        ground_node: Index of the node at the ground, None where the cell has none.

    Raises:
        ValueError: Fewer than three nodes, or positions that do not increase from 0.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> grid = pnp.Grid.refined(cell, 201)
        >>> f"{float(grid.spacings[0]):.5f} at the wall, {float(grid.spacings.max()):.4f} in the middle"
        '0.00091 at the wall, 0.0182 in the middle'
    """

    nodes: Tensor
    _: KW_ONLY
    spacings: Quantity = None
    ground_node: int | None = None

    def __post_init__(self) -> None:
        nodes = as_quantity(self.nodes, "Grid: nodes")
        if nodes.dim() == 0 or nodes.shape[-1] < 3:
            raise ValueError(f"Grid: nodes must hold at least 3 positions, got shape {tuple(nodes.shape)}.")
        spacings = nodes.diff(dim=-1) if self.spacings is None else self.spacings
        if bool((spacings <= 0).any()) or bool((nodes[..., 0] != 0).any()):
            raise ValueError("Grid: nodes must start at 0 and increase strictly.")
        if spacings.shape[-1] != nodes.shape[-1] - 1 or bool(
            ((nodes.diff(dim=-1) - spacings).abs() > 1e-6 * spacings + 1e-12 * nodes[..., -1:]).any()
        ):
            raise ValueError("Grid: spacings must be the distances between neighbouring nodes.")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "spacings", spacings)

    @property
    def volumes(self) -> Tensor:
        """Lengths of the control volumes [m], shape `(*batch, node)`; they sum to the cell's length."""
        half = self.spacings / 2
        return torch.cat([half[..., :1], half[..., 1:] + half[..., :-1], half[..., -1:]], dim=-1)

    @property
    def middles(self) -> Tensor:
        """Middles of the edges [m], shape `(*batch, edge)`."""
        return self.nodes[..., :-1] + self.spacings / 2

    @classmethod
    def uniform(cls, cell: Cell, nodes: int) -> "Grid":
        """Equal spacing (on either side of the ground, if there is one).

        Raises ValueError when `nodes` is below 3 (5 with a ground).
        """
        return _graded(cell, nodes, None)

    @classmethod
    def refined(cls, cell: Cell, nodes: int) -> "Grid":
        r"""Graded by a sinh map towards both ends (and both sides of the ground).

        The spacing at the wall is :math:`0.02\,(200/N)` of the *inner* Debye length
        :math:`\lambda_D \max(1/\cosh(z\,\Delta\phi/2V_T),\ 2\lambda_D/L)`, the thickness to which a wall
        with potential drop :math:`\Delta\phi` compresses its double layer (the second only in a closed
        cell, which runs out of ions). The grading is a constant of the
        gradients; the positions follow `length` and `ground` differentiably.

        Raises ValueError when `nodes` is below 3 (5 with a ground).
        """
        return _graded(cell, nodes, None if cell.is_periodic else _inner_debye_length(cell))

    def coarsened(self) -> "Grid":
        """Every other node, for Richardson's extrapolation.

        Raises ValueError unless the number of nodes is odd, at least 5, and the ground's index is even.
        """
        nodes = self.nodes.shape[-1]
        if nodes < 5 or nodes % 2 == 0 or (self.ground_node or 0) % 2:
            raise ValueError(
                "Grid: to be coarsened a grid must have an odd number of nodes, at least 5, and an even number of "
                f"edges left of the ground; got {nodes} nodes, ground node {self.ground_node}."
            )
        return Grid(
            self.nodes[..., ::2],
            spacings=self.spacings[..., ::2] + self.spacings[..., 1::2],
            ground_node=None if self.ground_node is None else self.ground_node // 2,
        )


def _graded(cell: Cell, nodes: int, resolved: Tensor | None) -> Grid:
    least = 3 if cell.ground is None else 5
    if not isinstance(nodes, int) or nodes < least:
        raise ValueError(f"Grid: nodes must be an integer of at least {least}, got {nodes!r}.")
    length = cell.length.to(cell.device)
    if cell.ground is None:
        return _sound(*_segment(length, nodes - 1, resolved, nodes), None)
    ground = cell.ground.to(cell.device)
    # Half of the edges on either side, wherever the ground lies: both sides carry two double layers, and
    # an element's grid must not depend on the rest of its batch.
    edges_left = (nodes - 1) // 2
    left, spacings_left = _segment(ground, edges_left, resolved, nodes)
    right, spacings_right = _segment(length - ground, nodes - 1 - edges_left, resolved, nodes)
    positions = _join(left, ground.unsqueeze(-1) + right[..., 1:])
    return _sound(positions, _join(spacings_left, spacings_right), edges_left)


def _sound(nodes: Tensor, spacings: Tensor, ground_node: int | None) -> Grid:
    """A grid that need not be checked, because it was made here."""
    grid = object.__new__(Grid)
    for name, value in (("nodes", nodes), ("spacings", spacings), ("ground_node", ground_node)):
        object.__setattr__(grid, name, value)
    return grid


def _join(left: Tensor, right: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat([left.expand(*batch, -1), right.expand(*batch, -1)], dim=-1)


def _segment(length: Tensor, edges: int, resolved: Tensor | None, nodes: int) -> tuple[Tensor, Tensor]:
    r"""Positions and spacings of one two-sided map, :math:`d(s) = \tfrac{L}{2}\sinh(as)/\sinh a`."""
    if resolved is None:
        grading = torch.zeros_like(length.detach())
    else:
        spacing = WALL_SPACING * 200 / nodes * resolved
        grading = _grading((spacing * edges / length.detach()).clamp(max=1.0))
    half, step = edges // 2, 2.0 / edges
    middles = (torch.arange(half, dtype=torch.float64, device=length.device) + 0.5) * step
    left = _spacing(length, grading, middles, step)
    parts = [left, left.flip(-1)]
    if edges % 2:  # the edge across the middle is split there
        parts.insert(1, 2 * _spacing(length, grading, 1 - middles.new_full((1,), step / 4), step / 2))
    # The right half mirrors the left one.
    end = length.expand(left.shape[:-1]).unsqueeze(-1)
    inner = left.cumsum(-1)
    before = inner if edges % 2 else inner[..., :-1]
    return torch.cat([0 * end, inner, end - before.flip(-1), end], dim=-1), torch.cat(parts, dim=-1)


def _spacing(length: Tensor, grading: Tensor, middles: Tensor, step: float) -> Tensor:
    """Spacings of `step` around `middles` after the map.

    sinh(s2) - sinh(s1) = 2 cosh((s1 + s2)/2) sinh((s2 - s1)/2) has no cancellation.
    """
    graded = grading > 1e-6
    a = torch.where(graded, grading, torch.full_like(grading, 1e-9))  # whose cosh is one
    middle = torch.where(graded, sinh(a * step / 2) / sinh(a), torch.full_like(a, step / 2))
    return cosh(a.unsqueeze(-1) * middles) * (middle * length).unsqueeze(-1)


@evenly  # once, instead of in every function below
def _grading(ratio: Tensor) -> Tensor:
    r"""Solve :math:`a/\sinh a = r` for :math:`0 < r \le 1` by Newton's method in :math:`\ln`."""
    target = log(ratio.clamp(min=1e-280))
    large = 0.7 - target
    large = large + log(2 * (large + log(2 * (0.3 + large))))  # a = ln(2a/r), twice
    a = torch.where(target > -1, torch.sqrt(-6 * target), large).clamp(min=1e-9)
    for _ in range(6):  # five reach rounding for every ratio
        value = log(a) - (a + log(-expm1(-2 * a) / 2)) - target
        slope = 1 / a - 1 / tanh(a)
        slope = torch.where(slope == 0, -torch.ones_like(slope), slope)
        a = (a - value / slope).clamp(min=1e-9, max=690.0)
    return torch.where(ratio >= 1, torch.zeros_like(a), a)


def _inner_debye_length(cell: Cell) -> Tensor:
    with torch.no_grad():
        electrolyte = cell.electrolyte
        outer = electrolyte.debye_length(cell.concentrations).to(cell.device)
        if cell.permittivity_profile is not None:
            # Where the permittivity is low, layers are thin.
            positions = torch.linspace(0, 1, 101, dtype=torch.float64, device=outer.device)
            positions = (positions * cell.length.to(outer.device).unsqueeze(-1)).expand(*cell.batch_shape, -1)
            least = cell.permittivity_profile(positions).amin(-1)
            outer = outer * torch.sqrt(least.clamp(min=1e-6, max=1.0))
        length = cell.length.to(cell.device)
        voltage = electrolyte.thermal_voltage.to(cell.device)
        valence = electrolyte.valences.abs().amax(-1).to(cell.device)
        drop = wall_drop(cell) / voltage * valence
        compressed = exp(-drop / 2) * 2 / (1 + exp(-drop))  # 1/cosh without overflow
        for end in (cell.left, cell.right):
            if isinstance(end, ChargedWall):
                field = end.charge.to(cell.device) / electrolyte.permittivity.to(cell.device)
                compressed = torch.minimum(
                    compressed, 1 / torch.sqrt(1 + (valence * field * outer / voltage / 2) ** 2)
                )
        # A closed cell runs out of ions; a reservoir does not, short of what a grid can hold.
        least = (2 * outer / length).clamp(max=1.0) if cell.is_closed else 1e-5 * length / outer
        if electrolyte.has_finite_ions:
            # Nor can there be more ions than have room.
            strength = (electrolyte.valences**2 * cell.concentrations).sum(-1)
            fullest = (electrolyte.valences**2 / electrolyte.molar_volumes).amax(-1)
            least = torch.maximum(least, torch.sqrt(strength / fullest).to(cell.device))
        return outer * torch.maximum(compressed, least)


def wall_drop(cell: Cell) -> Tensor:
    """Largest potential difference [V] that a double layer of the cell may have to carry, `(*batch)`.

    Half the applied voltage for two equal layers, the electrode's own potential where a ground or a
    reservoir holds the other side. Where a current or a charge is given, ten thermal voltages stand in for the
    potential that follows from it.
    """
    voltage = cell.electrolyte.thermal_voltage.detach().to(cell.device)
    (low_left, high_left), (low_right, high_right) = (
        _extreme_potentials(end, voltage) for end in (cell.left, cell.right)
    )
    if cell.ground is not None:
        reach = [low_left.abs(), high_left.abs(), low_right.abs(), high_right.abs()]
        return torch.stack(torch.broadcast_tensors(*reach)).amax(0)
    drop = torch.maximum((high_left - low_right).abs(), (high_right - low_left).abs())
    return drop / 2 if cell.is_closed else drop


def _extreme_potentials(end: Boundary, voltage: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(end, Electrode | Reservoir) and end.potential is not None:
        low, high = extremes(end.potential)
        return low.detach().to(voltage.device), high.detach().to(voltage.device)
    if isinstance(end, Periodic):
        return torch.zeros_like(voltage), torch.zeros_like(voltage)
    typical = UNKNOWN_DROP * voltage if isinstance(end, Electrode) else 0 * voltage
    return -typical, typical
