"""The dataset layout of Hugging Face's library `datasets`: saved to disk, as parquet files, or by id on the hub."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.boxes import Notes
from florence2ner.data.layouts.columns import captions_in, check_asked, find_column, to_samples
from florence2ner.data.layouts.paths import find_image
from florence2ner.data.samples import Discovery, ImageRef, Side
from florence2ner.errors import UserError

_TRAIN = "train"
_HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing")  # the first is evaluated on
_SPLITS = "dataset_dict.json"  # of several splits that were saved to disk
_SAVED = ("dataset_info.json", "state.json")  # of one


@dataclass(frozen=True, slots=True)
class _Column:
    """The images of a split, mapped into memory: no process, however it is started, holds a copy of them."""

    rows: Any  # a datasets.Dataset that gives its one column as Arrow keeps it
    stamp: str

    def bytes_of(self, row: int) -> memoryview:
        """The file in a row, where the map has it."""
        cell = self.rows[row].column(0)[0]
        return memoryview((cell["bytes"] if hasattr(cell, "keys") else cell).as_buffer())


@dataclass(frozen=True, slots=True)
class RowRef(ImageRef):
    """An image that is kept in a row of a dataset. Its `path` is a name for messages: no file is there."""

    column: _Column = field(kw_only=True, compare=False, repr=False)
    row: int = field(kw_only=True)
    length: int = field(kw_only=True)  # bytes

    def open(self) -> BytesIO:
        """A copy of the bytes."""
        return BytesIO(self.column.bytes_of(self.row))

    def size(self) -> int:
        """The number of bytes."""
        return self.length

    def stamp(self) -> str:
        """What the dataset's files were when they were opened, and the row."""
        return f"{self.column.stamp} {self.row}"


def matches(root: Path) -> bool:
    """Whether `root` is what `save_to_disk` writes, or has parquet files."""
    return (root / _SPLITS).is_file() or all((root / name).is_file() for name in _SAVED) or bool(_parquet_files(root))


def side(root: Path, which: Side) -> Path | None:
    """The split to train or evaluate on, as `discover` takes it: as if it were a folder. None: there is none for eval.

    Raises UserError as `discover` does, and where only splits for evaluation are there to train on.
    """
    names = [*_load(root)]
    held_out = [name for name in _HELD_OUT if name in names] if len(names) > 1 else []
    if which == "eval":
        return root / held_out[0] if held_out else None
    if held_out and _TRAIN not in names:
        raise UserError(f"{root} has the splits {', '.join(names)}, none to train on: it must be called train")
    return root / _TRAIN if _TRAIN in names else root


def discover(root: Path, options: ReadingOptions, *, folder: Path | None = None) -> Discovery:
    """The samples of every split of the dataset in `root`, or of the split that `folder` is called after.

    Images are bytes in the dataset, or paths from `root` on. A cell may hold a list of captions, and a prompt makes a
    row another task. Rows without a caption, without an image, or whose image is missing, are left out and reported.
    Raises UserError for a dataset that the library, or this machine without it, can't read, for a column that is
    missing or holds something else, and for a path that leads out of `root`, unless `allow_outside`.
    """
    splits = _load(root)
    chosen = splits if folder is None or folder == root else {folder.name: splits[folder.name]}
    captions: dict[tuple[ImageRef, str], dict[str, None]] = {}
    notes = Notes()
    for split, rows in chosen.items():
        where = f"the split {split} of {root}"
        check_asked(options, rows.column_names, where)
        images = _images(root, split, rows, _image_column(rows, options, where), allow_outside=options.allow_outside)
        for row, (image, (texts, prompt)) in enumerate(zip(images, _texts(rows, options, where), strict=True)):
            if image is None:
                notes.add("row-without-image", "rows have no image and are left out", f"row {row} of {where}")
            else:
                captions.setdefault((image, prompt or options.task_prompt), {}).update(dict.fromkeys(texts))
    samples, empty = to_samples(captions, options)
    return Discovery(samples, empty, faults=notes.faults())


# --- splits -----------------------------------------------------------------------------------------------------------


def _load(root: Path) -> Mapping[str, Any]:
    """The splits of the dataset in `root`, by name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{root} is read with the library datasets, which can't be imported ({error}): pip install datasets"
        ) from None
    if not root.is_dir():
        return _load_from_hub(root.as_posix())
    files = _parquet_files(root)
    with _in_one_line(str(root)), _quiet(datasets):
        if (root / _SPLITS).is_file():
            return dict(datasets.load_from_disk(str(root), keep_in_memory=False))
        if (root / _SAVED[1]).is_file():
            return {_TRAIN: datasets.load_from_disk(str(root), keep_in_memory=False)}
        if not files:
            raise UserError(
                f"{root} is no dataset of Hugging Face: it has no parquet file, nor what save_to_disk writes"
            )
        _check(files)
        splits: dict[str, list[str]] = {}
        for file in files:
            splits.setdefault(_split_of(file.relative_to(root)), []).append(glob.escape(str(file)))
        return dict(datasets.DatasetDict.from_parquet(splits, keep_in_memory=False))


@cache
def _load_from_hub(name: str) -> Mapping[str, Any]:
    """The splits of a dataset on the hub, downloaded to the library's cache unless they are there. No code is run.

    The library has bars of its own for the download.
    """
    import datasets

    with _in_one_line(
        f"the dataset {name} of the Hugging Face hub", "check its name and the network, or name a folder"
    ):
        return dict(datasets.load_dataset(name))


def _parquet_files(root: Path) -> list[Path]:
    """Those in `root` and its folders, but for the ones that img2dataset writes beside its archives."""
    found = sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])
    return [path for path in found if not path.name.startswith(".") and not path.with_suffix(".tar").exists()]


def _split_of(file: Path) -> str:
    """The split that a parquet file belongs to, by a word in its name, or else in that of its folder."""
    for name in (file.stem, file.parent.name):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in (_TRAIN, *_HELD_OUT):
                return word
    return _TRAIN


def _check(files: list[Path]) -> None:
    """Raise UserError for a file that is no whole parquet file, by name: the library says only that one isn't."""
    import pyarrow.parquet

    for file in files:
        with _in_one_line(str(file)):
            pyarrow.parquet.read_metadata(file)


@contextmanager
def _in_one_line(name: str, fix: str = "download or write it again") -> Iterator[None]:
    """A context manager that turns whatever the library raises into a UserError about `name`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of almost any class, and with the reason in the one that it came from
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} can't be read as a dataset ({reason}): {fix}") from None


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """A context manager without the library's progress bars and warnings."""
    had_bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


# --- rows -------------------------------------------------------------------------------------------------------------


def _image_column(rows: Any, options: ReadingOptions, where: str) -> str:
    import datasets

    if asked := options.image_column:
        return asked
    names = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(names) > 1:
        raise UserError(f"{where} has the images {', '.join(names)}: choose one with --image-column")
    if not names and (usual := find_column("image", options, rows.column_names)):
        names = [usual]
    if not names:
        raise UserError(
            f"{where} has no column of images: name it with --image-column. It has {', '.join(rows.column_names)}"
        )
    return str(names[0])


def _images(root: Path, split: str, rows: Any, column: str, *, allow_outside: bool) -> Iterator[ImageRef | None]:
    """The image of each row, by file name where every row has one of its own; None where there is none.

    No image is read for it: Arrow knows the lengths.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = rows.select_columns([column]).with_format("arrow")
    cells = kept[:].column(0)
    paths: list[str | None] = [None] * len(rows)
    lengths: list[int | None] = [None] * len(rows)
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
        lengths = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        if cells.type.get_field_index("path") >= 0:
            paths = pc.struct_field(cells, "path").to_pylist()
    elif pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        lengths = pc.binary_length(cells).to_pylist()
    elif _is_text(cells.type):
        paths = cells.to_pylist()
    else:
        raise UserError(
            f"the column {column} of the split {split} of {root} holds {cells.type}, not images: name another with "
            "--image-column"
        )
    names = [os.path.basename((path or "").replace("\\", "/")) for path in paths]
    if None in lengths or Counter(names).most_common(1)[0][1] > 1 or not {"", ".", ".."}.isdisjoint(names):
        names = [f"{row:06d}" for row in range(len(rows))]
    images = _Column(kept, _stamp(rows))
    for row, (name, path, length) in enumerate(zip(names, paths, lengths, strict=True)):
        if length is not None:
            yield RowRef(f"{split}/{name}", root / split / name, column=images, row=row, length=length)
            continue
        place = f"row {row} of the split {split}"
        file = find_image(root, (root,), path, place, allow_outside=allow_outside) if path else None
        yield ImageRef.below(root, file) if file else None


def _stamp(rows: Any) -> str:
    """Another string whenever one of the files that the rows are mapped from changes."""
    stamps = [ImageRef.at(Path(str(file["filename"]))).stamp() for file in rows.cache_files]
    return hashlib.blake2b(repr(stamps).encode(), digest_size=16).hexdigest()


def _texts(rows: Any, options: ReadingOptions, where: str) -> Iterator[tuple[list[str], str]]:
    """The captions of each row, and its prompt ("" for none)."""
    caption, prompt = (find_column(kind, options, rows.column_names) for kind in ("caption", "prompt"))
    if not caption:
        raise UserError(
            f"{where} has no column of captions: name it with --caption-column. It has {', '.join(rows.column_names)}"
        )
    table = rows.select_columns([name for name in (caption, prompt) if name]).with_format("arrow")[:]
    for kind, name in (("prompt", prompt), ("caption", caption)):
        held = table.column(name).type if name else None
        lists = kind == "caption" and _is_text(getattr(held, "value_type", None))
        if name and not _is_text(held) and not lists:
            raise UserError(f"the column {name} of {where} holds {held}, no {kind}s: name another with --{kind}-column")
    prompts = table.column(prompt).to_pylist() if prompt else [None] * len(rows)
    cells = table.column(caption).to_pylist()
    for row, (cell, asked) in enumerate(zip(cells, prompts, strict=True)):
        yield captions_in(cell, caption, options, f"row {row} of {where}"), (asked or "").strip()


def _is_text(kind: Any) -> bool:
    """Whether a type of Arrow is that of text."""
    import pyarrow as pa

    return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
