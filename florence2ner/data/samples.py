"""What there is to train on: the samples of a folder, and which of them are held out for evaluation."""

import glob
import importlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from florence2ner.errors import UserError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)
# The Pillow plugins that other images need, and the packages that have them.
PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl"}
PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
ALL_EXTENSIONS = IMAGE_EXTENSIONS | PLUGINS.keys()
CAPTION_EXTENSION = ".txt"
TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"


@dataclass(frozen=True)
class Sample:
    """One image, the task asked of it, and the answer (None where it is to be generated)."""

    image: Path
    task_prompt: str
    caption: str | None = None


@dataclass(frozen=True)
class Discovery:
    """The captioned images of a folder, in sorted order, and what was found but can't be used."""

    samples: tuple[Sample, ...]
    images_without_caption: tuple[Path, ...] = ()
    captions_without_image: tuple[Path, ...] = ()
    unreadable_folders: tuple[Path, ...] = ()

    def report(self) -> list[str]:
        """A line for each kind of file that is left out, with its number and a few names."""
        left_out = {
            "images have no caption": self.images_without_caption,
            "captions have no image": self.captions_without_image,
            "folders can't be read": self.unreadable_folders,
        }
        return [
            f"{len(paths)} {what} and are left out: {name_some(paths)}" for what, paths in left_out.items() if paths
        ]


@dataclass(frozen=True)
class Split:
    """The samples to train on and those held out."""

    train: tuple[Sample, ...]
    eval: tuple[Sample, ...]


def discover_images(paths: Iterable[Path], unreadable: list[Path] | None = None) -> list[Path]:
    """Every image file named or below the folders named, sorted within each, each once however often it is named.

    What only a missing plugin could read is among them, so that it is named where it fails. Folders that can't be read
    are added to `unreadable`.
    """
    folders: dict[Path, str] = {}
    images: dict[tuple[str, str], Path] = {}
    for path in paths:
        for image in _files(path, ALL_EXTENSIONS, unreadable) if path.is_dir() else [path]:
            if (folder := folders.get(image.parent)) is None:
                folder = folders[image.parent] = os.path.realpath(image.parent)
            images.setdefault((folder, image.name), image)
    return list(images.values())


@cache
def load_plugin(module: str) -> bool:
    """Import a Pillow plugin, so that its formats can be read; False where it is not installed (or lacks a library)."""
    try:
        plugin = importlib.import_module(module)
        getattr(plugin, "register_heif_opener", bool)()  # the other one registers itself
    except (ImportError, OSError):
        return False
    return True


def discover_samples(root: Path, task_prompt: str) -> Discovery:
    """Pair every image below `root` with the .txt of the same stem beside it. An empty caption counts as none."""
    captions = {path.with_suffix(""): path for path in _files(root, {CAPTION_EXTENSION})}
    samples, without_caption, used = [], [], set()
    unreadable: list[Path] = []
    for image in _readable_images(root, unreadable):
        path = captions.get(image.with_suffix(""))
        caption = _read_caption(path) if path else ""
        used.add(path)
        if caption:
            samples.append(Sample(image, task_prompt, caption))
        else:
            without_caption.append(image)
    without_image = [path for path in captions.values() if path not in used]
    return Discovery(tuple(samples), tuple(without_caption), tuple(without_image), tuple(unreadable))


def discover_split(root: Path, task_prompt: str, *, eval_ratio: float | None, seed: int) -> tuple[Split, Discovery]:
    """The train and eval samples of a dataset, and all that was discovered on the way.

    `root/train` and `root/eval` are used when present; otherwise a share of `eval_ratio` is held out, chosen by `seed`
    alone. `eval_ratio` None holds nothing out. What is in `root/eval`, be it by a link, is never trained on. Raises
    UserError when that leaves nothing to train or evaluate on.
    """
    train_root, eval_root = root / TRAIN_FOLDER, root / EVAL_FOLDER
    found = discover_samples(train_root if train_root.is_dir() else root, task_prompt)
    if not found.samples:
        raise UserError(
            f"no image with a caption in {root}: each image needs a {CAPTION_EXTENSION} of the same name beside it "
            f"({len(found.images_without_caption)} images without a caption were found)"
        )
    train = found.samples
    if eval_root.is_dir():
        hidden = {os.path.realpath(image) for image in _readable_images(eval_root)}
        train = tuple(sample for sample in train if os.path.realpath(sample.image) not in hidden)
    if eval_ratio is None and train:
        return Split(train, ()), replace(found, samples=train)
    if eval_root.is_dir():
        held_out = discover_samples(eval_root, task_prompt)
        if not train or not held_out.samples:
            empty = eval_root if train else root
            raise UserError(
                f"no image with a caption in {empty}: add some, or set eval_steps: none to train on everything"
            )
        return Split(train, held_out.samples), _merge(replace(found, samples=train), held_out)
    assert eval_ratio is not None
    count = max(1, round(len(found.samples) * eval_ratio))
    if count >= len(found.samples):
        raise UserError(
            f"eval_split_ratio {eval_ratio} of {len(found.samples)} samples leaves nothing to train on: "
            "lower it, add images, or set eval_steps: none to train on everything"
        )
    held_out_indices = set(random.Random(seed).sample(range(len(found.samples)), count))
    chosen = tuple(sample for i, sample in enumerate(found.samples) if i in held_out_indices)
    kept = tuple(sample for i, sample in enumerate(found.samples) if i not in held_out_indices)
    return Split(kept, chosen), found


def split_to_json(split: Split, root: Path) -> str:
    """Which images are trained on and which are held out, relative to `root`; `read_split` reads it back."""
    names = {"dataset_path": str(root.resolve())} | {
        part: [sample.image.relative_to(root).as_posix() for sample in samples]
        for part, samples in (("train", split.train), ("eval", split.eval))
    }
    text = json.dumps(names, indent=1, ensure_ascii=False) + "\n"
    # Bytes of a name that are not UTF-8 are lone surrogates in Python, which no file can hold but escaped.
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):04x}", text)


def read_split(path: Path, root: Path, task_prompt: str) -> Split:
    """The split that a run wrote, with the captions as they are now. Raises UserError when a file of it is gone."""
    names = json.loads(path.read_text(encoding="utf-8"))

    def read(part: str) -> tuple[Sample, ...]:
        return tuple(Sample(image, task_prompt, _caption_of(image)) for image in (root / name for name in names[part]))

    return Split(read("train"), read("eval"))


def drop_overlong(split: Split, count_tokens: Callable[[Sequence[str]], Sequence[int]], limit: int) -> Split:
    """The split without the samples whose caption has more than `limit` tokens.

    Raises UserError when that leaves nothing to train or evaluate on.
    """

    def fitting(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        lengths = count_tokens([sample.caption or "" for sample in samples]) if samples else []
        return tuple(sample for sample, length in zip(samples, lengths, strict=True) if length <= limit)

    kept = Split(fitting(split.train), fitting(split.eval))
    if not kept.train or (split.eval and not kept.eval):
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return kept


def read_captions(root: Path) -> list[str]:
    """Every caption below `root`, with or without an image. Raises UserError when there is none."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    captions = [caption for path in _files(root, {CAPTION_EXTENSION}) if (caption := _read_caption(path))]
    if not captions:
        raise UserError(f"no caption ({CAPTION_EXTENSION}) in {root}")
    return captions


def name_some(names: Sequence[object], limit: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def _readable_images(root: Path, unreadable: list[Path] | None = None) -> list[Path]:
    """Every image below `root` whose plugin, if it needs one, is installed; that is looked for only when needed."""
    found = _files(root, ALL_EXTENSIONS, unreadable)
    return [path for path in found if (plugin := PLUGINS.get(path.suffix.lower())) is None or load_plugin(plugin)]


def _files(root: Path, extensions: Iterable[str], unreadable: list[Path] | None = None) -> list[Path]:
    """Files below `root` with one of the extensions, in any case, in a fixed order; hidden ones are passed over.

    Links to folders are followed, but a folder is listed once: under its own path if that is below `root`, else under
    the first link to it. A link to a file is a file of its own, even if it leads nowhere. Folders that can't be read
    are added to `unreadable`.
    """
    refused = [] if unreadable is None else unreadable
    wanted = tuple(extensions)
    names: dict[tuple[str, ...], list[str]] = {}  # of the files in each folder, by its path below `root`
    listed: set[tuple[int, int]] = set()
    ahead: list[tuple[str, ...]] = [()]
    while ahead:  # first the real tree, then what its links lead to, then what the links found there lead to ...
        links: list[tuple[str, ...]] = []
        for start in sorted(ahead):
            folders = [start]
            while folders:
                folder = folders.pop()
                names[folder] = []
                for entry in _visible_entries(os.path.join(root, *folder), listed, refused):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*folder, entry.name))
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        links.append((*folder, entry.name))
                    elif entry.name.lower().endswith(wanted):
                        names[folder].append(entry.name)
        ahead = links
    return [Path(root, *folder, name) for folder in sorted(names) for name in sorted(names[folder])]


def _visible_entries(folder: str, listed: set[tuple[int, int]], unreadable: list[Path]) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden; nothing if it is in `listed`, where it is added, or can't be read."""
    try:
        status = os.stat(folder)
        if (key := (status.st_dev, status.st_ino)) in listed:
            return []
        with os.scandir(folder) as entries:
            listed.add(key)
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:  # removed since its parent was read
        return []
    except OSError:
        unreadable.append(Path(folder))
        return []


def _read_caption(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"the caption {path} is not a regular file")
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"the caption {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the caption {path} can't be read: {error.strerror}") from None


def _caption_of(image: Path) -> str:
    """The caption beside an image, whatever the case of its extension."""
    usual = image.with_suffix(CAPTION_EXTENSION)
    # Looking for .TXT and .Txt means listing the folder: only where there is no .txt.
    others = () if usual.is_file() else image.parent.glob(f"{glob.escape(image.stem)}.*")
    for path in (usual, *others):
        if path.suffix.lower() == CAPTION_EXTENSION and path.is_file() and image.is_file():
            return _read_caption(path)
    raise UserError(f"{image} or its caption is gone, but the run that is resumed used it: bring it back")


def _merge(first: Discovery, second: Discovery) -> Discovery:
    return Discovery(
        first.samples + second.samples,
        tuple(dict.fromkeys(first.images_without_caption + second.images_without_caption)),
        tuple(dict.fromkeys(first.captions_without_image + second.captions_without_image)),
        tuple(dict.fromkeys(first.unreadable_folders + second.unreadable_folders)),
    )
