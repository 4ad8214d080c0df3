"""How far figures would differ on other images of the same kind: intervals from the bootstrap.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 16 for percentiles; paired as in Koehn,
"Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004): both models are given the same choice
of images each time.

Percentiles of few images are too narrow: they are moved outwards, which gives the "expanded percentile interval" of
Hesterberg, "What Teachers Should Know About the Bootstrap" (The American Statistician 69, 2015).
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from florence2ner.metrics.metric import Parts, Summed

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST = 5  # images that have an interval: four have all values on one side of the truth in one of eight cases
_SEED = 0
_AT_ONCE = 4_000_000  # numbers of a table of choices, so that memory doesn't grow with the images

Interval = tuple[float, float]


def intervals(metric: Summed, *parts: Parts) -> tuple[list[Interval | None], Interval | None]:
    """Of one model or two on the same N images, from their parts (N, K): an interval for each, and of the difference.

    The difference is the second minus the first. The same parts always give the same numbers. Images whose parts are
    zeros don't count. None stands for an interval of fewer images than `FEWEST`, and of a metric without a value.
    """
    counts = np.any([part.any(axis=1) for part in parts], axis=0)
    images = int(counts.sum())
    if images < FEWEST:
        return [None] * len(parts), None
    chosen = [np.concatenate(list(sums)) for sums in zip(*_resampled([p[counts] for p in parts], images), strict=True)]
    values = [np.array([metric.value(row) for row in sums]) for sums in chosen]
    each = [_percentiles(found, images) for found in values]
    return each, _percentiles(values[1] - values[0], images) if len(values) == 2 else None


def _resampled(parts: Sequence[Parts], images: int) -> list[list[Parts]]:
    """The summed parts of each resample, in blocks: how often each image is drawn, times its parts."""
    rng = np.random.default_rng(_SEED)
    block = max(1, min(RESAMPLES, _AT_ONCE // images))
    blocks = []
    for start in range(0, RESAMPLES, block):
        counts = rng.multinomial(images, np.full(images, 1 / images), size=min(block, RESAMPLES - start))
        blocks.append([counts @ part for part in parts])
    return blocks


def _percentiles(values: NDArray[np.float64], images: int) -> Interval | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    tail = _tail(images)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _tail(images: int) -> float:
    """The share of resamples to leave out on each side.

    It is where the interval of Student's t would end among the means of resamples, were these normal: their variance is
    (N - 1) / N of what an unbiased one is. Quantiles of t are from Abramowitz and Stegun, 26.7.5: within 0.0007.
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), images - 1
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    t = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
    return NormalDist().cdf(-t * (images / freedom) ** 0.5)
