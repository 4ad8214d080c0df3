"""Chooses the layout in which a dataset is kept: by content, or as the settings say."""

from dataclasses import replace
from pathlib import Path

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.layouts import coco, huggingface, ocr, pairs, shards, tables, tasks, yolo
from florence2ner.data.samples import Discovery, Side
from florence2ner.errors import UserError

KINDS = {
    "files": "images with caption files beside them",
    "tasks": "captions in folders named by their task",
    "table": "a table of images and captions",
    "coco": "boxes in COCO's JSON",
    "yolo": "boxes in YOLO's label files",
    "ocr": "texts in ICDAR's label files",
    "huggingface": "a dataset of Hugging Face's datasets",
    "shards": "tar shards",
}


def choose_layout(root: Path, options: ReadingOptions) -> str:
    """The layout of the dataset in `root`, by its name in the settings.

    Raises UserError where it reads in more than one way.
    """
    if options.layout != "auto":
        return options.layout
    fits = {
        "tasks": tasks.matches(root, options),
        "table": tables.matches(root, options),
        "coco": coco.matches(root),
        "yolo": yolo.matches(root),
        "ocr": ocr.matches(root),
        "huggingface": huggingface.matches(root),
        "shards": shards.matches(root),
    }
    found = [name for name, fit in fits.items() if fit]
    # Label files look like caption files, so that one reading is as good as none.
    anything = options.model_copy(update={"only_accepted": False})
    if found and not {"yolo", "ocr"}.intersection(found) and _files(root, anything).samples:
        found.append("files")
    if len(found) > 1:
        readings = " and as ".join(f"{KINDS[name]} (--layout {name})" for name in found)
        raise UserError(f"{root} reads as {readings}: choose one")
    return found[0] if found else "files"


def with_layout(root: Root) -> Root:
    """The same root with the layout that `choose_layout` gives in its options. Raises UserError as that does."""
    layout = choose_layout(root.path, root.options)
    return replace(root, options=root.options.model_copy(update={"layout": layout}))


def folder_of(side: Side, root: Root) -> Path | None:
    """The folder of `root` to train or evaluate on, for `discover`; its path for the whole, None: none for eval.

    The splits of a Hugging Face dataset pass for folders. Raises UserError as `choose_layout`, and where they can't be
    read.
    """
    if choose_layout(root.path, root.options) == "huggingface":
        return huggingface.side(root.path, side)
    folder = root.path / side
    return folder if folder.is_dir() else None if side == "eval" else root.path


def discover(root: Root, *, folder: Path | None = None) -> Discovery:
    """The samples of the dataset in `root`, or in a `folder` of it, in the layout that `choose_layout` gives.

    They have the root's name and weight. The report names the layout. Raises UserError as
    `choose_layout` and the layouts do.
    """
    layout = choose_layout(root.path, root.options)
    if layout == "shards":
        found = shards.discover(str(root), root.options)
    else:
        found = _in_layout(layout, root.path, root.options, folder)
    if root.name or root.weight != 1:
        samples = (
            replace(sample, image=replace(sample.image, root=root.name), weight=root.weight) for sample in found.samples
        )
        found = replace(found, samples=tuple(samples))
    if root.shards:  # which says itself what it is
        return found
    return replace(found, notes=(f"{root.name or 'the dataset'} is read as {KINDS[layout]}", *found.notes))


def _in_layout(layout: str, root: Path, options: ReadingOptions, folder: Path | None) -> Discovery:
    if layout == "files":
        return _files(root, options, folder=folder)
    if options.only_accepted:
        raise UserError(
            f"{root} is read as {KINDS[layout]}, but --only-accepted is about those in files beside images, which "
            "`florence2ner review` shows: leave it out"
        )
    match layout:
        case "tasks":
            return tasks.discover(root, options, folder=folder)
        case "table":
            return tables.discover(root, options, folder=folder)
        case "coco":
            return coco.discover(root, folder=folder, allow_outside=options.allow_outside)
        case "ocr":
            return ocr.discover(root, folder=folder)
        case "huggingface":
            return huggingface.discover(root, options, folder=folder)
    return yolo.discover(root, folder=folder)


def no_samples(folder: Path, found: Discovery, options: ReadingOptions, layout: str) -> UserError:
    """The error for a folder in which nothing to train or evaluate on was found."""
    if layout == "files":
        nothing, torn = pairs.no_captions(folder, found, options.caption_extension), tables.unreadable(folder)
        return UserError(f"{nothing}; or was a table meant? {torn}") if torn else nothing
    left_out = "; ".join(replace(found, notes=found.notes[1:]).report())
    return UserError(f"no image with a caption in {folder}, read as {KINDS[layout]}{left_out and f' ({left_out})'}")


def _files(root: Path, options: ReadingOptions, *, folder: Path | None = None) -> Discovery:
    return pairs.discover_samples(
        root,
        options.task_prompt,
        folder=folder,
        extensions=options.caption_extension,
        lines=options.caption_lines,
        only_accepted=options.only_accepted,
    )
