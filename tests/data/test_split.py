"""What is trained on and what is held out: disjoint, whole, repeatable, and never both."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from florence2ner.config.options import ReadingOptions
from florence2ner.data.chance import chance
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.data.split import Lists, SplitRule, discover_split, hold_out
from florence2ner.errors import UserError
from tests.data.support import put


def test_a_seeded_split_is_disjoint_whole_and_repeatable(tmp_path: Path) -> None:
    for i in range(60):
        put(tmp_path / f"{i}.png", f"caption {i}")
    first, _ = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=1, ratio=0.25))
    again, _ = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=1, ratio=0.25))
    other, _ = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=2, ratio=0.25))
    assert first == again != other
    assert 8 <= len(first.eval) <= 23, "about a quarter"
    assert {*first.train, *first.eval} == set(discover_samples(tmp_path, "<CAPTION>").samples)
    assert len(first.train) + len(first.eval) == 60


@given(
    keys=st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40),
    more=st.sets(st.text(min_size=1, max_size=8), max_size=40),
    ratio=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_image_keeps_its_side_when_others_are_added(keys: set[str], more: set[str], ratio: float, seed: int) -> None:
    assume(
        any(chance(seed, "held out", key) < ratio for key in keys)
    )  # else the nearest is taken, so that there is one
    assume(any(chance(seed, "held out", key) >= ratio for key in keys))
    rule = SplitRule(seed=seed, ratio=ratio)

    def sides(names: set[str]) -> dict[str, bool]:
        found = Discovery(tuple(Sample(ImageRef(key, Path(key)), "<CAPTION>", (key,)) for key in sorted(names)))
        split, _ = hold_out(found, rule)
        return {s.image.key: True for s in split.eval} | {s.image.key: False for s in split.train}

    before, after = sides(keys), sides(keys | more)
    assert before.keys() == keys
    assert {key: after[key] for key in keys} == before


def test_a_number_of_images_is_held_out_exactly(tmp_path: Path) -> None:
    for i in range(30):
        put(tmp_path / f"{i}.png", f"caption {i}")
    for count in (1, 7, 29):
        split, _ = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1, count=count))
        assert (len(split.train), len(split.eval)) == (30 - count, count)
    with pytest.raises(
        UserError, match=r"eval_split_count leaves nothing to train on: of 30 images with captions, 30 are"
    ):
        discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1, count=31))


def test_all_samples_of_an_image_are_on_one_side() -> None:
    images = [ImageRef(f"{n}.png", Path(f"{n}.png")) for n in range(40)]
    found = Discovery(tuple(Sample(image, task, ("x",)) for image in images for task in ("<OD>", "<OCR>", "<CAPTION>")))
    split, _ = hold_out(found, SplitRule(seed=3, ratio=0.3))
    assert not {s.image.key for s in split.train} & {s.image.key for s in split.eval}
    assert len(split.train) + len(split.eval) == 120


def test_a_split_that_is_given_holds(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "eval/d"):
        put(tmp_path / f"{name}.png", name)
    lists = Lists(frozenset({"eval/d.png", "a.png", "gone.png"}), frozenset({"b.png"}))
    split, found = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1, lists=lists))
    assert [s.image.key for s in split.train] == ["a.png", "eval/d.png"]
    assert [s.image.key for s in split.eval] == ["b.png"]
    assert found.report() == [f"1 images are on neither side of the given split and are left out: {tmp_path / 'c.png'}"]
    lists = Lists(frozenset({"a.png"}), frozenset({"gone.png"}))
    with pytest.raises(UserError, match="split leaves nothing to evaluate on: of 4 images"):
        discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1, lists=lists))


def test_train_and_eval_folders_are_the_split(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    split, _ = discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1))
    assert [s.caption for s in split.train] == ["a"]
    assert [s.caption for s in split.eval] == ["b"]


def test_an_eval_folder_is_never_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    for rule in (SplitRule(seed=0, ratio=0.5), None):
        split, _ = discover_split(tmp_path, ReadingOptions(), rule=rule)
        assert [s.caption for s in split.train] == ["a"]


@pytest.mark.parametrize("train", ["", "train"])
def test_what_eval_links_to_is_never_trained_on(tmp_path: Path, train: str) -> None:
    for name in "abc":
        put(tmp_path / train / "all" / f"{name}.png", name)
    put(tmp_path / train / "chosen" / "d.png", "d")
    (tmp_path / "eval").symlink_to(tmp_path / train / "chosen")
    for name in ("a.png", "a.txt"):
        (tmp_path / train / "chosen" / name).symlink_to(f"../all/{name}")
    for rule in (SplitRule(seed=0, ratio=0.1), None):
        split, _ = discover_split(tmp_path, ReadingOptions(), rule=rule)
        assert [s.caption for s in split.train] == ["b", "c"]
        assert [s.caption for s in split.eval] == (["a", "d"] if rule else [])


def test_splits_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image with a caption"):
        discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1))
    put(tmp_path / "a.png", "a")
    with pytest.raises(UserError, match=r"leaves nothing to train on"):
        discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1))
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError, match=r"no image with a caption in .*eval"):
        discover_split(tmp_path, ReadingOptions(), rule=SplitRule(seed=0, ratio=0.1))
