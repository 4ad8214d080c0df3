"""Changes: all or none of them, what others wrote is kept, and everything can be undone."""

import os
import shutil
from pathlib import Path

import pytest

from florence2ner.data.accepted import JOURNAL
from florence2ner.errors import UserError
from florence2ner.review.changes import Conflict
from florence2ner.review.journal import Change
from florence2ner.review.rules import AddTag, Replacement
from tests.review.support import Opened
from tests.support import without_roots_powers

RED = Replacement(do="replace", find="red", replace="blue")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JOURNAL}


def change_all(opened: Opened, wish: Replacement | AddTag) -> str:
    items = range(len(opened.library.items))
    return opened.changes.change(items, wish, opened.changes.preview(items, wish).digest).message


def test_every_change_is_undone_and_made_again_over_restarts(photos: Path) -> None:
    states = [contents(photos)]
    opened = Opened(photos)
    opened.edit("0.png", "something else")
    states.append(contents(photos))
    opened = Opened(photos)
    assert change_all(opened, RED) == "5 captions changed"
    states.append(contents(photos))
    (photos / "new.png").write_bytes((photos / "0.png").read_bytes())
    shutil.copy(photos / "0.png", photos / "new.png")
    states[:] = [state | {"new.png": (photos / "new.png").read_bytes()} for state in states]
    opened = Opened(photos)
    opened.edit("new.png", "made")
    states.append(contents(photos))
    for state in reversed(states[:-1]):
        Opened(photos).changes.undo()
        assert contents(photos) == state
    assert Opened(photos).changes.undo().message == "there is nothing to undo"
    for state in states[1:]:
        Opened(photos).changes.redo()
        assert contents(photos) == state
    assert Opened(photos).changes.redo().message == "there is nothing to do again"


def test_a_caption_that_others_changed_is_not_overwritten(photos: Path) -> None:
    opened = Opened(photos)
    version = opened.library.look(opened.library.items[0].file).version
    (photos / "0.txt").write_text("theirs")
    with pytest.raises(Conflict, match=r"0\.txt was changed on the disk meanwhile") as conflict:
        opened.changes.edit(0, "mine", version)
    assert conflict.value.found.text == "theirs"
    with pytest.raises(Conflict):
        opened.changes.accept([0], accepted=True, version=version)
    assert (photos / "0.txt").read_text() == "theirs"
    opened.changes.edit(0, "mine", conflict.value.found.version)
    assert (photos / "0.txt").read_text() == "mine"


def test_undo_leaves_what_others_changed_since(photos: Path) -> None:
    opened = Opened(photos)
    change_all(opened, RED)
    (photos / "3.txt").write_text("theirs")
    outcome = opened.changes.undo()
    assert outcome.message.endswith("; left as they are, changed on the disk since: 1")
    assert (photos / "3.txt").read_text() == "theirs"
    assert (photos / "2.txt").read_text() == "a red thing, number 2\n"
    assert opened.changes.redo().message.startswith("done again")
    assert (photos / "3.txt").read_text() == "theirs"


def test_what_was_not_in_the_preview_is_not_changed(photos: Path) -> None:
    opened = Opened(photos)
    items = range(6)
    preview = opened.changes.preview(items, RED)
    assert (preview.count, preview.shown[0]) == (6, (0, "a red thing, number 0", "a blue thing, number 0"))
    (photos / "0.txt").write_text("another red thing")
    before = contents(photos)
    with pytest.raises(UserError, match="captions have changed since the preview"):
        opened.changes.change(items, RED, preview.digest)
    assert contents(photos) == before
    assert opened.changes.preview(items, RED).shown[0][1] == "another red thing"


@pytest.mark.parametrize("written", [0, 1, 3, 6])
def test_a_change_that_a_kill_interrupted_is_completed(photos: Path, written: int) -> None:
    opened = Opened(photos)
    changes = [Change(f"{n}.txt", text=(f"a red thing, number {n}\n", f"a blue thing, number {n}\n")) for n in range(6)]
    opened.journal.record("replace", changes)
    for number in range(written):
        (photos / f"{number}.txt").write_text(f"a blue thing, number {number}\n")
    if written == 3:
        (photos / "5.txt").write_text("theirs")
    again = Opened(photos)
    assert again.changes.recover() == 6 - written - (written == 3)
    expected = {f"{n}.txt": f"a blue thing, number {n}\n" for n in range(6)} | (
        {"5.txt": "theirs"} if written == 3 else {}
    )
    assert {name: (photos / name).read_text() for name in expected} == expected
    assert Opened(photos).changes.recover() is None


def test_the_form_of_a_file_is_kept(photos: Path) -> None:
    forms = {
        b"\xef\xbb\xbfold\r\n": b"\xef\xbb\xbfnew\r\nline\r\n",
        b"old": b"new\nline",
        b"old\n": b"new\nline\n",
        b"": b"new\nline\n",
        b" old \r\nx": b"new\r\nline",
    }
    for before, after in forms.items():
        (photos / "0.txt").write_bytes(before)
        Opened(photos).edit("0.png", "new\nline")
        assert (photos / "0.txt").read_bytes() == after
        Opened(photos).changes.undo()
        assert (photos / "0.txt").read_bytes() == before
    (photos / "0.txt").unlink()
    Opened(photos).edit("0.png", "new")
    assert (photos / "0.txt").read_bytes() == b"new\n"
    Opened(photos).changes.undo()
    assert not (photos / "0.txt").exists()


def test_a_caption_that_is_not_utf8_is_shown_mended_and_given_back_by_undo(photos: Path) -> None:
    (photos / "0.txt").write_bytes(b"a red caf\xe9")
    opened = Opened(photos)
    found = opened.library.look(0)
    assert (found.text, found.problem) == ("a red café", "not_utf8")
    with pytest.raises(UserError, match="there is no caption that can be accepted"):
        opened.changes.accept([0], accepted=True)
    assert opened.changes.preview(range(6), RED).left_out == 1
    assert change_all(opened, RED) == "5 captions changed"
    assert (photos / "0.txt").read_bytes() == b"a red caf\xe9"
    opened.edit("0.png", "a red café")  # the same text, as UTF-8
    assert (photos / "0.txt").read_bytes() == "a red café\n".encode()
    opened.changes.accept([0], accepted=True)
    opened.changes.undo()
    opened.changes.undo()
    assert (photos / "0.txt").read_bytes() == b"a red caf\xe9"


def test_what_is_accepted_is_a_text(photos: Path) -> None:
    opened = Opened(photos)
    assert opened.changes.accept([1], accepted=True).message == "accepted"
    assert opened.changes.accept([0, 1], accepted=True).message == "1 caption accepted"
    assert opened.changes.accept([0, 1], accepted=True).message == "0 captions accepted"
    assert opened.is_accepted("0.png")
    opened.edit("0.png", "another")
    assert not opened.is_accepted("0.png")
    opened.changes.undo()
    assert opened.is_accepted("0.png")
    (photos / "1.txt").write_text("theirs")
    assert not opened.is_accepted("1.png")
    opened.edit("2.png", "better", accept=True)
    assert Opened(photos).is_accepted("2.png")
    assert opened.changes.undo().message == "undone: edit and accept 2.txt"
    assert not opened.is_accepted("2.png")
    opened.changes.accept([0], accepted=False)
    assert not Opened(photos).is_accepted("0.png")
    assert opened.changes.undo().message == "undone: take back 0.txt"
    assert opened.is_accepted("0.png")


def test_images_with_the_same_stem_share_their_caption(photos: Path) -> None:
    shutil.copy(photos / "0.png", photos / "0.bmp")
    opened = Opened(photos)
    outcome = opened.edit("0.bmp", "one for both")
    assert {opened.library.items[item].image for item in outcome.items} == {"0.bmp", "0.png"}
    assert "shared" in opened.library.files[opened.library.items[opened.at("0.png")].file].flags
    assert change_all(opened, AddTag(do="add", tag="night")) == "6 captions changed"
    assert (photos / "0.txt").read_text() == "one for both, night\n"


def test_several_captions_of_an_image_are_changed_one_by_one(photos: Path) -> None:
    (photos / "0.tags").write_text("red, thing\n")
    opened = Opened(photos, caption_extension=(".txt", ".tags"))
    first, second = (number for number, item in enumerate(opened.library.items) if item.image == "0.png")
    version = opened.library.look(opened.library.items[second].file).version
    opened.changes.edit(second, "blue", version)
    assert (photos / "0.tags").read_text() == "blue\n"
    assert (photos / "0.txt").read_text() == "a red thing, number 0\n"
    opened.changes.accept([first], accepted=True)
    files = opened.library.files
    assert [opened.changes.is_accepted(files[opened.library.items[item].file]) for item in (first, second)] == [1, 0]


def test_the_journal_of_other_extensions_is_undone_too(photos: Path) -> None:
    (photos / "0.tags").write_text("red, thing\n")
    Opened(photos, caption_extension=(".tags",)).edit("0.png", "blue")
    Opened(photos).changes.undo()
    assert (photos / "0.tags").read_text() == "red, thing\n"


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(photos: Path, tmp_path: Path) -> None:
    """As a user without the right to write into a folder below; root would have it."""
    (photos / "z").mkdir()
    shutil.copy(photos / "0.png", photos / "z")
    (photos / "z" / "0.txt").write_text("a red thing")
    os.chmod(photos / "z", 0o500)
    before = contents_below(photos)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from pathlib import Path\n"
        "from tests.review.support import Opened\n"
        "from tests.review.test_changes import RED, change_all\n"
        "from florence2ner.errors import UserError\n"
        "opened = Opened(Path(sys.argv[1]))\n"
        "try: change_all(opened, RED)\n"
        "except UserError as error: print(error)\n"
        "opened.edit('0.png', 'still works')\n"
        "print(opened.changes.undo().message)\n"
        "print(opened.changes.undo().message)\n"
    )
    done = without_roots_powers(program, photos)
    os.chmod(photos / "z", 0o700)
    refused, first, second = done.stdout.splitlines()
    assert refused.startswith("can't write ")
    assert refused.endswith("; nothing is changed")
    assert (first, second) == ("undone: edit 0.txt", "there is nothing to undo")
    assert contents_below(photos) == before


def contents_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != JOURNAL)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", ".hidden.txt", "sub/../../outside.txt"])
def test_a_journal_that_names_files_outside_writes_none(photos: Path, name: str) -> None:
    opened = Opened(photos)
    opened.journal.record("edit", [Change(name, text=(None, "gotcha"))])
    with pytest.raises(UserError, match="is no file that a review may touch"):
        Opened(photos).changes.recover()
    assert not (photos.parent / "outside.txt").exists()
