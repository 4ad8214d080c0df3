"""What is trained on and what is held out: disjoint, whole, repeatable, and never both."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.chance import chance
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.data.split import Lists, SplitRule, discover_split, hold_out
from florence2ner.errors import UserError
from tests.data.support import put, root_of
from tests.inspection.support import picture
from tests.inspection.support import put as put_picture


def test_a_seeded_split_is_disjoint_whole_and_repeatable(tmp_path: Path) -> None:
    for i in range(60):
        put(tmp_path / f"{i}.png", f"caption {i}")
    first, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=1, ratio=0.25))
    again, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=1, ratio=0.25))
    other, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=2, ratio=0.25))
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
        split, _ = hold_out(found.samples, rule)
        return {s.image.key: True for s in split.eval} | {s.image.key: False for s in split.train}

    before, after = sides(keys), sides(keys | more)
    assert before.keys() == keys
    assert {key: after[key] for key in keys} == before


def test_a_number_of_images_is_held_out_exactly(tmp_path: Path) -> None:
    for i in range(30):
        put(tmp_path / f"{i}.png", f"caption {i}")
    for count in (1, 7, 29):
        split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1, count=count))
        assert (len(split.train), len(split.eval)) == (30 - count, count)
    with pytest.raises(
        UserError, match=r"eval_split_count leaves nothing to train on: of 30 images with captions, 30 are"
    ):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1, count=31))


def test_all_samples_of_an_image_are_on_one_side() -> None:
    images = [ImageRef(f"{n}.png", Path(f"{n}.png")) for n in range(40)]
    found = Discovery(tuple(Sample(image, task, ("x",)) for image in images for task in ("<OD>", "<OCR>", "<CAPTION>")))
    split, _ = hold_out(found.samples, SplitRule(seed=3, ratio=0.3))
    assert not {s.image.key for s in split.train} & {s.image.key for s in split.eval}
    assert len(split.train) + len(split.eval) == 120


def test_a_split_that_is_given_holds(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "eval/d"):
        put(tmp_path / f"{name}.png", name)
    lists = Lists(frozenset({"eval/d.png", "a.png", "gone.png"}), frozenset({"b.png"}))
    split, found = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1, lists=lists))
    assert [s.image.key for s in split.train] == ["a.png", "eval/d.png"]
    assert [s.image.key for s in split.eval] == ["b.png"]
    assert found.report() == [
        f"1 images are on neither side of the given split and are left out: {tmp_path / 'c.png'}",
        "the dataset is read as images with caption files beside them",
    ]
    lists = Lists(frozenset({"a.png"}), frozenset({"gone.png"}))
    with pytest.raises(UserError, match="split leaves nothing to evaluate on: of 4 images"):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1, lists=lists))


def test_train_and_eval_folders_are_the_split(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    assert [s.caption for s in split.train] == ["a"]
    assert [s.caption for s in split.eval] == ["b"]


def test_an_eval_folder_is_never_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    for rule in (SplitRule(seed=0, ratio=0.5), None):
        split, _ = discover_split([root_of(tmp_path)], rule=rule)
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
        split, _ = discover_split([root_of(tmp_path)], rule=rule)
        assert [s.caption for s in split.train] == ["b", "c"]
        assert [s.caption for s in split.eval] == (["a", "d"] if rule else [])


def test_splits_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image with a caption"):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    put(tmp_path / "a.png", "a")
    with pytest.raises(UserError, match=r"leaves nothing to train on"):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError, match=r"no image with a caption in .*eval"):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))


def test_several_roots_are_one_dataset(tmp_path: Path) -> None:
    for n in range(20):
        put(tmp_path / "photos" / f"{n}.png", f"photo {n}")
        put(tmp_path / "drawings" / f"{n}.png", f"drawing {n}")
    put(tmp_path / "more" / "train" / "x.png", "more")
    put(tmp_path / "more" / "eval" / "x.png", "held out")
    weights = {"photos": 2.0, "drawings": 1.0}
    roots = [Root(tmp_path / name, ReadingOptions(), weight, name) for name, weight in weights.items()]
    rule = SplitRule(seed=1, ratio=0.3)
    split, found = discover_split(roots, rule=rule)
    assert len({sample.image.key for sample in found.samples}) == 40
    assert {sample.weight for sample in split.train if sample.image.root == "photos"} == {2.0}
    alone, _ = discover_split([root_of(tmp_path / "drawings")], rule=rule)
    with_others = [sample.image.name for sample in split.eval if sample.image.root == "drawings"]
    assert with_others == [sample.image.name for sample in alone.eval], "an image keeps its side when roots are added"
    three, _ = discover_split([*roots, Root(tmp_path / "more", ReadingOptions(), 1.0, "more")], rule=rule)
    assert {s.caption for s in three.eval} == {s.caption for s in split.eval} | {"held out"}
    assert {s.caption for s in three.train} == {s.caption for s in split.train} | {"more"}


def test_an_eval_root_of_its_own_is_all_that_is_held_out(tmp_path: Path) -> None:
    for n in range(8):
        put(tmp_path / "photos" / f"{n}.png", f"photo {n}")
    put(tmp_path / "photos" / "eval" / "a.png", "of another split")
    put(tmp_path / "test" / "a.png", "test")
    roots, eval_roots = [Root(tmp_path / "photos", ReadingOptions(), 1, "photos")], [root_of(tmp_path / "test")]
    split, _ = discover_split(roots, rule=SplitRule(seed=1, ratio=0.3), eval_roots=eval_roots)
    assert [sample.caption for sample in split.eval] == ["test"]
    assert [sample.caption for sample in split.train] == [f"photo {n}" for n in range(8)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image with a caption in .*/empty"):
        discover_split(roots, rule=SplitRule(seed=1, ratio=0.3), eval_roots=[root_of(tmp_path / "empty")])


@given(
    groups=st.lists(st.integers(1, 4), min_size=3, max_size=20),
    ratio=st.floats(0.1, 0.9),
    count=st.one_of(st.none(), st.integers(1, 5)),
    seed=st.integers(0, 2**32 - 1),
)
def test_copies_are_on_one_side(groups: list[int], ratio: float, count: int | None, seed: int) -> None:
    images = [[ImageRef(f"{copy}/{g}.png", Path(f"{copy}/{g}.png")) for copy in range(n)] for g, n in enumerate(groups)]
    samples = [Sample(image, "<CAPTION>", ("x",)) for group in images for image in group]
    try:
        split, _ = hold_out(samples, SplitRule(seed=seed, ratio=ratio, count=count), [g for g in images if len(g) > 1])
    except UserError:  # all are on one side
        assume(False)
    sides = [{sample.image for sample in side} for side in (split.train, split.eval)]
    for group in images:
        assert sum(not side.isdisjoint(group) for side in sides) == 1
    if count:
        assert count <= len(split.eval) < count + max(groups)


def test_a_copy_of_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path / "train" / f"{name}.png", name)
    put(tmp_path / "eval" / "d.png", "d")
    (tmp_path / "train" / "b.png").write_bytes((tmp_path / "eval" / "d.png").read_bytes())
    split, found = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    assert [sample.caption for sample in split.train] == ["a", "c"]
    assert found.report() == [
        "the dataset is read as images with caption files beside them",
        f"1 images are copies of some that are evaluated on, and are not trained on: {tmp_path / 'train' / 'b.png'}",
    ]
    for name in "ac":
        (tmp_path / "train" / f"{name}.png").write_bytes((tmp_path / "eval" / "d.png").read_bytes())
    with pytest.raises(UserError, match="is evaluated on, too: nothing is left to train"):
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))


def near_duplicates(root: Path, count: int) -> None:
    """Pictures 0 to `count`, and beside each a JPEG of it."""
    for seed in range(count):
        put_picture(root / f"{seed}.png", f"{seed}", seed=seed)
        picture(seed).save(root / f"worse-{seed}.jpg", quality=60)
        (root / f"worse-{seed}.txt").write_text(f"{seed}")


def test_near_duplicates_are_on_one_side_where_that_is_asked_for(tmp_path: Path) -> None:
    near_duplicates(tmp_path, 8)
    for seed in range(12):
        split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=seed, ratio=0.3, similarity=4))
        assert {sample.caption for sample in split.train}.isdisjoint(sample.caption for sample in split.eval)
        put_picture(tmp_path / "new.png", "new", seed=100)
        more, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=seed, ratio=0.3, similarity=4))
        (tmp_path / "new.png").unlink()
        assert {*split.train} <= {*more.train}
        if len(split.eval) > 2:  # else they may be held out only because some must be
            assert {*split.eval} <= {*more.eval}
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.3))
    assert {sample.caption for sample in split.train} & {sample.caption for sample in split.eval}


def test_a_near_duplicate_of_what_is_in_eval_is_not_trained_on(tmp_path: Path) -> None:
    for seed in range(4):
        put_picture(tmp_path / "train" / f"{seed}.png", f"{seed}", seed=seed)
    put_picture(tmp_path / "eval" / "a.jpg", "a", seed=2, size=(60, 50))
    split, found = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1, similarity=4))
    assert [sample.caption for sample in split.train] == ["0", "1", "3"]
    assert "1 images are near duplicates of some that are evaluated on" in found.report()[-1]
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    assert len(split.train) == 4


def test_repeats_are_for_training(tmp_path: Path) -> None:
    for name in ("train/3_a/a", "train/5_b/b", "eval/7_c/c"):
        put(tmp_path / f"{name}.png", name)
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1), kohya_repeats=True)
    assert [sample.weight for sample in split.samples] == [3, 5, 1]


@pytest.mark.slow
def test_hundreds_of_thousands_of_files_are_split_in_seconds(tmp_path: Path) -> None:
    """Empty images, each with a caption; captions are links to a few files, which are made faster.

    `python -m tests.benchmarks.scale` does so with a million.
    """
    texts = [tmp_path / f"{number}.txt" for number in range(20)]
    for number, text in enumerate(texts):
        text.write_text(f"{number} things on a table")
    start = time.perf_counter()
    for number in range(100):
        folder = tmp_path / "data" / f"{number:03d}"
        folder.mkdir(parents=True)
        for image in range(1000):
            os.close(os.open(f"{folder}/{image}.jpg", os.O_CREAT))
            os.link(texts[image % 20], f"{folder}/{image}.txt")
    to_make = time.perf_counter() - start  # on a slow machine, or a busy one, both take longer
    program = [sys.executable, "-m", "tests.programs.splitting", str(tmp_path / "data")]
    run = subprocess.run(program, capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path / "data")
    figures = json.loads(run.stdout)
    assert figures["train"] + figures["eval"] == 100_000
    assert 9_500 < figures["eval"] < 10_500
    assert figures["seconds"] < max(12, 3 * to_make)
    assert figures["memory"] < 3e8
