"""The dataset layout of ICDAR 2015: a text file of four-cornered texts for each image: `<OCR_WITH_REGION>` answers."""

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from florence2ner.data.formats import LeftOut, list_files, readable_images
from florence2ner.data.layouts.boxes import Notes, fit, label_places
from florence2ner.data.pictures import ImageError, read_size
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.files import read_regular
from florence2ner.model.answers import text_fault, write_quads

_TASK_PROMPT = "<OCR_WITH_REGION>"

_PREFIX = "gt_"  # of the names of ICDAR's label files
_NOT_TO_READ = "###"  # stands for a text that nobody can read
_PROBED = 20  # text files, among which may be a README.txt

_Line = tuple[int, list[float], str]  # the number of the line, x y of four corners in pixels, the text there


def matches(root: Path) -> bool:
    """Whether a text file of the dataset in `root` has eight coordinates and a text in each of its lines."""
    return any(map(_is_label_file, islice(_text_files(root), _PROBED)))


def discover(root: Path, *, folder: Path | None = None) -> Discovery:
    """One sample for each image in `folder`, or the whole dataset, whose label file has texts.

    The label file has the image's name, or that with `gt_` in front, and is beside it or where the path has `labels`
    for the last `images`. Each line is `x1,y1,x2,y2,x3,y3,x4,y4,text`, in pixels. The answer has the texts in their
    order. Texts that are `###`, empty, outside of their picture or hold a token of Florence-2 are left out and noted;
    so are images with a line that can't be read, and those that EXIF turns, as it can't be known which way their
    corners are. An image without a text counts as without a caption.
    """
    within = folder or root
    notes, left_out = Notes(), LeftOut()
    labels = {path.with_suffix(""): path for path in list_files(root, {".txt"}, left_out)}
    samples: list[Sample] = []
    empty, used, folders = [], set(), set()
    for path in readable_images(within, left_out):
        places = label_places(root, path)
        folders |= {place.parent for place in places}
        names = [name for place in places for name in (place.with_name(_PREFIX + place.name), place)]
        file = next((labels[name] for name in names if name in labels), None)
        used.add(file)
        image = ImageRef.below(root, path)
        answer = _answer(file, image, notes) if file else ""
        if answer:
            samples.append(Sample(image, _TASK_PROMPT, (answer,)))
        elif answer is not None:
            empty.append(path)
    orphans = tuple(file for file in labels.values() if file not in used and file.parent in folders)
    return Discovery(tuple(samples), tuple(empty), orphans, left_out, faults=notes.faults())


def _text_files(folder: Path) -> Iterator[Path]:
    """The text files of a folder and those below it, which are listed only as far as that is asked for."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))  # what is walked through next
        yield from (Path(place, name) for name in sorted(names) if name.lower().endswith(".txt") and name[0] != ".")


def _is_label_file(path: Path) -> bool:
    try:
        return bool(_lines(path))
    except _LabelError:
        return False


class _LabelError(Exception):
    """Why a label file can't be read, with the line."""


def _lines(path: Path) -> list[_Line]:
    """The lines of a label file but for blank ones. Raises _LabelError."""
    try:
        text = read_regular(path)
    except UnicodeDecodeError:
        raise _LabelError("not UTF-8 text") from None
    except OSError as error:
        raise _LabelError(error.strerror) from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            *places, written = line.split(",", 8)
            try:
                corners = [float(place) for place in places]
            except ValueError:
                corners = []
            if len(corners) != 8 or not all(map(math.isfinite, corners)):
                raise _LabelError(f"line {number} is {line.strip()[:60]!r}, not x1,y1,x2,y2,x3,y3,x4,y4,text")
            lines.append((number, corners, written.strip()))
    return lines


def _answer(file: Path, image: ImageRef, notes: Notes) -> str | None:
    """The answer that a label file holds: "" without texts, None where the image is left out, which is noted."""
    try:
        lines = _lines(file)
    except _LabelError as error:
        notes.add("unreadable-labels", "label files can't be read, and their images are left out", f"{file}: {error}")
        return None
    kept = []
    for line in lines:
        number, _, text = line
        where = f"{file} line {number}"
        if text == _NOT_TO_READ:
            notes.add("illegible-text", f"texts are marked as illegible ({_NOT_TO_READ}) and are left out", where)
        elif text_fault(text):
            notes.add("unusable-text", "texts are empty or hold a token of Florence-2 and are left out", where)
        else:
            kept.append(line)
    if not kept:
        return ""
    if not (size := _size(image, notes)):
        return None
    inside = [
        (text, corners)
        for number, corners, text in kept
        if fit(_around(corners), size, f"{file} line {number}", notes)  # `write_quads` cuts what reaches over the edge
    ]
    return write_quads([text for text, _ in inside], [corners for _, corners in inside], size)


def _size(image: ImageRef, notes: Notes) -> tuple[int, int] | None:
    """The size of the picture that the corners are of; None where it can't be known, which is noted."""
    try:
        size, orientation = read_size(image)
    except ImageError as error:
        notes.add("not-measured", "images can't be read and are left out", f"{image} ({error})")
        return None
    if orientation > 1:
        notes.add(
            "turned", "images are turned by EXIF, maybe unlike their texts, and are left out (save them upright)", image
        )
        return None
    return size


def _around(corners: list[float]) -> tuple[float, float, float, float]:
    """The box around some corners."""
    across, down = corners[::2], corners[1::2]
    return min(across), min(down), max(across), max(down)
