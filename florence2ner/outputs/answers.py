"""The questions asked about images, the model's answers, and the interface of the outputs that write them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Content = str | dict[str, Any]  # a text, or boxes or polygons with their labels, as `parse_answer` returns them


@dataclass(frozen=True)
class Question:
    """One of the tasks asked of every image."""

    prompt: str  # such as <OD>
    name: str  # such as od, for names of files and columns
    is_text: bool  # whether the answer is text; else it is written as JSON
    may_be_empty: bool = False  # whether an empty answer can be right, as in OCR


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one image, ready to be written."""

    question: Question
    content: Content
    flags: tuple[str, ...] = ()  # what looks wrong with it, see `flag_problems`


@dataclass(frozen=True)
class Record:
    """The answers about one image."""

    image: Path
    size: tuple[int, int]  # (width, height) of the upright image in pixels
    seconds: float  # its share of the time that its batch took
    answers: tuple[Answer, ...]


Failure = tuple[Path, str]  # an image, and why it has no caption


class Output(Protocol):
    """Where captions are written. Every process may call `write`; the main process calls the rest, in this order."""

    def hold(self, images: Sequence[Path]) -> AbstractContextManager[None]:
        """A context manager that keeps other runs from writing to the same place.

        Raises UserError where one does so already.
        """

    def look(self, images: Sequence[Path]) -> None:
        """Find out what exists, without changing anything.

        Raises UserError where two images would share a caption file, or a file holds something else than captions.
        """

    def open(self) -> None:
        """Prepare for writing; called once, after `look` and before any `write`."""

    def missing(self, image: Path) -> tuple[Question, ...]:
        """The questions that are still to be answered about an image."""

    def files(self, images: Sequence[Path]) -> Iterator[Path]:
        """The files that answers about these images go to."""

    def place_of(self, image: Path) -> str:
        """Where the answers about an image go, as text for the user."""

    def write(self, records: Sequence[Record]) -> Sequence[Failure]:
        """Write the answers about some images. Returns those whose answers can't be written, as theirs alone.

        Raises UserError where no answers can be written.
        """

    def finish(self) -> None:
        """Write what can only be written at the end, and clean up; called once, when all processes are done."""
