"""What a dataset consists of: samples, each with a reference to its image; and what was found of them."""

import errno
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Self

from florence2ner.display import name_some


@dataclass(frozen=True)
class ImageRef:
    """An image: a key that names it for good, and a way to open it.

    Cache, split.json, failures and reports go by the key; what is said on the way names the path.
    """

    key: str  # the path below the root of the dataset, with slashes; without a root, the path as it was given
    path: Path

    @classmethod
    def below(cls, root: Path, path: Path) -> Self:
        """An image of the dataset in `root`."""
        return cls(path.relative_to(root).as_posix(), path)

    @classmethod
    def at(cls, path: Path) -> Self:
        """An image of its own."""
        return cls(path.as_posix(), path)

    @property
    def suffix(self) -> str:
        """What its name says of its format: a lower-case extension with its dot."""
        return self.path.suffix.lower()

    def open(self) -> BufferedReader:
        """The file, for reading. Waits for no pipe. Raises OSError with a reason that doesn't name the path."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            if self.path.is_symlink():
                raise OSError(errno.ENOENT, "broken link") from None
            raise
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return self.path.open("rb")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Sample:
    """An image, the task asked of it, and the answers to it that are right: none where one is to be generated."""

    image: ImageRef
    task_prompt: str
    captions: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """The answer that is learnt and compared with: the first."""
        return self.captions[0]


@dataclass(frozen=True)
class Discovery:
    """The captioned images of a dataset, in sorted order, and what was found but can't be used."""

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
