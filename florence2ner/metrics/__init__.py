"""The metrics of an evaluation, in one table: how each is computed, and whether higher is better."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["eval/loss", "eval/perplexity", "eval/exact_match"]


@dataclass(frozen=True)
class Observed:
    """What metrics are computed from: the mean loss, and generated captions with their references in the same order."""

    loss: float  # nats per label token
    predictions: Sequence[str] = ()
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Metric:
    """One metric. With `needs_captions` it is left out where nothing was generated."""

    compute: Callable[[Observed], float]
    higher_is_better: bool = False
    needs_captions: bool = False


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share (0 to 1) of predictions equal to their reference, ignoring white space at both ends.

    Raises ValueError for no captions at all, or for different numbers of the two.
    """
    if not references:
        raise ValueError("no captions to compare")
    hits = [
        prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


METRICS: dict[MetricName, Metric] = {
    "eval/loss": Metric(lambda seen: seen.loss),
    "eval/perplexity": Metric(lambda seen: math.exp(min(seen.loss, 700.0))),  # exp overflows a float beyond 709
    "eval/exact_match": Metric(
        lambda seen: exact_match(seen.predictions, seen.references), higher_is_better=True, needs_captions=True
    ),
}


def measure(seen: Observed) -> dict[MetricName, float]:
    """All metrics that can be computed from `seen`, by name."""
    return {
        name: metric.compute(seen) for name, metric in METRICS.items() if seen.references or not metric.needs_captions
    }


def is_better(name: MetricName, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; None: there is none yet. NaN never does."""
    if best is None:
        return value == value
    return value > best if METRICS[name].higher_is_better else value < best
