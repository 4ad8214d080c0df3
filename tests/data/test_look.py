"""One look at an image: size, turn, a single colour, a hash that survives resizing, and why it can't be read."""

from pathlib import Path

from PIL import Image

from florence2ner.data.look import Look, look_at, look_at_all
from florence2ner.data.samples import ImageRef
from tests.inspection.support import picture, put

LIMIT = 10_000_000


def look(path: Path) -> Look:
    return look_at(ImageRef.at(path), max_pixels=LIMIT)


def differing_bits(a: Look, b: Look) -> int:
    return (a.hash ^ b.hash).bit_count()


def test_copies_that_look_the_same_have_nearly_the_same_hash(tmp_path: Path) -> None:
    original = picture(1, (640, 480))
    original.save(tmp_path / "a.png")
    original.save(tmp_path / "worse.jpg", quality=40)
    original.resize((200, 150)).save(tmp_path / "smaller.webp")
    first = look(tmp_path / "a.png")
    for name in ("worse.jpg", "smaller.webp"):
        other = look(tmp_path / name)
        assert differing_bits(first, other) <= 4
        assert other.digest != first.digest
    assert min(differing_bits(first, look(put(tmp_path / f"{n}.png", None, seed=n))) for n in range(2, 12)) > 8


def test_the_upright_picture_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = picture(3, (300, 200))
    shown.save(tmp_path / "upright.png")
    shown.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = look(tmp_path / "upright.png"), look(tmp_path / "turned.png")
    assert (upright.turned, turned.turned) == (False, True)
    assert upright.size == turned.size == (300, 200)
    assert differing_bits(upright, turned) <= 2


def test_a_single_colour_is_told_in_any_mode(tmp_path: Path) -> None:
    for number, mode in enumerate(("L", "RGB", "RGBA", "CMYK", "I;16")):
        path = tmp_path / f"{number}.tif"
        Image.new(mode, (90, 90), 70 if mode in ("L", "I;16") else (70, 80, 90, 255)[: len(mode)]).save(path)
        assert look(path).flat, mode
    assert not look(put(tmp_path / "a.png", None, seed=1)).flat


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert look(tmp_path / "empty.png") == Look(failure="empty file")
    large = look_at(ImageRef.at(put(tmp_path / "a.png", None, seed=1)), max_pixels=100)
    assert large.failure == "96 x 80 pixels, more than the limit of 100"


def test_many_threads_keep_the_order(tmp_path: Path) -> None:
    sizes = [(60 + number, 50) for number in range(40)]
    images = [ImageRef.at(put(tmp_path / f"{w}.png", None, seed=w, size=(w, h))) for w, h in sizes]
    assert [look.size for look in look_at_all(images, max_pixels=LIMIT, threads=3)] == sizes
    assert list(look_at_all([], max_pixels=LIMIT)) == []
    for _ in look_at_all(images, max_pixels=LIMIT, threads=2):
        break  # a loop that is left early ends the threads
