"""Decodes any image file to an upright sRGB picture. Imports no torch."""

import io
import itertools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.formats import PACKAGES, PLUGINS, load_plugin
from florence2ner.data.samples import ImageRef

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
# A JPEG is decoded at half its size only if that is still this many times the size it is resized to.
_DRAFT_MARGIN = 1.9
_SRGB = ImageCms.createProfile("sRGB")
_one_thread = threading.Lock()


class ImageError(Exception):
    """The file can't be read as a picture. The message says why, without the path."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file whose colours and orientation `finish` converts, here or after resizing."""

    image: Image.Image  # 8-bit L, RGB or CMYK, opaque, not yet turned upright
    box: tuple[float, float, float, float]  # the picture within `image`: at half size, its edge may be a partial pixel
    size: tuple[int, int]  # (width, height) in the file, before turning
    turn: Image.Transpose | None  # the transposition that turns it upright
    profile: bytes | None  # the ICC profile


def load_image(image: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to sRGB in full size, turned as EXIF says, over white where transparent, with 8 bits.

    An animation gives its first frame. Raises ImageError, and nothing else, for a file that is missing, truncated, not
    an image, not a regular file, or has more than `max_pixels` pixels (it is then not decoded).
    """
    with reasons(image):
        decoded = decode(image, max_pixels)
        return finish(decoded.image, decoded)


def read_size(image: ImageRef) -> tuple[tuple[int, int], int]:
    """(width, height) in pixels as stored in the file, and how EXIF turns that: 1 not at all, 2 to 8 see `_TURNS`.

    Reads the file's header only. Raises ImageError, and nothing else, for a file without one.
    """
    with reasons(image), _open(image) as opened:
        orientation = _orientation(opened)
        turned = opened.format == "TIFF" and _TURNS.get(orientation) in QUARTER_TURNS  # Pillow says the upright size
        return (opened.size[::-1] if turned else opened.size), orientation


@contextmanager
def reasons(image: ImageRef) -> Iterator[None]:
    """A context manager that turns every exception into an ImageError with a reason."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        plugin = PLUGINS.get(image.suffix)
        needed = (
            f"needs the Python package {PACKAGES.get(plugin, plugin)}" if plugin and not load_plugin(plugin) else ""
        )
        raise ImageError(needed or "not an image that can be read") from None
    except OSError as error:  # str(error) would contain the path
        raise ImageError(error.strerror or str(error) or type(error).__name__) from None
    except Exception as error:  # on broken files, decoders raise almost anything
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """A context manager without Pillow's own pixel limit and warnings. Both are global: one thread at a time."""
    with _one_thread, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _open(source: ImageRef) -> Iterator[Image.Image]:
    """A context manager with the opened image, of which only the header is read. Starts no other program."""
    with source.open() as file:
        if not file.read(1):
            raise ImageError("empty file")
        file.seek(0)
        for plugin in sorted({*PLUGINS.values()}):
            load_plugin(plugin)
        with _quiet_pillow():
            image = Image.open(file)
        with image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise UnidentifiedImageError
            yield image


def decode(source: ImageRef, max_pixels: int, at_least: tuple[int, int] | None = None) -> Decoded:
    """Decode an image. With `at_least` = (height, width), a JPEG that is large enough is decoded at half its size."""
    with _open(source) as image:
        width, height = size = image.size
        if width * height > max_pixels:
            raise ImageError(f"{width} x {height} pixels, more than the limit of {max_pixels}")
        turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))  # Pillow turns TIFFs itself
        box = (0.0, 0.0, float(width), float(height))
        if at_least and image.format in ("JPEG", "MPO") and min(size) / 2 >= _DRAFT_MARGIN * max(at_least):
            _, box = image.draft(None, (width // 2, height // 2)) or (None, box)
        return Decoded(_to_opaque(_to_8_bits(image)), box, size, turn, image.info.get("icc_profile"))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an opened image; 1 for upright, and where it is missing, broken or unknown.

    A JPEG XL has an orientation of its own, by which its decoder has turned it, unless it is a JPEG that was packed.
    """
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1
    with suppress(Exception), _quiet_pillow():  # a picture with broken EXIF can still be fine
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert greyscale of more than 8 bits to 8; other pictures are returned as they are.

    16-bit values lose their lower 8 bits, as Pillow does itself with 16-bit colour. 32-bit integers are taken for
    16-bit values if they fit, else scaled by their maximum; floats are taken to range from 0 to 1, or to 255 if any
    exceeds 1.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0, neginf=0).clip(0, 255)
        bits = (values * (255 if values.max() <= 1 else 1)).round()
    elif image.mode == "I":
        values = values.astype(np.int64).clip(0)
        bits = values * 256 // max(2**16, int(values.max()) + 1)
    else:
        bits = values >> 8
    grey = Image.fromarray(bits.astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:  # the grey value that stands for transparent
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8)))
    return grey


def _to_opaque(image: Image.Image) -> Image.Image:
    """Convert an 8-bit picture to L, RGB or CMYK, with transparent parts over white."""
    image.load()
    base = image.mode if image.mode == "CMYK" else "L" if Image.getmodebase(image.mode) == "L" else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == base else image.convert(base)
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert(base)


def finish(image: Image.Image, decoded: Decoded) -> Image.Image:
    """Convert `image`, which is `decoded.image` or a resized copy, to sRGB and turn it upright."""
    if decoded.profile and (transform := _to_srgb(decoded.profile, image.mode)):
        image = transform.apply(image.convert(transform.input_mode))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if decoded.turn is None else image.transpose(decoded.turn)


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an ICC profile to sRGB; None where the profile is broken or makes no visible difference."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            mode = "RGB"  # a grey picture with a colour profile
        transform = ImageCms.ImageCmsTransform(source, ImageCms.ImageCmsProfile(_SRGB), mode, "RGB")
        bands = Image.getmodebands(mode)
        levels = bytes(itertools.chain(*itertools.product(range(0, 256, 51), repeat=bands)))
        probe = Image.frombytes(mode, (len(levels) // bands, 1), levels)
        change = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except Exception:  # a picture with a broken profile can still be fine
        return None
    return transform if np.abs(change).max() > 2 else None
