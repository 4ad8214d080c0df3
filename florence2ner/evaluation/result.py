"""What an evaluation finds out: figures with their intervals, and each image with what was written about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence2ner.metrics import METRICS, measure, names_for, parts_of, scores_of_each
from florence2ner.metrics.bootstrap import Interval, intervals
from florence2ner.metrics.metric import Summed
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.observed import Box, Kind, Observed
from florence2ner.model.answers import parse_answer
from florence2ner.model.tasks import find_task

_SIDES = (1000, 1000)  # of an image whose boxes are compared: metrics of boxes don't depend on it


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image and task: its loss, and the caption that was written about it."""

    image: str  # the image's key in the dataset
    task_prompt: str
    references: tuple[str, ...]
    nats: float  # negative log-likelihood, summed over the label tokens of its captions
    tokens: int  # number of these tokens
    prediction: str | None = None  # None where nothing was generated
    flags: tuple[str, ...] = ()  # what looks wrong with it, see `flag_problems`
    scores: Mapping[MetricName, float] = field(default_factory=dict)  # the metrics that can be said of one image

    @property
    def name(self) -> tuple[str, str]:
        """What tells it from the other rows of an evaluation."""
        return self.image, self.task_prompt

    def observed(self) -> Observed:
        """The row as metrics see it."""
        kind = _kind_of(self.task_prompt)
        is_boxes = kind == "boxes"
        return Observed(
            nats=self.nats,
            tokens=self.tokens,
            references=self.references,
            prediction=self.prediction,
            kind=kind,
            is_loop="loop" in self.flags,
            is_cut_off="cut_off" in self.flags,
            true_boxes=_boxes(self.task_prompt, self.references[0]) if is_boxes else (),
            predicted_boxes=_boxes(self.task_prompt, self.prediction) if is_boxes and self.prediction else (),
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation. Each metric is computed over the rows that it applies to."""

    figures: Mapping[MetricName, float]  # such as "eval/loss"; those that apply
    rows: tuple[Row, ...]  # in the order of the samples, each image and task once
    samples: int  # number of samples that could be read
    unreadable: tuple[str, ...] = ()  # keys of images that could not be read and are left out

    @property
    def captions(self) -> tuple[Row, ...]:
        """The rows with a generated caption."""
        return tuple(row for row in self.rows if row.prediction is not None)

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
                (found[name],), _ = intervals(metric, parts_of(metric, observed))
        return found


def summarise(
    rows: Sequence[Row], metrics: Sequence[MetricName], *, samples: int, unreadable: Sequence[str] = ()
) -> Evaluation:
    """Compute the metrics of these rows: those asked for, or all that apply where none is."""
    observed = [row.observed() for row in rows]
    names = names_for(observed, metrics)
    scored = tuple(
        Row(**_fields(row) | {"scores": scores})
        for row, scores in zip(rows, scores_of_each(observed, names), strict=True)
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
        "captions": [_fields(row) for row in result.captions],
        "others": [[*row.name, row.nats, row.tokens] for row in result.rows if row.prediction is None],
        "unreadable": list(result.unreadable),
    }


def rows_from_json(stored: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of a result that `as_json` made, those with captions first. Others have no references."""
    captions = (
        Row(**entry | {key: tuple(entry[key]) for key in ("references", "flags")}) for entry in stored["captions"]
    )
    others = (
        Row(image=image, task_prompt=task, references=("",), nats=nats, tokens=tokens)
        for image, task, nats, tokens in stored["others"]
    )
    return (*captions, *others)


def _fields(row: Row) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if not (isinstance(value, float) and math.isnan(value))}


def _kind_of(task_prompt: str) -> Kind:
    task = find_task(task_prompt)
    if task.answer == "text":
        return "ocr" if task.token == "<OCR>" else "caption"
    return "boxes" if task.answer in ("boxes", "phrases", "boxes_or_polygons") else "other"


def _boxes(task_prompt: str, text: str) -> tuple[Box, ...]:
    parsed = parse_answer(find_task(task_prompt), text, _SIDES)
    if isinstance(parsed, str):
        return ()
    labels = parsed.get("labels", parsed.get("bboxes_labels", []))
    return tuple(Box(label, *corners) for label, corners in zip(labels, parsed.get("bboxes", []), strict=True))
