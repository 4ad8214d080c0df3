"""The images of a folder and their caption files: what there is, what the captions say and what is odd about them."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from florence2ner.config.commands import ReviewConfig
from florence2ner.data.accepted import digest_of, text_of
from florence2ner.data.formats import (
    ALL_EXTENSIONS,
    LeftOut,
    can_be_decoded,
    check_caption_extension,
    walk_files,
)
from florence2ner.data.layouts.pairs import by_stem
from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError
from florence2ner.files import as_utf8, open_regular
from florence2ner.model.answers import flag_problems
from florence2ner.model.tasks import find_signs, find_task
from florence2ner.review.journal import Content

_LONGEST = 1_000_000  # bytes of a file that is taken for a caption
_CODECS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by byte order mark

# What may be odd about a caption, by the name that the page's filter has for it.
FLAGS = {
    "empty": "no caption",
    "loop": "repeats itself",
    "special_tokens": "holds special tokens",
    "not_utf8": "not UTF-8",
    "unreadable": "can't be read",
    "shared": "shared by several images",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a caption file holds now."""

    content: Content
    text: str  # the caption; of a file that is not UTF-8, what it may mean
    problem: str = ""  # why it can't be trained on: not_utf8 or unreadable
    reason: str = ""

    @property
    def version(self) -> str:
        """What tells this content from any other of the file."""
        return "none" if self.content is None else digest_of(f"={self.content}=")


@dataclass(slots=True)
class CaptionFile:
    """A caption file, which may not exist yet, and the images whose caption it is: of a.jpg and a.png one a.txt."""

    name: str  # below the folder, with slashes
    items: list[int] = field(default_factory=list)
    text: str | None = None  # None: not read yet
    digest: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """An image with one of its captions."""

    image: str  # below the folder, with slashes
    file: int


class Library:
    """All images of a folder, each with its caption file: their names at once, captions as they are read.

    Reading is for any thread; what changes a file holds `lock`, so that what is known of it is what is on the disk.
    """

    def __init__(self, config: ReviewConfig) -> None:
        """Find the images, which takes no look into a file. Raises UserError for the extension of images."""
        self.root = config.directory
        self.lock = threading.RLock()
        self.left_out = LeftOut()
        self.items: list[Item] = []
        self.files: list[CaptionFile] = []
        self.read = 0  # how many files were read so far, when they are all read the first time
        self._task = find_task(config.task_prompt)
        self._outside = config.allow_outside
        self._top = os.path.join(os.path.realpath(self.root), "")
        self._extensions = config.caption_extension
        for extension in self._extensions:
            check_caption_extension(extension)
        self._find()
        self.by_name = {file.name: number for number, file in enumerate(self.files)}

    def _find(self) -> None:
        """List images and caption files as training pairs them (`data/layouts/pairs.py`)."""
        endings = {extension.lower() for extension in self._extensions}
        for place, names in walk_files(self.root, ALL_EXTENSIONS | endings, self.left_out):
            folder = place.relative_to(self.root).as_posix()
            prefix = "" if folder == "." else f"{folder}/"
            captions = by_stem(names, self._extensions)
            here: dict[str, int] = {}
            for name in names:
                stem, ending = os.path.splitext(name)
                if ending.lower() not in ALL_EXTENSIONS:
                    continue
                if not can_be_decoded(name):
                    self.left_out.packaged.append(place / name)
                    continue
                for extension, of_stem in zip(self._extensions, captions, strict=True):
                    caption = of_stem.get(stem, stem + extension)
                    if caption not in here:
                        here[caption] = len(self.files)
                        self.files.append(CaptionFile(prefix + caption))
                    self.files[here[caption]].items.append(len(self.items))
                    self.items.append(Item(prefix + name, here[caption]))

    def read_all(self, stop: threading.Event) -> None:
        """Read every caption once, unless that is stopped."""
        for number in range(len(self.files)):
            if stop.is_set():
                return
            if self.files[number].text is None:
                self.look(number)
            self.read = number + 1

    def path_of(self, name: str) -> Path:
        """The path of a caption file. Raises UserError where it is outside of the folder, or hidden."""
        return self._inside(name)

    def image_of(self, item: Item) -> ImageRef:
        """The image of an item. Raises UserError where a link leads out of the folder."""
        return ImageRef(item.image, self._inside(item.image))

    def look(self, number: int) -> Reading:
        """Read a caption file, and note what it holds."""
        with self.lock:
            file = self.files[number]
            found = self.read_file(file.name)
            self._note(file, found)
            return found

    def _note(self, file: CaptionFile, found: Reading) -> None:
        # `items` of the same image are its captions; here are different images.
        shared = len({self.items[item].image for item in file.items}) > 1
        flags = [found.problem] if found.problem else self._flags(found.text)
        file.flags = (*flags, *(["shared"] if shared else []))
        # The digest is that of what can be accepted, and a file that isn't UTF-8 can't be.
        file.text, file.digest = found.text, "" if found.problem else digest_of(found.text)

    def _flags(self, text: str) -> list[str]:
        flags = [str(flag) for flag in flag_problems(text)]
        if "special_tokens" not in flags and find_signs(text, self._task):
            flags.append("special_tokens")
        return flags

    def read_file(self, name: str) -> Reading:
        """What a caption file holds, which may have been one of the folder with other settings only."""
        try:
            with open_regular(self.path_of(name)) as opened:
                content = opened.read(_LONGEST + 1)
        except FileNotFoundError:
            return Reading(None, "")
        except OSError as error:
            return Reading(None, "", "unreadable", str(error.strerror))
        except UserError as error:
            return Reading(None, "", "unreadable", str(error))
        if len(content) > _LONGEST:
            return Reading(None, "", "unreadable", f"more than {_LONGEST} bytes")
        try:
            text = content.decode()
            return Reading(text, text_of(text))
        except UnicodeDecodeError:
            meant = content.decode(_CODECS.get(content[:2], "cp1252"), "replace")
            return Reading(content.decode("utf-8", "surrogateescape"), text_of(meant), "not_utf8", "not UTF-8 text")

    def _inside(self, name: str) -> Path:
        path = self.root / name
        if os.path.isabs(name) or any(part.startswith(".") for part in name.split("/")):
            raise UserError(f"{as_utf8(name)} is no file that a review may touch")  # whoever wrote it into the journal
        if not self._outside and not os.path.realpath(path).startswith(self._top):
            raise UserError(f"{as_utf8(name)} is a link that leads out of the folder: --allow-outside follows it")
        return path

    def count_flags(self) -> Counter[str]:
        """How many items have each flag, as far as they are read."""
        return Counter(flag for item in self.items for flag in self.files[item.file].flags)

    def search(self, words: str) -> Iterator[int]:
        """The items whose name or caption has these words in it, in any case."""
        wanted = words.casefold()
        for number, item in enumerate(self.items):
            text = self.files[item.file].text
            if wanted in item.image.casefold() or (text and wanted in text.casefold()):
                yield number
