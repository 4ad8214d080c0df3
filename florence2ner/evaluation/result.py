"""What an evaluation finds out: figures with their intervals, and each image with what was written about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence2ner.evaluation.compare import Comparison
from florence2ner.evaluation.rows import Row, rows_as_json
from florence2ner.metrics.bootstrap import Interval, intervals
from florence2ner.metrics.metric import Summed
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import METRICS, measure, names_for, parts_of, scores_of_each


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation. Each metric is computed over the rows that it applies to."""

    figures: Mapping[MetricName, float]  # such as "eval/loss"; those that apply
    rows: tuple[Row, ...]  # in the order of the samples, each image and task once
    samples: int  # number of samples that could be read
    comparison: Comparison | None = None  # with another model, where that was asked for
    unreadable: tuple[str, ...] = ()  # keys of images that could not be read and are left out

    @property
    def captions(self) -> tuple[Row, ...]:
        """The rows with a generated caption."""
        return tuple(row for row in self.rows if row.prediction is not None)

    @property
    def loss(self) -> float:
        """The mean over all label tokens, in nats."""
        return self.figures["eval/loss"]

    @property
    def exact_match(self) -> float | None:
        """The share of captions, from 0 to 1, that are a reference; None where nothing was generated."""
        return self.figures.get("eval/exact_match")

    @property
    def tokens(self) -> int:
        """The number of label tokens that the loss is a mean over."""
        return sum(row.tokens for row in self.rows)

    def intervals(self) -> dict[MetricName, Interval]:
        """A 95% interval for each figure that has one: how far it would differ on other images of the same kind."""
        observed = [row.observed() for row in self.rows]
        found = {}
        for name in self.figures:
            metric = METRICS[name]
            if isinstance(metric, Summed):
                (limits,), _ = intervals(metric, parts_of(metric, observed))
                if limits:
                    found[name] = limits
        return found


def summarise(
    rows: Sequence[Row], metrics: Sequence[MetricName], *, samples: int, unreadable: Sequence[str] = ()
) -> Evaluation:
    """Compute the metrics of these rows: those asked for, or all that apply where none is."""
    observed = [row.observed() for row in rows]
    names = names_for(observed, metrics)
    scored = tuple(
        replace(row, scores=scores) for row, scores in zip(rows, scores_of_each(observed, names), strict=True)
    )
    return Evaluation(figures=measure(observed, names), rows=scored, samples=samples, unreadable=tuple(unreadable))


def as_json(result: Evaluation, *, with_intervals: bool = False) -> dict[str, Any]:
    """The result as JSON holds it. Rows without a caption are named with their loss alone."""
    limits = {"intervals": {name: list(pair) for name, pair in result.intervals().items()}} if with_intervals else {}
    return {
        "figures": dict(result.figures),
        **limits,
        "samples": result.samples,
        "tokens": result.tokens,
        **rows_as_json(result.rows),
        "unreadable": list(result.unreadable),
    }
