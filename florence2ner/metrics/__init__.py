"""Figures about captions, in one table: how each is computed and which way is better. Strings in, numbers out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

MetricName = Literal["eval/loss", "eval/perplexity", "eval/exact_match"]


@dataclass(frozen=True)
class Observed:
    """What figures are computed of: the mean loss, and captions beside the truth."""

    loss: float  # nats per label token
    predictions: Sequence[str] = ()
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Metric:
    """A figure. `needs_captions`: there is none where nothing was generated."""

    compute: Callable[[Observed], float]
    higher_is_better: bool = False
    needs_captions: bool = False


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to their reference, white space at the ends aside. Raises ValueError when empty."""
    if not references:
        raise ValueError("no captions to compare")
    hits = [
        prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


METRICS: dict[MetricName, Metric] = {
    "eval/loss": Metric(lambda seen: seen.loss),
    "eval/perplexity": Metric(lambda seen: math.exp(min(seen.loss, 700.0))),  # beyond that, no float holds it
    "eval/exact_match": Metric(
        lambda seen: exact_match(seen.predictions, seen.references), higher_is_better=True, needs_captions=True
    ),
}


def measure(seen: Observed) -> dict[MetricName, float]:
    """Every figure that can be computed of what was seen."""
    return {
        name: metric.compute(seen) for name, metric in METRICS.items() if seen.references or not metric.needs_captions
    }


def is_better(name: MetricName, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far (None: there is none). Not a number never does."""
    if best is None:
        return value == value
    return value > best if METRICS[name].higher_is_better else value < best
