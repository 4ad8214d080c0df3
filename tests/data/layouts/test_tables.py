"""Tables of images and captions: the usual columns and named ones, several captions and tasks, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.tables import discover, matches
from florence2ner.errors import UserError
from tests.data.support import put

Rows = list[dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "sub/c"):
        put(tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


def write_table(path: Path, rows: Rows) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def read(root: Path, **settings: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    options = ReadingOptions(**settings)
    assert matches(root, options)
    return [(s.image.key, s.task_prompt, s.captions) for s in discover(root, options).samples]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "captions.json"])
@pytest.mark.parametrize(
    ("image", "caption"), [("file_name", "text"), ("image", "suffix"), ("path", "caption"), ("image_path", "caption")]
)
def test_the_usual_columns_are_found(root: Path, name: str, image: str, caption: str) -> None:
    rows = [{"id": "1", image: "a.png", caption: 'one, "two"\nthree'}, {"id": "2", image: "sub/c.png", caption: "ü"}]
    write_table(root / name, rows)
    assert read(root) == [
        ("a.png", "<CAPTION>", ('one, "two"\nthree',)),
        ("sub/c.png", "<CAPTION>", ("ü",)),
    ]


def test_a_prompt_of_its_own_makes_a_row_another_task(root: Path) -> None:
    rows = [
        {"image": "a.png", "prefix": "<OD>", "suffix": "cat<loc_1><loc_2><loc_3><loc_4>"},
        {"image": "a.png", "prefix": "<CAPTION>", "suffix": "a cat"},
        {"image": "b.png", "prefix": "", "suffix": "a dog"},
    ]
    write_table(root / "annotations.jsonl", rows)
    assert read(root, task_prompt="<DETAILED_CAPTION>") == [
        ("a.png", "<OD>", ("cat<loc_1><loc_2><loc_3><loc_4>",)),
        ("a.png", "<CAPTION>", ("a cat",)),
        ("b.png", "<DETAILED_CAPTION>", ("a dog",)),
    ]


def test_columns_can_be_named(root: Path) -> None:
    rows = [{"image": "a.png", "wide": "b.png", "text": "one", "long": "two", "kind": "<OCR>"}]
    write_table(root / "mine.csv", rows)
    names = {"image_column": "wide", "caption_column": "long", "prompt_column": "kind"}
    assert read(root, **names) == [("b.png", "<OCR>", ("two",))]
    with pytest.raises(UserError, match=r"mine.csv has no column lang \(caption_column\)\. Did you mean long\? It has"):
        matches(root, ReadingOptions(caption_column="lang"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("whole", [("one",), ("two\nthree",), ("four",)]),
        ("first", [("one",)]),
        ("each", [("one",), ("two",), ("three",), ("four",)]),
        ("random", [("one", "two", "three", "four")]),
    ],
)
def test_an_image_may_have_several_captions(root: Path, lines: str, expected: list[tuple[str, ...]]) -> None:
    cells = [["one", " two\nthree ", ""], ["four", "one"]]
    write_table(root / "metadata.jsonl", [{"image": "a.png", "captions": cell} for cell in cells])
    assert [captions for _, _, captions in read(root, caption_lines=lines)] == expected


def test_tables_of_both_sides_are_read_from_their_folders(tmp_path: Path) -> None:
    for side in ("train", "eval"):
        put(tmp_path / side / "a.png")
        write_table(tmp_path / side / "metadata.jsonl", [{"file_name": "a.png", "text": side}])
    found = discover(tmp_path, ReadingOptions(), folder=tmp_path / "eval")
    assert [(s.image.key, s.caption) for s in found.samples] == [("eval/a.png", "eval")]
    assert [key for key, _, _ in read(tmp_path)] == ["eval/a.png", "train/a.png"]


def test_what_cannot_be_used_is_left_out_and_reported(root: Path) -> None:
    rows = [
        {"file_name": "gone.png", "text": "nothing"},
        {"file_name": "b.png", "text": " "},
        {"file_name": "a.png", "text": "one"},
    ]
    write_table(root / "metadata.jsonl", rows)
    found = discover(root, ReadingOptions())
    assert [s.caption for s in found.samples] == ["one"]
    where = root / "metadata.jsonl"
    assert found.report() == [
        f"1 images have no caption and are left out: {root / 'b.png'}",
        f"1 images are missing and are left out: gone.png (line 1 of {where})",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"file_name": "a.png", "text": ',
            r"line 2 of .*metadata.jsonl is not JSON \(Expecting value\): mend or delete",
        ),
        ("[1, 2]", r"line 2 of .* is not an object with columns"),
        ('{"text": "one"}', r"line 2 of .* names no image in the column file_name"),
        ('{"file_name": "a.png", "text": 7}', r"line 2 of .* has no text in the column text, but 7"),
        ('{"file_name": "../secret.png", "text": "x"}', r"line 2 of .* names \.\./secret.png, which is outside of"),
        ('{"file_name": "/etc/secret.png", "text": "x"}', r"line 2 of .* names /etc/secret.png, which is outside of"),
    ],
)
def test_a_row_that_is_none_is_one_line(root: Path, line: str, message: str) -> None:
    put(root.parent / "secret.png")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        discover(root, ReadingOptions())


def test_other_files_are_no_tables(root: Path) -> None:
    (root / "numbers.json").write_text("[1, 2]")
    (root / "settings.json").write_text('{"image": "a.png"}')
    (root / "words.csv").write_text("a,b\n1,2\n")
    (root / "latin.csv").write_bytes("image,text\na.png,caf\xe9\n".encode("latin-1"))
    (root / "failures.jsonl").write_text('{"path": "a.png", "reason": "torn"}\n')
    (root / "empty.jsonl").touch()
    assert not matches(root, ReadingOptions())
