"""Which files are images, which Pillow plugins they need, and how they are found in folders."""

import importlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)
# Formats that need a Pillow plugin: the module to import, and the package that installs it.
PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl"}
PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
ALL_EXTENSIONS = IMAGE_EXTENSIONS | PLUGINS.keys()
CAPTION_EXTENSION = ".txt"


def discover_images(paths: Iterable[Path], unreadable: list[Path] | None = None) -> list[Path]:
    """The image files among `paths` and below its folders: in the order of `paths`, sorted within a folder, each once.

    Images whose plugin is not installed are included, so that decoding reports them. A path that is not a folder is
    taken for an image. Folders that can't be read are added to `unreadable`.
    """
    folders: dict[Path, str] = {}
    images: dict[tuple[str, str], Path] = {}
    for path in paths:
        for image in list_files(path, ALL_EXTENSIONS, unreadable) if path.is_dir() else [path]:
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


def readable_images(root: Path, unreadable: list[Path] | None = None) -> list[Path]:
    """The images below `root` that can be decoded here: those that need no plugin, or whose plugin is installed.

    Folders that can't be read are added to `unreadable`.
    """
    found = list_files(root, ALL_EXTENSIONS, unreadable)
    return [path for path in found if (plugin := PLUGINS.get(path.suffix.lower())) is None or load_plugin(plugin)]


def list_files(root: Path, extensions: Iterable[str], unreadable: list[Path] | None = None) -> list[Path]:
    """The files below `root` with one of the extensions, upper or lower case, sorted. Hidden files are left out.

    Links to folders are followed, but each folder is listed only once: by its own path if that is below `root`, else by
    the first link to it. A link to a file counts as a file, even when it is broken. Folders that can't be read are
    added to `unreadable`.
    """
    refused = [] if unreadable is None else unreadable
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


def sidecar_of(image: Path) -> Path:
    """The caption file of an image: same folder, same stem."""
    return image.with_name(image.stem + CAPTION_EXTENSION)
