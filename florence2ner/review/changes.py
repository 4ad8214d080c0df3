"""The changes of a review: every one goes to the journal first, then to the caption files, each written atomically."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from florence2ner.data.accepted import digest_of
from florence2ner.errors import UserError
from florence2ner.files import as_utf8, write_bytes
from florence2ner.review.journal import Change, Content, Entry, Journal
from florence2ner.review.library import CaptionFile, Library, Reading
from florence2ner.review.rules import Wish

_BOM = "\ufeff"
_SHOWN = 200  # changes shown in a preview


class Conflict(UserError):
    """The caption is not what the user saw when changing it. `found` is what it is now."""

    def __init__(self, message: str, found: Reading) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Preview:
    """What a change of many captions would do."""

    count: int  # captions that would change
    shown: tuple[tuple[int, str, str], ...]  # the first of them: an item of each, its text before and after
    left_out: int  # captions that can't be changed: not UTF-8, or not to be read
    digest: str  # of all changes: what is done must be what was shown


@dataclass(frozen=True)
class Outcome:
    """What was done."""

    message: str
    items: tuple[int, ...]  # whose captions, or acceptance, changed


class Changes:
    """Changes captions of a library. All of it is for one thread at a time, which its lock sees to."""

    def __init__(self, library: Library, journal: Journal) -> None:
        self._library = library
        self._journal = journal
        self.progress: tuple[int, int] | None = None  # files written of those to be written, while many are

    @property
    def undoable(self) -> str | None:
        """What `undo` would undo."""
        return self._journal.undoable

    @property
    def redoable(self) -> str | None:
        """What `redo` would do again."""
        return self._journal.redoable

    def is_accepted(self, file: CaptionFile) -> bool:
        """Whether the caption was accepted with the text that it has."""
        return bool(file.digest) and self._journal.accepted.get(file.name) == file.digest

    def is_changed(self, file: CaptionFile) -> bool:
        """Whether the caption is not what it was before the first review."""
        original = self._journal.originals.get(file.name)
        return original is not None and file.text is not None and original != file.digest

    def recover(self) -> int | None:
        """Complete the change that a kill has interrupted. Returns how many files were written; None: there was none.

        A file that is neither as it was before nor as it is to be was changed by somebody else: it is left alone.
        Raises UserError where a file can't be written.
        """
        with self._library.lock:
            entry = self._journal.unfinished
            if not entry:
                return None
            written = 0
            for change in entry.changes:
                if change.text and self._content(change.file) == change.text[0] != change.text[1]:
                    self._write(change.file, change.text[1])
                    written += 1
            self._journal.finish()
            return written

    def edit(self, item: int, text: str, version: str, *, accept: bool = False, what: str = "edit") -> Outcome:
        """Give a caption another text. `version` is that of the reading which the user saw; `accept` accepts it, too.

        Raises Conflict where the file has been changed since, UserError where it can't be read or written.
        """
        with self._library.lock:
            file = self._file(item)
            found = self._library.look(self._library.items[item].file)
            if found.problem == "unreadable":
                raise UserError(f"{as_utf8(file.name)} can't be changed: {found.reason}")
            if found.version != version:
                raise Conflict(f"{as_utf8(file.name)} was changed on the disk meanwhile", found)
            text = text.strip()
            changes = self._text_change(file, found, text)
            if accept and text:
                changes += self._acceptance(file, digest_of(text))
            if not changes:
                return Outcome("nothing has changed", ())
            done = "edit and accept" if accept and text and what == "edit" else what
            self._make(f"{done} {as_utf8(file.name)}", _joined(changes))
            return Outcome("saved and accepted" if accept and text else "saved", tuple(file.items))

    def accept(self, items: Sequence[int], *, accepted: bool, version: str | None = None) -> Outcome:
        """Accept captions as they are on the disk now, or take that back. Those that can't be trained on are left out.

        With a `version`, that is what the user saw of a single one. Raises Conflict where it is not that any more, and
        UserError where no caption is left.
        """
        with self._library.lock:
            changes: list[Change] = []
            numbers, left_out = self._files(items), 0
            for number in numbers:
                found, file = self._library.look(number), self._library.files[number]
                if version not in (None, found.version):
                    raise Conflict(f"{as_utf8(file.name)} was changed on the disk meanwhile", found)
                if accepted and (found.problem or not found.text):
                    left_out += 1
                    continue
                changes += self._acceptance(file, digest_of(found.text) if accepted else None)
            if left_out == len(numbers):
                raise UserError("there is no caption that can be accepted" if left_out else "nothing is chosen")
            verb = "accept" if accepted else "take back"
            if changes:
                self._make(f"{verb} {self._named(changes)}", changes)
            rest = f"; left out, without a caption that can be trained on: {left_out}" if left_out else ""
            word = "accepted" if accepted else "not accepted any more"
            counted = f"{_counted(changes)} {word}" if len(numbers) > 1 else word
            return Outcome(counted + rest, self._items(changes))

    def preview(self, items: Sequence[int], wish: Wish) -> Preview:
        """What a change of many captions would do, by what is known of them. Raises UserError for a faulty wish."""
        rule = wish.rule()
        shown: list[tuple[int, str, str]] = []
        digest, count, left_out = hashlib.blake2b(digest_size=16), 0, 0
        for number in self._files(items):
            file = self._library.files[number]
            if file.text is None:
                self._library.look(number)
            if {"not_utf8", "unreadable"}.intersection(file.flags):
                left_out += 1
                continue
            before = file.text or ""
            if (after := rule(before)) != before:
                count += 1
                _add(digest.update, file.name, before, after)
                if len(shown) < _SHOWN:
                    shown.append((file.items[0], before, after))
        return Preview(count, tuple(shown), left_out, digest.hexdigest())

    def change(self, items: Sequence[int], wish: Wish, digest: str) -> Outcome:
        """Change many captions as one step, all or none of them; `digest` is that of the preview that the user saw.

        Raises UserError where captions have changed since, and where one can't be written: then none is.
        """
        with self._library.lock:
            rule, now = wish.rule(), hashlib.blake2b(digest_size=16)
            changes: list[Change] = []
            for number in self._files(items):
                found, file = self._library.look(number), self._library.files[number]
                if found.problem:
                    continue
                if (after := rule(found.text)) != found.text:
                    _add(now.update, file.name, found.text, after)
                    changes += self._text_change(file, found, after)
            if now.hexdigest() != digest:
                raise UserError("captions have changed since the preview: look at it again")
            if not changes:
                return Outcome("nothing has changed", ())
            self._make(f"{wish.words} in {self._named(changes)}", changes)
            return Outcome(f"{_counted(changes)} changed", self._items(changes))

    def undo(self) -> Outcome:
        """Undo the last change that is not undone. Files that were changed by others since are left as they are."""
        return self._again(undo=True)

    def redo(self) -> Outcome:
        """Make the change again that was undone last."""
        return self._again(undo=False)

    def _again(self, *, undo: bool) -> Outcome:
        with self._library.lock:
            self._complete()
            entry = self._journal.last(undone=not undo)
            if entry is None:
                return Outcome(f"there is nothing to {'undo' if undo else 'do again'}", ())
            wanted = [change.inverse if undo else change for change in entry.changes]
            changes = [change for change in wanted if not change.text or self._content(change.file) == change.text[0]]
            kept = len(wanted) - len(changes)
            self._make(entry.what, changes, undoes=entry.id if undo else None, redoes=None if undo else entry.id)
            rest = f"; left as they are, changed on the disk since: {kept}" if kept else ""
            return Outcome(f"{'undone' if undo else 'done again'}: {entry.what}{rest}", self._items(wanted))

    # --- from text to files -------------------------------------------------------------------------------------------

    def _make(
        self, what: str, changes: Sequence[Change], *, undoes: int | None = None, redoes: int | None = None
    ) -> None:
        """Write the change to the journal, then the files. Raises UserError where that can't be; none is changed then.

        Where even that can't be undone, as on a full disk, the change is completed before the next one.
        """
        self._complete()
        entry = self._journal.record(what, changes, undoes=undoes, redoes=redoes)
        written: list[Change] = []
        try:
            for number, change in enumerate(changes):
                self.progress = (number, len(changes)) if len(changes) > 1 else None
                if change.text:
                    self._write(change.file, change.text[1])
                    written.append(change)
        except UserError as error:
            self._take_back(entry, written)
            raise UserError(f"{error}; nothing is changed") from error
        finally:
            self.progress = None
            for change in changes:
                if (at := self._library.by_name.get(change.file)) is not None:
                    self._library.look(at)
        with suppress(UserError):  # no room for one more word: it is seen to before the next change
            self._journal.finish()

    def _take_back(self, entry: Entry, written: Sequence[Change]) -> None:
        try:
            for change in written:
                if change.text:
                    self._write(change.file, change.text[0])
            self._journal.drop()
        except UserError as error:
            raise UserError(
                f"{error}; “{entry.what}” is made in a part of the files, and completed as soon as that is mended"
            ) from error

    def _complete(self) -> None:
        if self._journal.unfinished:
            self.recover()

    def _write(self, name: str, content: Content) -> None:
        path = self._library.path_of(name)
        if content is not None:
            write_bytes(path, content.encode("utf-8", "surrogateescape"))
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"can't remove {path}: {error.strerror}") from error

    def _content(self, name: str) -> Content:
        """What a file of the journal holds now; None where there is none, or it can't be read."""
        return self._library.read_file(name).content

    def _text_change(self, file: CaptionFile, found: Reading, text: str) -> list[Change]:
        if text == found.text and not found.problem:
            return []
        return [Change(file.name, text=(found.content, _in_form_of(found, text)))]

    def _acceptance(self, file: CaptionFile, digest: str | None) -> list[Change]:
        before = self._journal.accepted.get(file.name)
        return [] if before == digest else [Change(file.name, accepted=(before, digest))]

    def _file(self, item: int) -> CaptionFile:
        return self._library.files[self._library.items[item].file]

    def _files(self, items: Iterable[int]) -> list[int]:
        """The numbers of these items' caption files, each once."""
        return list(dict.fromkeys(self._library.items[item].file for item in items))

    def _items(self, changes: Iterable[Change]) -> tuple[int, ...]:
        numbers = [self._library.by_name.get(change.file) for change in changes]
        return tuple(item for at in numbers if at is not None for item in self._library.files[at].items)

    @staticmethod
    def _named(changes: Sequence[Change]) -> str:
        return as_utf8(changes[0].file) if len(changes) == 1 else _counted(changes)


def _counted(changes: Sequence[Change]) -> str:
    return f"{len(changes)} caption{'' if len(changes) == 1 else 's'}"


def _joined(changes: Sequence[Change]) -> list[Change]:
    """The changes of one file as one."""
    texts = next((change.text for change in changes if change.text), None)
    accepted = next((change.accepted for change in changes if change.accepted), None)
    return [Change(changes[0].file, texts, accepted)]


def _in_form_of(found: Reading, text: str) -> str:
    """A new content for a caption file, with the byte order mark, the line ends and the last newline that it had.

    A new file ends with a newline, as those of `caption`; a blank caption is an empty file.
    """
    old = found.content or ""
    if not text:
        return ""
    end = "\r\n" if "\r\n" in old else "\n"
    mark = _BOM if old.startswith(_BOM) else ""
    last = end if not found.text or found.problem or old.endswith(("\n", "\r")) else ""
    return mark + text.replace("\r\n", "\n").replace("\n", end) + last


def _add(update: Callable[[bytes], Any], *parts: str) -> None:
    """Add texts to a digest."""
    for part in parts:
        update(part.encode("utf-8", "surrogatepass"))
        update(b"\0")
