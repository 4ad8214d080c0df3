"""The report of a captioning run: images with what was written about them, those first that look wrong."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef
from florence2ner.outputs.answers import Answer, Content
from florence2ner.report.page import Block, Page, build_page
from florence2ner.report.rows import said, settings_block
from florence2ner.report.thumbnails import BUDGET, MOST_PICTURES, thumbnail, thumbnails

_LONGEST = 4000  # characters shown of an answer in JSON
_SIDE = 220  # pixels of pictures that are made while captioning


@dataclass(frozen=True)
class Captioned:
    """An image and the answers about it, as the page shows them."""

    name: str
    size: tuple[int, int]  # (width, height) in pixels
    answers: tuple[Answer, ...]
    image: ImageRef | None  # where its file can be read again
    picture: str = ""  # else its picture; empty where it has none

    @property
    def is_flagged(self) -> bool:
        """Whether an answer looks wrong."""
        return any(answer.flags for answer in self.answers)


class Gallery:
    """Collects what a page has room for: the flagged images, and the first of the others. Memory stays bounded."""

    def __init__(self, limit: int = MOST_PICTURES, *, max_pixels: int = MAX_PIXELS) -> None:
        self.limit = limit
        self.seen = 0  # images, shown or not
        self._max_pixels = max_pixels
        self._flagged: list[Captioned] = []
        self._others: list[Captioned] = []

    @property
    def shown(self) -> list[Captioned]:
        """The images that are kept, the flagged ones first."""
        return [*self._flagged, *self._others]

    def add(self, image: ImageRef, size: tuple[int, int], answers: Sequence[Answer]) -> None:
        """Note an image. What lies in a shard is made a picture of at once, since it may not come again."""
        self.seen += 1
        entry = Captioned(str(image), size, tuple(answers), image)
        if len(self._flagged if entry.is_flagged else self.shown) < self.limit:
            self._keep(entry if type(image) is ImageRef else self._with_picture(entry, image))

    def merge(self, seen: int, shown: Iterable[Captioned]) -> None:
        """Take in what another process has collected."""
        self.seen += seen
        for entry in shown:
            self._keep(entry)

    def _keep(self, entry: Captioned) -> None:
        (self._flagged if entry.is_flagged else self._others).append(entry)
        del self._flagged[self.limit :], self._others[self.limit - len(self._flagged) :]

    def _with_picture(self, entry: Captioned, image: ImageRef) -> Captioned:
        try:
            most = BUDGET // self.limit
            picture = thumbnail(image, side=_SIDE, max_pixels=self._max_pixels, most_bytes=most)
        except ImageError:
            picture = ""
        return Captioned(entry.name, entry.size, entry.answers, None, picture)


def captions_page(gallery: Gallery, *, title: str, settings: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> str:
    """The page of what was collected."""
    shown = gallery.shown
    made = thumbnails([entry.image for entry in shown], max_pixels=max_pixels)
    pictures = [picture or entry.picture for picture, entry in zip(made, shown, strict=True)]
    rows = [_entry(entry, place) for place, entry in enumerate(shown)]
    flagged = sum(entry.is_flagged for entry in shown)
    notes = []
    if gallery.seen > len(shown):
        notes = [f"{len(shown):,} of {gallery.seen:,} images are shown: those with flags, and the first of the others."]
    block: Block = {"block": "gallery", "title": "Captions", "rows": rows, "metrics": {}, "sort": None}
    return build_page(
        Page(
            tool="florence2ner caption",
            title=title,
            facts={"images captioned": f"{gallery.seen:,}", "look wrong": f"{flagged:,}"},
            notes=notes,
            blocks=[block, settings_block(settings)] if rows else [settings_block(settings)],
            pictures=pictures,
        )
    )


def _entry(entry: Captioned, place: int) -> dict[str, Any]:
    texts = [
        said(answer.question.prompt, [_as_text(answer.content)], flags=answer.flags)
        | {"shapes": _shapes(answer.content, entry.size), "json": isinstance(answer.content, dict)}
        for answer in entry.answers
    ]
    return {"image": entry.name, "picture": place, "texts": texts, "scores": {}}


def _as_text(content: Content) -> str:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _shapes(content: Content, size: tuple[int, int]) -> list[list[Any]]:
    """The outlines in an answer, each with its label: [label, x, y, x, y, ...], in shares of width and height."""
    if isinstance(content, str):
        return []
    found: list[list[Any]] = []
    if "bboxes" in content:
        boxes = zip(content["bboxes"], content.get("labels") or content.get("bboxes_labels", ()), strict=True)
        found += [[label, *_scaled((a, b, c, b, c, d, a, d), size)] for (a, b, c, d), label in boxes]
    if "quad_boxes" in content:
        found += [
            [label, *_scaled(quad, size)] for quad, label in zip(content["quad_boxes"], content["labels"], strict=True)
        ]
    if "polygons" in content:
        labels = content.get("polygons_labels") or content.get("labels", ())
        found += [
            [label, *_scaled(outline, size)]
            for outlines, label in zip(content["polygons"], labels, strict=True)
            for outline in outlines
        ]
    return found


def _scaled(points: Sequence[float], size: tuple[int, int]) -> list[float]:
    return [round(value / size[place % 2], 4) for place, value in enumerate(points)]
