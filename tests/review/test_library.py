"""What there is in a folder, and what its captions hold."""

import shutil
import threading
from pathlib import Path

import pytest

from florence2ner import TrainConfig
from florence2ner.data.layouts.choice import discover
from florence2ner.errors import UserError
from tests.review.support import Opened


def test_images_have_the_captions_that_training_pairs_them_with(photos: Path) -> None:
    (photos / "sub").mkdir()
    for name in ("sub/1.png", "sub/2.JPG", "sub/no caption.png", ".hidden.png"):
        shutil.copy(photos / "0.png", photos / name)
    (photos / "sub" / "1.txt").write_text("one")
    (photos / "sub" / "2.TXT").write_text("two")
    (photos / "lost.txt").write_text("no image")
    library = Opened(photos).library
    found = {item.image: library.look(item.file).text for item in library.items}
    trained = discover(TrainConfig(dataset_path=photos).roots[0]).samples
    assert {name: text for name, text in found.items() if text} == {
        sample.image.key: sample.caption for sample in trained
    }
    assert found["sub/no caption.png"] == ""
    assert len(found) == 9


def test_images_that_need_a_package_are_not_shown_but_named(photos: Path, without_plugins: None) -> None:
    (photos / "0.png").rename(photos / "0.heic")
    library = Opened(photos).library
    assert [item.image for item in library.items] == [f"{number}.png" for number in range(1, 6)]
    assert library.left_out.packaged == [photos / "0.heic"]


def test_captions_are_read_one_by_one_and_that_can_be_stopped(photos: Path) -> None:
    library = Opened(photos).library
    stop = threading.Event()
    stop.set()
    library.read_all(stop)
    assert library.read == 0
    library.read_all(threading.Event())
    assert library.read == 6
    assert all(file.text for file in library.files)


@pytest.mark.parametrize(
    ("content", "text", "flags"),
    [
        (b"", "", ("empty",)),
        (b" .\n", ".", ("empty",)),
        (b"fine\n", "fine", ()),
        (b"\xef\xbb\xbffine\r\nthing", "fine\nthing", ()),
        (b"caf\xe9", "caf\u00e9", ("not_utf8",)),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9", ("not_utf8",)),
        (b"a <loc_1>", "a <loc_1>", ("special_tokens",)),
        (b"x" * 1_000_001, "", ("unreadable",)),
    ],
)
def test_what_is_odd_about_a_caption(photos: Path, content: bytes, text: str, flags: tuple[str, ...]) -> None:
    (photos / "0.txt").write_bytes(content)
    library = Opened(photos).library
    found = library.look(0)
    assert (found.text, library.files[0].flags) == (text, flags)


def test_a_folder_in_the_place_of_a_caption_is_not_read(photos: Path) -> None:
    (photos / "0.txt").unlink()
    (photos / "0.txt").mkdir()
    opened = Opened(photos)
    assert opened.library.files[0].name == "0.txt"
    assert opened.library.look(0).problem == "unreadable"
    with pytest.raises(UserError, match=r"0\.txt can't be changed"):
        opened.edit("0.png", "text")


def test_locations_are_fine_in_answers_about_places(photos: Path) -> None:
    (photos / "0.txt").write_text("car<loc_1><loc_2><loc_3><loc_4>")
    library = Opened(photos, task_prompt="<OD>").library
    library.look(0)
    assert library.files[0].flags == ()
