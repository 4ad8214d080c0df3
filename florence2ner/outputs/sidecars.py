"""The default output: a caption file beside each image, or in a mirrored tree."""

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from florence2ner.errors import UserError
from florence2ner.files import back_up, check_free, has_text, hold, open_regular, sweep_unfinished, write_text
from florence2ner.outputs.answers import Answer, Failure, Question, Record

_BOM = "\ufeff"  # that editors on Windows put in front of a text
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # errors that all files will have
_RUN = "captions"  # a run holds a folder by this name in it


@dataclass
class Sidecars:
    """A caption file for each image: `<stem>.txt`, or `<stem>.<task>.txt` where there are several tasks.

    The task whose name the extension is has `<stem>.<task>`. Answers that are not text go to a .json. With
    `output_dir`, the files go there, in the same subfolders as the images below `roots`. Each is written atomically.
    """

    questions: tuple[Question, ...]
    extension: str
    roots: tuple[Path, ...] = ()
    output_dir: Path | None = None
    existing: str = "skip"  # or overwrite, append, prepend
    separator: str = " "
    backup: bool = False
    full_names: bool = False  # where two images would share a file, name theirs a.jpg.txt and a.png.txt
    _colliding: frozenset[Path] = field(default=frozenset(), init=False)
    _folders: set[Path] = field(default_factory=set, init=False)  # those that caption files go to

    @contextmanager
    def hold(self, images: Sequence[Path]) -> Iterator[None]:
        """Keep the folders that captions go to, with their subfolders, for this run.

        That is `output_dir`, else `roots`. Images that are named one by one keep no folder: others may be captioned
        beside them. Raises UserError where another run has such a folder, one around it or one below it.
        """
        folders = {
            os.path.realpath(folder): folder for folder in ([self.output_dir] if self.output_dir else self.roots)
        }
        targets = {Path(os.path.realpath(folder)) for folder in {self._base(image).parent for image in images}}
        others = {parent for folder in targets for parent in (folder, *folder.parents)}
        with ExitStack() as stack:
            for real, folder in folders.items():
                # Where nothing can be written, all may have its captions already.
                if not folder.exists() or os.access(folder, os.W_OK):
                    stack.enter_context(hold(Path(real, _RUN), f"the folder {folder}"))
            for other in others - {Path(real) for real in folders}:
                check_free(other / _RUN, f"the folder {other}")
            yield

    def look(self, images: Sequence[Path]) -> None:
        """Find images that would share a caption file.

        Raises UserError when there are any and `full_names` is off or doesn't help, and when a caption file would
        replace an image.
        """
        self._colliding = frozenset()  # for the message below, in which `path_of` names the file that they would share
        owners: dict[str, Path] = {}
        colliding: set[Path] = set()
        for image in images:
            target = os.path.abspath(self._base(image))
            if (other := owners.setdefault(target, image)) != image:
                colliding |= {other, image}
                if not self.full_names:
                    shared = self.path_of(image, self.questions[0])
                    raise UserError(
                        f"{other} and {image} would share the caption file {shared}: rename one of them, or add "
                        "--on-collision full-name (a.jpg.txt)"
                    )
        self._colliding = frozenset(colliding)
        self._check_files(images)
        self._folders = {Path(os.path.dirname(target)) for target in owners}

    def open(self) -> None:
        """Remove temporary files of runs that were killed."""
        for folder in self._folders:
            sweep_unfinished(folder)
        self._folders = set()

    def missing(self, image: Path) -> tuple[Question, ...]:
        """The questions without a caption file, where existing ones are kept, else all. An empty file doesn't count."""
        if self.existing != "skip":
            return self.questions
        return tuple(question for question in self.questions if not has_text(self.path_of(image, question)))

    def files(self, images: Sequence[Path]) -> Iterator[Path]:
        """The caption files of these images."""
        return (self.path_of(image, question) for image in images for question in self.questions)

    def place_of(self, image: Path) -> str:
        """The paths of the image's caption files."""
        return ", ".join(str(self.path_of(image, question)) for question in self.questions)

    def path_of(self, image: Path, question: Question) -> Path:
        """The file for the answer to a question about an image. Call `look` first: it finds names that collide."""
        base = self._base(image)
        name = image.name if image in self._colliding else base.name
        extension = self.extension if question.is_text else ".json"
        is_named = question.is_text and extension.split(".")[1] == question.name  # no a.caption.caption
        task = f".{question.name}" if len(self.questions) > 1 and not is_named else ""
        return base.with_name(f"{name}{task}{extension}")

    def write(self, records: Sequence[Record]) -> Sequence[Failure]:
        """Write each answer to its file, added to the text that is there with "append" and "prepend".

        Returns the images with a file that can't be read or replaced. Raises UserError where it is the disk's fault.
        """
        failures: list[Failure] = []
        for record in records:
            for answer in record.answers:
                try:
                    self._write(self.path_of(record.image, answer.question), answer)
                except UserError as error:
                    if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_DISK:
                        raise
                    failures.append((record.image, str(error)))
        return failures

    def finish(self) -> None:
        """Does nothing: every file is complete already."""

    def _check_files(self, images: Sequence[Path]) -> None:
        """Raise UserError where two answers would go to the same file, or one would replace an image."""
        sources = {os.path.abspath(image) for image in images}
        owners: dict[str, tuple[Path, Question]] = {}
        for image in images:
            for question in self.questions:
                path = os.path.abspath(self.path_of(image, question))
                if path in sources:
                    raise UserError(f"the caption of {image} would replace the image {path}: rename one of them")
                other, task = owners.setdefault(path, (image, question))
                if other != image:
                    raise UserError(f"{other} and {image} would share the caption file {path}: rename one of them")
                if task != question:
                    raise UserError(
                        f"{task.prompt} and {question.prompt} would share {path}: choose another --caption-extension"
                    )

    def _write(self, path: Path, answer: Answer) -> None:
        new = answer.content if isinstance(answer.content, str) else json.dumps(answer.content, ensure_ascii=False)
        if os.path.exists(path) and not path.is_file():
            raise UserError("where its caption file would be is a folder or the like: move that away")
        if not has_text(path):
            write_text(path, new + "\n")
            return
        mark, end, old = "", "\n", ""
        content = _read(path, needed=self.existing != "overwrite" or self.backup)
        if self.existing in ("append", "prepend") and answer.question.is_text:
            mark, end, old = _parts_of(content)
            if old and _is_added(new.strip(), old, self.separator):
                return
            new = new.replace("\n", end)
            if old:
                new = f"{old}{self.separator}{new}" if self.existing == "append" else f"{new}{self.separator}{old}"
        text = f"{mark}{new}{end}"
        if content == text.encode():
            return
        if self.backup:
            back_up(path)
        write_text(path, text)

    def _base(self, image: Path) -> Path:
        """The caption file's path without its extension."""
        if self.output_dir is None:
            return image.with_name(image.stem)
        root = next((root for root in self.roots if image != root and image.is_relative_to(root)), image.parent)
        return (self.output_dir / image.relative_to(root)).with_name(image.stem)


def _read(path: Path, *, needed: bool) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        if needed:
            raise UserError(f"its caption file can't be read: {error.strerror}") from error
        return b""


def _parts_of(content: bytes) -> tuple[str, str, str]:
    """The byte order mark of a text file or nothing, its line end, and its text without blanks around it."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError("its caption file is not UTF-8 text, so nothing can be added to it: save it as UTF-8") from None
    mark = _BOM if text.startswith(_BOM) else ""
    return mark, "\r\n" if "\r\n" in text else "\n", text.removeprefix(mark).strip()


def _is_added(new: str, old: str, separator: str) -> bool:
    """Whether a text begins or ends with the one to be added: a run that was killed, or the other way, has added it.

    Words count only as a whole: "dog" is not added to "a bulldog" yet.
    """
    word = re.escape(new)
    whole = re.search(rf"\A{word}(?!\w)|(?<!\w){word}\Z", old)
    return bool(whole) or old.startswith(new + separator) or old.endswith(separator + new)
