"""Outputs with the captions of all images as rows of one file (JSON Lines, CSV, JSON) or of standard output."""

import csv
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2ner.errors import UserError
from florence2ner.files import append_text, as_utf8, back_up, has_text, hold, lock, remove_lock, write_text
from florence2ner.outputs.answers import Answer, Failure, Question, Record
from florence2ner.outputs.forms import Csv, Form, JsonLines, json_line

METADATA = "metadata.jsonl"  # the file that the "imagefolder" loader of Hugging Face datasets reads
STANDARD_OUTPUT = "-"


@dataclass
class RecordFile:
    """One file for all captions, written line by line: .jsonl, .csv, .json, or a metadata.jsonl for imagefolder.

    Each answer has its own line, so that a later run can add those that are missing. A metadata.jsonl instead has one
    line per image, as imagefolder wants, with the answers to all questions; an image that lacks an answer has no line.
    A .json array can't be appended to: its rows are collected in a .unfinished.jsonl beside it, and it is written at
    the end.
    """

    path: Path
    questions: tuple[Question, ...]
    model: str
    settings: Mapping[str, Any]
    overwrite: bool = False
    backup: bool = False
    csv_safe: bool = False
    _form: Form = field(init=False)
    _done: set[tuple[str, str]] = field(default_factory=set, init=False)  # (name of the image, prompt) of each answer

    def __post_init__(self) -> None:
        """Choose the form of the rows by the file's name."""
        key = "file_name" if self._is_metadata else "path"
        self._form = Csv(safe=self.csv_safe) if self.path.suffix == ".csv" else JsonLines(key)

    def hold(self, images: Sequence[Path]) -> AbstractContextManager[None]:
        """Keep the file for this run, under its own name and others that lead to it."""
        return hold(Path(os.path.realpath(self.path)), f"the output {self.path}")

    def look(self, images: Sequence[Path]) -> None:
        """Read which answers the file has already.

        Raises UserError where it holds something else than captions, or where it is a metadata.jsonl and an image is
        not below its folder.
        """
        if self._is_metadata:
            for image in images:
                if not image.absolute().is_relative_to(self.path.absolute().parent):
                    raise UserError(f"{image} is not below the folder of {self.path}, as imagefolder needs it")
        self._done = set()
        if not self.overwrite:
            for path in {self.path, self._lines}:
                for row in self._read(path):
                    self._done |= self._keys_of(row, path)

    def open(self) -> None:
        """Remove the old file where it is to be overwritten, and make its folder.

        Raises UserError where the folder can't be made or written to.
        """
        if self.overwrite:
            if self.backup and self.path.exists():
                back_up(self.path)
            for path in (self.path, self._lines):
                path.unlink(missing_ok=True)
            self.overwrite = False  # so that another call deletes nothing of what this run has written
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the folder {self.path.parent} ({error.strerror})") from error
        if self.path.suffix == ".csv":
            append_text(self.path, "", self._form.find_end)  # the header

    def missing(self, image: Path) -> tuple[Question, ...]:
        """The questions whose answers are not in the file."""
        name = self._name_of(image)
        return tuple(question for question in self.questions if (name, question.prompt) not in self._done)

    def files(self, images: Sequence[Path]) -> Iterator[Path]:
        """The file, and that with the rows of an unfinished .json."""
        yield from {self.path, self._lines}

    def place_of(self, image: Path) -> str:
        """The file's path, the same for all images."""
        return str(self.path)

    def write(self, records: Sequence[Record]) -> Sequence[Failure]:
        """Append the rows of some images, in one go."""
        lines = [line for record in records for line in self._lines_of(record)]
        append_text(self._lines, "".join(lines), self._form.find_end)
        return ()

    def finish(self) -> None:
        """Write the array of a .json file, and remove temporary and lock files."""
        if self.path.suffix == ".json" and (self._lines.exists() or not self.path.exists()):
            # A dict, since a run that was killed between the next two statements has left its rows in both files.
            rows = {(row["path"], row["task"]): row for row in (*self._read(self.path), *self._read(self._lines))}
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
        """The name of an image in the file: its path relative to the file's folder if it is below it, else absolute."""
        absolute, folder = Path(os.path.abspath(image)), Path(os.path.abspath(self.path)).parent
        return as_utf8(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)

    def _lines_of(self, record: Record) -> Iterator[str]:
        name = self._name_of(record.image)
        if self._is_metadata:
            answers = {self._column_of(answer.question): answer.content for answer in record.answers}
            if len(answers) == len(self.questions):
                yield self._form.text_of({"file_name": name} | answers)
            return
        for answer in record.answers:
            yield self._form.text_of(row_of(name, record, answer, self.model, self.settings))

    def _read(self, path: Path) -> Iterator[Any]:
        """The rows of an earlier run's file. Raises UserError where it can't be read or is not ours."""
        try:
            if has_text(path):
                yield from _read_array(path) if path.suffix == ".json" else self._form.read(path)
        except UserError:
            raise
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{path} can't be read as {path.suffix} ({error}): name another file for --output"
            ) from None
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}") from None

    def _column_of(self, question: Question) -> str:
        """The column of a metadata.jsonl with the answers to a question."""
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
    """JSON Lines on standard output. No earlier answers are known, so every question is asked.

    With `shared`, several processes print there, and take turns by means of a lock file. It is in the user's own cache
    folder, since in a folder such as /tmp another user could have placed a link under its name.
    """

    questions: tuple[Question, ...]
    model: str
    settings: Mapping[str, Any]
    shared: bool = False
    _turns: Path = field(init=False)  # the path that `lock` is called with; no file of that name is made

    def __post_init__(self) -> None:
        """Name the lock after this process, the main one; the other processes receive this object, and so that name."""
        self._turns = Path(f"~/.cache/florence2ner/output-{platform.node()}-{os.getpid()}").expanduser()

    def hold(self, images: Sequence[Path]) -> AbstractContextManager[None]:
        """Does nothing: each run has its own standard output."""
        return nullcontext()

    def look(self, images: Sequence[Path]) -> None:
        """Does nothing: there are no earlier answers."""

    def open(self) -> None:
        """Make the folder of the lock file, where one is needed. Raises UserError where it can't be made."""
        if self.shared:
            try:
                self._turns.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"can't make the folder {self._turns.parent}: {error.strerror}") from error

    def missing(self, image: Path) -> tuple[Question, ...]:
        """All questions."""
        return self.questions

    def files(self, images: Sequence[Path]) -> Iterator[Path]:
        """None."""
        return iter(())

    def place_of(self, image: Path) -> str:
        """The words "standard output"."""
        return "standard output"

    def write(self, records: Sequence[Record]) -> Sequence[Failure]:
        """Print the rows of some images; those of other processes can't come in between."""
        rows = (
            row_of(as_utf8(record.image), record, answer, self.model, self.settings)
            for record in records
            for answer in record.answers
        )
        with lock(self._turns) if self.shared else nullcontext():
            sys.stdout.write("".join(map(json_line, rows)))
            sys.stdout.flush()
        return ()

    def finish(self) -> None:
        """Remove the lock file, if there is one."""
        if self.shared:
            remove_lock(self._turns)


def row_of(name: str, record: Record, answer: Answer, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row for an answer, with the image's size and how the answer was made; `COLUMNS` are its keys."""
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


def _read_array(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("no array")
    return rows
