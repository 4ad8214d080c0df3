"""What a metric is: two kinds, those whose parts can be summed over images, and those of a corpus as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from florence2ner.metrics.observed import Observed

Goal = Literal["higher", "lower", "one"]  # what is better; one: the nearer to 1
Parts = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Named:
    label: str  # as people write it
    meaning: str  # a few words for the guide
    goal: Goal
    applies: Callable[[Observed], bool]  # to an image; the others don't count
    package: str = ""  # that it needs and that needn't be there, as pip calls it
    module: str = ""  # of that package
    percent: bool = False  # a share from 0 to 1, which people read in percent

    def is_there(self) -> bool:
        """Whether its package is installed."""
        return not self.module or find_spec(self.module) is not None

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`. NaN never is."""
        if self.goal == "one":
            return abs(value - 1) < abs(other - 1)
        return value > other if self.goal == "higher" else value < other


@dataclass(frozen=True, kw_only=True)
class Summed(_Named):
    """A metric that is a function of parts that are summed over images: it can be computed of any choice of them."""

    parts: Callable[[Sequence[Observed]], Parts]  # of N images, to all of which it applies: (N, K)
    value: Callable[[Parts], float]  # of the sum (K,) of some rows; NaN where nothing counts
    value_of_one: Callable[[Parts], float] | None = None  # of one row, where that differs

    def of_one(self, row: Parts) -> float:
        """The value for a single image, from its row of parts."""
        return (self.value_of_one or self.value)(row)


@dataclass(frozen=True, kw_only=True)
class Whole(_Named):
    """A metric of a corpus: what it would be of other images can only be found by computing it again."""

    compute: Callable[[Sequence[Observed]], float]  # of images to all of which it applies; at least one


Metric = Summed | Whole


def ratio(parts: Parts) -> float:
    """The first part by the second."""
    return float(parts[0] / parts[1]) if parts[1] else float("nan")


def shares(values: Sequence[float]) -> Parts:
    """Parts of a metric that is the mean of these values, for `ratio`: (N, 2)."""
    return np.column_stack([np.asarray(values, np.float64), np.ones(len(values))])
