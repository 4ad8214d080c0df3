"""The samples of a dataset, each with a reference to its image, and the result of searching a folder for them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Literal, Self

from florence2ner.data.chance import chance
from florence2ner.data.formats import LeftOut
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.files import open_regular

Side = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference to an image file: a stable key, and a way to open it.

    Cache, split.json and results use the key; messages to the user name the path. Images that are kept otherwise than
    as files of their own derive from this class.
    """

    name: str  # the path below the root, with slashes; without a root, the path as it was given
    path: Path
    root: str = ""  # the name of the root, where a dataset has several

    @classmethod
    def below(cls, root: Path, path: Path) -> Self:
        """An image of the dataset in `root`. One outside of it is called by the way there, such as `../a.png`."""
        with suppress(ValueError):
            return cls(path.relative_to(root).as_posix(), path)
        with suppress(ValueError):  # raised on another drive of Windows, to which no way leads
            return cls(Path(os.path.relpath(path, root)).as_posix(), path)
        return cls.at(path)

    @classmethod
    def at(cls, path: Path) -> Self:
        """An image that belongs to no dataset."""
        return cls(path.as_posix(), path)

    @property
    def key(self) -> str:
        """What the image is called in the cache, in split.json and in results: unique in its dataset."""
        return f"{self.root}/{self.name}" if self.root else self.name

    @property
    def suffix(self) -> str:
        """The file name's extension in lower case, with its dot."""
        return self.path.suffix.lower()

    def open(self) -> BufferedReader | BytesIO:
        """Open the file for reading. Raises OSError for anything but a regular file: opening a pipe could block."""
        return open_regular(self.path)

    def size(self) -> int | None:
        """The size of the file in bytes; None where there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    def stamp(self) -> str | None:
        """Path, size, times and inode of the file: another string whenever the file changes. None: there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return f"{os.path.abspath(self.path)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, the task asked about it, and its captions: none where a caption is to be generated.

    Of several captions one is drawn at each visit: see `caption_at`.
    """

    image: ImageRef
    task_prompt: str
    captions: tuple[str, ...] = ()
    weight: float = 1.0  # how often it is trained on in each epoch, on average

    @property
    def caption(self) -> str:
        """The caption to compare with: the first. Raises IndexError where there is none."""
        return self.captions[0]

    def caption_at(self, visit: int | None, seed: int) -> str:
        """The caption to train on at a visit (see `Draw`), drawn anew for each; the first in evaluation (None)."""
        if visit is None or len(self.captions) == 1:
            return self.caption
        drawn = chance(seed, "caption", visit, self.task_prompt, self.image.key)
        return self.captions[int(drawn * len(self.captions))]


@dataclass(frozen=True)
class Fault:
    """One kind of thing in a dataset that is left out or changed, with the name of each case."""

    kind: str  # stable, for programs
    what: str  # after the number, as "boxes are empty and are left out"
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.names)} {self.what}: {name_some(self.names)}"


@dataclass
class Refused:
    """Caption files that keep a command from starting; the layouts add to it. All are named, to be mended in one go."""

    not_utf8: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)  # and why

    def check(self) -> None:
        """Raise UserError where there are any."""
        if self.not_utf8:
            names = ", ".join(map(str, self.not_utf8))
            raise UserError(f"{len(self.not_utf8)} captions are not UTF-8 text, save them as UTF-8: {names}")
        if self.unreadable:
            names = ", ".join(f"{path} ({reason})" for path, reason in self.unreadable.items())
            raise UserError(f"{len(self.unreadable)} captions can't be read, give yourself the right to: {names}")


@dataclass(frozen=True)
class Discovery:
    """The captioned images found in a dataset, in sorted order, and the files that can't be used."""

    samples: tuple[Sample, ...]
    images_without_caption: tuple[Path, ...] = ()
    captions_without_image: tuple[Path, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    images_in_no_list: tuple[Path, ...] = ()  # of a split that was given
    refused: Refused = field(default_factory=Refused)  # for the caller to check
    notes: tuple[str, ...] = ()  # lines about how the dataset is read
    faults: tuple[Fault, ...] = ()  # whatever else is left out or changed

    def report(self) -> list[str]:
        """One line for each kind of thing that is left out or changed, with their number and a few names."""
        left_out = {
            "images have no caption": self.images_without_caption,
            "captions have no image": self.captions_without_image,
            "images are on neither side of the given split": self.images_in_no_list,
        }
        lines = [
            f"{len(paths)} {what} and are left out: {name_some(paths)}" for what, paths in left_out.items() if paths
        ]
        return [*lines, *self.left_out.report(), *self.notes, *map(str, self.faults)]


def merge(parts: Sequence[Discovery]) -> Discovery:
    """What was found in several folders, each file, note and fault once."""

    def all_of(name: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item for part in parts for item in getattr(part, name)))

    return Discovery(
        tuple(sample for part in parts for sample in part.samples),
        all_of("images_without_caption"),
        all_of("captions_without_image"),
        LeftOut(
            [folder for part in parts for folder in part.left_out.folders],
            [path for part in parts for path in part.left_out.special],
            [path for part in parts for path in part.left_out.packaged],
        ),
        all_of("images_in_no_list"),
        Refused(
            list(dict.fromkeys(path for part in parts for path in part.refused.not_utf8)),
            {path: reason for part in parts for path, reason in part.refused.unreadable.items()},
        ),
        all_of("notes"),
        _merge_faults([fault for part in parts for fault in part.faults]),
    )


def _merge_faults(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """One fault of each kind. The same folder may have been read twice."""
    names: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        before = names.setdefault((fault.kind, fault.what), [])
        known = {*before}
        before += (name for name in fault.names if name not in known)
    return tuple(Fault(kind, what, tuple(named)) for (kind, what), named in names.items())
