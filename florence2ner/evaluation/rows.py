"""An image of an evaluation: its loss, what was written about it, and how that is kept in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def rows_as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as JSON holds them: with a caption whole, without one only what it is about and its loss."""
    return {
        "captions": [dict(vars(row)) for row in rows if row.prediction is not None],
        "others": [[*row.name, row.nats, row.tokens] for row in rows if row.prediction is None],
    }


def rows_from_json(stored: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows that `rows_as_json` made, those with captions first. Others have no references."""
    captions = (
        Row(**entry | {key: tuple(entry[key]) for key in ("references", "flags")}) for entry in stored["captions"]
    )
    others = (
        Row(image=image, task_prompt=task, references=("",), nats=nats, tokens=tokens)
        for image, task, nats, tokens in stored["others"]
    )
    return (*captions, *others)


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
