"""What the page is shown of a library: lists of images by words and filters, a part at a time, and single images."""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from florence2ner.files import as_utf8
from florence2ner.review.changes import Changes
from florence2ner.review.findings import FoundKind
from florence2ner.review.library import FLAGS, CaptionFile, Library

_KEPT = 16  # views, so that several tabs can have their own
_SNIPPET = 200  # characters of a caption in a list


class Views:
    """Lists of items as they were found. A change of a caption doesn't take it out of a list that is looked through."""

    def __init__(self, library: Library, changes: Changes, findings: Sequence[FoundKind]) -> None:
        self._library = library
        self._changes = changes
        self._findings = {kind.kind: kind for kind in findings}
        self._views: OrderedDict[int, Sequence[int]] = OrderedDict()
        self._numbers = itertools.count(1)

    def open(self, words: str, filter_: str) -> tuple[int, int]:
        """Search; returns the number of the new list and its length. An unknown filter finds nothing."""
        keep = self._filter(filter_)
        if words.strip():
            found: Sequence[int] = [number for number in self._library.search(words.strip()) if keep(number)]
        elif filter_ == "all":
            found = range(len(self._library.items))
        else:
            found = [number for number in range(len(self._library.items)) if keep(number)]
        view = next(self._numbers)
        self._views[view] = found
        while len(self._views) > _KEPT:
            self._views.popitem(last=False)
        return view, len(found)

    def items(self, view: int) -> Sequence[int] | None:
        """The items in a list; None for a list that is kept no longer."""
        return self._views.get(view)

    def rows(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Items as a list shows them."""
        return [self._row(number) for number in items]

    def item(self, number: int) -> dict[str, Any]:
        """An item as it is now, with the whole caption read from the disk."""
        at = self._library.items[number].file
        found, file = self._library.look(at), self._library.files[at]
        name = self._library.items[number].image
        others = dict.fromkeys(self._library.items[item].image for item in file.items)
        return self._row(number) | {
            "text": found.text,
            "version": found.version,
            "reason": found.reason,
            "locked": found.problem == "unreadable",
            "shared_with": [as_utf8(other) for other in others if other != name],
            "findings": [
                {"title": kind.title, "detail": kind.details[as_utf8(name)]}
                for kind in self._findings.values()
                if as_utf8(name) in kind.details
            ],
        }

    def filters(self) -> list[dict[str, Any]]:
        """The filters that there are, each with its number of items."""
        library, changes = self._library, self._changes
        numbers: Counter[str] = library.count_flags()
        for item in library.items:
            file = library.files[item.file]
            accepted = changes.is_accepted(file)
            numbers["accepted"] += accepted
            numbers["open"] += not accepted
            numbers["changed"] += changes.is_changed(file)
        states = {"open": "not accepted", "accepted": "accepted", "changed": "changed in review"}
        listed = [
            {"group": "", "value": "all", "label": "all", "count": len(library.items)},
            *({"group": "", "value": name, "label": label, "count": numbers[name]} for name, label in states.items()),
        ]
        listed += [
            {"group": "Captions", "value": f"flag:{flag}", "label": label, "count": numbers[flag]}
            for flag, label in FLAGS.items()
            if numbers[flag]
        ]
        for kind in self._findings.values():
            count = sum(as_utf8(item.image) in kind.details for item in library.items)
            listed.append({"group": "Findings", "value": f"finding:{kind.kind}", "label": kind.title, "count": count})
        return listed

    def _filter(self, value: str) -> Callable[[int], bool]:
        kind, _, name = value.partition(":")
        if kind == "flag":
            return lambda number: name in self._file(number).flags
        if kind == "finding":
            details = self._findings[name].details if name in self._findings else {}
            return lambda number: as_utf8(self._library.items[number].image) in details
        states: dict[str, Callable[[int], bool]] = {
            "all": lambda number: True,
            "open": lambda number: not self._changes.is_accepted(self._file(number)),
            "accepted": lambda number: self._changes.is_accepted(self._file(number)),
            "changed": lambda number: self._changes.is_changed(self._file(number)),
        }
        return states.get(value, lambda number: False)

    def _file(self, number: int) -> CaptionFile:
        return self._library.files[self._library.items[number].file]

    def _row(self, number: int) -> dict[str, Any]:
        item, file = self._library.items[number], self._file(number)
        text = file.text if file.text is not None else self._library.look(item.file).text
        return {
            "id": number,
            "name": as_utf8(item.image),
            "file": as_utf8(file.name),
            "caption": text[:_SNIPPET],
            "accepted": self._changes.is_accepted(file),
            "changed": self._changes.is_changed(file),
            "flags": [FLAGS[flag] for flag in file.flags],
        }
