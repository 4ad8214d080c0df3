"""Which files are images, which Pillow plugins they need, and how they are found in folders."""

import importlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from florence2ner.display import name_some
from florence2ner.errors import UserError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)
# Formats that need a Pillow plugin: the module to import, and the package that installs it.
PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl"}
PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
ALL_EXTENSIONS = IMAGE_EXTENSIONS | PLUGINS.keys()
CAPTION_EXTENSION = ".txt"
CAPTION_EXTENSIONS = (CAPTION_EXTENSION, ".caption")  # the usual ones: .caption is kohya's default


@dataclass
class LeftOut:
    """What searches of folders have passed over; the functions below add to it."""

    folders: list[Path] = field(default_factory=list)  # that can't be read
    special: list[Path] = field(default_factory=list)  # pipes, sockets and devices with a name that was searched for
    packaged: list[Path] = field(default_factory=list)  # images that need a package which is not installed

    def report(self) -> list[str]:
        """One line for each kind, with their number and a few names."""
        packages = sorted({PACKAGES[PLUGINS[path.suffix.lower()]] for path in self.packaged})
        kinds = {
            "folders can't be read": self.folders,
            "pipes, sockets or devices have the name of a file": self.special,
            f"images need a Python package (pip install {' '.join(packages)})": self.packaged,
        }
        named = {what: list(dict.fromkeys(paths)) for what, paths in kinds.items() if paths}  # each once
        return [f"{len(paths)} {what} and are left out: {name_some(paths)}" for what, paths in named.items()]


def discover_images(paths: Iterable[Path], left_out: LeftOut | None = None) -> list[Path]:
    """The image files among `paths` and below its folders: in the order of `paths`, sorted within a folder, each once.

    Images whose plugin is not installed are included, so that decoding reports them. A path that is not a folder is
    taken for an image. What is passed over is added to `left_out`.
    """
    folders: dict[Path, str] = {}
    images: dict[tuple[str, str], Path] = {}
    for path in paths:
        for image in list_files(path, ALL_EXTENSIONS, left_out) if path.is_dir() else [path]:
            if (folder := folders.get(image.parent)) is None:
                folder = folders[image.parent] = os.path.realpath(image.parent)
            images.setdefault((folder, image.name), image)
    return list(images.values())


@cache
def load_plugin(module: str) -> bool:
    """Import and register a Pillow plugin. Returns False where it, or a library that it needs, is not installed."""
    try:
        plugin = importlib.import_module(module)
        getattr(plugin, "register_heif_opener", bool)()  # pillow_jxl registers itself on import
    except (ImportError, OSError):
        return False
    return True


def readable_images(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The images below `root` that can be decoded here: those that need no plugin, or whose plugin is installed.

    What is passed over is added to `left_out`.
    """
    readable = []
    for path in list_files(root, ALL_EXTENSIONS, left_out):
        if can_be_decoded(path.name):
            readable.append(path)
        elif left_out is not None:
            left_out.packaged.append(path)
    return readable


def can_be_decoded(name: str) -> bool:
    """Whether an image of that name needs no plugin, or one that is installed."""
    plugin = PLUGINS.get(os.path.splitext(name)[1].lower())
    return plugin is None or load_plugin(plugin)


def list_files(root: Path, extensions: Iterable[str], left_out: LeftOut | None = None) -> list[Path]:
    """The files below `root` with one of the extensions, upper or lower case, sorted; as `walk_files` finds them."""
    return [folder / name for folder, names in walk_files(root, extensions, left_out) for name in names]


def walk_files(
    root: Path, extensions: Iterable[str], left_out: LeftOut | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """The folders below `root`, `root` too, each with the names of its files that have one of the extensions.

    Extensions may be in upper or lower case. Folders and names are sorted; hidden ones are left out.

    Links to folders are followed, but each folder is listed only once: by its own path if that is below `root`, else by
    the first link to it. A link to a file counts as a file, even when it is broken. Pipes, sockets and devices, which
    could be waited for without end, and folders that can't be read are added to `left_out`.
    """
    passed_over = LeftOut() if left_out is None else left_out
    wanted = tuple(extensions)
    names: dict[tuple[str, ...], list[str]] = {}  # of the files in each folder, by its path below `root`
    listed: set[tuple[int, int]] = set()  # device and inode of each folder
    ahead: list[tuple[str, ...]] = [()]
    while ahead:  # the real tree first, then the targets of its links, then those of the links found there, and so on
        links: list[tuple[str, ...]] = []
        for start in sorted(ahead):
            folders = [start]
            while folders:
                folder = folders.pop()
                names[folder] = []
                for entry in _visible_entries(os.path.join(root, *folder), listed, passed_over.folders):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*folder, entry.name))
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        links.append((*folder, entry.name))
                    elif not entry.name.lower().endswith(wanted):
                        continue
                    elif _is_special(entry):
                        passed_over.special.append(Path(entry.path))
                    else:
                        names[folder].append(entry.name)
        ahead = links
    return ((Path(root, *folder), sorted(names[folder])) for folder in sorted(names))


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether an entry, which is no folder, is a pipe, socket or device, or a link to one."""
    if entry.is_file(follow_symlinks=False):  # mostly known without asking the file system again
        return False
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a broken link, which is reported when it is opened; or removed since
        return False


def _visible_entries(folder: str, listed: set[tuple[int, int]], unreadable: list[Path]) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden. A folder that is in `listed` already, or can't be read, has none.

    Adds the folder to `listed`, or to `unreadable`.
    """
    try:
        status = os.stat(folder)
        if (key := (status.st_dev, status.st_ino)) in listed:
            return []
        with os.scandir(folder) as entries:
            listed.add(key)
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:  # removed since its parent was listed
        return []
    except OSError:
        unreadable.append(Path(folder))
        return []


def check_caption_extension(extension: str) -> None:
    """Raise UserError where the extension of caption files has no dot, or is that of an image format."""
    if not extension.startswith("."):
        raise UserError(f"--caption-extension {extension} doesn't begin with a dot: give .{extension}")
    if Path(f"a{extension}").suffix.lower() in ALL_EXTENSIONS:
        raise UserError(f"--caption-extension {extension} is for images: choose another, such as .txt")


def sidecar_of(image: Path) -> Path:
    """The caption file of an image: same folder, same stem."""
    return image.with_name(image.stem + CAPTION_EXTENSION)
