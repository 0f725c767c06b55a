"""One fusion layer before another: GMF as the front-end of an attention back-end."""

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor

from .dissociation import DissociationLayer
from .layer import Fused, FusionLayer
from .presence import Presence


class Stacked(FusionLayer):
    r"""A front-end that divides modalities, and a back-end for which each entry of its `fused` is a modality.

    .. math:: Z = \mathrm{back}(\mathrm{front}(f_1, \dots, f_M))

    `Stacked(GMF(dims), MBT)` is the G-MBT of the GMF paper. `fused` is the back-end's, `invariant` and
    `specific` are the front-end's. Losses of the front-end keep their names; those of the back-end are
    called `back_<name>`. A back-end of tokens gets sequences step by step from a
    :class:`~fusion.layers.dissociation.DissociationLayer` (see its `fuse_steps`); from any other front-end it gets
    one vector an entry, made of the means of the sequences. To the back-end an entry is present if it holds anything
    (:meth:`FusionLayer.fused_present`): that of an absent modality does, when GMF has put the invariant part
    of a present one into it. A front-end that is measured makes this layer one.

    Arguments:
        front: A layer of vectors.
        back: A layer for the entries of the front-end, or a function that builds it from their lengths.

    Raises:
        ValueError: A front-end that takes tokens, or a back-end made for other entries.

    Example:
        >>> import fusion
        >>> layer = fusion.Stacked(fusion.GMF({"audio": 32, "text": 16}), fusion.MBT)
        >>> layer.out_features
        128
    """

    def __init__(
        self, front: FusionLayer, back: FusionLayer | Callable[[Mapping[str, int]], FusionLayer]
    ) -> None:
        super().__init__(front.dims)
        if front.tokens:
            raise ValueError(
                f"front must be a layer of vectors, got {type(front).__name__}, which takes tokens."
            )
        self.front = front
        self.back = back if isinstance(back, FusionLayer) else back(front.fused_dims)
        if self.back.dims != front.fused_dims:
            raise ValueError(
                f"back must be made for the entries {front.fused_dims} of the front, got one for {self.back.dims}."
            )
        self.standardises, self.measured = front.standardises, front.measured
        self.late = self.back.late
        self.tokens = self.back.tokens and isinstance(front, DissociationLayer)

    @property
    def fused_dims(self) -> dict[str, int]:
        """That of the back-end."""
        return self.back.fused_dims

    def fit(self, features: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None) -> object:
        """That of the front-end."""
        return self.front.fit(features, present=present)

    def follow(self, *, gaps: bool = False) -> None:
        """That of the front-end."""
        self.front.follow(gaps=gaps)
        self.standardises, self.measured = self.front.standardises, self.front.measured

    def fused_present(self, present: Presence) -> Presence:
        """That of the back-end, after the front-end."""
        return self.back.fused_present(self.front.fused_present(present))

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Front, then back; see :class:`FusionLayer` for the arguments."""
        if self.tokens:
            divided, valid = cast(DissociationLayer, self.front).fuse_steps(features, present)
            found = self.back.fuse(divided.fused, valid)
        else:
            divided = self.front(features, present)
            found = self.back(divided.fused, self.front.fused_present(present))
        losses = divided.losses | {f"back_{name}": loss for name, loss in found.losses.items()}
        return Fused(found.fused, divided.invariant, divided.specific, losses)
