"""What lies in a folder is paired and divided as training does it."""

import json
from pathlib import Path

import pytest

from florence2ner import UserError
from florence2ner.data.formats import load_plugin
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.inspection.folder import read_folder
from tests.data.support import root_of
from tests.inspection.support import findings, make_clean, names, put
from tests.support import without_roots_powers


@pytest.mark.parametrize("layout", ["flat", "train and eval", "eval only", "links"])
def test_sides_and_captions_are_those_of_training(tmp_path: Path, layout: str) -> None:
    if layout == "flat":
        make_clean(tmp_path)
    else:
        make_clean(tmp_path, split=True)
        put(tmp_path / "outside.png", "outside", seed=40)
    if layout == "eval only":
        (tmp_path / "train").rename(tmp_path / "more")
    if layout == "links":
        (tmp_path / "train" / "seen.png").symlink_to(tmp_path / "eval" / "9.png")
        (tmp_path / "train" / "seen.txt").write_text("held out")
    folder = read_folder(tmp_path, ".txt")
    split, _ = discover_split([root_of(tmp_path)], rule=SplitRule(seed=1, ratio=0.1))
    sides = {side: {i.image.key: i.caption for i in folder.items if i.side == side} for side in ("train", "eval")}
    train, held_out = ({s.image.key: s.caption for s in samples} for samples in (split.train, split.eval))
    if folder.has_eval:
        assert (sides["train"], sides["eval"]) == (train, held_out)
    else:
        assert (sides["train"], sides["eval"]) == (train | held_out, {})


def test_another_extension_is_read_and_that_of_images_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png", None, seed=1).with_suffix(".CAPTION").write_text("a caption")
    assert [item.caption for item in read_folder(tmp_path, ".caption").items] == ["a caption"]
    with pytest.raises(UserError, match="is for images"):
        read_folder(tmp_path, ".png")


def test_a_caption_file_that_images_share_is_named_once(tmp_path: Path) -> None:
    make_clean(tmp_path)
    put(tmp_path / "x.png", None, seed=30)
    put(tmp_path / "x.jpg", None, seed=31)
    (tmp_path / "x.txt").write_bytes(b"\xff")
    found = findings(tmp_path)
    assert names(found["not-utf8"]) == ["x.txt"]
    assert names(found["shared-caption"]) == ["x.txt"]


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    closed = make_clean(tmp_path) / "closed"
    closed.mkdir(mode=0)
    done = without_roots_powers("-m", "florence2ner", "inspect", tmp_path, "--json", "-")
    found = {finding["kind"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert [example["name"] for example in found["unreadable-folder"]["examples"]] == ["closed"]


@pytest.mark.skipif(load_plugin("pillow_heif"), reason="pillow-heif is installed")
def test_an_image_that_needs_a_plugin_is_named(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "phone.heic").write_bytes(b"whatever")
    found = findings(tmp_path)["needs-package"]
    assert names(found) == ["phone.heic"]
    assert "pip install pillow-heif" in found.advice
