"""What is asked of images, what comes back, and what a place for it must be able to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Content = str | dict[str, Any]  # a caption, or boxes with their labels


@dataclass(frozen=True)
class Question:
    """One of the tasks asked of every image."""

    prompt: str  # <OD>
    name: str  # od: in the names of files and columns
    is_text: bool  # else the answer is JSON
    may_be_empty: bool = False  # a picture may have no writing in it, but always something to say about it


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, ready to be written."""

    question: Question
    content: Content
    flags: tuple[str, ...] = ()  # what looks wrong with it


@dataclass(frozen=True)
class Record:
    """The answers for one image. `size` is (width, height) in pixels, as a person sees it."""

    image: Path
    size: tuple[int, int]
    seconds: float
    answers: tuple[Answer, ...]


class Output(Protocol):
    """A place for captions. `look`, `open` and `finish` are for one process, the others for all."""

    def look(self, images: Sequence[Path]) -> None:
        """See what is there, and change nothing. Raises UserError where captions would be mixed up."""

    def open(self) -> None:
        """Make the place ready for writing."""

    def missing(self, image: Path) -> tuple[Question, ...]:
        """The questions that have no answer yet."""

    def place_of(self, image: Path) -> str:
        """Where the answers for an image go, in words."""

    def write(self, records: Sequence[Record]) -> None:
        """Write the answers for some images. Raises UserError where that is not possible."""

    def finish(self) -> None:
        """Put in place what can only be written as a whole."""
