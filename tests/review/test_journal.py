"""The journal: what was done is read back, what is torn is not, and nothing is forgotten."""

import json
from pathlib import Path

import pytest

from florence2ner.data.accepted import JOURNAL
from florence2ner.errors import UserError
from florence2ner.review.journal import Change, Journal


def test_entries_come_back_in_order_with_undo_and_redo(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first = journal.record("edit a", [Change("a.txt", text=("one\n", "two\n"))])
    journal.finish()
    journal.record("accept a", [Change("a.txt", accepted=(None, "digest"))])
    second = journal.last()
    assert second is not None
    journal.record(second.what, [change.inverse for change in second.changes], undoes=second.id)
    again = Journal(tmp_path)
    assert (again.undoable, again.redoable, again.unfinished) == ("edit a", "accept a", None)
    assert again.accepted == {}
    assert again.last() == first
    assert again.last(undone=True) == second
    assert list(again.originals) == ["a.txt"]


def test_a_new_change_ends_what_could_be_redone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = journal.record("edit a", [Change("a.txt", text=(None, "x"))])
    journal.finish()
    journal.record("edit a", [entry.changes[0].inverse], undoes=entry.id)
    journal.finish()
    assert journal.redoable
    journal.record("edit b", [Change("b.txt", text=(None, "y"))])
    assert journal.redoable is None


def test_a_torn_last_line_was_never_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record("edit a", [Change("a.txt", text=("1", "2"))])
    journal.finish()
    whole = (tmp_path / JOURNAL).read_bytes()
    for cut in range(1, 40, 7):
        line = json.dumps({"id": 2, "what": "edit b", "changes": [{"file": "b.txt", "text": ["1", "2"]}]}).encode()
        (tmp_path / JOURNAL).write_bytes(whole + line[:cut])
        again = Journal(tmp_path)
        assert again.undoable == "edit a"
        again.record("edit c", [Change("c.txt", text=("1", "2"))])
        assert (tmp_path / JOURNAL).read_bytes().startswith(whole + b'{"id": 2, "time": ')


def test_a_whole_line_without_its_end_is_unfinished(tmp_path: Path) -> None:
    Journal(tmp_path).record("edit a", [Change("a.txt", text=("1", "2"))])
    again = Journal(tmp_path)
    assert again.unfinished is not None
    assert again.unfinished.what == "edit a"
    again.finish()
    assert Journal(tmp_path).unfinished is None


def test_what_was_dropped_is_no_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record("accept a", [Change("a.txt", accepted=(None, "one"))])
    journal.record("edit and accept a", [Change("a.txt", text=("1", "2"), accepted=("one", "two"))])
    journal.drop()
    for known in (journal, Journal(tmp_path)):
        assert known.undoable == "accept a"
        assert known.accepted == {"a.txt": "one"}
        assert known.unfinished is None


def test_any_bytes_are_kept(tmp_path: Path) -> None:
    content = bytes(range(256)).decode("utf-8", "surrogateescape") + "\u2028\r\n"
    Journal(tmp_path).record("edit \udcff", [Change("\udcff.txt", text=(content, None))])
    (tmp_path / JOURNAL).read_text(encoding="utf-8")
    entry = Journal(tmp_path).last()
    assert entry is not None
    assert entry.changes == (Change("\udcff.txt", text=(content, None)),)


def test_a_journal_without_a_line_has_no_file(tmp_path: Path) -> None:
    Journal(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["{nonsense}", "[]", '{"id": 1, "what": "x"}', '{"id": 1, "changes": [{}]}'])
def test_a_damaged_journal_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / JOURNAL).write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"damaged in line 1|of another version"):
        Journal(tmp_path)
