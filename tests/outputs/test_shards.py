"""Where captions of shards go: names, collisions, and a finished shard of images and captions."""

import json
import tarfile
from pathlib import Path

import pytest

from florence2ner.data.samples import ImageRef
from florence2ner.data.shards import ShardImage
from florence2ner.errors import UserError
from florence2ner.outputs.answers import Question
from florence2ner.outputs.shards import ShardPlace, finish_shard, name_of_shard, places_of


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
    questions = [Question("<CAPTION>", "caption", is_text=True), Question("<OD>", "od", is_text=False)]
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
    finish_shard(place, images, questions, ".txt")
    with tarfile.open(place.finished) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert list(members) == ["a.jpg", "a.caption.txt", "a.od.json", "b.png", "b.caption.txt"]
    assert (members["a.jpg"], members["b.caption.txt"]) == (b"a.jpg", b"b\n")
    assert json.loads(members["a.od.json"]) == {"labels": ["x"]}
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]
