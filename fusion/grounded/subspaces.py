"""Modality-invariant and modality-specific subspaces of features, found by a cell, without any training."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .channels import Ions
from .covariance import Coherence, Condensed, condense, predictability, slices
from .ions import Noise, noise_edge
from .matching import Canonical, Ranking, rank, surprise
from .measure import measure
from .samples import Source
from .settings import CellSettings
from .sharing import Sharing, share_out


@dataclass(frozen=True, eq=False)
class Channels(Ions):
    r"""The channels of one modality as ions in their cell, with the directions that they are.

    Attributes:
        basis: Orthonormal directions in whitened coordinates, `(l, l)`, one per row; channel *j* of whitened
            features *v* is `basis[j] @ v`. They diagonalise the predictability, best predicted first.
        frame: Orthonormal columns `(l, l*)` that turn the invariant channels into the common coordinates.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> channels = fusion.dissociate(data.modalities).channels["a"]
        >>> [round(gate, 2) for gate in channels.gates.tolist()]
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    basis: Tensor
    frame: Tensor

    @property
    def correlating(self) -> Tensor:
        """The rows of the basis that correlate with any other modality, `(r, l)`, at least one."""
        return self.basis[: max(int((self.predictability > 0).sum()), 1)]


@dataclass(frozen=True, eq=False)
class Subspaces:
    """What :func:`dissociate` finds: the statistics, and the channels of every modality.

    Attributes:
        coherence: Joint second-order statistics of the features.
        channels: `{name: Channels}`.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> found = fusion.dissociate(data.modalities)
        >>> invariant, specific = found.split(data.modalities)
        >>> back = found.reconstruct(invariant, specific)
        >>> bool((back["a"] - data.modalities["a"]).abs().max() < 1e-5)
        True
    """

    coherence: Coherence
    channels: dict[str, Channels]

    @property
    def common_dim(self) -> int:
        """Number l* of common coordinates, which is the length of the shortest modality."""
        return min(self.coherence.dims.values())

    def whiten(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Channels of features `{name: (*batch, l)}`: whitened and turned into the basis of the ions."""
        whitened = self.coherence.whiten(features)
        return {name: whitened[name] @ one.basis.mT for name, one in self.channels.items()}

    def split(self, features: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""Invariant and specific part of every channel, `{name: (*batch, l)}` each.

        .. math:: \sqrt{g_j}\,u_j, \qquad \sqrt{1-g_j}\,u_j

        Their squares add up to the square of the channel: nothing is lost.
        """
        channels = self.whiten(features)
        invariant = {name: u * self.channels[name].gates.sqrt() for name, u in channels.items()}
        specific = {
            name: u * (1 - self.channels[name].gates).clamp(min=0).sqrt() for name, u in channels.items()
        }
        return invariant, specific

    def reconstruct(
        self, invariant: Mapping[str, Tensor], specific: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The features of :meth:`split`, exactly."""
        features = {}
        for name, one in self.channels.items():
            u = one.gates.sqrt() * invariant[name] + (1 - one.gates).clamp(min=0).sqrt() * specific[name]
            features[name] = self.coherence.whitenings[name].undo(u @ one.basis)
        return features

    def common(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invariant parts in the common coordinates, `{name: (*batch, l*)}`: one can stand in for another."""
        invariant, _ = self.split(features)
        return {name: part @ self.channels[name].frame for name, part in invariant.items()}

    def retrieve(
        self,
        queries: Mapping[str, Tensor],
        gallery: Mapping[str, Tensor],
        *,
        k: int = 10,
        similarity: str = "likelihood",
    ) -> Ranking:
        """Find in a gallery of some modalities what belongs to queries of others.

        Arguments:
            queries, gallery: `{name: (samples, l)}`, of one modality each or of several; none in both.
            k: Places of the ranking; fewer if the gallery has fewer samples.
            similarity: `likelihood`, the log-odds Λ of :mod:`fusion.grounded.matching` that they are of one sample; or
                `cosine`, between -1 and 1, in the canonical coordinates weighted by the root of the correlations.

        Raises:
            ValueError: An unknown modality, one in both, none, `k` below 1 or another similarity.
        """
        if set(queries) & set(gallery):
            both = sorted(set(queries) & set(gallery))
            raise ValueError(
                f"retrieve: queries and gallery must be of different modalities, got {both} in both."
            )
        if k < 1:
            raise ValueError(f"retrieve: k must be 1 or more, got {k}.")
        if similarity not in ("likelihood", "cosine"):
            raise ValueError(f"retrieve: similarity must be 'likelihood' or 'cosine', got {similarity!r}.")
        asked, offered = self._correlating(queries), self._correlating(gallery)
        covariance = self._gated([*queries, *gallery])
        return rank(Canonical.of(covariance, asked.shape[-1]), asked, offered, k, similarity)

    def conflict(self, features: Mapping[str, Tensor]) -> Tensor:
        r"""How much the modalities of a sample contradict each other, `(*batch)`, in nats.

        The log-odds :math:`-\Lambda` of :mod:`fusion.grounded.matching` that two modalities come from different
        samples, positive where that is the likelier; of more than two the sum over pairs, a composite likelihood, which
        told conflicts of real features better than the joint one. Only what is above the noise counts.

        Arguments:
            features: `{name: (*batch, l)}`, of two modalities or more; for a pair of three, of those two.

        Raises:
            ValueError: An unknown modality, or fewer than two.
        """
        if len(features) < 2:
            raise ValueError(f"conflict: at least two modalities are needed, got {list(features)}.")
        channels = {name: self._correlating({name: values}) for name, values in features.items()}
        found = [
            surprise(self._gated([a, b]), torch.cat([channels[a], channels[b]], dim=-1))
            for a, b in combinations(channels, 2)
        ]
        return torch.stack(found).sum(0)

    def shared_by(self) -> dict[str, Sharing]:
        """With whom every modality shares its invariant channels, those whose gate is above one half."""
        matrix, where, found = self.coherence.matrix, self.coherence.slices(), {}
        for name, one in self.channels.items():
            across = {other: matrix[where[name], there] for other, there in where.items() if other != name}
            found[name] = share_out(
                name, one.basis[one.gates > 0.5], across, one.noise_level, list(self.channels)
            )
        return found

    def _correlating(self, features: Mapping[str, Tensor]) -> Tensor:
        """Side by side, the channels of features `{name: (*batch, l)}` that correlate with anything."""
        if not features or not set(features) <= set(self.channels):
            raise ValueError(f"modalities must be some of {list(self.channels)}, got {list(features)}.")
        whitenings = self.coherence.whitenings
        return torch.cat(
            [
                whitenings[name].apply(values) @ self.channels[name].correlating.mT
                for name, values in features.items()
            ],
            dim=-1,
        )

    def _gated(self, names: list[str]) -> Tensor:
        """The covariance of those channels, gated between modalities."""
        where = self.coherence.slices()
        turns = {}
        for name in names:
            rows = self.channels[name].correlating
            turns[name] = self.channels[name].gates[: len(rows), None].sqrt() * rows
        blocks = [
            [
                torch.eye(len(turns[one])).to(turns[one])
                if one == other
                else turns[one] @ self.coherence.matrix[where[one], where[other]] @ turns[other].mT
                for other in names
            ]
            for one in names
        ]
        return torch.cat([torch.cat(row, dim=-1) for row in blocks])

    def __str__(self) -> str:
        lines = [f"{len(self.channels)} modalities, {self.coherence.samples} samples"]
        for name, one in self.channels.items():
            lines.append(
                f"  {name}: {len(one.gates)} channels, {one.invariant_dimension:.1f} of them invariant "
                f"(noise level {one.noise_level:.3f}, total charge {one.charge:+.2f})"
            )
        return "\n".join(lines)


@torch.no_grad()
def dissociate(
    features: Source,
    *,
    present: Mapping[str, Tensor] | None = None,
    voltage: float | None = None,
    ground: float = 0.5,
    debye_length: float = 1.0,
    ion_size: float = 0.0,
    safety: float = 1.3,
    permutations: int = 4,
    seed: int = 0,
) -> Subspaces:
    r"""Separate what modalities share from what is their own, without training.

    Each modality is whitened and turned into the directions that the other modalities predict best; every
    direction becomes an ion whose valence says how much better than chance it is predicted; the ions
    equilibrate in a cell with electrodes at :math:`\pm U_0` and a ground at *b*; the fraction beyond *b* is
    the gate that splits the channel into an invariant and a specific part. The invariant parts of the
    modalities are turned into common coordinates by orthogonal Procrustes rotations.

    Features need not fit into memory: chunks are read twice, and 8192 samples of them are held. What is found is the
    same to rounding, but for the noise level of a stream of more samples than that, see
    :mod:`fusion.grounded.measure`. A modality with more than 1024 channels, and more than all others together, costs a
    Cholesky factor instead of eigenvectors; what it shares is found exactly all the same.

    Arguments:
        features: `{name: (samples, l)}`, at least two modalities of the same samples; any lengths. Or chunks of
            that: a list or loader of them, or a function that returns an iterator; where samples lack modalities a
            chunk is a pair of features and `{name: (n,)}` booleans.
        present: `{name: (samples,)}`, false where a sample of features in memory lacks a modality; what it holds
            there is not looked at. Covariances are those of the samples that have what they need.
        voltage: :math:`U_0` in thermal voltages. Default: a channel at the edge of the noise is specific with
            odds of 100 to 1, :math:`U_0 = \ln(100)\,(1-r_0)/(r_0 - r_\mathrm{edge})`, whatever the sample
            size.
        ground: Position of *b* between 0 and 1; nearer to 0, more channels may be invariant.
        debye_length: In lengths of the cell; see :func:`fusion.grounded.transport.channel_cell`.
        ion_size: Share of the cell that all channels fill, 0 to below 1: at most :math:`l\,(1-b)/\mathrm{ion\_size}`
            of them become invariant.
        safety: The noise level is this factor above the largest R² between shuffled modalities.
        permutations, seed: Of that null measurement.

    Raises:
        ValueError: Fewer than two modalities or samples, unequal sample counts, values that are not finite,
            chunks that can be read only once or do not fit each other, or a number out of its range.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> print(fusion.dissociate(data.modalities))  # two directions are shared
        2 modalities, 500 samples
          a: 8 channels, 2.0 of them invariant (noise level 0.043, total charge +1.51)
          b: 6 channels, 2.0 of them invariant (noise level 0.043, total charge +1.59)
    """
    settings = CellSettings(
        voltage=voltage,
        ground=ground,
        debye_length=debye_length,
        ion_size=ion_size,
        safety=safety,
        permutations=permutations,
        seed=seed,
    )
    measured = measure(features, present=present, shuffles=permutations, seed=seed)
    coherence, edges = measured.coherence, noise_edge(measured)
    condensed = condense(coherence.matrix, coherence.dims)
    ions, bases = {}, {}
    for name in coherence.whitenings:
        shared, bases[name] = _directions(condensed, name)
        ions[name] = Ions.at_rest(shared, Noise.above(edges[name], safety, voltage), settings)
    frames = _frames(condensed, {name: one.gates for name, one in ions.items()}, bases)
    channels = {}
    for name, one in ions.items():
        basis, frame = bases[name], frames[name]
        if name in condensed.turns:
            basis = _completed(condensed.turns[name] @ basis.mT)
            frame = torch.nn.functional.pad(frame, (0, 0, 0, len(basis) - len(frame)))
        channels[name] = Channels(**vars(one), basis=basis, frame=frame)
    return Subspaces(coherence, channels)


def _directions(condensed: Condensed, name: str) -> tuple[Tensor, Tensor]:
    """R² of the channels of a modality `(l,)`, best predicted first, and their directions `(r, r)`, in rows."""
    here = slices(condensed.dims)[name]
    values, vectors = torch.linalg.eigh(predictability(condensed.matrix, here))
    shared, basis = values.flip(0).clamp(0, 1), vectors.flip(-1).mT
    # The sign of an eigenvector is a convention: the largest component is positive.
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    if name in condensed.turns:
        left_out = len(condensed.turns[name]) - len(shared)
        shared = torch.cat([shared, shared.new_zeros(left_out)])
    return shared, basis * largest.sign()


def _completed(columns: Tensor) -> Tensor:
    """An orthonormal basis `(l, l)` of rows that begins with the orthonormal columns `(l, r)`."""
    count = columns.shape[-1]
    found, triangle = torch.linalg.qr(columns, mode="complete")
    found[:, :count] *= triangle.diagonal().sign()  # as they were
    return found.mT


def _frames(
    condensed: Condensed, gates: Mapping[str, Tensor], bases: Mapping[str, Tensor], rounds: int = 20
) -> dict[str, Tensor]:
    r"""Rotations into common coordinates: generalised orthogonal Procrustes of the gated channels.

    Maximises :math:`\sum_{m \ne n}\operatorname{tr}(R_m^T C_{mn} R_n)` over orthonormal columns, with C the
    gated cross-covariance, starting from the leading joint directions; for two modalities the fixed point is
    the singular value decomposition of :math:`C_{12}`.

    References:
        Gower, Psychometrika 40, 33 (1975); Schönemann, Psychometrika 31, 1 (1966).
    """
    where = slices(condensed.dims)
    width = min(condensed.dims.values())
    turn = torch.block_diag(
        *(gates[name][: len(basis), None].sqrt() * basis for name, basis in bases.items())
    )
    gated = turn @ condensed.matrix @ turn.mT
    for here in where.values():
        gated[here, here] = 0.0
    joint = torch.linalg.eigh(gated)[1].flip(-1)[:, :width]
    frames = {name: _polar(joint[here]) for name, here in where.items()}
    for _ in range(rounds):
        for name, here in where.items():
            target = sum(
                gated[here, there] @ frames[other] for other, there in where.items() if other != name
            )
            frames[name] = _polar(target)
    return frames


def _polar(matrix: Tensor) -> Tensor:
    """Nearest matrix with orthonormal columns."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v
