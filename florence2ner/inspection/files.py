"""What is wrong with the files of a dataset, as their names tell: what has no pair, shares one, or is not read."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from florence2ner.config.roots import Root
from florence2ner.data.formats import (
    ALL_EXTENSIONS,
    CAPTION_EXTENSION,
    CAPTION_EXTENSIONS,
    PACKAGES,
    PLUGINS,
    list_files,
)
from florence2ner.inspection.dataset import Dataset, Item
from florence2ner.inspection.findings import Example, Finding, shell_word

_OF_IMAGES = {"files", "tasks", "yolo", "ocr"}  # layouts that look for images; in the others a file names them


def file_findings(dataset: Dataset) -> list[Finding]:
    """What is wrong with names and pairs."""
    return [
        _collisions(dataset),
        *_without_caption(dataset),
        *_of_folders(dataset),
        *_left_out(dataset),
    ]


def caption_command(root: Root) -> str:
    """The shell command that captions the images without a caption in a root that has captions beside images."""
    given = {"--caption-extension": root.options.caption_extension[0], "--task-prompt": root.options.task_prompt}
    usual = {"--caption-extension": CAPTION_EXTENSION, "--task-prompt": "<CAPTION>"}
    flags = [f" {flag} {shell_word(Path(value))}" for flag, value in given.items() if value != usual[flag]]
    return f"florence2ner caption {shell_word(root.path)}{''.join(flags)}"


def set_aside(root: Root, *paths: Path) -> str:
    """A command that moves files out of the dataset, into a folder beside it with the same tree."""
    target = Path(f"{root.path.resolve()}.set-aside", paths[0].relative_to(root.path)).parent
    return f"mkdir -p -- {shell_word(target)} && mv -n -- {' '.join(map(shell_word, (*paths, target)))}"


def aside(dataset: Dataset, item: Item) -> tuple[str, ...]:
    """A command that takes an image out of the dataset, with its captions unless another image shares them.

    None where a file names the image, which would miss it then.
    """
    if not has_captions_beside(item.root):
        return ()
    return (set_aside(item.root, item.image.path, *(path for path in item.files if path not in dataset.shared)),)


def has_captions_beside(root: Root) -> bool:
    """Whether a root has caption files beside images."""
    return root.options.layout == "files"


def _collisions(dataset: Dataset) -> Finding:
    """Images that share a caption file, such as a.jpg and a.png."""
    fixes = []
    for path, images in dataset.shared.items():
        for image in images[1:]:
            stem = image.path.stem + "_" + image.suffix[1:]
            moved, copied = image.path.with_name(stem + image.path.suffix), path.with_name(stem + path.suffix)
            fixes.append(
                f"mv -n -- {shell_word(image.path)} {shell_word(moved)} && "
                f"cp -n -- {shell_word(path)} {shell_word(copied)}"
            )
    return Finding(
        "shared-caption",
        "hurts",
        "[caption is|captions are] shared by images that differ in their extension only",
        "give each image a name of its own, and a caption that is about it",
        tuple(
            Example(dataset.name_of(path), " ".join(image.key for image in images), tuple(images))
            for path, images in dataset.shared.items()
        ),
        tuple(fixes),
    )


def _without_caption(dataset: Dataset) -> list[Finding]:
    """Images without a caption, and captions without an image; of the former, those that have an empty file apart."""
    refused = {*dataset.found.refused.not_utf8, *dataset.found.refused.unreadable}
    items = {item.image.path: item for item in dataset.items}
    alone: dict[Example, str] = {}  # with the commands that mend them
    empty: dict[Example, str] = {}
    for part, found in dataset.parts:
        endings = tuple(map(str.lower, part.root.options.caption_extension))
        command = caption_command(part.root) if has_captions_beside(part.root) else ""
        for path in found.images_without_caption:
            item = items.get(path)
            files = [file for file in item.files if file.name.lower().endswith(endings)] if item else []
            example = Example(dataset.name_of(path), images=(item.image,) if item else ())
            if not files:
                alone[example] = command
            elif not refused.intersection(files):
                empty[example] = command
    lost = _captions_without_image(dataset)
    return [
        Finding(
            "image-without-caption",
            "hurts",
            "[image has|images have] no caption",
            "training leaves them out: write what is missing; `florence2ner caption` writes captions beside images",
            tuple(alone),
            _commands(alone),
        ),
        Finding(
            "empty-caption",
            "hurts",
            "[caption is|captions are] empty",
            "training leaves their images out; `florence2ner caption` writes them, as an empty file counts as missing",
            tuple(empty),
            _commands(empty),
        ),
        Finding(
            "caption-without-image",
            "note",
            "[caption has|captions have] no image",
            "training leaves them out; is an image missing, or has one another name?",
            tuple(Example(dataset.name_of(path)) for path in lost),
            tuple(set_aside(root, path) for path, root in lost.items() if has_captions_beside(root)),
        ),
    ]


def _commands(found: Mapping[Example, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, found.values())))


def _captions_without_image(dataset: Dataset) -> dict[Path, Root]:
    """Those with their roots. A caption whose image only needs a package is none of them."""
    found = {path: part.root for part, found in dataset.parts for path in found.captions_without_image}
    packaged = {path.with_suffix("") for path in dataset.found.left_out.packaged}
    return {path: root for path, root in found.items() if path.with_suffix("") not in packaged}


def _of_folders(dataset: Dataset) -> list[Finding]:
    """What lies in the folders, but is not read."""
    packaged = dataset.found.left_out.packaged
    plugins = {dataset.name_of(path): PACKAGES[PLUGINS[path.suffix.lower()]] for path in packaged}
    others = _other_extensions(dataset)
    return [
        Finding(
            "needs-package",
            "hurts",
            "[image needs|images need] a Python package that is not installed",
            f"training leaves them out until it is: pip install {' '.join(sorted({*plugins.values()}))}",
            tuple(Example(key, package) for key, package in plugins.items()),
        ),
        Finding(
            "outside-of-train",
            "note",
            "[image is|images are] neither trained nor evaluated on",
            "with a folder train/, only what is in it is trained on, and never what is in eval/ or linked from there",
            tuple(map(Example, dict.fromkeys([*_outside(dataset), *(item.image.key for item in dataset.unused)]))),
        ),
        Finding(
            "other-extension",
            "note",
            "[caption has|captions have] another extension",
            "they are not read: --caption-extension chooses what is",
            tuple(Example(extension, f"{number} files") for extension, number in others.items()),
            cases=sum(others.values()),
        ),
    ]


def _outside(dataset: Dataset) -> Iterator[str]:
    """Names of the images in the folder of a root that are in none of its parts."""
    folders: dict[Path, list[Path]] = {}
    for part, _ in dataset.parts:
        if part.root.options.layout in _OF_IMAGES:
            folders.setdefault(part.root.path, []).append(part.folder)
    for root, parts in folders.items():
        if root not in parts:
            for path in list_files(root, ALL_EXTENSIONS):
                if not any(path.is_relative_to(part) for part in parts):
                    yield dataset.name_of(path)


def _other_extensions(dataset: Dataset) -> dict[str, int]:
    """The number of caption files beside images by another usual extension."""
    read: dict[Path, set[str]] = {}
    for part, _ in dataset.parts:
        if has_captions_beside(part.root):
            read.setdefault(part.folder, set()).update(map(str.lower, part.root.options.caption_extension))
    numbers: dict[str, int] = {}
    for folder, extensions in read.items():
        for other in (extension for extension in CAPTION_EXTENSIONS if extension not in extensions):
            if number := len(list_files(folder, {other})):
                numbers[other] = numbers.get(other, 0) + number
    return numbers


def _left_out(dataset: Dataset) -> list[Finding]:
    left_out = dataset.found.left_out
    special, folders = (list(dict.fromkeys(paths)) for paths in (left_out.special, left_out.folders))
    return [
        Finding(
            "special-file",
            "note",
            "[pipe, socket or device has|pipes, sockets or devices have] the name of an image or caption",
            "they are never opened",
            tuple(Example(dataset.name_of(path)) for path in special),
        ),
        Finding(
            "unreadable-folder",
            "hurts",
            "[folder|folders] can't be read",
            "what is in them is left out: give yourself the right to read them",
            tuple(Example(dataset.name_of(path)) for path in folders),
        ),
    ]
