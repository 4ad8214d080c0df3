"""Decoding: the limit of pixels, what is applied to every picture, and why a file is none. No torch is imported for it.

The pixels of every kind of file are in test_images.py.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from florence2ner.data.pictures import ImageError, load_image
from florence2ner.data.samples import ImageRef
from tests.data.support import put


def test_the_limit_of_pixels_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    for pillows in (5000, 100):  # Pillow would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_image(ImageRef.at(tmp_path / "a.png"), max_pixels=8000).size == (100, 80)
        assert pillows == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"^100 x 80 pixels, more than the limit of 7999$"):
        load_image(ImageRef.at(tmp_path / "a.png"), max_pixels=7999)


def test_orientation_and_transparency_are_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright, the first row becomes the last column
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(ImageRef.at(tmp_path / "turned.png"))
    assert upright.size == (2, 3)
    assert upright.getpixel((1, 0)) == (255, 0, 0)
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(ImageRef.at(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)


def test_bad_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    whole = put(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-40])
    for name, reason in [
        ("empty.png", "empty file"),
        ("text.jpg", "not an image"),
        ("cut.jpg", "[Tt]runcated"),
        ("none.png", "No such file"),
    ]:
        with pytest.raises(ImageError, match=reason):
            load_image(ImageRef.at(tmp_path / name))


def test_decoding_imports_no_torch() -> None:
    code = "import sys, florence2ner.data.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
