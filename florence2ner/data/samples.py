"""The samples of a dataset, each with a reference to its image, and the result of searching a folder for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Self

from florence2ner.data.chance import chance
from florence2ner.data.formats import LeftOut
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.files import open_regular


@dataclass(frozen=True)
class ImageRef:
    """A reference to an image file: a stable key, and a way to open it.

    Cache, split.json and results use the key; messages to the user name the path.
    """

    key: str  # the path below the root of the dataset, with slashes; without a root, the path as it was given
    path: Path

    @classmethod
    def below(cls, root: Path, path: Path) -> Self:
        """An image of the dataset in `root`."""
        return cls(path.relative_to(root).as_posix(), path)

    @classmethod
    def at(cls, path: Path) -> Self:
        """An image that belongs to no dataset."""
        return cls(path.as_posix(), path)

    @property
    def suffix(self) -> str:
        """The file name's extension in lower case, with its dot."""
        return self.path.suffix.lower()

    def open(self) -> BufferedReader:
        """Open the file for reading. Raises OSError for anything but a regular file: opening a pipe could block."""
        return open_regular(self.path)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Sample:
    """An image, the task asked about it, and its captions: none where a caption is to be generated.

    Of several captions one is drawn for each epoch: see `caption_in`.
    """

    image: ImageRef
    task_prompt: str
    captions: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """The caption to compare with: the first. Raises IndexError where there is none."""
        return self.captions[0]

    def caption_in(self, epoch: int | None, seed: int) -> str:
        """The caption to train on in an epoch, drawn anew for each; the first in evaluation (None)."""
        if epoch is None or len(self.captions) == 1:
            return self.caption
        drawn = chance(seed, "caption", epoch, self.task_prompt, self.image.key)
        return self.captions[int(drawn * len(self.captions))]


@dataclass(frozen=True)
class Discovery:
    """The captioned images found in a dataset, in sorted order, and the files that can't be used."""

    samples: tuple[Sample, ...]
    images_without_caption: tuple[Path, ...] = ()
    captions_without_image: tuple[Path, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    images_in_no_list: tuple[Path, ...] = ()  # of a split that was given
    not_utf8: tuple[Path, ...] = ()  # caption files that are to be refused, by `check_utf8`
    notes: tuple[str, ...] = ()  # lines about whatever else is left out or changed

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
        return [*lines, *self.left_out.report(), *self.notes]


def check_utf8(not_utf8: Sequence[Path]) -> None:
    """Raise UserError where caption files are not UTF-8, and name them all: they are mended in one go."""
    if not_utf8:
        names = ", ".join(map(str, not_utf8))
        raise UserError(f"{len(not_utf8)} captions are not UTF-8 text, save them as UTF-8: {names}")
