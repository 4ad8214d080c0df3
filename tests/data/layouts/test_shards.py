"""Tar shards as a layout: found by content, read into memory as far as there is room, and named by their root."""

from pathlib import Path

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.layouts import shards
from florence2ner.data.layouts.choice import choose_layout, discover
from florence2ner.errors import UserError
from tests.data.support import captioned, put, write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        write_shard(tmp_path / "shards" / f"{number}.tar", captioned(*(f"{number}-{image}" for image in range(3))))
    return tmp_path / "shards"


def test_a_folder_of_tar_files_is_shards_unless_it_holds_images(folder: Path) -> None:
    assert choose_layout(folder, ReadingOptions()) == "shards"
    found = discover(Root(folder, ReadingOptions()))
    assert [sample.image.key for sample in found.samples] == [
        f"{n}.tar/{n}-{k}.jpg" for n in range(2) for k in range(3)
    ]
    assert found.report() == ["the dataset is read as tar shards"]
    put(folder / "a.png", "a caption")
    assert choose_layout(folder, ReadingOptions()) == "files"


def test_samples_have_the_name_of_their_root(folder: Path) -> None:
    text = f"{folder}/{{1..0}}.tar"
    root = Root(Path(text), ReadingOptions(layout="shards"), name="held-out", shards=text)
    found = discover(root)
    assert [sample.image.key for sample in found.samples][:1] == ["held-out/1.tar/1-0.jpg"]
    assert found.report() == []


def test_more_than_fits_into_memory_is_left_out_and_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, kept in ((4, 4), (6, 6), (7, 6)):
        monkeypatch.setattr(shards, "AT_MOST", limit)
        found = shards.discover(str(folder), ReadingOptions())
        assert len(found.samples) == kept
        told = [f"only the first 4 samples of {folder} are used, as all of them are in memory"]
        assert found.report() == (told if limit == 4 else [])


def test_what_is_left_out_of_a_shard_is_told(folder: Path) -> None:
    write_shard(folder / "2.tar", {"alone.jpg": captioned("a")["a.jpg"]})
    (note,) = shards.discover(str(folder), ReadingOptions()).report()
    assert note.startswith("1 images have no caption and are left out: ")
    with pytest.raises(UserError, match="no image with a caption in the shards; 1 images have no caption"):
        shards.discover(str(folder / "2.tar"), ReadingOptions())
