"""The dataset layout of tables: rows of JSON Lines, JSON or CSV that name images and their captions.

Hugging Face's imagefolder (`metadata.jsonl`, `metadata.csv`), Roboflow's `{"image", "prefix", "suffix"}`, what
`florence2ner caption --output` writes, and any columns that the settings name.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from florence2ner.config.options import ReadingOptions
from florence2ner.data.formats import ALL_EXTENSIONS
from florence2ner.data.layouts.boxes import Notes
from florence2ner.data.layouts.columns import USUAL, captions_in, check_asked, find_column, to_samples
from florence2ner.data.layouts.paths import find_image, is_part
from florence2ner.data.samples import Discovery, ImageRef
from florence2ner.errors import UserError
from florence2ner.files import open_regular, read_regular

_EXTENSIONS = (".jsonl", ".json", ".csv")
_PROBED = 20  # lines, of which one that can be read shows what a file is

_Row = tuple[int, Mapping[str, Any]]  # the number of a line, or of an entry in a JSON list, from 1; and its cells


def matches(root: Path, options: ReadingOptions) -> bool:
    """Whether the first row of a table in the dataset's folder, or in a folder of its split, has the columns."""
    return bool(_tables(root, options))


def discover(root: Path, options: ReadingOptions, *, folder: Path | None = None) -> Discovery:
    """One sample for each caption in the tables of `folder`, or where that has none, of the whole dataset.

    Images are looked for from the folder of their table on, then from `root`. A cell may hold a list of captions; of
    several captions of an image, `caption_lines` says which are used, as with caption files. Rows without a caption,
    and images that are missing, are left out and reported. Raises UserError, with file and line, for a row that can't
    be read, a column that is missing and a path that leads out of `root`, unless `allow_outside`.
    """
    within = folder or root
    tables = _tables(within, options) or _tables(root, options)
    captions: dict[tuple[ImageRef, str], dict[str, None]] = {}
    notes = Notes()
    for table, columns in tables:
        for number, row in _rows(table):
            place = f"line {number} of {table}"
            image = _image(root, table, row, columns, place, allow_outside=options.allow_outside)
            if image is None:
                name = f"{row[columns['image']]} ({place})"
                notes.add("missing-image", "images are missing and are left out", name)
            elif is_part(image, root, within, table):
                prompt = str(row.get(columns["prompt"]) or "").strip() or options.task_prompt
                texts = captions_in(row.get(columns["caption"]), columns["caption"], options, place)
                captions.setdefault((ImageRef.below(root, image), prompt), {}).update(dict.fromkeys(texts))
    samples, empty = to_samples(captions, options)
    return Discovery(samples, empty, faults=notes.faults())


def _tables(folder: Path, options: ReadingOptions) -> list[tuple[Path, dict[str, str]]]:
    """The tables of a folder, and of those in it, with the names of their columns by what these hold."""
    found = []
    for path in _candidates(folder):
        try:
            first = _first_row(path)
        except (UserError, OSError):
            continue  # no table, as far as one can see; `unreadable` says why
        if first and (columns := _columns(first, options, path)):
            found.append((path, columns))
    return found


def unreadable(folder: Path) -> str | None:
    """What is wrong with the first file that may have been meant as the table of `folder`; None where nothing is."""
    for path in _candidates(folder):
        try:
            _first_row(path)
        except UserError as error:
            return str(error)
    return None


def _candidates(folder: Path) -> list[Path]:
    """The files in a folder, and in those in it, that have the name of a table."""
    here = _entries(folder)
    entries = [*here, *(entry for inner in here if os.path.isdir(inner) for entry in _entries(inner.path))]
    return sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith(_EXTENSIONS))


def _first_row(path: Path) -> Mapping[str, Any] | None:
    """The first row of a table; of JSON Lines the first that can be read, as the others are named when all are read.

    Raises UserError as `_rows` does where there is none.
    """
    if path.suffix.lower() == ".jsonl":
        with suppress(OSError), open_regular(path) as file:
            for line in islice(file, _PROBED):
                with suppress(ValueError, RecursionError):
                    if isinstance(row := json.loads(line), dict):
                        return row
    return next((row for _, row in _rows(path)), None)


def _entries(folder: str | Path) -> list["os.DirEntry[str]"]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
    return []


def _columns(row: Mapping[str, Any], options: ReadingOptions, path: Path) -> dict[str, str] | None:
    """The names of the columns with image, caption and prompt ("" for none); None where a table has no such columns.

    Raises UserError where a column that the settings name is missing, though its table has images.
    """
    if not any(map(_is_image, row.values())):
        return None
    check_asked(options, row, str(path))
    names: dict[str, str] = {kind: find_column(kind, options, row) for kind in USUAL}
    if names["image"] not in row or not _is_image(row[names["image"]]):
        return None
    return names if names["caption"] else None


def _is_image(cell: Any) -> bool:
    return isinstance(cell, str) and Path(cell).suffix.lower() in ALL_EXTENSIONS


def _rows(path: Path) -> Iterator[_Row]:
    """The rows of a table. Raises UserError, with the line, for one that is no object, and for what is not UTF-8."""
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(read_regular(path))
            entries = content if isinstance(content, list) else []
            for number, entry in enumerate(entries, start=1):
                yield number, _object(entry, number, path)
        elif path.suffix.lower() == ".csv":
            with open_regular(path) as file:
                text = (line.decode("utf-8-sig" if not number else "utf-8") for number, line in enumerate(file))
                reader = csv.DictReader(text, strict=True)
                for row in reader:
                    yield reader.line_num, {name: cell for name, cell in row.items() if isinstance(name, str)}
        else:
            with open_regular(path) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, _object(_parse(line, number, path), number, path)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except (json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def _parse(line: bytes, number: int, path: Path) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"line {number} of {path} is not JSON ({error.msg}): mend or delete it") from None


def _object(entry: Any, number: int, path: Path) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"line {number} of {path} is not an object with columns: mend or delete it")
    return entry


def _image(
    root: Path, table: Path, row: Mapping[str, Any], columns: Mapping[str, str], place: str, *, allow_outside: bool
) -> Path | None:
    """The image of a row, or None where there is none.

    Raises UserError for a path that leads out of `root`, unless that is allowed.
    """
    name = row.get(columns["image"])
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place} names no image in the column {columns['image']}: mend or delete it")
    return find_image(root, (table.parent, root), name, place, allow_outside=allow_outside)
