"""What split.json remembers of a run's images and captions, and what is said when they are others later."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.layouts.choice import discover
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.samples import merge
from florence2ner.data.split import Lists, Split, SplitRule, discover_split
from florence2ner.data.split_file import Contents, images_trained_on, read_lists, read_split, split_to_json
from florence2ner.errors import UserError
from tests.data.support import put, root_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcdef":
        put(tmp_path / "data" / f"{name}.png", name)
    return tmp_path / "data"


@pytest.fixture
def split(root: Path) -> Split:
    samples = discover_samples(root, "<CAPTION>").samples
    return Split(samples[:4], samples[4:])


def test_it_holds_names_and_comes_back(root: Path, split: Split, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(split_to_json(split, [root_of(root)], Contents.of(split, {"a.png": "digest"})))
    written = json.loads(file.read_text())
    assert (written["train"], written["eval"]) == (["a.png", "b.png", "c.png", "d.png"], ["e.png", "f.png"])
    assert images_trained_on(file) == {root / key for key in written["train"]}
    read, contents = read_split(file, [root_of(root)], discover_samples(root, "<CAPTION>"))
    assert read == split
    assert contents.images == {"a.png": "digest"} | {f"{n}.png": (root / f"{n}.png").stat().st_size for n in "bcdef"}


def test_what_is_gone_is_named_together_but_for_what_was_never_readable(
    root: Path, split: Split, tmp_path: Path
) -> None:
    file = tmp_path / "split.json"
    file.write_text(split_to_json(split, [root_of(root)], Contents.of(split, {})))
    for name in ("a.png", "b.txt", "c.png", "c.txt", "e.png"):
        (root / name).unlink()

    def read(*unreadable: str) -> Split:
        return read_split(file, [root_of(root)], discover_samples(root, "<CAPTION>"), unreadable=unreadable)[0]

    with pytest.raises(
        UserError, match=r"^4 images or their captions are gone, .*a.png, .*b.png, .*c.png and 1 more; b"
    ):
        read()
    with pytest.raises(UserError, match=r"^1 images or their captions are gone, .*b.png; bring them back"):
        read("a.png", "c.png", "e.png")
    put(root / "b.png", "b")
    again = read("a.png", "c.png", "e.png")
    assert [sample.image.key for sample in again.train] == [sample.image.key for sample in split.train]
    assert [sample.caption for sample in again.train] == ["", "b", "", "d"]


def test_what_has_changed_is_told_by_digest_or_size(root: Path, split: Split) -> None:
    digests = {"a.png": "1", "b.png": "2"}
    before = Contents.of(split, digests)
    assert (
        before.changed_images(split, digests)
        == before.changed_images(split, {})
        == before.changed_captions(split)
        == []
    )
    (root / "c.png").write_bytes((root / "c.png").read_bytes() + b" ")
    (root / "d.png").unlink()
    put(root / "e.png", "another")
    now = discover_samples(root, "<CAPTION>").samples
    later = Split(now[:3], now[3:])
    assert before.changed_images(later, digests | {"b.png": "3"}) == ["b.png", "c.png"]
    assert before.changed_images(later, {}) == ["c.png"], "without a cache, digests can't be compared"
    assert before.changed_captions(later) == ["e.png"]


def test_an_image_with_several_captions_comes_back_with_all_of_them(root: Path, tmp_path: Path) -> None:
    (root / "b.txt").write_text("one\ntwo\nthree\n")
    found = discover_samples(root, "<CAPTION>", lines="each")
    split = Split(found.samples[1:6], found.samples[:1])
    file = tmp_path / "split.json"
    file.write_text(split_to_json(split, [root_of(root)], Contents.of(split, {})))
    again, before = read_split(file, [root_of(root)], found)
    assert again == split
    (root / "b.txt").write_text("one\ntwo\n4\n")
    later, _ = read_split(file, [root_of(root)], discover_samples(root, "<CAPTION>", lines="each"))
    assert before.changed_captions(later) == ["b.png"]
    (root / "b.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"^1 images or their captions are gone, .*/b.png; bring"):
        read_split(file, [root_of(root)], discover_samples(root, "<CAPTION>", lines="each"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"must be JSON with lists of image paths below the dataset"),
        ('{"train": ["a.png"]}', r"must be JSON with lists"),
        ('{"train": "a.png", "eval": ["b.png"]}', r"must be JSON with lists"),
        ('{"train": [1], "eval": ["b.png"]}', r"must be JSON with lists"),
        ('{"train": ["a.png", "b.png"], "eval": ["b.png"]}', r"has 1 images on both sides: b.png"),
    ],
)
def test_a_split_that_is_none_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_lists(file)
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_lists(tmp_path / "none.json")


def test_the_split_of_a_run_can_be_given_to_another(root: Path, split: Split, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(split_to_json(split, [root_of(root)], Contents.of(split, {})))
    lists = read_lists(file)
    again, _ = discover_split([root_of(root)], rule=SplitRule(seed=5, ratio=0.5, lists=lists))
    assert again == split
    file.write_text('{"train": ["b.png"], "eval": ["a.png"]}')
    assert read_lists(file) == Lists(frozenset({"b.png"}), frozenset({"a.png"}))


def test_several_roots_and_their_weights_come_back(tmp_path: Path) -> None:
    for name in ("photos/a", "photos/b", "x/photos/a", "x/photos/c"):
        put(tmp_path / f"{name}.png", name)
    roots = [
        Root(tmp_path / "photos", ReadingOptions(), 2.5, "photos"),
        Root(tmp_path / "x" / "photos", ReadingOptions(), 1.0, "x/photos"),
    ]
    found = merge([discover(root) for root in roots])
    split = Split(found.samples[:3], found.samples[3:])
    file = tmp_path / "split.json"
    file.write_text(split_to_json(split, roots, Contents.of(split, {})))
    assert images_trained_on(file) == {tmp_path / f"{name}.png" for name in ("photos/a", "photos/b", "x/photos/a")}
    (tmp_path / "x" / "photos" / "a.png").unlink()
    lighter = [replace(roots[0], weight=1.0), roots[1]]
    again, _ = read_split(file, lighter, merge([discover(root) for root in lighter]), unreadable=["x/photos/a.png"])
    assert [(s.image, s.weight) for s in again.train] == [(s.image, s.weight) for s in split.train]
