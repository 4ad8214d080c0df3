"""Chooses the layout in which a dataset is kept: by content, or as the settings say."""

from dataclasses import replace
from pathlib import Path

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts import coco, pairs, tables, yolo
from florence2ner.data.samples import Discovery
from florence2ner.errors import UserError

_KINDS = {
    "files": "images with caption files beside them",
    "table": "a table of images and captions",
    "coco": "boxes in COCO's JSON",
    "yolo": "boxes in YOLO's label files",
}


def choose_layout(root: Path, options: ReadingOptions) -> str:
    """The layout of the dataset in `root`, by its name in the settings.

    Raises UserError where it reads in more than one way.
    """
    if options.layout != "auto":
        return options.layout
    fits = {
        "table": tables.matches(root, options),
        "coco": coco.matches(root),
        "yolo": yolo.matches(root),
    }
    found = [name for name, fit in fits.items() if fit]
    # Label files of YOLO look like caption files, so that one reading is as good as none.
    if found and "yolo" not in found and _files(root, options).samples:
        found.append("files")
    if len(found) > 1:
        readings = " and as ".join(f"{_KINDS[name]} (--layout {name})" for name in found)
        raise UserError(f"{root} reads as {readings}: choose one")
    return found[0] if found else "files"


def discover(
    root: Path, options: ReadingOptions, *, folder: Path | None = None, layout: str | None = None
) -> Discovery:
    """The samples of the dataset in `root`, or in a `folder` of it, in the `layout` that `choose_layout` gave.

    Its report names the layout, but for the usual one. Raises UserError as `choose_layout` and the layouts do.
    """
    layout = layout or choose_layout(root, options)
    if layout == "files":
        return _files(root, options, folder=folder)
    if layout == "table":
        found = tables.discover(root, options, folder=folder)
    else:
        found = (coco if layout == "coco" else yolo).discover(root, folder=folder)
    return replace(found, notes=(f"the dataset is read as {_KINDS[layout]}", *found.notes))


def no_samples(folder: Path, found: Discovery, options: ReadingOptions, layout: str) -> UserError:
    """The error for a folder in which nothing to train or evaluate on was found."""
    if layout == "files":
        return pairs.no_captions(folder, found, options.caption_extension)
    left_out = "; ".join(replace(found, notes=found.notes[1:]).report())
    return UserError(f"no image with a caption in {folder}, read as {_KINDS[layout]}{left_out and f' ({left_out})'}")


def _files(root: Path, options: ReadingOptions, *, folder: Path | None = None) -> Discovery:
    return pairs.discover_samples(
        root,
        options.task_prompt,
        folder=folder,
        extensions=options.caption_extension,
        lines=options.caption_lines,
    )
