"""Retrieval and conflicts without training, beside CCA and a contrastive head: python -m benchmarks.untrained [--page].

Measures what is not yet in results/untrained/, on digits in two and in four views and on every `--file FEATURES.npz`
with classes. `--page` writes docs/untrained.md.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import fusion
from fusion.evaluation.retrieval import ranking_scores
from fusion.evaluation.statistics import half_width, holm, paired_test
from fusion.training.contrast import contrastive_loss
from pnp.atomic import replacing

from .measure import table

FOLDER = Path(__file__).parent / "results" / "untrained"
PAGE = Path(__file__).parents[1] / "docs" / "untrained.md"
SEEDS = 5
OVERLAP = 1 / 3
"""Test over training samples."""
K = 10
RANKS = (1, 2, 3, 5, 8, 12, 16, 24, 32)
RIDGE = 1e-2
METRICS = {"same sample": "sample", "same class": "class", "conflict": "conflict"}
OURS = ("cell, likelihood", "cell, cosine")
PROSE = """# Without training

Written by `python -m benchmarks.untrained --page` from what the same command without `--page` measures (minutes on one
core; kept in `benchmarks/results/untrained/`).

`subspaces = fusion.dissociate(features)` needs no labels and no training, and already knows which samples belong
together. In the canonical variates $x$, $y$ of the gated channels, with correlations $\\rho$, the log-odds that two
samples are one are

$$\\Lambda = \\sum_k \\frac{{\\rho_k x_k y_k - \\tfrac12\\rho_k^2(x_k^2 + y_k^2)}}{{1 - \\rho_k^2}}
  - \\tfrac12\\ln(1 - \\rho_k^2) ,$$

the score that no other beats if channels are Gaussian (Neyman and Pearson). `subspaces.retrieve(queries, gallery)`
ranks by it (or by a cosine), `subspaces.conflict(features)` is its negative, for any number of modalities. What is not
above the noise has no correlation left, because its gate is shut; nobody has to say how many directions there are.

Beside them: canonical correlations with a ridge of {ridge:g}, compared by cosine (retrieval) and by the distance of the
variates (conflict), with *all* directions and with the number that is best on the validation samples (*told*; for
conflicts that takes labels); the same with Λ of all directions, not gated; and a *contrastive* head, one linear map for
each modality trained by InfoNCE on the pairs of the training samples, stopped where the validation loss is least.

Test samples of five seeds, each with its own split of 60/20/20 per cent; mean ± half the 95 % confidence interval
(Nadeau and Bengio). *Same sample*: mAP@{k} of finding the other view of the same sample, mean over all ordered pairs of
views. *Same class*: mAP@{k} of views of the same class. *Conflict*: AUC of telling samples of which one view was
replaced by that of a sample of another class. ▲ better, ▼ worse than the best of those beside them, p < 0.05 after
Holm.

A file that brings a split keeps it: seeds then vary shuffles, conflicts and initial weights alone, and intervals
say nothing about other samples.

{tables}
## What to make of it

*The likelihood ratio is what counts.* Of all directions, not gated, it is best in six of the nine columns, the best
CCA in eight, and level with or ahead of the trained contrastive heads, which see the same pairs. The usual residual of
CCA has to be told the rank: with all directions it tells conflicts with .64 to .84.

*Gates cost where weak directions help, and save where there are many.* Against both usual forms of CCA the cell's score
has the better mean at conflicts on two sets (level on the third) and at finding the same sample on two. Against the
ungated ratio it loses at finding the same sample everywhere, and at quadrants altogether: directions that do not rise
above the noise one by one say something together. On six views, where 649 channels meet 1200 samples, it is level with
it at classes and ahead at conflicts. The cosine is the better choice for classes on digits, and nowhere else.

No layer of this project was trained for this page.
"""


def views(file: Path | None, name: str) -> fusion.Features:
    """The features of a name."""
    if file is not None:
        return fusion.load_features(file).pooled()
    return fusion.digits_two_views() if name == "digits" else fusion.digits_views()


Scores = dict[str, float]
Ranker = Callable[[Mapping[str, Tensor], str, str], Tensor]
"""The rows of one modality, best first, for each row of another."""
Judge = Callable[[Mapping[str, Tensor]], Tensor]
"""How much the modalities of samples contradict each other."""


def cosine_order(queries: Tensor, gallery: Tensor) -> Tensor:
    """Rows of the gallery by cosine."""
    queries, gallery = (nn.functional.normalize(one, dim=-1) for one in (queries, gallery))
    return (queries @ gallery.T).topk(min(K, len(gallery)), dim=-1).indices


@dataclass(frozen=True)
class Variates:
    """Canonical variates of two modalities, by ridge-regularised whitening and a singular value decomposition."""

    means: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]
    correlations: Tensor

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Variates":
        """Fit on samples `(N, l)` and `(N, m)`."""
        means, roots, whitened = [], [], []
        for values in (one.double(), other.double()):
            scale = values.std(0)
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            centred = (values - values.mean(0)) / scale
            covariance = centred.T @ centred / len(centred)
            covariance.diagonal().add_(RIDGE)
            root = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
            means.append(values.mean(0))
            roots.append(root / scale[:, None])
            whitened.append(centred @ root)
        u, correlations, v = torch.linalg.svd(whitened[0].T @ whitened[1] / len(one), full_matrices=False)
        return cls((means[0], means[1]), (roots[0] @ u, roots[1] @ v.T), correlations.clamp(max=1 - 1e-6))

    def project(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Variates of both."""
        x, y = (
            (values.double() - mean) @ turn
            for values, mean, turn in zip((one, other), self.means, self.maps, strict=True)
        )
        return x, y


class Canonical:
    """CCA of every pair of modalities."""

    def __init__(self, features: fusion.Features) -> None:
        named = features.modalities
        self.pairs = {(a, b): Variates.of(named[a], named[b]) for a, b in combinations(named, 2)}

    def both(self, samples: Mapping[str, Tensor], a: str, b: str) -> tuple[Tensor, Tensor, Tensor]:
        """Variates of *a* and *b*, and their correlations."""
        if (a, b) in self.pairs:
            return *self.pairs[a, b].project(samples[a], samples[b]), self.pairs[a, b].correlations
        y, x, rho = self.both(samples, b, a)
        return x, y, rho

    def order(self, samples: Mapping[str, Tensor], a: str, b: str, *, rank: int | None) -> Tensor:
        """By cosine of the first `rank` variates."""
        x, y, _ = self.both(samples, a, b)
        return cosine_order(x[:, :rank], y[:, :rank])

    def distance(self, samples: Mapping[str, Tensor], *, rank: int | None) -> Tensor:
        """Squared distance of the variates, summed over pairs."""
        total = torch.zeros(len(next(iter(samples.values()))), dtype=torch.float64)
        for a, b in self.pairs:
            x, y, _ = self.both(samples, a, b)
            total += (x - y)[:, :rank].square().sum(-1)
        return total

    def likely_order(self, samples: Mapping[str, Tensor], a: str, b: str) -> Tensor:
        """By the likelihood ratio of all variates."""
        x, y, rho = self.both(samples, a, b)
        odds = rho / (1 - rho**2)
        likely = (x * odds) @ y.T - 0.5 * (y**2 * (rho * odds)).sum(-1)
        return likely.topk(min(K, len(y)), dim=-1).indices

    def unlikely(self, samples: Mapping[str, Tensor]) -> Tensor:
        """The likelihood ratio of all variates, summed over pairs."""
        total = torch.zeros(len(next(iter(samples.values()))), dtype=torch.float64)
        for a, b in self.pairs:
            x, y, rho = self.both(samples, a, b)
            total -= ((rho * x * y - 0.5 * rho**2 * (x**2 + y**2)) / (1 - rho**2)).sum(-1)
        return total


class Heads:
    """One linear map for each modality, trained by InfoNCE."""

    def __init__(
        self, train: fusion.Features, validation: fusion.Features, seed: int, width: int = 64
    ) -> None:
        torch.manual_seed(seed)
        self.mean = {name: values.mean(0) for name, values in train.modalities.items()}
        self.scale = {name: values.std(0).clamp(min=1e-6) for name, values in train.modalities.items()}
        self.maps = nn.ModuleDict({name: nn.Linear(length, width) for name, length in train.dims.items()})
        temperature = nn.Parameter(torch.tensor(0.1).log())
        optimiser = torch.optim.AdamW([*self.maps.parameters(), temperature], lr=3e-3, weight_decay=1e-2)
        best, state, patience = torch.inf, self.maps.state_dict(), 0
        for _ in range(200):
            for rows in torch.randperm(len(train)).split(256):
                batch = {name: values[rows] for name, values in train.modalities.items()}
                loss = self._loss(batch, temperature)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                now = float(self._loss(validation.modalities, temperature))
            patience += 1
            if now < best:
                best, patience = now, 0
                state = {name: values.clone() for name, values in self.maps.state_dict().items()}
            if patience == 20:
                break
        self.maps.load_state_dict(state)

    def _loss(self, batch: Mapping[str, Tensor], temperature: Tensor) -> Tensor:
        embedded = torch.stack([self.embed(values, name) for name, values in batch.items()])
        everywhere = torch.ones(embedded.shape[:2], dtype=torch.bool)
        return contrastive_loss(embedded, torch.arange(embedded.shape[1]), everywhere, temperature.exp())

    def embed(self, values: Tensor, name: str) -> Tensor:
        """`(N, width)`."""
        return self.maps[name]((values - self.mean[name]) / self.scale[name])

    @torch.no_grad()
    def order(self, samples: Mapping[str, Tensor], a: str, b: str) -> Tensor:
        """By cosine."""
        return cosine_order(self.embed(samples[a], a), self.embed(samples[b], b))

    @torch.no_grad()
    def conflict(self, samples: Mapping[str, Tensor]) -> Tensor:
        """The negative cosines, summed over pairs."""
        embedded = {name: self.embed(values, name) for name, values in samples.items()}
        pairs = combinations(embedded, 2)
        return -sum(torch.cosine_similarity(embedded[a], embedded[b]) for a, b in pairs)


def scores(features: fusion.Features, order: Ranker, judge: Judge, seed: int) -> Scores:
    """All metrics on samples without a split."""
    found: dict[str, list[float]] = {"sample": [], "class": []}
    assert features.label is not None
    labels = {"sample": torch.arange(len(features)), "class": features.label}
    for a, b in permutations(features.modalities, 2):
        best = order(features.modalities, a, b)
        for name, label in labels.items():
            found[name].append(ranking_scores(best, label, label, k=K)[f"map@{K}"])
    posed = fusion.with_conflicts(features, seed=seed)
    auc = float(roc_auc_score(posed.label, judge(posed.modalities)))
    return {name: fmean(values) for name, values in found.items()} | {"conflict": auc}


def measured(features: fusion.Features, seed: int) -> dict[str, Scores]:
    """Method → metric → value on the test samples of one seed."""
    split = features.with_split(seed)
    train, validation, test = split.train, split.validation, split.test
    cell = fusion.dissociate(train.modalities, seed=seed)

    def settled(kind: str) -> Ranker:
        def order(samples: Mapping[str, Tensor], a: str, b: str) -> Tensor:
            return cell.retrieve({a: samples[a]}, {b: samples[b]}, k=K, similarity=kind).indices

        return order

    found = {
        f"cell, {kind}": scores(test, settled(kind), cell.conflict, seed) for kind in ("likelihood", "cosine")
    }
    cca = Canonical(train)
    by_rank = {
        rank: (partial(cca.order, rank=rank), partial(cca.distance, rank=rank))
        for rank in (None, *(rank for rank in RANKS if rank < min(split.dims.values())))
    }
    found["CCA, all directions"] = scores(test, *by_rank[None], seed)
    told = {rank: scores(validation, *both, seed) for rank, both in by_rank.items()}
    best = {metric: max(told, key=lambda rank: told[rank][metric]) for metric in METRICS.values()}
    found["CCA, told the rank"] = {
        metric: scores(test, *by_rank[rank], seed)[metric] for metric, rank in best.items()
    }
    found["CCA, all directions, likelihood"] = scores(test, cca.likely_order, cca.unlikely, seed)
    heads = Heads(train, validation, seed)
    found["contrastive heads"] = scores(test, heads.order, heads.conflict, seed)
    return found


def page(names: Iterable[str]) -> str:
    """The page from all that was measured."""
    tables = []
    for name in names:
        seeds = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        columns = [_column(seeds, metric) for metric in METRICS.values()]
        rows = [[method, *(column[method] for column in columns)] for method in seeds[0]]
        tables.append(f"## {TITLES.get(name, name)}\n\n" + table(["", *METRICS], rows))
    return PROSE.format(ridge=RIDGE, k=K, tables="\n".join(tables))


TITLES = {
    "digits": "Digits, two views that share no pixel",
    "quadrants": "Digits, four quadrants",
    "mfeat6": "Handwritten numerals, six views (UCI Multiple Features; a file)",
}


def _column(seeds: list[dict[str, Scores]], metric: str) -> dict[str, str]:
    values = {method: [one[method][metric] for one in seeds] for method in seeds[0]}
    bar = max((method for method in values if method not in OURS), key=lambda name: fmean(values[name]))
    p_values = holm([paired_test(values[one], values[bar], overlap=OVERLAP) for one in OURS])
    found = {}
    for method, several in values.items():
        width = half_width(several, overlap=OVERLAP)
        found[method] = f"{fmean(several):.3f} ± {width:.3f}"
    for one, p in zip(OURS, p_values, strict=True):
        if p is not None and p < 0.05:
            found[one] += " ▲" if fmean(values[one]) > fmean(values[bar]) else " ▼"
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, action="append", default=[], metavar="FEATURES")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    named = {"digits": None, "quadrants": None} | {file.stem: file for file in options.file}
    for name, file in named.items():
        path = FOLDER / f"{name}.json"
        if options.page or path.exists():
            continue
        found = []
        for seed in range(SEEDS):
            found.append(measured(views(file, name), seed))
            print(name, seed, {method: one["sample"] for method, one in found[-1].items()}, flush=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.page:
        kept = sorted(path.stem for path in FOLDER.glob("*.json"))
        with replacing(PAGE) as temporary:
            temporary.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
