"""Rows in a file: only what no run finished is cut, an editor's doings cost no row, nothing foreign is touched."""

import csv
import json
from pathlib import Path

import pytest

from florence2ner import UserError
from florence2ner.outputs.answers import Answer, Question, Record
from florence2ner.outputs.forms import COLUMNS
from florence2ner.outputs.records import RecordFile

TASK = Question("<CAPTION>", "caption", is_text=True)
NAMES = ("a.jsonl", "a.csv", "metadata.jsonl")
HARD = {
    "=1+1.png": "=1+1",
    "'-b.png": "'-b",
    "new\nline.png": 'two "lines"\nof text\r\nand\ra third',
    "ü,.png": "-c, @d",
}


def add(path: Path, captions: dict[str, str], *, safe: bool = False) -> None:
    """Go on with a file as a run does: with the images that lack a caption."""
    output = RecordFile(path, (TASK,), "model", {"num_beams": 1}, csv_safe=safe)
    images = {path.parent / name: text for name, text in captions.items()}
    output.look([*images])
    output.open()
    missing = [image for image in images if output.missing(image)]
    output.write([Record(image, (8, 8), 0.1, (Answer(TASK, images[image], ("cut off",)),)) for image in missing])
    output.finish()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("safe", [False, True])
def test_a_run_killed_at_any_byte_goes_on_to_the_same_file(tmp_path: Path, name: str, safe: bool) -> None:
    path = tmp_path / name
    add(path, HARD, safe=safe)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        add(path, HARD, safe=safe)
        assert path.read_bytes() == whole, f"killed after {length} bytes: {whole[:length]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_what_an_editor_did_to_the_end_costs_no_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    add(path, {"a.png": "a"})
    first = path.read_bytes()
    for edited in (first.rstrip(b"\n"), first.replace(b"\n", b"\r\n"), first.rstrip(b"\n").replace(b"\n", b"\r\n")):
        path.write_bytes(edited)
        add(path, {"a.png": "another", "b.png": "b"})
        assert path.read_bytes().startswith(edited.rstrip()), "not a byte of it is gone"
        assert len(path.read_text().splitlines()) == len(first.splitlines()) + 1
        assert "another" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "hello"),
        ("a.jsonl", '{"x": 1}'),
        ("a.jsonl", '{"x": 1'),
        ("metadata.jsonl", '{"path": "a.png", "ca'),
        ("a.csv", "x,y"),
        ("a.csv", "x,y\n1,2"),
        ("a.csv", "path,caption,task\na.png,a dog,<CAPTION>\n"),
        ("a.csv", ",".join(COLUMNS) + '\n"a.png,the quote is missing,<CAPTION>\nb.png,b,<CAPTION>,m,{},8,8,1,[]\n'),
    ],
)
def test_a_foreign_file_is_refused_and_stays(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{name} .*: name another file for --output"):
        add(path, {"a.png": "a"})
    assert path.read_text() == text


@pytest.mark.parametrize("safe", [False, True])
def test_names_and_captions_come_back_from_a_csv_to_the_byte(tmp_path: Path, safe: bool) -> None:
    path = tmp_path / "a.csv"
    add(path, HARD, safe=safe)
    with path.open(encoding="utf-8", newline="") as file:  # as Python's documentation says that a CSV is opened
        rows = list(csv.DictReader(file))
    if safe:
        assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
        assert all(json.loads(row["settings"])["csv_safe"] for row in rows)
    else:
        assert {row["path"]: row["caption"] for row in rows} == HARD
    add(path, dict.fromkeys(HARD, "another"), safe=not safe)
    assert "another" not in path.read_text(), "every name was found again, whatever the setting is now"
    output = RecordFile(path, (TASK,), "model", {})
    assert {row["path"]: row["caption"] for row in output._form.read(path)} == HARD


def test_what_another_process_tore_is_mended_by_the_next_that_writes(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name
        add(path, {"a.png": "a"})
        output = RecordFile(path, (TASK,), "model", {})
        records = [Record(tmp_path / f"{n}.png", (8, 8), 0.1, (Answer(TASK, 'x"\n"y'),)) for n in range(4)]
        output.write(records[:1])
        before = path.read_bytes()
        output.write(records[1:2])
        torn = path.read_bytes()[: (len(before) + path.stat().st_size) // 2]
        path.write_bytes(torn)
        output.write(records[2:])
        output.look([])
        assert len(list(output._form.read(path))) == 4, name
        assert path.read_bytes().startswith(before)
