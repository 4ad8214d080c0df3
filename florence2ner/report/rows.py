"""What reports are made of, as evaluations and runs hand it over, and the parts of pages that several of them have."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from florence2ner.data.samples import ImageRef
from florence2ner.display import printable
from florence2ner.metrics.table import METRICS
from florence2ner.report.page import Block
from florence2ner.report.thumbnails import thumbnails
from florence2ner.report.words import Parts, mark_differences

Interval = tuple[float, float]
# Metrics that tell most, which come first.
_MAIN = ("eval/cider", "eval/cer", "eval/map", "eval/tag_f1", "eval/rouge_l", "eval/exact_match", "eval/loss")


class RowLike(Protocol):
    """An image and task of an evaluation, with what was written about it."""

    @property
    def image(self) -> str:
        """The image's key."""

    @property
    def task_prompt(self) -> str:
        """What was asked."""

    @property
    def references(self) -> tuple[str, ...]:
        """The true captions."""

    @property
    def prediction(self) -> str | None:
        """The caption that was written; None where there is none."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What looks wrong with it."""

    @property
    def scores(self) -> Mapping[Any, float]:
        """Its metrics by name."""


class Pictures:
    """Collects the images that a page shows, each once, to make their pictures at the end."""

    def __init__(self, images: Mapping[str, ImageRef]) -> None:
        self._images = images
        self._places: dict[str, int] = {}

    def place_of(self, key: str) -> int:
        """The index of an image's picture in the page."""
        return self._places.setdefault(key, len(self._places))

    def make(self) -> list[str]:
        """The pictures in the order of their indices; those that can't be made are empty."""
        return [text or "" for text in thumbnails([self._images.get(key) for key in self._places])]


def metric_infos() -> dict[str, Any]:
    """What the script has to know of each metric."""
    return {
        name: {"label": metric.label, "meaning": metric.meaning, "goal": metric.goal, "percent": metric.percent}
        for name, metric in METRICS.items()
    }


def in_order_of_use(names: Iterable[str]) -> list[Any]:
    """The metrics among these names, those first that tell most."""
    known = {name for name in names if name in METRICS}
    return [name for name in dict.fromkeys((*_MAIN, *METRICS)) if name in known]


def main_metric(names: Sequence[str], asked: Sequence[str] = ()) -> str | None:
    """The metric that tells most, of those that there are: the first that was asked for, if any."""
    return next((name for name in (*asked, *in_order_of_use(names)) if name in names), None)


def truth_and(prediction: str, references: Sequence[str]) -> tuple[Parts, Parts, list[str]]:
    """The closest reference and the prediction, in pieces of which every second is marked, and the other references."""
    closest, truth, written = mark_differences(prediction, references)
    return truth, written, [text for index, text in enumerate(references) if index != closest]


def said(who: str, parts: Parts, *, flags: Sequence[str] = (), kind: str = "") -> dict[str, Any]:
    """A text of a row, and who says it. `kind`: lack or odd, how its marked pieces look."""
    return {"who": who, "parts": parts, "flags": list(flags), "kind": kind}


def settings_block(settings: Mapping[str, Any]) -> Block:
    """A table of settings, folded."""
    facts = [[name, _shown(value)] for name, value in settings.items() if value is not None]
    return {"block": "facts", "title": "Settings", "facts": facts, "folded": True}


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(part)}" for key, part in value.items() if part is not None)
    return without_secrets(printable(str(value).lower() if isinstance(value, bool) else str(value)))


def without_secrets(text: str) -> str:
    """The text without what of addresses and commands may be a secret: a report is handed on.

    Of a URL its user and its query go, in which signatures stand, and of a command after pipe: all but its first word.
    """
    text = re.sub(r"(?<=://)[^/\s@]*@", "", text)
    text = re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1?…", text)
    return re.sub(r"^(pipe:\s*\S+)\s.*", r"\1 …", text, flags=re.DOTALL)
