"""What the grounded layer has of one modality."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from ..grounded.covariance import Whitening
from ..grounded.ions import Noise
from ..grounded.settings import CellSettings
from ..grounded.settled import Knobs
from .presence import values_may_decide

LIMIT = 8.0
"""Of completed features, in standard deviations, as for those that a model standardises."""


@dataclass(frozen=True, eq=False)
class LinearMaps:
    """What the layer does to a modality `(*batch, l)`.

    Attributes:
        mean: Subtracted first, `(l,)`.
        invariant, specific: Maps to the parts, `(l*, l)` and `(l, l)`.
        join: Map of both parts side by side back to the features less their mean, `(l, l* + l)`.
    """

    mean: Tensor
    invariant: Tensor
    specific: Tensor
    join: Tensor


class ChannelMaps(nn.Module):
    """What is measured of one modality, in float64, and what of its cell may be trained."""

    mean: Tensor
    scale: Tensor
    whitening: Tensor
    level: Tensor
    voltage: Tensor
    invariant: Tensor
    specific: Tensor

    def __init__(
        self, length: int, common: int, form: str, trained: tuple[str, ...], settings: CellSettings
    ) -> None:
        super().__init__()
        for name, shape in (
            ("mean", (length,)),
            ("scale", (length,)),
            ("whitening", (length, length)),
            ("level", ()),
            ("voltage", ()),
            ("invariant", (common, length)),
            ("specific", (length, length)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self._inverse: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_inverse", None))
        self.trained = trained
        self.settings = settings
        for name in ("voltage", "ground", "debye_length"):
            if name in trained:
                self.register_parameter(f"{name}_shift", nn.Parameter(torch.zeros(())))
        if "gain" in trained:
            self.invariant_gain = nn.Parameter(torch.ones(common))
            self.specific_gain = nn.Parameter(torch.ones(length))
        self.rotation: _Square | None = None
        if form == "rotation":
            self.rotation = cast(_Square, orthogonal(_Square(length), orthogonal_map="cayley"))

    @property
    def noise(self) -> Noise:
        """What chance makes of the modality."""
        return Noise(float(self.level), float(self.voltage))

    @property
    def knobs(self) -> Knobs:
        """The settings of the cell, with gradients to what is trained: factors are positive, *b* stays inside."""

        def shift(name: str) -> Tensor:
            found = getattr(self, f"{name}_shift", None)
            return self.mean.new_zeros(()) if found is None else found.double()

        ground = self.settings.ground
        logit = math.log(ground / (1 - ground))
        return Knobs(
            voltage=shift("voltage").exp(),
            ground=torch.sigmoid(logit + shift("ground")),
            debye_length=self.settings.debye_length * shift("debye_length").exp(),
            ion_size=self.settings.ion_size,
        )

    @property
    def fixed_knobs(self) -> Knobs:
        """The same without gradients."""
        knobs = self.knobs
        voltage, ground, debye_length = (
            torch.as_tensor(one).detach() for one in (knobs.voltage, knobs.ground, knobs.debye_length)
        )
        return Knobs(voltage, ground, debye_length, knobs.ion_size)

    @property
    def measured(self) -> Whitening:
        """The whitening that is kept."""
        return Whitening(self.mean, self.scale, self.whitening)

    def turn(self) -> Tensor | None:
        """The trained basis `(l, l)`, if there is one."""
        return None if self.rotation is None else self.rotation.weight.double()

    def keep(self, whitening: Whitening, noise: Noise) -> None:
        """Remember what was measured."""
        self.mean.copy_(whitening.mean)
        self.scale.copy_(whitening.scale)
        self.whitening.copy_(whitening.matrix)
        self._inverse = None
        self.level.fill_(noise.level)
        self.voltage.fill_(noise.voltage)

    def whiten(self, values: Tensor) -> Tensor:
        """Whitened coordinates, in float32 at least."""
        dtype = torch.promote_types(values.dtype, torch.float32)
        centred = values.to(dtype) - self.mean.to(dtype)
        return centred @ (self.whitening / self.scale.unsqueeze(-1)).to(dtype)

    def complete(self, values: Tensor, whitened: Tensor, present: Tensor) -> Tensor:
        """Features `(*batch, l)`, from whitened coordinates where they are absent, in standard deviations."""
        found = (values.to(whitened) - self.mean.to(whitened)) / self.scale.to(whitened)
        if not (values_may_decide() and bool(present.all())):
            filled = whitened @ self._unwhitening().to(whitened)
            found = torch.where(present.unsqueeze(-1), found, filled)
        return found.clamp(-LIMIT, LIMIT)

    def _unwhitening(self) -> Tensor:
        if not values_may_decide():
            return torch.linalg.inv(self.whitening)  # what is found inside a graph cannot be kept
        if self._inverse is None or self._inverse.device != self.whitening.device:
            self._inverse = torch.linalg.inv(self.whitening)
        return self._inverse

    def split(self, whitened: Tensor, invariant: Tensor, specific: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts, by these maps."""
        # Copies, because what is measured next must not change what a gradient still needs.
        invariant, specific = (one.to(whitened, copy=True) for one in (invariant, specific))
        own, rest = whitened @ invariant.mT, whitened @ specific.mT
        if "gain" in self.trained:
            own, rest = own * self.invariant_gain.to(own), rest * self.specific_gain.to(rest)
        return own, rest

    def join(self, own: Tensor, rest: Tensor) -> Tensor:
        """The features that two parts came from."""
        if "gain" in self.trained:
            own, rest = own / self.invariant_gain.to(own), rest / self.specific_gain.to(rest)
        return self.measured.undo(own @ self.invariant.to(own) + rest @ self.specific.to(rest))

    def linear(self, *, standardised: bool) -> LinearMaps:
        """Whitening and splitting in one, gains left out."""
        scale = torch.ones_like(self.scale) if standardised else self.scale
        whitening = (self.whitening / scale.unsqueeze(-1)).mT
        return LinearMaps(
            mean=torch.zeros_like(self.mean) if standardised else self.mean,
            invariant=self.invariant @ whitening,
            specific=self.specific @ whitening,
            join=torch.linalg.solve(whitening, torch.cat([self.invariant, self.specific]).mT),
        )


class _Square(nn.Module):
    """A matrix that starts as the identity."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(length))
