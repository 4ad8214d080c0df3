"""Is it better? Two models on the same images: figures, the difference with its interval, wins, losses and ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence2ner.errors import UserError
from florence2ner.evaluation.rows import Row
from florence2ner.metrics.bootstrap import Interval, intervals
from florence2ner.metrics.metric import Summed
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.observed import Observed
from florence2ner.metrics.table import METRICS, format_figure, measure, names_for, parts_of, scores_of_each

_EQUAL = 1e-9  # scores that differ by less are a tie


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of two models, `before` and `after`, on the same images."""

    metric: MetricName
    before: float
    after: float
    interval: Interval | None  # 95%, of after - before; None where there is none: of mAP, of few images
    wins: int = 0  # images that `after` scores better on
    losses: int = 0
    ties: int = 0

    @property
    def change(self) -> float:
        """after - before."""
        return self.after - self.before

    @property
    def is_worse(self) -> bool:
        """Whether `after` is worse, and beyond doubt."""
        return METRICS[self.metric].is_better(self.before, self.after) and self.is_sure

    @property
    def is_better(self) -> bool:
        """Whether `after` is better, and beyond doubt."""
        return METRICS[self.metric].is_better(self.after, self.before) and self.is_sure

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes no change. Of metrics that never have one, such as mAP, the figures decide."""
        if self.interval is None:
            return not isinstance(METRICS[self.metric], Summed)
        return not self.interval[0] <= 0 <= self.interval[1]

    def in_words(self) -> tuple[str, str, str, str, str]:
        """Label, both figures, their difference and its interval, as people read them."""
        name, interval = METRICS[self.metric].label, ""
        if self.interval:
            low, high = (self._signed(limit, "") for limit in self.interval)
            interval = f"[{low}, {high}]"
        figures = format_figure(self.metric, self.before), format_figure(self.metric, self.after)
        return name, *figures, self._signed(self.change), interval

    def __str__(self) -> str:
        """Such as "CIDEr-D 0.41 -> 0.97, +0.56 [0.49, 0.63]"."""
        name, before, after, change, interval = self.in_words()
        return f"{name} {before} -> {after}, {change} {interval}".rstrip()

    def _signed(self, value: float, sign: str = "+") -> str:
        """In percentage points where the figures are in percent."""
        return f"{100 * value:{sign}.1f}" if METRICS[self.metric].percent else f"{value:{sign}.3f}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same images: rows[i] of both are about the same image and task, with their scores."""

    differences: tuple[Difference, ...]
    before: tuple[Row, ...]
    after: tuple[Row, ...]

    def of(self, name: MetricName) -> Difference | None:
        """The difference of one metric."""
        return next((found for found in self.differences if found.metric == name), None)

    def as_json(self) -> list[dict[str, Any]]:
        """The differences as JSON holds them."""
        return [dict(vars(entry)) | {"difference": entry.change} for entry in self.differences]

    def largest(self, name: MetricName, count: int) -> list[int]:
        """Indices of the rows on which the two models' scores differ most, the most first."""
        changes = {
            index: abs(second.scores[name] - first.scores[name])
            for index, (first, second) in enumerate(zip(self.before, self.after, strict=True))
            if name in first.scores and name in second.scores
        }
        found = sorted(changes, key=lambda index: -changes[index])
        return [index for index in found[:count] if changes[index] > _EQUAL]


def compare(before: Sequence[Row], after: Sequence[Row], metrics: Sequence[MetricName] = ()) -> Comparison:
    """Compare what two models did, over the images and tasks that both have; captions where both have one.

    Rare words weigh in CIDEr-D as in these images. Raises UserError where the two have no image in common.
    """
    others = {row.name: row for row in after}
    pairs = [(row, others[row.name]) for row in before if row.name in others]
    if not pairs:
        raise UserError("the two evaluations have no image in common")
    seen = [_alike(first, second) for first, second in pairs]
    first, second = [pair[0] for pair in seen], [pair[1] for pair in seen]
    names = [name for name in names_for(first, metrics) if name in names_for(second, metrics)]
    scores = scores_of_each(first, names), scores_of_each(second, names)
    figures = measure(first, names), measure(second, names)
    rows = tuple(
        tuple(replace(pair[side], scores=found) for pair, found in zip(pairs, scores[side], strict=True))
        for side in (0, 1)
    )
    known = [name for name in names if name in figures[0] and name in figures[1]]
    differences = tuple(_difference(name, figures, first, second, scores) for name in known)
    return Comparison(differences=differences, before=rows[0], after=rows[1])


def _alike(first: Row, second: Row) -> tuple[Observed, Observed]:
    """Both as metrics see them; without a caption where only one has it, so that none is counted alone."""
    seen = first.observed(), second.observed()
    if (first.prediction is None) != (second.prediction is None):
        return tuple(replace(one, prediction=None) for one in seen)  # type: ignore[return-value]
    return seen


def _difference(
    name: MetricName,
    figures: tuple[Mapping[MetricName, float], Mapping[MetricName, float]],
    first: Sequence[Observed],
    second: Sequence[Observed],
    scores: tuple[Sequence[Mapping[MetricName, float]], Sequence[Mapping[MetricName, float]]],
) -> Difference:
    metric = METRICS[name]
    interval = None
    if isinstance(metric, Summed):
        _, interval = intervals(metric, parts_of(metric, first), parts_of(metric, second))
    pairs = [(a[name], b[name]) for a, b in zip(*scores, strict=True) if name in a and name in b]
    ties = sum(abs(a - b) <= _EQUAL for a, b in pairs)
    wins = sum(abs(a - b) > _EQUAL and metric.is_better(b, a) for a, b in pairs)
    return Difference(
        metric=name,
        before=figures[0][name],
        after=figures[1][name],
        interval=interval,
        wins=wins,
        losses=len(pairs) - wins - ties,
        ties=ties,
    )
