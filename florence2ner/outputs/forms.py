"""The forms of a file of captions, JSON Lines and CSV: its rows as text, read back, and where the whole ones end."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from florence2ner.errors import UserError
from florence2ner.files import end_of_json_lines, is_torn_json

COLUMNS = ("path", "caption", "task", "model", "settings", "width", "height", "seconds", "flags")
CSV_SAFE = "csv_safe"  # in the settings of a row whose cells no spreadsheet takes for formulas
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute
_BOM = b"\xef\xbb\xbf"  # that spreadsheets put in front


class Form(Protocol):
    """How rows are kept in a file that is appended to."""

    def text_of(self, row: Mapping[str, Any]) -> str:
        """A row as text, with its newline."""

    def read(self, path: Path) -> Iterator[Any]:
        """The rows of a file, without the torn last one of a run that was killed.

        Raises UserError where the last row is neither whole nor the beginning of one of ours, and ValueError or
        csv.Error where another can't be read.
        """

    def find_end(self, file: BinaryIO) -> tuple[int, str]:
        """Where the whole rows of an open file end, and what they lack: see `append_text`."""


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line. All begin with the same `key`."""

    key: str

    def text_of(self, row: Mapping[str, Any]) -> str:
        """A row as a line of JSON, with its newline."""
        return json_line(row)

    def read(self, path: Path) -> Iterator[Any]:
        """The objects of a file, see `Form.read`."""
        ours = json_line({self.key: ""}).encode()[: -len(b'"}\n')]  # how each line of ours begins
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not is_torn_json(line):
                    yield json.loads(line)
                elif not line.startswith(ours[: len(line)]):
                    raise _not_ours(path)

    def find_end(self, file: BinaryIO) -> tuple[int, str]:
        """Where the whole lines of an open file end, see `Form.find_end`."""
        return end_of_json_lines(file)


@dataclass
class Csv:
    """CSV with `COLUMNS`; cells that are not text or numbers are JSON. Line breaks in a cell stay as they are.

    With `safe`, a cell that a spreadsheet would take for a formula gets an apostrophe in front. The settings of such a
    row say so, and `read` takes it away.
    """

    safe: bool = False
    _end: int = field(default=0, init=False)  # of the rows that this process knows to be whole

    def text_of(self, row: Mapping[str, Any]) -> str:
        """A row as text, with its newline."""
        if self.safe:
            row = {name: _escape(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
            row["settings"] = {**row["settings"], CSV_SAFE: True}
        return _csv_line([row[column] for column in COLUMNS])

    def read(self, path: Path) -> Iterator[Any]:
        """The rows of a file as dicts, see `Form.read`. Raises UserError for other columns than ours."""
        with path.open("rb") as file:
            rows = _split(file)
            header = next(rows, b"").removeprefix(_BOM)
            if not _is_header(header):
                if _HEADER.startswith(header):  # torn, or there is no text at all
                    return
                raise UserError(
                    f"{path} has other columns than {', '.join(COLUMNS)}: name another file for --output, or add "
                    "--existing overwrite"
                )
            for row in rows:
                if row.endswith(b"\n") or _is_whole(row):
                    if row.strip():
                        yield _read_row(row)
                elif not _is_torn(row):
                    raise _not_ours(path)

    def find_end(self, file: BinaryIO) -> tuple[int, str]:
        """Where the whole rows of an open file end, see `Form.find_end`. Only what is new is read again.

        A file without any lacks the header.
        """
        size = file.seek(0, SEEK_END)
        start = self._end if self._end <= size else 0
        file.seek(start)
        end, lacking = start, ""
        for row in _split(file):
            if end == 0 and not _is_header(row.removeprefix(_BOM)) and not _HEADER.startswith(row):
                raise _not_ours(Path(file.name))
            if not row.endswith(b"\n") and _is_torn(row) and not _is_whole(row):
                break
            end += len(row)
            lacking = "" if row.endswith(b"\n") else "\n"
        self._end = start if lacking else end
        return (end, lacking) if end else (0, _HEADER.decode())


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON, with its newline."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path} holds something else than captions: name another file for --output")


def _csv_line(cells: list[Any]) -> str:
    text = io.StringIO()
    plain = [cell if isinstance(cell, (str, int, float)) else json.dumps(cell, ensure_ascii=False) for cell in cells]
    csv.writer(text, lineterminator="\r\n").writerow(plain)  # so that a carriage return in a cell is quoted too
    return text.getvalue().removesuffix("\r\n") + "\n"


_HEADER = _csv_line(list(COLUMNS)).encode()


def _split(file: BinaryIO) -> Iterator[bytes]:
    """The rows of a CSV: its lines, joined where a line break is between quotes. The last may be torn."""
    lines: list[bytes] = []
    within = False  # a quoted cell
    for line in file:
        lines.append(line)
        within ^= line.count(b'"') % 2 == 1
        if not within:
            yield b"".join(lines)
            lines = []
    if lines:
        yield b"".join(lines).removesuffix(b"\n")  # so that it is not taken for whole


def _cells(row: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(row.decode(), newline="\n"), strict=True))


def _is_header(row: bytes) -> bool:
    try:
        return _cells(row) == list(COLUMNS)
    except (ValueError, csv.Error, StopIteration):
        return False


def _is_whole(row: bytes) -> bool:
    """Whether a row without a newline lacks nothing else: it is the header, or its last cell is a JSON array."""
    try:
        cells = _cells(row)
        return cells == list(COLUMNS) or (len(cells) == len(COLUMNS) and isinstance(json.loads(cells[-1]), list))
    except (ValueError, csv.Error):
        return False


def _is_torn(row: bytes) -> bool:
    """Whether a row without a newline is the beginning of one of ours; not so, if a stray quote has joined several."""
    if any(map(_is_whole, row.split(b"\n")[1:])):
        return False
    for quote in ("", '"'):
        text = row.decode(errors="ignore") + quote
        with suppress(csv.Error):
            rows = list(csv.reader(io.StringIO(text, newline="\n"), strict=True))
            if len(rows) == 1 and len(rows[0]) <= len(COLUMNS):
                return True
    return False


def _read_row(line: bytes) -> dict[str, str]:
    cells = _cells(line)
    if len(cells) != len(COLUMNS):
        raise ValueError(f"a row with {len(cells)} cells")
    row = dict(zip(COLUMNS, cells, strict=True))
    if CSV_SAFE in json.loads(row["settings"]):
        return {name: cell if name == "settings" else _unescape(cell) for name, cell in row.items()}
    return row


def _escape(cell: str) -> str:
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) else cell


def _unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell
