"""One file, or standard output, for the captions of all images; each row has what is to be known about a caption."""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2ner.errors import UserError
from florence2ner.files import append_text, as_utf8, back_up, has_text, lock, remove_lock, write_text
from florence2ner.outputs.answers import Answer, Question, Record

METADATA = "metadata.jsonl"  # the name that Hugging Face's imagefolder reads
STANDARD_OUTPUT = "-"


@dataclass
class RecordFile:
    """One file for all captions, written line by line: .jsonl, .csv, .json, or a metadata.jsonl for imagefolder.

    Each answer has a line of its own, so that those missing can be asked for later. Only a metadata.jsonl has one line
    for all answers about an image, and none for an image with an answer missing: imagefolder takes one line each.
    A .json array can't grow line by line: it is written at the end, from a .jsonl of the same name beside it.
    """

    path: Path
    questions: tuple[Question, ...]
    model: str
    settings: Mapping[str, Any]
    overwrite: bool = False
    backup: bool = False
    _done: set[tuple[str, str]] = field(default_factory=set, init=False)  # name of an image, prompt

    def look(self, images: Sequence[Path]) -> None:
        """Read what an earlier run has written. Raises UserError where the file holds something else."""
        if self._is_metadata:
            for image in images:
                if not image.absolute().is_relative_to(self.path.absolute().parent):
                    raise UserError(f"{image} is not below the folder of {self.path}, as imagefolder needs it")
        self._done = set()
        if not self.overwrite:
            for path in {self.path, self._lines}:
                for row in _read_rows(path):
                    self._done |= self._keys_of(row, path)

    def open(self) -> None:
        """Put an old file away where a new one was asked for. Raises UserError where the folder can't be written to."""
        if self.overwrite:
            if self.backup and self.path.exists():
                back_up(self.path)
            for path in (self.path, self._lines):
                path.unlink(missing_ok=True)
            self.overwrite = False  # once
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the folder {self.path.parent} ({error.strerror})") from error
        if self.path.suffix == ".csv" and not has_text(self.path):
            append_text(self.path, _csv_line(_COLUMNS))

    def missing(self, image: Path) -> tuple[Question, ...]:
        """The questions without a line in the file."""
        name = self._name_of(image)
        return tuple(question for question in self.questions if (name, question.prompt) not in self._done)

    def place_of(self, image: Path) -> str:
        """The file, for all of them."""
        return str(self.path)

    def write(self, records: Sequence[Record]) -> None:
        """Add the lines of some images, all at once."""
        lines = [line for record in records for line in self._lines_of(record)]
        append_text(self._lines, "".join(lines))

    def finish(self) -> None:
        """Write the array, where it is one, and remove what was needed on the way."""
        if self.path.suffix == ".json" and (self._lines.exists() or not self.path.exists()):
            # A run that was killed right here has left its rows in both.
            rows = {(row["path"], row["task"]): row for row in (*_read_rows(self.path), *_read_rows(self._lines))}
            write_text(self.path, json.dumps(list(rows.values()), ensure_ascii=False, indent=1) + "\n")
            self._lines.unlink(missing_ok=True)
        remove_lock(self._lines)

    @property
    def _is_metadata(self) -> bool:
        return self.path.name == METADATA

    @property
    def _lines(self) -> Path:
        return self.path.with_suffix(".unfinished.jsonl") if self.path.suffix == ".json" else self.path

    def _name_of(self, image: Path) -> str:
        """How the file calls an image: relative to its own folder where it lies below it."""
        absolute, folder = Path(os.path.abspath(image)), Path(os.path.abspath(self.path)).parent
        return as_utf8(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)

    def _lines_of(self, record: Record) -> Iterator[str]:
        name = self._name_of(record.image)
        if self._is_metadata:
            answers = {self._column_of(answer.question): answer.content for answer in record.answers}
            if len(answers) == len(self.questions):
                yield json_line({"file_name": name} | answers)
            return
        for answer in record.answers:
            row = row_of(name, record, answer, self.model, self.settings)
            yield _csv_line(row[column] for column in _COLUMNS) if self.path.suffix == ".csv" else json_line(row)

    def _column_of(self, question: Question) -> str:
        """The column of a metadata.jsonl that holds the answers to a question."""
        return "text" if len(self.questions) == 1 else question.name

    def _keys_of(self, row: Any, path: Path) -> set[tuple[str, str]]:
        try:
            if self._is_metadata:
                columns = [self._column_of(question) for question in self.questions]
                if not row.keys() >= {"file_name", *columns}:
                    raise UserError(
                        f"{path} has lines without {', '.join(('file_name', *columns))}: ask the tasks that it was "
                        "made with, name a file in another folder, or add --existing overwrite"
                    )
                return {(row["file_name"], question.prompt) for question in self.questions}
            return {(row["path"], row["task"])}
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path} holds something else than captions: name another file for --output") from None


@dataclass
class StandardOutput:
    """JSON Lines on standard output; nothing is kept, so nothing is done already.

    With `shared`, other processes print there too, and take turns by a lock in the user's own folder: in one that all
    users share, somebody else could have put a link there.
    """

    questions: tuple[Question, ...]
    model: str
    settings: Mapping[str, Any]
    shared: bool = False
    _turns: Path = field(init=False)  # what is locked

    def __post_init__(self) -> None:
        """Name the lock after this process: the others are sent the object."""
        self._turns = Path(f"~/.cache/florence2ner/output-{platform.node()}-{os.getpid()}").expanduser()

    def look(self, images: Sequence[Path]) -> None:
        """There is nothing to look at."""

    def open(self) -> None:
        """It is open. Raises UserError where there is no place for the lock."""
        if self.shared:
            try:
                self._turns.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"can't make the folder {self._turns.parent}: {error.strerror}") from error

    def missing(self, image: Path) -> tuple[Question, ...]:
        """All questions."""
        return self.questions

    def place_of(self, image: Path) -> str:
        """In words."""
        return "standard output"

    def write(self, records: Sequence[Record]) -> None:
        """Print the lines of some images, not torn apart by those of other processes."""
        rows = (
            row_of(as_utf8(record.image), record, answer, self.model, self.settings)
            for record in records
            for answer in record.answers
        )
        with lock(self._turns) if self.shared else nullcontext():
            sys.stdout.write("".join(map(json_line, rows)))
            sys.stdout.flush()

    def finish(self) -> None:
        """Everything is printed already: remove the lock."""
        if self.shared:
            remove_lock(self._turns)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON Lines."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def row_of(name: str, record: Record, answer: Answer, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with all that is to be known about it."""
    return {
        "path": name,
        "caption": answer.content,
        "task": answer.question.prompt,
        "model": model,
        "settings": settings,
        "width": record.size[0],
        "height": record.size[1],
        "seconds": round(record.seconds, 3),
        "flags": list(answer.flags),
    }


_COLUMNS = ("path", "caption", "task", "model", "settings", "width", "height", "seconds", "flags")


def _csv_line(cells: Iterable[Any]) -> str:
    """A row of CSV on one line, so that a file cut off by a kill ends at a row's end; what is no text, as JSON."""
    text = io.StringIO()
    plain = (cell if isinstance(cell, (str, int, float)) else json.dumps(cell, ensure_ascii=False) for cell in cells)
    joined = (" ".join(cell.splitlines()) if isinstance(cell, str) else cell for cell in plain)
    csv.writer(text, lineterminator="\n").writerow(joined)
    return text.getvalue()


def _read_rows(path: Path) -> Iterator[Any]:
    """The rows of a file that a run has written, without a last line that a kill cut off."""
    try:
        if not has_text(path):
            return
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise ValueError("no array")
            yield from rows
            return
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = (line for line in file if line.endswith("\n"))
            yield from csv.DictReader(lines) if path.suffix == ".csv" else map(json.loads, lines)
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as {path.suffix} ({error}): name another file for --output") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
