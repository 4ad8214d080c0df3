"""The journal of a review: every change, on the disk before it is made, so that it can be undone and is never lost.

It is a file of JSON Lines in the folder that is reviewed, which only grows. A line is a change of one or many captions
with what they were and what they are to be, the undoing or redoing of such a change, or word that all files of the
change before it are written. Whatever a kill leaves undone, the next start completes: a line that is whole counts, one
that is torn doesn't.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from florence2ner.data.accepted import ACCEPTED, CHANGES, FILE, JOURNAL, digest_of, read_entries
from florence2ner.errors import UserError

_TEXT, _WHAT, _ID, _UNDOES, _REDOES, _DONE, _DROPPED = "text", "what", "id", "undoes", "redoes", "done", "dropped"

# The content of a file, bytes that are not UTF-8 as lone surrogates (PEP 383); None where there is no file.
Content = str | None


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one caption file: its content, or whether it is accepted."""

    file: str  # below the folder, with slashes
    text: tuple[Content, Content] | None = None  # before and after
    accepted: tuple[str | None, str | None] | None = None  # the digest of the accepted text, before and after

    @property
    def inverse(self) -> "Change":
        """The change that undoes this one."""
        return Change(self.file, self.text and self.text[::-1], self.accepted and self.accepted[::-1])


@dataclass(frozen=True)
class Entry:
    """A change of one or many captions, as one step for undo."""

    id: int
    what: str  # what was done, for the user: "edit a.txt"
    changes: tuple[Change, ...]


class Journal:
    """The journal of a folder. One process writes it, under the lock of the review, one change after another."""

    def __init__(self, folder: Path) -> None:
        """Read what was done so far. Raises UserError where the journal is damaged or can't be read."""
        self.path = folder / JOURNAL
        self.accepted: dict[str, str] = {}  # digest of the accepted text, by file
        self.originals: dict[str, str] = {}  # digest of the text before the first change, by file
        self.unfinished: Entry | None = None  # whose files may not all be written
        self._undoable: list[tuple[int, str]] = []  # where the line of a change begins, and what it did
        self._redoable: list[tuple[int, str]] = []
        self._places: dict[int, tuple[int, str]] = {}  # of the entries in both, by id
        self._next = 1
        self._undoes = self._redoes = False  # whether the last change is one of these
        self._end = 0  # bytes; what comes after them was being written when a process was killed
        for start, end, line in read_entries(self.path):
            self._replay(start, line)
            self._end = end

    @property
    def undoable(self) -> str | None:
        """What would be undone next; None: nothing."""
        return self._undoable[-1][1] if self._undoable else None

    @property
    def redoable(self) -> str | None:
        """What would be done again next; None: nothing."""
        return self._redoable[-1][1] if self._redoable else None

    def last(self, *, undone: bool = False) -> Entry | None:
        """The change to undo next, or with `undone` the one to do again; None: there is none."""
        places = self._redoable if undone else self._undoable
        if not places:
            return None
        with open(self.path, "rb") as file:  # with a buffer, as a line may be long
            file.seek(places[-1][0])
            line = json.loads(file.readline())
        return Entry(line[_ID], line[_WHAT], tuple(_change(change) for change in line[CHANGES]))

    def record(
        self, what: str, changes: Sequence[Change], *, undoes: int | None = None, redoes: int | None = None
    ) -> Entry:
        """Write a change to the disk, to be made now: where it writes files, it is `unfinished` until `finish`.

        Raises UserError where it can't be written; then there is no such change.
        """
        line: dict[str, Any] = {_ID: self._next, "time": datetime.now(UTC).isoformat(timespec="seconds"), _WHAT: what}
        line |= {name: value for name, value in ((_UNDOES, undoes), (_REDOES, redoes)) if value is not None}
        line[CHANGES] = [_as_json(change) for change in changes]
        self._replay(self._append(line, sync=True), line)
        return Entry(line[_ID], what, tuple(changes))

    def finish(self) -> None:
        """All files of the unfinished change are written. Raises UserError where that can't be noted."""
        if self.unfinished:
            self._append({_DONE: self.unfinished.id})
            self.unfinished = None

    def drop(self) -> None:
        """The unfinished change was not made: no file of it is written. Raises UserError where that can't be noted."""
        assert self.unfinished is not None
        back = [change.inverse for change in self.unfinished.changes if change.accepted]
        line = {_DROPPED: self.unfinished.id, CHANGES: [_as_json(Change(c.file, accepted=c.accepted)) for c in back]}
        self._replay(self._append(line, sync=True), line)

    def _append(self, line: dict[str, Any], *, sync: bool = False) -> int:
        """Write a line, with `sync` to the disk itself. Returns the byte at which it begins."""
        start = self._end
        # Python has lone surrogates for bytes that are not UTF-8; a UTF-8 file can hold them only escaped.
        text = re.sub("[\ud800-\udfff]", lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(line, ensure_ascii=False))
        content = f"{text}\n".encode()
        try:
            with open(self.path, "ab") as file:
                try:
                    file.truncate(start)
                    file.write(content)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(start)
                    raise
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error.strerror}") from error
        self._end = start + len(content)
        return start

    def _replay(self, start: int, line: dict[str, Any]) -> None:
        """Take note of a line that begins at byte `start`."""
        if _DONE in line:
            self.unfinished = None
            return
        try:
            changes = tuple(_change(change) for change in line[CHANGES])
            for change in changes:
                self._note(change)
            if _DROPPED in line:
                self._forget()
                return
            entry = Entry(line[_ID], line[_WHAT], changes)
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(f"{self.path} is of another version: move it away to start anew") from None
        if (undone := line.get(_UNDOES)) is not None:
            self._redoable.append(self._places[undone])
            self._undoable.pop()
        elif (redone := line.get(_REDOES)) is not None:
            self._undoable.append(self._places[redone])
            self._redoable.pop()
        else:
            self._redoable.clear()
            self._places[entry.id] = (start, entry.what)
            self._undoable.append(self._places[entry.id])
        self._next = entry.id + 1
        self.unfinished = entry if any(change.text for change in changes) else None
        self._undoes, self._redoes = _UNDOES in line, _REDOES in line

    def _note(self, change: Change) -> None:
        if change.text:
            self.originals.setdefault(change.file, digest_of(change.text[0] or ""))
        if change.accepted:
            after = change.accepted[1]
            if after is None:
                self.accepted.pop(change.file, None)
            else:
                self.accepted[change.file] = after

    def _forget(self) -> None:
        """The last change was not made."""
        if self._undoes:
            self._undoable.append(self._redoable.pop())
        elif self._redoes:
            self._redoable.append(self._undoable.pop())
        else:
            self._undoable.pop()
        self.unfinished = None


def _as_json(change: Change) -> dict[str, Any]:
    line: dict[str, Any] = {FILE: change.file}
    if change.text:
        line[_TEXT] = list(change.text)
    if change.accepted:
        line[ACCEPTED] = list(change.accepted)
    return line


def _change(line: dict[str, Any]) -> Change:
    text, accepted = line.get(_TEXT), line.get(ACCEPTED)
    return Change(line[FILE], text and (text[0], text[1]), accepted and (accepted[0], accepted[1]))
