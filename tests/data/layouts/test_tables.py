"""Tables of images and captions: the usual columns and named ones, several captions and tasks, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from florence2ner import train
from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.tables import discover, matches
from florence2ner.data.samples import ImageRef
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.data.split_file import images_trained_on
from florence2ner.errors import UserError
from tests.conftest import MakeConfig
from tests.data.support import put, root_of
from tests.training.test_run_folder import assert_same_bits

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
    with pytest.raises(UserError, match=r"mine.csv has no column wild \(image_column\)\. Did you mean wide\? It has"):
        matches(root, ReadingOptions(image_column="wild"))


def test_a_table_that_begins_with_a_torn_line_is_one_all_the_same(root: Path) -> None:
    (root / "metadata.jsonl").write_text('{"file_name": "x.png"\n{"file_name": "a.png", "text": "a cat"}\n')
    with pytest.raises(UserError, match=r"^line 1 of .*metadata\.jsonl is not JSON \(.*\): mend or delete it$"):
        read(root)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metadata.jsonl", b"file_name: a.png", "line 1 of .*metadata.jsonl is not JSON"),
        ("data.json", b'[{"image": "a.png", "text": "a cat"}', r"data.json can't be read: "),
        ("metadata.csv", "file_name,text\na.png,caf\xe9\n".encode("latin-1"), "metadata.csv is not UTF-8 text"),
    ],
)
def test_what_may_have_been_meant_as_a_table_is_named_where_nothing_else_is_there(
    root: Path, name: str, content: bytes, reason: str
) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(UserError, match=f"no image with a caption in .*; or was a table meant\\? .*{reason}") as error:
        discover_split([root_of(root)], rule=None)
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize("name", ["../pool/c.png", "{top}/pool/c.png", "sub/../../pool/c.png", "../data/../pool/c.png"])
def test_images_outside_are_let_in_only_where_that_is_asked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside = put(root.parent / "pool" / "c.png")
    named = name.format(top=root.parent)
    write_table(root / "metadata.jsonl", [{"file_name": "a.png", "text": "one"}, {"file_name": named, "text": "two"}])
    monkeypatch.chdir(root)
    for place in (root, Path()):
        with pytest.raises(
            UserError, match=r"line 2 of .* which is outside of .*: move it there, or let it in with --allow-outside"
        ):
            discover(place, ReadingOptions())
        samples = discover(place, ReadingOptions(allow_outside=True)).samples
        assert [(sample.image.key, sample.caption) for sample in samples] == [
            ("../pool/c.png", "two"),
            ("a.png", "one"),
        ]
        assert samples[0].image.path == outside


def test_one_image_by_two_paths_is_one_image(root: Path) -> None:
    rows = [{"file_name": name, "text": name} for name in ("a.png", "sub/../a.png", f"{root}/a.png")]
    write_table(root / "metadata.jsonl", rows)
    assert {sample.image for sample in discover(root, ReadingOptions()).samples} == {ImageRef("a.png", root / "a.png")}


def test_a_link_in_the_dataset_may_lead_out_of_it(root: Path) -> None:
    put(root.parent / "pool" / "c.png")
    (root / "link").symlink_to(root.parent / "pool")
    write_table(root / "metadata.jsonl", [{"file_name": "link/c.png", "text": "one"}])
    assert read(root) == [("link/c.png", "<CAPTION>", ("one",))]


def test_an_image_outside_that_both_sides_name_is_held_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(tmp_path / "pool" / "c.png")
    for side in ("train", "eval"):
        put(root / side / f"{side}.png")
        rows = [{"file_name": f"{side}.png", "text": side}, {"file_name": "../../pool/c.png", "text": "shared"}]
        write_table(root / side / "metadata.jsonl", rows)
    split, _ = discover_split([root_of(root, ReadingOptions(allow_outside=True))], rule=SplitRule(seed=0, ratio=0.1))
    assert [sample.image.key for sample in split.train] == ["train/train.png"]
    assert [sample.image.key for sample in split.eval] == ["../pool/c.png", "eval/eval.png"]


def test_a_run_on_images_outside_is_resumed(tmp_path: Path, shapes: Path, make_config: MakeConfig) -> None:
    root = tmp_path / "data"
    root.mkdir()
    pictures = sorted(shapes.glob("*.png"))[:8]
    write_table(root / "metadata.jsonl", [{"image": str(path), "text": path.name} for path in pictures])
    settings = {"dataset_path": root, "allow_outside": True, "epochs": 4, "save_steps": 1, "save_total_limit": None}
    checkpoint = train(make_config(run_name="whole", keep_states=True, **settings)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(checkpoint.parent / "step-1"), **settings)).checkpoint
    assert_same_bits(checkpoint, fork)
    assert images_trained_on(fork.parent / "split.json") < set(pictures)


def test_other_files_are_no_tables(root: Path) -> None:
    (root / "numbers.json").write_text("[1, 2]")
    (root / "settings.json").write_text('{"image": "a.png"}')
    (root / "words.csv").write_text("a,b\n1,2\n")
    (root / "latin.csv").write_bytes("image,text\na.png,caf\xe9\n".encode("latin-1"))
    (root / "failures.jsonl").write_text('{"path": "a.png", "reason": "torn"}\n')
    (root / "empty.jsonl").touch()
    assert not matches(root, ReadingOptions())
