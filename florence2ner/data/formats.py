"""What files a dataset consists of: the formats that are images, and the walk that finds them."""

import importlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
)
# The Pillow plugins that other images need, and the packages that have them.
PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl"}
PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
ALL_EXTENSIONS = IMAGE_EXTENSIONS | PLUGINS.keys()
CAPTION_EXTENSION = ".txt"


def discover_images(paths: Iterable[Path], unreadable: list[Path] | None = None) -> list[Path]:
    """Every image file named or below the folders named, sorted within each, each once however often it is named.

    What only a missing plugin could read is among them, so that it is named where it fails. Folders that can't be read
    are added to `unreadable`.
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
    """Import a Pillow plugin, so that its formats can be read; False where it is not installed (or lacks a library)."""
    try:
        plugin = importlib.import_module(module)
        getattr(plugin, "register_heif_opener", bool)()  # the other one registers itself
    except (ImportError, OSError):
        return False
    return True


def readable_images(root: Path, unreadable: list[Path] | None = None) -> list[Path]:
    """Every image below `root` whose plugin, if it needs one, is installed; that is looked for only when needed."""
    found = list_files(root, ALL_EXTENSIONS, unreadable)
    return [path for path in found if (plugin := PLUGINS.get(path.suffix.lower())) is None or load_plugin(plugin)]


def list_files(root: Path, extensions: Iterable[str], unreadable: list[Path] | None = None) -> list[Path]:
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


def sidecar_of(image: Path) -> Path:
    """The caption file of an image: same folder, same stem."""
    return image.with_name(image.stem + CAPTION_EXTENSION)
