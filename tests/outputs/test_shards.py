"""Where captions of shards go: names, collisions, finished shards of images and captions, and one file for all."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2ner.data.samples import ImageRef
from florence2ner.data.shards import ShardImage
from florence2ner.errors import UserError
from florence2ner.files import hold
from florence2ner.outputs.answers import Question
from florence2ner.outputs.shards import (
    ShardPlace,
    check_finished,
    finish_shard,
    join,
    name_of_shard,
    places_of,
    remove_files,
    shards_in,
)

CAPTION, BOXES = Question("<CAPTION>", "caption", is_text=True), Question("<OD>", "od", is_text=False)


@pytest.mark.parametrize(
    ("shard", "name"),
    [
        ("a/b/00012.tar", "00012"),
        ("https://h/x/7.tar?key=1", "7"),
        ("pipe:aws s3 cp s3://b/00.tar -", "00"),
        ("x.TGZ", "x"),
    ],
)
def test_captions_are_named_after_their_shard(shard: str, name: str) -> None:
    assert name_of_shard(shard) == name


def test_places_are_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a/0.tar and b/0.tar would both be written to .*0.jsonl: caption them in two"):
        places_of(["a/0.tar", "b/0.tar"], tmp_path, "jsonl")
    with pytest.raises(UserError, match=r"0.tar would be written over: choose another --output-dir"):
        places_of([str(tmp_path / "0.tar")], tmp_path, "tar")
    with pytest.raises(UserError, match=r"doesn't name a \.tar"):
        places_of(["pipe:cat x"], tmp_path, "tar")


def test_a_new_shard_has_images_and_captions_in_order(tmp_path: Path) -> None:
    place = ShardPlace("in/0.tar", tmp_path, "tar")
    rows = [
        {"path": "0/b.png", "task": "<CAPTION>", "caption": "b"},
        {"path": "0/a.jpg", "task": "<OD>", "caption": {"labels": ["x"]}},
        {"path": "0/a.jpg", "task": "<CAPTION>", "caption": "a"},
    ]
    place.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images: list[ImageRef] = [
        ShardImage.within("in/0.tar", name, name.encode()) for name in ("a.jpg", "b.png", "c.png")
    ]
    finish_shard(place, images, [CAPTION, BOXES], ".txt")
    with tarfile.open(place.finished) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert list(members) == ["a.jpg", "a.caption.txt", "a.od.json", "b.png", "b.caption.txt"]
    assert (members["a.jpg"], members["b.caption.txt"]) == (b"a.jpg", b"b\n")
    assert json.loads(members["a.od.json"]) == {"labels": ["x"]}
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def row(path: str, task: str = "<CAPTION>") -> str:
    return json.dumps({"path": path, "task": task, "caption": "a"}) + "\n"


def test_a_shard_that_cannot_be_finished_keeps_its_rows_and_leaves_nothing_else(tmp_path: Path) -> None:
    place = ShardPlace("in/0.tar", tmp_path, "tar")
    place.rows.write_text(row("0/a.png"))

    def images() -> Iterator[ImageRef]:
        yield ShardImage.within("in/0.tar", "a.png", b"a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish_shard(place, images(), [CAPTION], ".txt")
    assert [path.name for path in tmp_path.iterdir()] == ["0.unfinished.jsonl"]
    place.finished.mkdir()
    with pytest.raises(UserError, match=r"can't write .*0.tar: Is a directory"):
        finish_shard(place, [], [CAPTION], ".txt")
    assert {path.name for path in tmp_path.iterdir()} == {"0.tar", "0.unfinished.jsonl"}


def test_finished_captions_are_told_from_other_tasks_and_other_files(tmp_path: Path) -> None:
    place, output = ShardPlace("in/0.tar", tmp_path, "jsonl"), tmp_path / "captions.jsonl"
    assert shards_in(output, [CAPTION]) == set()
    for file in (place.finished, output):
        file.write_text(row("0/a.png") + row("0/sub/a.png") + row("1/a.png", "<OD>") + row("2/a.png")[:12])
    check_finished(place, [CAPTION, BOXES])
    assert shards_in(output, [CAPTION, BOXES]) == {"0", "1"}
    for file in (place.finished, output):
        file.write_text(row("0/a.png"))
    check_finished(place, [CAPTION])
    for check in (lambda: check_finished(place, [BOXES]), lambda: shards_in(output, [CAPTION, BOXES])):
        with pytest.raises(UserError, match=r"l has answers to <CAPTION>, and none to <OD>: .*--existing overwrite"):
            check()
    for other in ('{"id": 3}\n', "[1]\n", "words\n", "7"):
        place.finished.write_text(other)
        with pytest.raises(UserError, match=r"0.jsonl holds something else than captions"):
            check_finished(place, [CAPTION])
    place.finished.write_text("")  # of a shard without images
    check_finished(place, [CAPTION])


@pytest.mark.parametrize("after_old", [True, False])
def test_one_file_for_all_is_written_whole_and_keeps_what_is_not_finished(tmp_path: Path, after_old: bool) -> None:
    places = places_of([f"in/{n}.tar" for n in range(3)], tmp_path / "captions.unfinished", "jsonl")
    output = tmp_path / "link.jsonl"
    output.symlink_to("captions.jsonl")
    join(places, output, after_old=after_old)
    assert not output.exists(), "nothing is finished"
    (tmp_path / "captions.jsonl").write_text(row("9/a.png") + row("9/b.png")[:15])
    places[0].folder.mkdir()
    for number in (2, 0):
        places[number].finished.write_text(row(f"{number}/a.png"))
    places[1].rows.write_text(row("1/a.png"))
    join(places, output, after_old=after_old)
    old = row("9/a.png") if after_old else ""
    assert (tmp_path / "captions.jsonl").read_text() == old + row("0/a.png") + row("2/a.png")
    assert output.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"link.jsonl", "captions.jsonl", "captions.unfinished"}
    assert [path.name for path in places[0].folder.iterdir()] == ["1.unfinished.jsonl"]
    places[1].rows.rename(places[1].finished)
    join(places, output, after_old=True)
    assert output.read_text() == old + row("0/a.png") + row("2/a.png") + row("1/a.png")
    assert not places[0].folder.exists()


def test_what_another_run_works_on_is_not_removed(tmp_path: Path) -> None:
    places = places_of(["in/0.tar", "in/1.tar"], tmp_path / "out", "jsonl")
    for place in places:
        place.folder.mkdir(exist_ok=True)
        place.rows.touch()
        place.finished.touch()
    with hold(places[0].finished, "it"):
        remove_files(places, rows_alone=True)
    assert {path.name for path in places[0].folder.iterdir()} == {"0.jsonl", "0.unfinished.jsonl", "1.jsonl"}
    remove_files(places)
    assert not places[0].folder.exists()
