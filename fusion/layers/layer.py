"""What a fusion layer takes and gives: features as a dictionary, with each modality present or not."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .presence import Presence, everywhere, zero_absent


@dataclass(frozen=True, eq=False)
class Fused:
    r"""What a fusion layer makes of the features of M modalities.

    Attributes:
        fused: What a task sees, `{name: (*batch, d)}`, in a fixed order.
        invariant: The part of each modality that the others share, `{name: (*batch, l*)}`; empty for layers
            that make no such distinction.
        specific: The part that is its own, `{name: (*batch, l_m)}`; likewise.
        losses: Terms that the layer adds to the loss of the task, `{name: scalar}`.
    """

    fused: dict[str, Tensor]
    invariant: dict[str, Tensor] = field(default_factory=dict)
    specific: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)

    def concatenated(self) -> Tensor:
        """All of `fused` side by side, `(*batch, sum of d)`."""
        return torch.cat(list(self.fused.values()), dim=-1)


class FusionLayer(nn.Module, ABC):
    r"""Base of every fusion layer.

    A leaf implements :attr:`fused_dims` and :meth:`fuse`; checks of the input, the order of the modalities
    and the erasing of absent samples happen here, once.

    Arguments:
        dims: Modality name → number of channels :math:`l_m`. The order is kept, whatever the order in which
            features are given later.

    Class attributes:
        standardises: The layer scales its features itself, so nothing should do it before.
        late: Each entry of `fused` (named like its modality) gets a decision of its own, and the decisions
            of those present are averaged, instead of one decision on all of `fused`.

    Raises:
        ValueError: Fewer than two modalities, a length that is not a positive integer, or a name that
            :class:`torch.nn.ModuleDict` cannot hold.
    """

    standardises: ClassVar[bool] = False
    late: ClassVar[bool] = False

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.dims = _checked_dims(dims)

    @property
    @abstractmethod
    def fused_dims(self) -> dict[str, int]:
        """Number of channels of each entry of `fused`."""

    @abstractmethod
    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Fuse features that were checked.

        Arguments:
            features: `{name: (*batch, l_m)}` in the order of `dims`, zero where absent.
            present: `{name: (*batch)}`, every modality named.
        """

    @property
    def out_features(self) -> int:
        """Number of channels of `concatenated()`."""
        return sum(self.fused_dims.values())

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Fused:
        """Fuse the features of all modalities.

        Arguments:
            features: `{name: (*batch, l_m)}`, every modality of `dims` in any order; batch axes may be
                none, one or more. What an absent sample holds (even NaN) influences nothing.
            present: `{name: (*batch)}` of booleans; a modality not named, like `None`, is present everywhere.

        Raises:
            ValueError: A missing or unexpected modality; features with the wrong last axis, with different
                batch axes or dtypes, or not of floating point; a presence that is not boolean or has not
                the batch's shape; or a sample with no modality present.
        """
        return self.fuse(*self.check(features, present))

    def check(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Presence]:
        """The two arguments of :meth:`fuse` from those of :meth:`forward`, which says what may be wrong."""
        batch, device = self._check_features(features)
        ordered = {name: features[name] for name in self.dims}
        full = everywhere(list(self.dims), batch, device)
        if present is None:
            return ordered, full
        _check_presence(present, full)
        full |= {name: present[name] for name in full if name in present}
        _check_not_empty(full)
        return {name: zero_absent(ordered[name], full[name]) for name in full}, full

    def extra_repr(self) -> str:
        """The lengths of the modalities, for `repr`."""
        return ", ".join(f"{name}={length}" for name, length in self.dims.items())

    def _check_features(self, features: Mapping[str, Tensor]) -> tuple[torch.Size, torch.device]:
        if set(features) != set(self.dims):
            raise ValueError(
                f"features must hold the modalities {_listed(self.dims)}, got {_listed(features)}; "
                "say with `present` that a modality is absent."
            )
        for name, length in self.dims.items():
            values = features[name]
            if values.ndim == 0 or values.shape[-1] != length:
                raise ValueError(
                    f"features[{name!r}] must have {length} channels on its last axis, "
                    f"got the shape {tuple(values.shape)}."
                )
            if not values.is_floating_point():
                raise ValueError(f"features[{name!r}] must be of floating point, got {values.dtype}.")
        _check_same("batch axes", {name: tuple(features[name].shape[:-1]) for name in self.dims})
        _check_same("dtype", {name: features[name].dtype for name in self.dims})
        first = features[next(iter(self.dims))]
        return first.shape[:-1], first.device


def _checked_dims(dims: Mapping[str, int]) -> dict[str, int]:
    if len(dims) < 2:
        raise ValueError(f"dims must name at least two modalities, got {_listed(dims)}.")
    checked = {}
    for name, length in dims.items():
        try:
            checked[name] = 0 if isinstance(length, bool) else operator.index(length)
        except TypeError:
            checked[name] = 0
        if checked[name] < 1:
            raise ValueError(f"dims[{name!r}] must be an integer of 1 or more, got {length!r}.")
        if not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"dims: {name!r} cannot name a modality: a name must not be empty, contain a dot or be "
                "an attribute of torch.nn.ModuleDict."
            )
    return checked


def _check_same(what: str, found: Mapping[str, object]) -> None:
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"features must have the same {what} in every modality, got {listed}.")


def _check_presence(present: Mapping[str, Tensor], full: Presence) -> None:
    if unexpected := set(present) - set(full):
        raise ValueError(f"present names {_listed(unexpected)}, which is none of {_listed(full)}.")
    for name, values in present.items():
        if values.dtype != torch.bool:
            raise ValueError(f"present[{name!r}] must be boolean, got {values.dtype}.")
        if values.shape != full[name].shape:
            raise ValueError(
                f"present[{name!r}] must have the shape {tuple(full[name].shape)} of the batch, "
                f"got {tuple(values.shape)}."
            )


def _check_not_empty(present: Presence) -> None:
    empty = ~torch.stack(list(present.values())).any(dim=0)
    if bool(empty.any()):
        first = tuple(empty.nonzero()[0].tolist())
        raise ValueError(
            f"present leaves {int(empty.sum())} of {empty.numel()} samples without any modality "
            f"(the first at {first}); at least one is needed."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
