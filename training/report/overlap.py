"""How alike two sets of passages are, feature by feature: the method of Yang and Lerch.

L.-C. Yang and A. Lerch, On the evaluation of generative models in music, Neural Computing and Applications 32 (2020; online
2018), sections 3.3 and 3.4; code: github.com/RichardYang40148/mgeval. Of each feature the Euclidean distances between every two
passages of one set (intra-set, by exhaustive cross-validation) and between the sets (inter-set) are smoothed to densities with
Gaussian kernels (Scott's bandwidth). Overlapped area (OA) and Kullback-Leibler divergence (KLD, in nats) between the real set's
intra-set density and the inter-set density say how alike the sets are: OA 1 and KLD 0 if the other set might as well be real.

Where this departs from it, and why:

- Several excerpts may come from one piece. Two of one piece are no independent sample, so their distance is left out.
- Of more than MAX_DISTANCES distances so many are drawn, the same number for every density, so that bandwidths are alike.
- Both densities are evaluated on one grid from the smallest to the largest distance, and OA is a sum over it; mgeval integrates
  adaptively, and its KLD takes the two densities at different places. Densities below FLOOR of their sum count as FLOOR in the
  KLD, which would be infinite where Gaussian tails underflow.
- The integral begins at the smallest distance, like mgeval's, so of distances that pile up at 0 (empty-beat rate: most passages
  have none) the half of the kernels below 0 is lost, and OA stays far below 1 for any two sets.
- OA by itself says little: two halves of one set of music do not reach 1 either, and sets that differ in spread only may come
  close. So the real set is halved by piece at random, many times, and in each halving the first half is compared with the second
  (the ceiling) and with as many composed passages: the same sample sizes, the same pieces as the yardstick. Excerpts of one piece
  resemble each other, which composed pieces do not, so the ceiling is if anything a little low.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.report.statistics import Array

MAX_DISTANCES = 4000
GRID = 500
FLOOR = 1e-10
HALVINGS = 10


class Overlap(NamedTuple):
    """Overlapped area, 0..1, and Kullback-Leibler divergence in nats, of two sets of distances."""

    area: float
    divergence: float


def distances_within(values: Array, sources: NDArray[np.int64]) -> Array:
    """Return the distance of every two rows of (N, D), not counting two of the same source."""
    first, second = np.triu_indices(len(values), 1)
    other = sources[first] != sources[second]
    apart: Array = np.linalg.norm(values[first[other]] - values[second[other]], axis=1)
    return apart


def distances_between(values: Array, others: Array) -> Array:
    """Return the distance of every row of (N, D) from every row of (M, D)."""
    apart: Array = np.linalg.norm(values[:, None] - others[None], axis=2).ravel()
    return apart


def overlap(intra: Array, inter: Array) -> Overlap:
    """Return overlapped area and divergence (intra from inter) of two sets of distances, smoothed to densities.

    Of sets without spread, which have no density, the area is 1 if both are the same number, else 0 and the divergence infinite.
    Of an empty set both are NaN.
    """
    from scipy.stats import gaussian_kde

    if not len(intra) or not len(inter):
        return Overlap(float("nan"), float("nan"))
    if np.ptp(intra) == 0 or np.ptp(inter) == 0:
        same = np.ptp(np.concatenate([intra, inter])) == 0
        return Overlap(1.0, 0.0) if same else Overlap(0.0, float("inf"))
    low, high = min(intra.min(), inter.min()), max(intra.max(), inter.max())
    grid = np.linspace(low, high, GRID)
    first, second = gaussian_kde(intra)(grid), gaussian_kde(inter)(grid)
    area = float(np.trapezoid(np.minimum(first, second), grid))
    p, q = (np.maximum(density / density.sum(), FLOOR) for density in (first, second))
    return Overlap(area, float((p * np.log(p / q)).sum()))


def _draw(distances: Array, rng: np.random.Generator) -> Array:
    return rng.choice(distances, MAX_DISTANCES, replace=False) if len(distances) > MAX_DISTANCES else distances


def _halves(sources: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of one half of the sources, and those of the other."""
    mixed = rng.permutation(np.unique(sources))
    inside = np.isin(sources, mixed[: len(mixed) // 2])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def compare(
    real: Mapping[str, Array],
    composed: Mapping[str, Array],
    sources: NDArray[np.int64],
    names: Sequence[str],
    halvings: int = HALVINGS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare composed with real passages, beside real with real ones.

    Parameters
    ----------
    real, composed : mapping of str to float array, shape (passages, D)
        Rows that are not finite are left out.
    sources : int array, shape (real passages,)
        The piece that each real passage comes from.
    names : sequence of str
        The features to compare.
    halvings : int
        Figures are means over so many random halvings.
    seed : int

    Returns
    -------
    dict of str to dict
        Means over the halvings. For each feature `area` and `divergence` of composed passages, `ceiling_area` and
        `ceiling_divergence` of real ones; `area_sd` and `ceiling_area_sd`, standard deviations over the halvings; `areas` and
        `ceiling_areas`, of each halving; and `spread`, the mean distance between composed passages by that between real ones,
        under 1 if the composed ones are more alike.
    """
    rows: dict[str, list[tuple[Overlap, Overlap, float]]] = {name: [] for name in names}
    for turn in range(halvings):
        rng = np.random.default_rng([seed, turn])
        first, second = _halves(sources, rng)
        chosen = rng.permutation(len(next(iter(composed.values()))))[: len(second)]
        for name in names:
            rows[name].append(_compare_once(real[name], composed[name][chosen], sources, first, second, rng))
    return {name: _average(results) for name, results in rows.items()}


def _compare_once(
    real: Array,
    composed: Array,
    sources: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Overlap, Overlap, float]:
    first, second = (rows[np.isfinite(real[rows]).all(axis=1)] for rows in (first, second))
    composed = composed[np.isfinite(composed).all(axis=1)]
    within = distances_within(real[first], sources[first])
    intra = _draw(within, rng)
    ceiling = overlap(intra, _draw(distances_between(real[first], real[second]), rng))
    result = overlap(intra, _draw(distances_between(real[first], composed), rng))
    own = distances_within(composed, np.arange(len(composed)))
    mean = within.mean()
    return result, ceiling, float(own.mean() / mean) if mean else float("nan")


def _average(results: list[tuple[Overlap, Overlap, float]]) -> dict[str, Any]:
    table = np.array([[*result, *ceiling, spread] for result, ceiling, spread in results])
    names = ("area", "divergence", "ceiling_area", "ceiling_divergence", "spread")
    figures: dict[str, Any] = dict(zip(names, table.mean(axis=0).tolist(), strict=True))
    for name, column in (("area", 0), ("ceiling_area", 2)):
        figures |= {f"{name}_sd": float(table[:, column].std()), f"{name}s": table[:, column].tolist()}
    return figures


def headline(features: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean areas over features, and their ratio: the share of the ceiling that the composed music reaches.

    `ratio_sd` is the standard deviation of that ratio over the halvings.
    """
    areas, ceilings = (np.mean([row[name] for row in features.values()], axis=0) for name in ("areas", "ceiling_areas"))
    area, ceiling = float(areas.mean()), float(ceilings.mean())
    return {"area": area, "ceiling_area": ceiling, "ratio": area / ceiling, "ratio_sd": float((areas / ceilings).std())}
