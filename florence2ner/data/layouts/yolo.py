"""The dataset layout of YOLO: a text file of boxes for each image, which become `<OD>` answers."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from florence2ner.data.formats import LeftOut, list_files, readable_images
from florence2ner.data.layouts.boxes import TASK_PROMPT, Box, Notes, fit, label_places
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.errors import UserError
from florence2ner.files import read_regular
from florence2ner.model.answers import label_fault, write_boxes

_NAMES = re.compile(r"^names\s*:", re.MULTILINE)
_OTHERS = re.compile(r"^(?:train|val|nc|path)\s*:", re.MULTILINE)
_CLASSES = "classes.txt"
_LABEL = re.compile(r"\s*\d+(?:\s+[-+.\deE]+){4,}\s*(?:\n|$)")
_PROBED = 20  # label files, among which may be a README.txt
_SIDE = 1000.0  # coordinates, which are shares of the sides, are counted in thousandths: the locations of the model


@dataclass(frozen=True)
class _Classes:
    file: Path
    names: dict[int, str]
    have_points: bool  # whether each box is followed by the points of a pose


def matches(root: Path) -> bool:
    """Whether the dataset in `root` names YOLO's classes: in a YAML file, or in a classes.txt beside label files."""
    if _settings_file(root):
        return True
    if not _class_list(root):
        return False
    labels = [path for path in list_files(root, {".txt"}) if path.name != _CLASSES]
    return any(_LABEL.match(_text(path) or "") for path in labels[:_PROBED])


def discover(root: Path, *, folder: Path | None = None) -> Discovery:
    """One sample for each image in `folder`, or the whole dataset, whose label file has boxes.

    The label file has the image's name, and is beside it or where the path has `labels` for the last `images`. The
    names of the classes are in `data.yaml` or another YAML file, or in `classes.txt`; the lists of images that a YAML
    file may point to are not read. Boxes are of the upright picture, as Ultralytics takes them. Polygons become the
    boxes around them, and a pose leaves its box. Images without a box count as without a caption: there is nothing to
    answer. Those with a line that can't be read are left out and noted, so that no answer lacks an object; so are boxes
    that are empty or outside. Raises UserError for a class without a name and for a name that an answer can't have.
    """
    within = folder or root
    classes = _load_classes(root) or _load_classes(within)
    if classes is None:
        raise UserError(f"nothing names the classes in {root}: give it a data.yaml with a list `names`")
    notes, left_out = Notes(), LeftOut()
    labels = {path.with_suffix(""): path for path in list_files(root, {".txt"}, left_out) if path.name != _CLASSES}
    samples, empty, used, folders = [], [], set(), set()
    for image in readable_images(within, left_out):
        places = label_places(root, image)
        folders |= {place.parent for place in places}
        path = next((labels[place] for place in places if place in labels), None)
        used.add(path)
        answer = _answer(path, classes, notes) if path else ""
        if answer:
            samples.append(Sample(ImageRef.below(root, image), TASK_PROMPT, (answer,)))
        elif answer is not None:
            empty.append(image)
    orphans = tuple(path for path in labels.values() if path not in used and path.parent in folders)
    return Discovery(tuple(samples), tuple(empty), orphans, left_out, faults=notes.faults())


# --- classes ----------------------------------------------------------------------------------------------------------


def _settings_file(folder: Path) -> Path | None:
    """The YAML file that looks as if it named classes; `data.yaml` before others, which must say more of a dataset."""
    paths = [path for path in sorted(folder.glob("*.y*ml")) if path.suffix in (".yaml", ".yml")]
    for path in sorted(paths, key=lambda path: path.stem != "data"):
        text = _text(path) or ""
        if _NAMES.search(text) and (path.stem == "data" or _OTHERS.search(text)):
            return path
    return None


def _class_list(folder: Path) -> Path | None:
    return next((path for path in (folder / _CLASSES, folder / "labels" / _CLASSES) if path.is_file()), None)


def _load_classes(folder: Path) -> _Classes | None:
    if file := _settings_file(folder):
        return _read_settings(file)
    if file := _class_list(folder):
        text = _text(file)
        if text is None:
            raise UserError(f"{file} can't be read as UTF-8 text: save it as such")
        return _Classes(file, {index: line.strip() for index, line in enumerate(text.splitlines())}, False)
    return None


def _read_settings(file: Path) -> _Classes:
    try:
        settings = yaml.safe_load(_text(file) or "")
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    names = settings.get("names") if isinstance(settings, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(f"{file}: `names` must be a list of the classes, or give each number its name")
    for index, name in names.items():
        if not isinstance(index, int) or not isinstance(name, str):
            raise UserError(
                f"{file}: the name of the class {index} is {name!r}: put it in quotes, after a whole number"
            )
    return _Classes(file, names, "kpt_shape" in settings)


# --- labels -----------------------------------------------------------------------------------------------------------


def _answer(file: Path, classes: _Classes, notes: Notes) -> str | None:
    """The answer that a label file holds: "" without boxes, None where it can't be read, which is noted."""
    text = _text(file)
    try:
        if text is None:
            raise _LabelError("not UTF-8 text")
        found = [*_objects(text, classes.have_points)]
    except _LabelError as error:
        notes.add("unreadable-labels", "label files can't be read, and their images are left out", f"{file}: {error}")
        return None
    labels, boxes = [], []
    for line, number, box in found:
        where = f"{file} line {line}"
        label = classes.names.get(number)
        if label is None:
            raise UserError(f"{where}: the class {number} has no name in {classes.file}: add it there")
        if fault := label_fault(label):
            raise UserError(f"{classes.file}: the class {number}, {label!r}, {fault}: rename it")
        if inside := fit(box, (_SIDE, _SIDE), where, notes):
            labels.append(label)
            boxes.append(inside)
    return write_boxes(labels, boxes, (_SIDE, _SIDE))


class _LabelError(Exception):
    """Why a label file can't be read, with the line."""


def _objects(text: str, have_points: bool) -> Iterator[tuple[int, int, Box]]:
    """The number of the line, of the class, and the box in thousandths, for each line. Raises _LabelError."""
    for line, words in enumerate(map(str.split, text.splitlines()), 1):
        if not words:
            continue
        try:
            number, *places = map(float, words)
        except ValueError:
            raise _LabelError(f"line {line} holds {' '.join(words)[:60]!r}, which are not numbers") from None
        if not all(map(math.isfinite, (number, *places))) or not number.is_integer():
            raise _LabelError(f"line {line}: {number} is no class, or a coordinate is not finite")
        scaled = [place * _SIDE for place in places]
        if len(scaled) == 4 or (have_points and len(scaled) > 4):
            x, y, width, height = scaled[:4]
            yield line, int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        elif len(scaled) >= 6 and len(scaled) % 2 == 0:
            across, down = scaled[::2], scaled[1::2]
            yield line, int(number), (min(across), min(down), max(across), max(down))
        else:
            raise _LabelError(f"line {line} has {len(words)} numbers: a class and 4 make a box, 6 or more a polygon")


def _text(path: Path) -> str | None:
    """The text of a file; None where it can't be read or is not UTF-8."""
    try:
        return read_regular(path)
    except (OSError, UnicodeDecodeError):
        return None
