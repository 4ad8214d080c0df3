"""What lies in a dataset folder: images, their captions, on which side of the split each is, and what has no pair."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from florence2ner.data.formats import (
    ALL_EXTENSIONS,
    CAPTION_EXTENSIONS,
    PACKAGES,
    PLUGINS,
    LeftOut,
    check_caption_extension,
    list_files,
    load_plugin,
)
from florence2ner.data.samples import ImageRef
from florence2ner.data.split import EVAL_FOLDER, TRAIN_FOLDER
from florence2ner.files import read_regular
from florence2ner.inspection.findings import Example, Finding, shell_word

Side = Literal["train", "eval", "unused"]


@dataclass(frozen=True)
class Item:
    """An image of the dataset, and its caption, as training reads it."""

    image: ImageRef
    side: Side
    caption_file: Path | None = None
    caption: str = ""  # "" for none, an empty one and one that can't be read


@dataclass(kw_only=True)
class Folder:
    """A dataset folder as it was found. Paths are in sorted order."""

    root: Path
    extension: str  # of caption files
    items: list[Item] = field(default_factory=list)
    has_eval: bool = False  # whether the held-out images are in a folder of their own
    captions_without_image: list[Path] = field(default_factory=list)
    not_utf8: list[Path] = field(default_factory=list)
    unreadable_captions: list[tuple[Path, str]] = field(default_factory=list)  # and why
    without_plugin: list[tuple[ImageRef, str]] = field(default_factory=list)  # and the package that reads them
    other_captions: dict[str, int] = field(default_factory=dict)  # number of caption files by another usual extension
    shared: set[Path] = field(default_factory=set)  # caption files that several images share
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def caption_command(self) -> str:
        """The shell command that captions the images without a caption."""
        extension = "" if self.extension == ".txt" else f" --caption-extension {shell_word(Path(self.extension))}"
        return f"florence2ner caption {shell_word(self.root)}{extension}"


def read_folder(root: Path, extension: str) -> Folder:
    """Read the names and captions in a dataset folder; no image is opened.

    Raises UserError for the extension of images.
    """
    check_caption_extension(extension)
    found = Folder(root=root, extension=extension, has_eval=(root / EVAL_FOLDER).is_dir())
    files = list_files(root, {extension.lower()}, found.left_out)
    captions = {path.with_name(path.name[: -len(extension)]): path for path in files}
    images = list_files(root, ALL_EXTENSIONS, found.left_out)
    side_of = _sides(root, images)
    used: Counter[Path | None] = Counter()
    for path in images:
        image, caption_file = ImageRef.below(root, path), captions.get(path.with_suffix(""))
        used[caption_file] += 1
        if (plugin := PLUGINS.get(image.suffix)) and not load_plugin(plugin):
            found.without_plugin.append((image, PACKAGES[plugin]))
            continue
        caption = _read(caption_file, found) if caption_file else ""
        found.items.append(Item(image, side_of[path], caption_file, caption))
    found.shared = {path for path, number in used.items() if path and number > 1}
    found.captions_without_image = [path for path in captions.values() if path not in used]
    for other in CAPTION_EXTENSIONS:
        if other != extension.lower() and (number := len(list_files(root, {other}))):
            found.other_captions[other] = number
    return found


def _sides(root: Path, images: list[Path]) -> dict[Path, Side]:
    """On which side of the split each image is, as `data/split.py` has it."""
    train, held_out = root / TRAIN_FOLDER, root / EVAL_FOLDER
    trained = train if train.is_dir() else root
    in_eval = {path for path in images if path.is_relative_to(held_out)}
    hidden = {os.path.realpath(path) for path in in_eval}

    def side(path: Path) -> Side:
        if path in in_eval:
            return "eval"
        linked = bool(hidden) and os.path.realpath(path) in hidden
        return "train" if path.is_relative_to(trained) and not linked else "unused"

    return {path: side(path) for path in images}


def _read(path: Path, found: Folder) -> str:
    """The caption in a file. What can't be read is added to `found`, once for all images that share it."""
    try:
        return read_regular(path).strip()
    except UnicodeDecodeError:
        if path not in found.not_utf8[-1:]:  # images that share a caption follow each other
            found.not_utf8.append(path)
    except OSError as error:
        if (path, str(error.strerror)) not in found.unreadable_captions[-1:]:
            found.unreadable_captions.append((path, str(error.strerror)))
    return ""


def folder_findings(found: Folder) -> list[Finding]:
    """What is wrong with names and pairs."""
    root = found.root
    alone = [item for item in found.items if item.caption_file is None and item.side != "unused"]
    return [
        _collisions(found),
        Finding(
            "image-without-caption",
            "hurts",
            "[image has|images have] no caption",
            "training leaves them out; `florence2ner caption` writes what is missing, or write them yourself",
            tuple(Example(item.image.key, images=(item.image,)) for item in alone),
            (found.caption_command,) if alone else (),
        ),
        Finding(
            "caption-without-image",
            "note",
            "[caption has|captions have] no image",
            "training leaves them out; is an image missing, or has one another name?",
            tuple(Example(path.relative_to(root).as_posix()) for path in found.captions_without_image),
            tuple(set_aside(root, path) for path in found.captions_without_image),
        ),
        Finding(
            "needs-package",
            "hurts",
            "[image needs|images need] a Python package that is not installed",
            "training leaves them out without a word until it is: pip install "
            + " ".join(sorted({package for _, package in found.without_plugin})),
            tuple(Example(image.key, package) for image, package in found.without_plugin),
        ),
        Finding(
            "outside-of-train",
            "note",
            "[image is|images are] in neither train/ nor eval/, or linked from eval/",
            "with a folder train/, only what is in it is trained on",
            tuple(Example(item.image.key) for item in found.items if item.side == "unused"),
        ),
        Finding(
            "other-extension",
            "note",
            "[caption has|captions have] another extension",
            f"only {found.extension} is read: --caption-extension chooses another",
            tuple(Example(extension, f"{number} files") for extension, number in found.other_captions.items()),
            cases=sum(found.other_captions.values()),
        ),
        *_left_out(found),
    ]


def _left_out(found: Folder) -> list[Finding]:
    special, folders = (list(dict.fromkeys(paths)) for paths in (found.left_out.special, found.left_out.folders))
    return [
        Finding(
            "special-file",
            "note",
            "[pipe, socket or device has|pipes, sockets or devices have] the name of an image or caption",
            "they are never opened",
            tuple(Example(path.relative_to(found.root).as_posix()) for path in special),
        ),
        Finding(
            "unreadable-folder",
            "hurts",
            "[folder|folders] can't be read",
            "what is in them is left out: give yourself the right to read them",
            tuple(Example(path.relative_to(found.root).as_posix()) for path in folders),
        ),
    ]


def _collisions(found: Folder) -> Finding:
    """Images that share a caption file, such as a.jpg and a.png."""
    groups: defaultdict[Path, list[ImageRef]] = defaultdict(list)
    for item in found.items:
        if item.caption_file in found.shared:
            groups[item.caption_file].append(item.image)
    fixes = []
    for path, images in groups.items():
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
            Example(path.relative_to(found.root).as_posix(), " ".join(image.key for image in images), tuple(images))
            for path, images in groups.items()
        ),
        tuple(fixes),
    )


def set_aside(root: Path, *paths: Path) -> str:
    """A command that moves files out of the dataset, into a folder beside it with the same tree."""
    target = Path(f"{root.resolve()}.set-aside", paths[0].relative_to(root)).parent
    return f"mkdir -p -- {shell_word(target)} && mv -n -- {' '.join(map(shell_word, (*paths, target)))}"
