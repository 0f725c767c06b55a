"""The fusion layer whose maps are measured by a cell instead of trained freely."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..distributed import gathered
from ..grounded.covariance import Coherence, prediction, slices
from ..grounded.ions import Noise
from ..grounded.moments import Moments, pairs
from ..grounded.settings import CellSettings
from ..grounded.settled import Settled, settle, settle_wide, split_maps
from ..grounded.subspaces import Subspaces, dissociate
from .channel_maps import ChannelMaps, LinearMaps
from .imputation import Imputation
from .layer import Fused, FusionLayer
from .numbers import choice, positive_integer, weight
from .presence import Presence, everywhere, values_may_decide, zero_absent

FORMS = ("operator", "rotation")
READOUTS = ("pooled", "gated", "joint")
TRAINABLE = ("voltage", "ground", "debye_length", "gain")


class CellGMF(FusionLayer):
    r"""GMF grounded in the simulator: invariant and specific parts split by the gates of a cell.

    The layer keeps the interface and the output of :class:`~fusion.layers.gmf.GMF`, and by default none of its
    parameters. For each modality *m* with whitened features :math:`v_m` and the maps of
    :mod:`fusion.grounded.settled`,

    .. math::
        \mathrm{invariant}_m = A_m v_m, \qquad
        \mathrm{specific}_m = B_m v_m, \qquad
        \mathrm{fused}_m = [\mathrm{invariant}_{(m+1) \bmod M};\ \mathrm{specific}_m].

    Nothing is lost: :meth:`reconstruct` gives the features back without a decoder. A modality that is absent is
    replaced by its conditional mean given those present, :math:`v_m = K_{mP} K_{PP}^{-1} v_P` in whitened
    coordinates, and its specific part is zero; `completed` holds the features so filled in.

    Valences are measured, in one of two ways. :meth:`fit` measures them once, on features that do not change. With a
    `memory` the layer follows features that do, because their encoders are trained: in training every forward pass
    adds the samples that have every modality (or several, :meth:`follow`) to running covariances of all processes,
    and every `refresh` passes the channels settle anew (its features should then be standardised, as
    :class:`~fusion.model.FusionModel` does). The free energy of the cells is then one of the losses and shapes the
    encoders: its gradient with respect to the covariances is kept from refresh to refresh, and passed on through the
    covariance of each batch.

    Arguments:
        dims: Modality name → number of channels.
        form: `operator`: the maps are matrix functions of the predictability. `rotation`: the channels are an
            orthogonal basis that is trained (Cayley map), by the task and the free energy, which is lowest in
            the eigenbasis; there both forms are the same.
        anchor: The modality whose coordinates the invariant parts are in; None: the shortest. Its length is l*.
        memory: Samples that running covariances remember; None: :meth:`fit` measures once.
        refresh: Forward passes in training from one settling of the channels to the next; None: eight, and one
            for every 12 channels, which keeps settling cheaper than the rest of a step; with batches of 64 about
            half of a memory of ten samples for each channel is new by then.
        free_energy_weight: Of the mean free energy of the cells in the losses; where nothing can lower it (no
            memory, no rotation) there is no such loss.
        train: Which of `voltage`, `ground`, `debye_length` (of each modality's cell) and `gain` (of each coordinate
            of each part) are trained.
        readout: What a :class:`~fusion.model.FusionModel` decides with. `gated`: a
            :class:`~fusion.heads.GatedHead` on `completed` and `fused`. `pooled`: that, a linear map of `fused` and a
            :class:`~fusion.heads.CompletedHead`, in a :class:`~fusion.heads.PooledHead`. `joint`: the perceptron on
            `fused` that other layers have.
        settings: `voltage`, `ground`, `debye_length`, `ion_size`, `safety`, `permutations` and `seed` of
            :func:`~fusion.grounded.subspaces.dissociate`.

    Raises:
        TypeError, ValueError: A setting that does not exist or is out of its range.
        RuntimeError: The layer is used before anything was measured.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> layer = fusion.CellGMF(data.dims)
        >>> found = layer.fit(data.modalities)
        >>> out = layer(data.modalities)
        >>> back = layer.reconstruct(out.invariant, out.specific)
        >>> bool((back["a"] - data.modalities["a"]).abs().max() < 1e-5)
        True
    """

    fewest: ClassVar[int] = 2
    fitted: Tensor
    passes: Tensor
    coherence: Tensor
    force: Tensor
    energy: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        form: str = "operator",
        anchor: str | None = None,
        memory: int | None = None,
        refresh: int | None = None,
        free_energy_weight: float = 1.0,
        train: Iterable[str] = (),
        readout: str = "pooled",
        **settings: Any,
    ) -> None:
        super().__init__(dims)
        self.form = choice("form", form, FORMS)
        self.anchor = min(self.dims, key=self.dims.__getitem__) if anchor is None else anchor
        if self.anchor not in self.dims:
            raise ValueError(f"anchor must be one of {', '.join(self.dims)}, got {anchor!r}.")
        usual = max(8, sum(self.dims.values()) // 12)
        self.refresh = positive_integer("refresh", usual if refresh is None else refresh)
        self.free_energy_weight = weight("free_energy_weight", free_energy_weight)
        self.trained = tuple(choice("train", one, TRAINABLE) for one in train)
        self.readout = choice("readout", readout, READOUTS)
        self.settings = CellSettings(**settings)
        self.common_dim = self.dims[self.anchor]
        self.moments: Moments | None = None
        self.standardises = self.measured = True
        self.gaps = False
        total = sum(self.dims.values())
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("coherence", torch.eye(total, dtype=torch.float64))
        self.maps = nn.ModuleDict(
            {
                name: ChannelMaps(length, self.common_dim, form, self.trained, self.settings)
                for name, length in self.dims.items()
            }
        )
        if memory is not None:
            self.follow(memory)
        self.imputation = Imputation(self.dims)
        self.register_load_state_dict_post_hook(lambda module, _: module.imputation.forget())

    @property
    def fused_dims(self) -> dict[str, int]:
        """Channels of every entry of `fused`: l* invariant and l_m specific ones."""
        return {name: self.common_dim + length for name, length in self.dims.items()}

    def follow(self, memory: int | None = None, *, gaps: bool = False) -> None:
        """From now on, measure valences on running covariances instead of once.

        Arguments:
            memory: Samples that are remembered; None: a thousand, and at least ten for each channel.
            gaps: Measure on samples with two modalities or more, instead of those with every one.
        """
        self.gaps = gaps
        if self.moments is not None and memory is None:
            return
        total = sum(self.dims.values())
        self.moments = Moments(self.dims, max(1000, 10 * total) if memory is None else memory).to(
            self.coherence.device
        )
        # Scales that change take statistics of each batch; a FusionModel has them.
        self.standardises = self.measured = False
        self.register_buffer("force", torch.zeros_like(self.coherence))
        self.register_buffer("energy", torch.zeros_like(self.coherence[0, 0]))

    @torch.no_grad()
    def fit(
        self, features: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None
    ) -> Subspaces:
        """Measure the valences on features `{name: (samples, l)}` and settle the cells.

        Arguments:
            features: Of every modality.
            present: `{name: (samples,)}`, false where a sample lacks a modality; none needs to have them all, but every
                pair of modalities some samples. Running covariances start from those that :meth:`follow` says.

        Returns the subspaces, for looking inside. Raises what :func:`~fusion.grounded.subspaces.dissociate` raises.
        """
        features = {name: features[name] for name in self.dims}
        found = dissociate(features, present=present, **asdict(self.settings))
        if self.moments is not None:
            shape = next(iter(features.values())).shape[:-1]
            there = everywhere([*self.dims], shape, self.coherence.device) | dict(present or {})
            self.moments.update(*self._rows(features, there))
        noise = {name: Noise(one.noise_level, one.voltage) for name, one in found.channels.items()}
        settled = self._settled(found.coherence, noise, with_gradients=False)
        self._measured(found.coherence, noise, settled)
        return found

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """See :class:`~fusion.layers.layer.FusionLayer`."""
        # Whitening amplifies what rounding does to small channels: not in bfloat16.
        with torch.autocast(self.coherence.device.type, enabled=False):
            return self._fuse(features, present)

    def _fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        losses = self._follow(features, present) if self.training and self.moments is not None else {}
        if values_may_decide():
            self._check_fitted()
        maps = {name: (self._of(name).invariant, self._of(name).specific) for name in self.dims}
        if self.training and self._is_trained and torch.is_grad_enabled():
            maps, more = self._settle_with_gradients()
            losses |= more
        whitened = {name: self._of(name).whiten(values) for name, values in features.items()}
        there = {name: zero_absent(values, present[name]) for name, values in whitened.items()}
        whitened = self.imputation.fill(there, present, self.coherence)
        invariant, specific, completed = {}, {}, {}
        for name, values in whitened.items():
            own, rest = self._of(name).split(values, *maps[name])
            dtype = features[name].dtype
            completed[name] = self._of(name).complete(features[name], values, present[name]).to(dtype)
            invariant[name], specific[name] = own.to(dtype), zero_absent(rest, present[name]).to(dtype)
        names = list(self.dims)
        partner = dict(zip(names, names[1:] + names[:1], strict=True))
        fused = {name: torch.cat([invariant[partner[name]], specific[name]], dim=-1) for name in names}
        return Fused(fused, invariant, specific, losses, completed)

    def reconstruct(
        self, invariant: Mapping[str, Tensor], specific: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The features `{name: (*batch, l)}` that two parts `{name: ...}` of modalities present came from."""
        return {name: self._of(name).join(invariant[name], specific[name]) for name in self.dims}

    @torch.no_grad()
    def linear_maps(self, *, standardised: bool = False) -> dict[str, LinearMaps]:
        """What the layer does to a modality that is present, gains left out, as matrices in float64.

        Arguments:
            standardised: For features less their mean and over their standard deviation.

        Raises:
            RuntimeError: Nothing was measured yet.
        """
        self._check_fitted()
        return {name: self._of(name).linear(standardised=standardised) for name in self.dims}

    @torch.no_grad()
    def charges(self, *, standardised: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        r"""Of every modality the map of whitened features to features, and its charges as an operator, `(l, l)` each.

        .. math:: f - \mu = U v, \qquad Z = (S - r_0 I) / (1 - r_0)

        The eigenvalues of *Z* are the valences of the channels.

        Arguments:
            standardised: For features over their standard deviation.

        Raises:
            RuntimeError: Nothing was measured yet.
        """
        self._check_fitted()
        coherence, found = self._kept_coherence(), {}
        for name in self.dims:
            one, level = self._of(name).measured, self._of(name).noise.level
            unwhiten = torch.linalg.inv(one.matrix).mT
            identity = torch.eye(len(unwhiten)).to(unwhiten)
            charge = (coherence.predictability(name) - level * identity) / (1 - level)
            found[name] = (unwhiten if standardised else one.scale.unsqueeze(-1) * unwhiten, charge)
        return found

    def charge_present(self, present: Mapping[str, Tensor]) -> Tensor:
        r"""The share of all invariant power that the modalities present have or predict, `(*batch)`, 0 to 1.

        .. math::
            \frac{\sum_m \operatorname{tr} A_m E_m A_m^T}{\sum_m \operatorname{tr} A_m A_m^T}, \qquad
            E_m = I \text{ if present, else } K_{mP} K_{PP}^{-1} K_{Pm}

        How far a decision may be trusted when something is missing.

        Arguments:
            present: `{name: (*batch)}` of booleans, every modality named.
        """
        mask = torch.stack([present[name] for name in self.dims], dim=-1)
        share = torch.zeros(mask.shape[:-1], dtype=torch.float64, device=mask.device)
        whole = sum(float(self._of(name).invariant.square().sum()) for name in self.dims)
        for pattern, names in self.imputation.patterns(mask):
            held = 0.0
            # In whitened coordinates the map is the coefficients, and explained is coefficients times K.
            complete = len(names) == len(self.dims)
            explained = (
                None if complete else self.imputation.mapping(names, self.coherence).mT @ self.coherence
            )
            for name, here in slices(self.dims).items():
                one = self._of(name).invariant
                known = one if name in names or explained is None else one @ explained[here, here]
                held += float((known * one).sum())
            share = torch.where(pattern, held / whole, share)
        return share

    def _check_fitted(self) -> None:
        if self.fitted:
            return
        if self.moments is None:
            raise RuntimeError("CellGMF: call fit(features) on training features before the layer is used.")
        raise RuntimeError(
            "CellGMF: nothing was measured yet. Behind trained encoders the layer measures samples of the training "
            f"batches that have every modality, at least {max(2, len(self.dims))} in the first; follow(gaps=True) is "
            "for samples with two or more, and without an extractor it can measure these too, see fit."
        )

    def _rows(
        self, features: Mapping[str, Tensor], present: Presence, *, processes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The samples that count `(N, L)`, of all `processes` or one, and what they have `(N, M)` if not everything."""
        rows = torch.cat([zero_absent(features[name], present[name]) for name in self.dims], dim=-1)
        mask = torch.stack([present[name] for name in self.dims], dim=-1)
        if not self.gaps:
            rows = rows[mask.all(dim=-1)]
            return gathered(rows) if processes else rows, None
        if processes:  # before some are chosen, so that they are in the order that one process has them in
            rows, mask = gathered(rows, rows.dim() - 2), gathered(mask.long(), mask.dim() - 2).bool()
        several = mask.sum(dim=-1) >= 2
        return rows[several], mask[several]

    def _follow(self, features: dict[str, Tensor], present: Presence) -> dict[str, Tensor]:
        """Take samples into the running covariances; the free energy, with the gradient it has through theirs."""
        if not values_may_decide():
            raise RuntimeError("CellGMF: following features in training cannot be part of a compiled graph.")
        assert self.moments is not None
        rows, mask = self._rows(features, present, processes=True)
        if not self.moments.update(rows.detach(), mask):
            return {}
        if int(self.passes) % self.refresh == 0:
            self._settle_from_moments()
        self.passes += 1
        if self.gaps and self.moments.samples <= sum(self.dims.values()):
            return {}  # covariances of few samples each do not fit together, and the noise would be all there is
        pull = self._pull(rows, mask)
        return {"free_energy": self.free_energy_weight * (self.energy.to(rows.dtype) + pull - pull.detach())}

    def _pull(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """What the free energy's gradient with respect to covariances makes of those of samples."""
        pull = rows.new_zeros(())
        for (first, second), (here, there), one, other in pairs(rows, mask, self.dims):
            if not len(one):
                continue
            force = self.force[here, there].to(rows, copy=True)
            if first != second:
                force += self.force[there, here].mT
            centred = one - one.mean(dim=0), other - other.mean(dim=0)
            pull = pull + ((centred[0] @ force) * centred[1]).sum() / len(one)
        return pull

    def _settle_from_moments(self) -> None:
        """Measure valences on the running covariances, and how the free energy pulls at these."""
        assert self.moments is not None
        covariance = self.moments.covariance.clone().requires_grad_()
        with torch.enable_grad():
            coherence = self.moments.coherence(covariance)
            noise = self._noise(coherence)
            settled = self._settled(coherence, noise, with_gradients=False)
            energy = _mean_energy(settled)
            (force,) = torch.autograd.grad(energy, covariance)
        self.force.copy_(force)
        self.energy.copy_(energy.detach())
        self._measured(coherence, noise, settled)

    @torch.no_grad()
    def _noise(self, coherence: Coherence) -> dict[str, Noise]:
        """What chance makes of each modality, from unrelated samples."""
        assert self.moments is not None
        unrelated = self.moments.unrelated_coherence(coherence)
        safety, voltage = self.settings.safety, self.settings.voltage
        edges = {name: float(torch.linalg.eigvalsh(unrelated.predictability(name))[-1]) for name in self.dims}
        return {name: Noise.above(edge, safety, voltage) for name, edge in edges.items()}

    @torch.no_grad()
    def _measured(
        self, coherence: Coherence, noise: Mapping[str, Noise], settled: Mapping[str, Settled]
    ) -> None:
        """Keep what was measured, and the maps that follow from it."""
        self.coherence.copy_(coherence.matrix)
        for name, whitening in coherence.whitenings.items():
            self._of(name).keep(whitening, noise[name])
        self._keep(split_maps(coherence, settled, self.anchor))
        self.fitted.fill_(True)

    def _keep(self, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (invariant, specific) in maps.items():
            one = self._of(name)
            one.invariant.copy_(invariant.detach())
            one.specific.copy_(specific.detach())
        self.imputation.forget()

    @property
    def _is_trained(self) -> bool:
        """Whether the maps depend on parameters of the layer."""
        return self.form == "rotation" or any(one != "gain" for one in self.trained)

    def _settle_with_gradients(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Let the channels settle in cells whose settings are being trained; maps, and the energy of a rotation."""
        coherence = self._kept_coherence()
        noise = {name: self._of(name).noise for name in self.dims}
        settled = self._settled(coherence, noise, with_gradients=True)
        maps = split_maps(coherence, settled, self.anchor)
        self._keep(maps)
        if self.form != "rotation":
            return maps, {}
        # The settings of the cell are for the task: the energy would only ask for more volts.
        if set(self.trained) - {"gain"}:
            settled = {
                name: settle(coherence.predictability(name), noise[name], one.fixed_knobs, one.turn())
                for name, one in ((name, self._of(name)) for name in self.dims)
            }
        return maps, {"rotation_free_energy": self.free_energy_weight * _mean_energy(settled)}

    def _settled(
        self, coherence: Coherence, noise: Mapping[str, Noise], *, with_gradients: bool
    ) -> dict[str, Settled]:
        found = {}
        for name in self.dims:
            one = self._of(name)
            turn, knobs = one.turn(), one.knobs if with_gradients else one.fixed_knobs
            if turn is not None and not with_gradients:
                turn = turn.detach()
            if turn is None and coherence.is_wide(name) and not torch.is_grad_enabled():
                here = coherence.slices()[name]
                found[name] = settle_wide(prediction(coherence.matrix, here), noise[name], knobs)
            else:
                found[name] = settle(coherence.predictability(name), noise[name], knobs, turn)
        return found

    def _kept_coherence(self) -> Coherence:
        return Coherence({name: self._of(name).measured for name in self.dims}, self.coherence, samples=2)

    def _of(self, name: str) -> "ChannelMaps":
        return cast(ChannelMaps, self.maps[name])


def _mean_energy(settled: Mapping[str, Settled]) -> Tensor:
    return torch.stack([one.energy for one in settled.values()]).mean()
