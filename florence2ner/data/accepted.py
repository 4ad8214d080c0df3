"""Which captions were accepted in `florence2ner review`, by the journal that it keeps in the folder."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2ner.errors import UserError

JOURNAL = ".florence2ner-review.jsonl"  # hidden, so that no search of a dataset finds it; it moves with the folder
CHANGES, FILE, ACCEPTED = "changes", "file", "accepted"  # keys of the journal
_BOM = "\ufeff"


def text_of(content: str) -> str:
    """The caption in a file's content, as training reads it: without byte order mark and blanks around it."""
    return content.removeprefix(_BOM).replace("\r\n", "\n").replace("\r", "\n").strip()


def digest_of(text: str) -> str:
    """What stands for a caption in the journal where it was accepted: it is the same for the same text only."""
    return hashlib.blake2b(text_of(text).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def read_entries(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The entries of a journal, each with the bytes at which its line begins and ends. Without a file there are none.

    A last line without its newline was being written when the process was killed; nothing was done by then, and it is
    left out. Raises UserError for a file that can't be read or is damaged.
    """
    try:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise ValueError
                except ValueError:
                    raise UserError(
                        f"{path} is damaged in line {number}: bring it back from a copy, or move it away; what was "
                        "accepted is forgotten then, and captions stay as they are"
                    ) from None
                yield start, start + len(line), entry
                start += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


class Accepted:
    """The accepted captions of a dataset: those in the journals of its folder and of those in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digests: dict[Path, dict[str, str]] = {}  # by the folder of a journal: file name below it, digest
        self._journals: dict[Path, list[Path]] = {}  # by a folder with captions: the folders with journals about it

    def has(self, path: Path, text: str) -> bool:
        """Whether a caption file of the dataset was accepted with this text, which is what it holds now.

        Raises UserError where a journal can't be read.
        """
        folders = self._journals.get(path.parent)
        if folders is None:
            folders = self._journals[path.parent] = [folder for folder in self._above(path) if self._of(folder)]
        if not folders:
            return False
        digest = digest_of(text)
        return any(self._of(folder).get(path.relative_to(folder).as_posix()) == digest for folder in folders)

    def _above(self, path: Path) -> Iterator[Path]:
        """The folder of a file and those around it, up to the root."""
        for folder in path.parents:
            yield folder
            if folder == self._root:
                return

    def _of(self, folder: Path) -> dict[str, str]:
        if folder not in self._digests:
            self._digests[folder] = accepted_in(folder / JOURNAL)
        return self._digests[folder]


def accepted_in(journal: Path) -> dict[str, str]:
    """The digests of the texts that were accepted, by the names of their files. Raises UserError as `read_entries`."""
    digests: dict[str, str] = {}
    for _, _, entry in read_entries(journal):
        for change in entry.get(CHANGES, ()):
            if ACCEPTED in change:
                after = change[ACCEPTED][1]
                if after is None:
                    digests.pop(change[FILE], None)
                else:
                    digests[change[FILE]] = after
    return digests
