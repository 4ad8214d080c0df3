"""How far figures would differ on other images of the same kind: intervals from the bootstrap.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 16 for percentiles; paired as in Koehn,
"Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004): both models are given the same choice
of images each time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from florence2ner.metrics.metric import Parts, Summed

RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 0
_AT_ONCE = 4_000_000  # numbers of a table of choices, so that memory doesn't grow with the images

Interval = tuple[float, float]


def intervals(metric: Summed, *parts: Parts) -> tuple[list[Interval], Interval | None]:
    """Of one model or two on the same N images, from their parts (N, K): an interval for each, and of the difference.

    The difference is the second minus the first. The same parts always give the same numbers.
    """
    (images,) = {len(part) for part in parts}
    chosen = [np.concatenate(list(sums)) for sums in zip(*_resampled(parts, images), strict=True)]
    values = [np.array([metric.value(row) for row in sums]) for sums in chosen]
    each = [_percentiles(found) for found in values]
    return each, _percentiles(values[1] - values[0]) if len(values) == 2 else None


def _resampled(parts: Sequence[Parts], images: int) -> list[list[Parts]]:
    """The summed parts of each resample, in blocks: how often each image is drawn, times its parts."""
    rng = np.random.default_rng(_SEED)
    block = max(1, min(RESAMPLES, _AT_ONCE // images))
    blocks = []
    for start in range(0, RESAMPLES, block):
        counts = rng.multinomial(images, np.full(images, 1 / images), size=min(block, RESAMPLES - start))
        blocks.append([counts @ part for part in parts])
    return blocks


def _percentiles(values: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
