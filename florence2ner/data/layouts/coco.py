"""The dataset layout of COCO: a JSON file of boxes, which become `<OD>` answers, and the images that it names."""

import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError

from florence2ner.data.layouts.boxes import TASK_PROMPT, Box, Notes, fit, quarter_turn
from florence2ner.data.layouts.paths import is_part
from florence2ner.data.pictures import ImageError, read_size
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.errors import UserError
from florence2ner.files import open_regular
from florence2ner.model.answers import label_fault, write_boxes

_LISTS = [re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories")]
_ROBOFLOW = "*/_annotations.coco.json"  # in a folder with its images
_Id = int | str


class _Image(BaseModel):
    id: _Id
    file_name: str
    width: PositiveInt | None = None
    height: PositiveInt | None = None


class _Annotation(BaseModel):
    image_id: _Id
    category_id: _Id
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # x y width height in pixels, from the top left
    iscrowd: bool | None = None
    id: _Id | None = None


class _Category(BaseModel):
    id: _Id
    name: str


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Object(NamedTuple):
    label: str
    box: Box  # in pixels of the picture that the annotations are of
    name: str  # of the annotation, for messages


@dataclass(frozen=True)
class _View:
    """The picture that the boxes are of."""

    size: tuple[int, int]  # width and height in pixels
    turn: int = 1  # the EXIF orientation that the boxes are still to be turned by


def matches(root: Path) -> bool:
    """Whether a JSON file of the dataset in `root` has COCO's lists: images, annotations and categories.

    The files are searched for these words, not parsed: one with a mistake is still COCO's, and `discover` names it.
    """
    return any(map(_has_lists, _json_files(root)))


def discover(root: Path, *, folder: Path | None = None, allow_outside: bool = False) -> Discovery:
    """One sample for each image with boxes in the COCO files of `folder`, or where that has none, of the whole dataset.

    COCO files are in the folder itself, in its `annotations`, or named as Roboflow does (`*/_annotations.coco.json`).
    The answer has the boxes in their order, each label once. An image is looked for beside its file and in the usual
    folders, see `_place`. Images without a box are left out, as there is nothing to answer about them; so are crowds,
    boxes that are empty or outside, images that are missing or unreadable, and pictures that EXIF turns so that it
    can't be known which way their boxes are. Raises UserError for what can't be right: no JSON, unknown ids, an image
    twice, a path out of `root` unless that is allowed, a label that an answer can't have.
    """
    within = folder or root
    files = [*filter(_has_lists, _json_files(within))] or [*filter(_has_lists, _json_files(root))]
    if not files:
        raise UserError(f"no COCO file in {within}: it is a .json with images, annotations and categories")
    notes = Notes()
    named: dict[Path, Path] = {}  # image: the file that names it
    samples, empty = [], []
    for file in files:
        coco = _read(file)
        objects = _objects(coco, file, notes)
        for entry in _unique(coco.images, file):
            path = _place(root, file, entry.file_name, allow_outside=allow_outside)
            if path is None:
                notes.add("missing-image", "images are missing and are left out", f"{entry.file_name} of {file}")
            elif is_part(path, root, within, file):
                if path in named:
                    raise UserError(f"the image {path} is in {named[path]} and again in {file}: keep it in one of them")
                named[path] = file
                if answer := _answer(entry, objects.get(entry.id, []), ImageRef.below(root, path), notes):
                    samples.append(Sample(ImageRef.below(root, path), TASK_PROMPT, (answer,)))
                elif answer is not None:
                    empty.append(path)
    samples.sort(key=lambda sample: sample.image.key)
    return Discovery(tuple(samples), tuple(sorted(empty)), faults=notes.faults())


def _json_files(folder: Path) -> dict[Path, None]:
    """Where COCO's files may be, each once."""
    usual = (path for place in (folder, folder / "annotations") for path in sorted(place.glob("*.json")))
    return dict.fromkeys((*usual, *sorted(folder.glob(_ROBOFLOW))))


def _has_lists(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(pattern.search(text) for pattern in _LISTS)
    except (OSError, ValueError):  # the latter for an empty file
        return False


def _read(file: Path) -> _Coco:
    try:
        with open_regular(file) as opened:
            return _Coco.model_validate_json(opened.read().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{file} is not as COCO wants it: {what}; mend that or export it again") from None


def _unique(entries: list[_Image], file: Path) -> Iterator[_Image]:
    seen: set[_Id] = set()
    for entry in entries:
        if entry.id in seen:
            raise UserError(f"{file}: two images have the id {entry.id!r}, so their boxes can't be told apart")
        seen.add(entry.id)
        yield entry


def _objects(coco: _Coco, file: Path, notes: Notes) -> dict[_Id, list[_Object]]:
    """The objects of each image, by its id. Crowds, which stand for many objects at once, are left out and noted."""
    labels = {category.id: category.name for category in coco.categories}
    if len(labels) < len(coco.categories):
        raise UserError(f"{file}: two categories have the same id: give each its own")
    images = {entry.id for entry in coco.images}
    objects: dict[_Id, list[_Object]] = {}
    for category in dict.fromkeys(annotation.category_id for annotation in coco.annotations):
        if category in labels and (fault := label_fault(labels[category])):
            raise UserError(f"{file}: the category {category!r}, {labels[category]!r}, {fault}: rename it")
    for index, annotation in enumerate(coco.annotations):
        name = f"annotations[{index}]" if annotation.id is None else f"annotation {annotation.id}"
        if annotation.category_id not in labels:
            raise UserError(
                f"{file}: {name} has the category {annotation.category_id!r}, which is not among the categories: add it"
            )
        if annotation.image_id not in images:
            raise UserError(f"{file}: {name} is of the image {annotation.image_id!r}, which is not among the images")
        if annotation.iscrowd:
            notes.add("crowd", "annotations are of crowds and are left out", f"{name} of {file}")
            continue
        x, y, width, height = annotation.bbox
        box = (x, y, x + width, y + height)
        objects.setdefault(annotation.image_id, []).append(_Object(labels[annotation.category_id], box, name))
    return objects


def _place(root: Path, file: Path, name: str, *, allow_outside: bool) -> Path | None:
    """Where the image that `file` calls `name` is; None where it is missing.

    Raises UserError for one out of `root`, unless that is allowed.

    Looked at are, where a file is called `instances_train.json`, the folders `train` and `images/train` of the dataset,
    then that of the file, `images`, and the dataset's own.
    """
    name = name.replace("\\", "/")  # as some tools write on Windows
    top, own, split = os.path.abspath(root), os.path.abspath(file.parent), file.stem.rpartition("_")[2]
    bases = [own] if ".." in name else [f"{top}/{split}", f"{top}/images/{split}", own, f"{top}/images", top]
    paths = [os.path.normpath(os.path.join(base, name)) for base in bases]  # text: pathlib takes a minute for COCO
    below = os.path.join(top, "")
    if not (allow_outside or all(f"{path}/".startswith(below) for path in paths)):
        raise UserError(
            f"{file}: the image {name!r} is not in {root}: move it there, and name its path from there, or let it in "
            "with --allow-outside"
        )
    found = next(filter(os.path.isfile, paths), None)
    return None if found is None else root / found.removeprefix(below)  # outside, it stays absolute


def _answer(entry: _Image, objects: Sequence[_Object], image: ImageRef, notes: Notes) -> str | None:
    """The answer about an image: "" without boxes, None where it is left out and noted."""
    if not objects:
        return ""
    if not (view := _view(entry, image, notes)):
        return None
    labels, boxes, size = [], [], view.size
    for label, whole, name in objects:
        if box := fit(whole, size, f"{name} of {image}", notes):
            labels.append(label)
            boxes.append(quarter_turn(box, size, view.turn) if view.turn > 1 else box)
    return write_boxes(labels, boxes, size[::-1] if view.turn > 1 else size)


def _view(entry: _Image, image: ImageRef, notes: Notes) -> _View | None:
    """Which picture the boxes of an image are of, by the width and height that COCO has for it.

    We show the model the upright picture. Where EXIF turns the stored one, some tools annotate it as it is stored, and
    some as it is shown. Where the sides are swapped, the size tells which; else the image is left out and noted.
    """
    try:
        stored, orientation = read_size(image)
    except ImageError as error:
        notes.add("not-measured", "images can't be read and are left out", f"{image} ({error})")
        return None
    said = (entry.width, entry.height) if entry.width and entry.height else None
    swaps = orientation >= 5
    as_stored = said is None or _same_shape(said, stored)
    as_shown = said is None or _same_shape(said, stored[::-1] if swaps else stored)
    if not (as_stored or as_shown):
        notes.add("other-shape", "images have another shape than their annotations say and are left out", image)
        return None
    if orientation > 1 and as_stored and as_shown:
        notes.add(
            "turned", "images are turned by EXIF, maybe unlike their boxes, and are left out (save them upright)", image
        )
        return None
    return _View(said or stored, orientation if swaps and as_stored else 1)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same ratio, but for the rounding to whole pixels: an image may have been resized."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
