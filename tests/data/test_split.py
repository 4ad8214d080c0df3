"""What is trained on and what is held out: disjoint, whole, repeatable, and never both."""

from pathlib import Path

import pytest

from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.split import discover_split
from florence2ner.errors import UserError
from tests.data.support import put


def test_a_seeded_split_is_disjoint_whole_and_repeatable(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / f"{i}.png", f"caption {i}")
    first, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=1)
    again, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=1)
    other, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.25, seed=2)
    assert first == again != other
    assert (len(first.train), len(first.eval)) == (15, 5)
    assert {*first.train, *first.eval} == set(discover_samples(tmp_path, "<CAPTION>").samples)


def test_train_and_eval_folders_are_the_split(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    assert [s.caption for s in split.train] == ["a"]
    assert [s.caption for s in split.eval] == ["b"]


def test_an_eval_folder_is_never_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a")
    put(tmp_path / "eval" / "b.png", "b")
    for ratio in (0.5, None):
        split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=ratio, seed=0)
        assert [s.caption for s in split.train] == ["a"]


@pytest.mark.parametrize("train", ["", "train"])
def test_what_eval_links_to_is_never_trained_on(tmp_path: Path, train: str) -> None:
    for name in "abc":
        put(tmp_path / train / "all" / f"{name}.png", name)
    put(tmp_path / train / "chosen" / "d.png", "d")
    (tmp_path / "eval").symlink_to(tmp_path / train / "chosen")
    for name in ("a.png", "a.txt"):
        (tmp_path / train / "chosen" / name).symlink_to(f"../all/{name}")
    for ratio in (0.1, None):
        split, _ = discover_split(tmp_path, "<CAPTION>", eval_ratio=ratio, seed=0)
        assert [s.caption for s in split.train] == ["b", "c"]
        assert [s.caption for s in split.eval] == (["a", "d"] if ratio else [])


def test_splits_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image with a caption"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    put(tmp_path / "a.png", "a")
    with pytest.raises(UserError, match=r"leaves nothing to train on"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError, match=r"no image with a caption in .*eval"):
        discover_split(tmp_path, "<CAPTION>", eval_ratio=0.1, seed=0)
