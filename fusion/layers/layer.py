"""What a fusion layer takes and gives: features as a dictionary, with each modality present or not."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .presence import Presence, everywhere, mean_of_valid, valid_steps, values_may_decide, zero_absent


@dataclass(frozen=True, eq=False)
class Fused:
    r"""What a fusion layer makes of the features of M modalities.

    Attributes:
        fused: What a task sees, `{name: (*batch, d)}`, in a fixed order.
        invariant: The part of each modality that the others share, `{name: (*batch, l*)}`; empty for layers
            that make no such distinction.
        specific: The part that is its own, `{name: (*batch, l_m)}`; likewise.
        losses: Terms that the layer adds to the loss of the task, `{name: scalar}`, weighted as they are to
            be added.
        completed: The features with what is absent filled in, in standard deviations from the mean,
            `{name: (*batch, l_m)}`; empty for layers that know no way to.

    Example:
        >>> import fusion
        >>> import torch
        >>> out = fusion.GMF({"a": 4, "b": 6})({"a": torch.randn(2, 4), "b": torch.randn(2, 6)})
        >>> {name: part.shape[-1] for name, part in out.invariant.items()}, out.concatenated().shape[-1]
        ({'a': 4, 'b': 4}, 18)
    """

    fused: dict[str, Tensor]
    invariant: dict[str, Tensor] = field(default_factory=dict)
    specific: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    completed: dict[str, Tensor] = field(default_factory=dict)

    def concatenated(self) -> Tensor:
        """All of `fused` side by side, `(*batch, sum of d)`."""
        return torch.cat(list(self.fused.values()), dim=-1)


# So that a layer can be exported, saved and loaded whole.
torch.export.register_dataclass(Fused, serialized_type_name="fusion.Fused")


class FusionLayer(nn.Module, ABC):
    r"""Base of every fusion layer.

    A leaf implements :attr:`fused_dims` and :meth:`fuse`; checks of the input, the order of the modalities,
    the erasing of absent samples and padded steps, and the pooling of sequences happen here, once.

    A modality is a vector `(*batch, l_m)` unless `lengths` names it; then it is a sequence
    `(*batch, T_m, l_m)`, and each modality may have its own number of steps. There is one rule for
    sequences: a layer whose `tokens` is true gets the steps, and a vector is to it a sequence of one step;
    every other layer gets the mean of the valid steps,

    .. math:: f_m = \frac{1}{\tau_m} \sum_{t < \tau_m} f_{m,t}, \qquad \tau_m = \mathrm{lengths}_m.

    To let such a layer act on every step of synchronous sequences instead, give them without `lengths`:
    the steps are then one more batch axis.

    Arguments:
        dims: Modality name → number of channels :math:`l_m`. The order is kept, whatever the order in which
            features are given later.

    Attributes:
        standardises: The layer scales its features itself, so nothing should do it before.
        late: Each entry of `fused` (named like its modality) gets a decision of its own, and the decisions
            of those present are averaged, instead of one decision on all of `fused`.
        readout: Which head decides: `joint`, one on all of `fused`; `gated`, a :class:`~fusion.heads.GatedHead` on
            `completed` and `fused` together; `pooled`, a :class:`~fusion.heads.PooledHead` of that, a linear one and a
            :class:`~fusion.heads.CompletedHead`.
        tokens: The layer takes sequences as they are.
        measured: The layer's :meth:`fit` must see training features `{name: (N, l)}` before use.
        fewest: How many modalities it needs at least.

    Raises:
        ValueError: Too few modalities, a length that is not a positive integer, or a name that
            :class:`torch.nn.ModuleDict` cannot hold.

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.Sum({"audio": 32, "text": 16}, width=8)
        >>> views = {"audio": torch.randn(5, 32), "text": torch.randn(5, 16)}
        >>> out = layer(views, {"audio": torch.tensor([True, True, True, False, False])})  # two lack audio
        >>> tuple(out.concatenated().shape)
        (5, 8)
    """

    standardises: bool = False
    late: bool = False
    readout: str = "joint"
    tokens: bool = False
    measured: bool = False
    fewest: ClassVar[int] = 1

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.dims = _checked_dims(dims, self.fewest)

    @property
    @abstractmethod
    def fused_dims(self) -> dict[str, int]:
        """Number of channels of each entry of `fused`."""

    @abstractmethod
    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Fuse features that were checked.

        Arguments:
            features: `{name: (*batch, l_m)}` in the order of `dims`, zero where absent; for a layer of
                tokens `{name: (N, T_m, l_m)}`, with all batch axes in one.
            present: `{name: (*batch)}`, every modality named; for a layer of tokens `{name: (N, T_m)}`,
                true for valid steps of samples that are present.
        """

    @property
    def out_features(self) -> int:
        """Number of channels of `concatenated()`."""
        return sum(self.fused_dims.values())

    def fused_present(self, present: Presence) -> Presence:
        """Which entries of `fused` hold anything, `{entry: (*batch)}`, from who is present.

        An entry named like a modality is there when that modality is; any other one always is.
        """
        batch = next(iter(present.values()))
        return {entry: present.get(entry, torch.ones_like(batch)) for entry in self.fused_dims}

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Fused:
        """Fuse the features of all modalities.

        Arguments:
            features: `{name: (*batch, l_m)}`, every modality of `dims` in any order, `(*batch, T_m, l_m)`
                for those that `lengths` names; batch axes may be none, one or more. What an absent sample
                or a padded step holds (even NaN) influences nothing.
            present: `{name: (*batch)}` of booleans; a modality not named, like `None`, is present everywhere.
            lengths: `{name: (*batch)}` of integers in 0 ... T_m, the valid steps of a sequence. A modality
                not named is no sequence. A sequence without a valid step is absent.

        Raises:
            ValueError: A missing or unexpected modality; features with the wrong last axis, with different
                batch axes or dtypes, or not of floating point; a presence that is not boolean or lengths
                that are not integers, or have not the batch's shape, or are out of range; or a sample with
                no modality present. Under :func:`torch.compile` and :func:`torch.export.export` what only
                the values of a tensor can tell (the last two) is not looked at, because that would break
                the graph.
        """
        sequences = () if lengths is None else tuple(lengths)
        checked, here = self.check(features, present, lengths)
        if self.tokens:
            return self._fuse_tokens(checked, here, sequences)
        return self.fuse(*pooled(checked, here, sequences))

    def check(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Presence]:
        """The arguments of :meth:`forward` (which says what may be wrong), checked and in order.

        Returns:
            The features, zero where absent or padded, and for each what is present: `(*batch)` of a
            vector, `(*batch, T_m)` of a sequence.
        """
        lengths = {} if lengths is None else lengths
        _check_names("lengths", lengths, self.dims)
        batch, device = self._check_features(features, lengths)
        full = everywhere(list(self.dims), batch, device)
        if not present and not lengths:
            return {name: features[name] for name in self.dims}, full
        if present:
            _check_names("present", present, self.dims)
            _check_presence(present, batch)
            full |= {name: present[name] for name in full if name in present}
        steps = {name: features[name].shape[-2] for name in lengths}
        _check_lengths(lengths, steps, batch)
        full |= {name: valid_steps(lengths[name], steps[name]) & full[name].unsqueeze(-1) for name in lengths}
        _check_not_empty(full, lengths)
        return {name: zero_absent(features[name], full[name]) for name in full}, full

    def fit(self, features: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None) -> object:
        """Measure training features `{name: (N, l)}`; only for layers whose `measured` is true.

        `present` `{name: (N,)}` is false where a sample lacks a modality.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing.")

    def follow(self, *, gaps: bool = False) -> None:
        """Prepare for features that change in training, because their encoders are trained; most layers need not.

        Arguments:
            gaps: Whether too few samples have every modality for measuring on these alone.
        """

    def extra_repr(self) -> str:
        """The lengths of the modalities, for `repr`."""
        return ", ".join(f"{name}={length}" for name, length in self.dims.items())

    def _fuse_tokens(
        self, features: dict[str, Tensor], present: Presence, sequences: tuple[str, ...]
    ) -> Fused:
        """Make tokens of vectors, put all batch axes into one, fuse, and undo the latter."""
        batch: list[int] = []
        for name in self.dims:
            if name not in sequences:
                features[name], present[name] = features[name].unsqueeze(-2), present[name].unsqueeze(-1)
            *batch, steps, channels = features[name].shape
            features[name] = features[name].reshape(-1, steps, channels)
            present[name] = present[name].reshape(-1, steps)
        found = self.fuse(features, present)
        parts = [
            {name: values.reshape(*batch, values.shape[-1]) for name, values in part.items()}
            for part in (found.fused, found.invariant, found.specific)
        ]
        return Fused(parts[0], parts[1], parts[2], found.losses)

    def _check_features(
        self, features: Mapping[str, Tensor], sequences: Container[str]
    ) -> tuple[tuple[int, ...], torch.device]:
        if set(features) != set(self.dims):
            raise ValueError(
                f"features must hold the modalities {_listed(self.dims)}, got {_listed(features)}; "
                "say with `present` that a modality is absent."
            )
        batches, dtypes = {}, {}
        for name, length in self.dims.items():
            values, own = features[name], 2 if name in sequences else 1
            if values.ndim < own or values.shape[-1] != length:
                raise ValueError(
                    f"features[{name!r}] must have {length} channels on its last axis"
                    + (" and steps on the one before" if own == 2 else "")
                    + f", got the shape {tuple(values.shape)}."
                )
            if not values.is_floating_point():
                raise ValueError(f"features[{name!r}] must be of floating point, got {values.dtype}.")
            batches[name], dtypes[name] = tuple(values.shape[:-own]), values.dtype
        _check_same("batch axes", batches)
        device = features[next(iter(self.dims))].device
        # Autocast gives the features of an encoder its own dtype, and raw ones none.
        if not torch.is_autocast_enabled(device.type):
            _check_same("dtype", dtypes)
        return batches[next(iter(self.dims))], device


def pooled(
    features: Mapping[str, Tensor], present: Presence, sequences: Iterable[str]
) -> tuple[dict[str, Tensor], Presence]:
    """What :meth:`FusionLayer.check` returns, with the mean of the valid steps in the place of `sequences`."""
    means = {name: mean_of_valid(features[name], present[name]) for name in sequences}
    return {**features, **means}, present | {name: present[name].any(dim=-1) for name in means}


def _checked_dims(dims: Mapping[str, int], fewest: int) -> dict[str, int]:
    if len(dims) < fewest:
        needed = "one modality" if fewest == 1 else "two modalities"
        raise ValueError(f"dims must name at least {needed}, got {_listed(dims)}.")
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
    first = next(iter(found.values()))
    if any(value != first for value in found.values()):
        listed = ", ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"features must have the same {what} in every modality, got {listed}.")


def _check_names(what: str, found: Iterable[str], dims: Mapping[str, int]) -> None:
    if unexpected := [name for name in found if name not in dims]:
        raise ValueError(f"{what} names {_listed(unexpected)}, which is none of {_listed(dims)}.")


def _check_shape(what: str, values: Tensor, batch: tuple[int, ...]) -> None:
    if tuple(values.shape) != batch:
        raise ValueError(f"{what} must have the shape {batch} of the batch, got {tuple(values.shape)}.")


def _check_presence(present: Mapping[str, Tensor], batch: tuple[int, ...]) -> None:
    for name, values in present.items():
        if values.dtype != torch.bool:
            raise ValueError(f"present[{name!r}] must be boolean, got {values.dtype}.")
        _check_shape(f"present[{name!r}]", values, batch)


def _check_lengths(lengths: Mapping[str, Tensor], steps: Mapping[str, int], batch: tuple[int, ...]) -> None:
    for name, values in lengths.items():
        if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            raise ValueError(f"lengths[{name!r}] must be integers, got {values.dtype}.")
        _check_shape(f"lengths[{name!r}]", values, batch)
        if values_may_decide() and bool(((values < 0) | (values > steps[name])).any()):
            raise ValueError(
                f"lengths[{name!r}] must be from 0 to the {steps[name]} steps of the sequence, "
                f"got {int(values.min())} to {int(values.max())}."
            )


def _check_not_empty(present: Presence, sequences: Container[str]) -> None:
    if not values_may_decide():
        return
    each = [values.any(dim=-1) if name in sequences else values for name, values in present.items()]
    empty = ~torch.stack(each).any(dim=0)
    if bool(empty.any()):
        first = tuple(empty.nonzero()[0].tolist())
        raise ValueError(
            f"present leaves {int(empty.sum())} of {empty.numel()} samples without any modality "
            f"(the first at {first}); at least one is needed."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
