"""Any image file -> an upright sRGB picture, or a clear error."""

import io
import itertools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
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
_QUARTER_TURNS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
_DRAFT_MARGIN = 1.9  # a JPEG decoded at half its size keeps this many times the size it is squashed to,
_MOST_DETAIL = 10  # and neighbouring pixels differ by no more than this (of 255) on average
_SRGB = ImageCms.createProfile("sRGB")
_one_thread = threading.Lock()


class ImageError(Exception):
    """The file is not a picture that can be read; the message says why, without the path."""


@dataclass(frozen=True)
class Picture:
    """What the model sees of a file, and the size in which a person sees it."""

    pixels: torch.Tensor  # uint8 (3, height, width) of the model
    size: tuple[int, int]  # (width, height) of the upright picture in the file, in pixels


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image  # 8-bit L, RGB or CMYK, opaque, as it lies in the file
    box: tuple[float, float, float, float]  # the part of `image` that shows the picture: all but a fraction of a pixel
    size: tuple[int, int]  # (width, height) in the file
    turn: Image.Transpose | None  # what sets it upright
    profile: bytes | None  # ICC


def load_image(image: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to sRGB in full size: as EXIF turns it, transparency over white, 16 bits cut to 8.

    Of an animation the first frame. Raises ImageError, and nothing else, for a file that is missing, truncated, not an
    image, not a regular file, or of more than `max_pixels` pixels (those are never decoded).
    """
    with _reasons(image):
        decoded = _decode(image, max_pixels)
        return _finish(decoded.image, decoded)


def load_pixels(image: ImageRef, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """`to_pixels(load_image(path), size)`, sooner: colours and orientation are seen to after the squash.

    A large JPEG is decoded at half its size, unless it shows fine detail, where that would be seen. Otherwise, for a
    file that has no ICC profile and lies upright, the two are equal. Raises ImageError alike.
    """
    with _reasons(image):
        decoded = _decode(image, max_pixels, at_least=size)
        if decoded.image.size != decoded.size and _detail(decoded.image) > _MOST_DETAIL:
            decoded = _decode(image, max_pixels)
        turned = decoded.turn in _QUARTER_TURNS
        width, height = decoded.size
        small = decoded.image.resize(size if turned else size[::-1], Image.Resampling.BICUBIC, decoded.box)
        return Picture(to_pixels(_finish(small, decoded), size), (height, width) if turned else (width, height))


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Squash an RGB picture to `size` = (height, width), bicubic. Returns uint8 (3, height, width).

    This is the resize of the Florence-2 processor; `Captioner` does its rescaling and normalisation on the device, so
    that a quarter of the bytes travels.
    """
    height, width = size
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    return rearrange(torch.from_numpy(array), "h w c -> c h w").contiguous()


@contextmanager
def _reasons(image: ImageRef) -> Iterator[None]:
    """Turn whatever goes wrong with an image into an ImageError."""
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
    except OSError as error:  # its whole text would name the path
        raise ImageError(error.strerror or str(error) or type(error).__name__) from None
    except Exception as error:  # decoders of broken files raise almost anything
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow without its own limit of pixels and without warnings; both are global, hence one thread at a time."""
    with _one_thread, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _open(source: ImageRef) -> Iterator[Image.Image]:
    """Open an image, of which only the header is read. Runs no program."""
    with source.open() as file:
        if not file.read(1):
            raise ImageError("empty file")
        file.seek(0)
        for plugin in sorted({*PLUGINS.values()}):
            load_plugin(plugin)
        with _quiet_pillow():
            image = Image.open(file)
        with image:
            if image.format == "EPS":  # Pillow would have Ghostscript run it
                raise UnidentifiedImageError
            yield image


def _decode(source: ImageRef, max_pixels: int, at_least: tuple[int, int] | None = None) -> _Decoded:
    """Decode an image: a JPEG at half its size where that leaves enough for `at_least` = (height, width)."""
    with _open(source) as image:
        width, height = size = image.size
        if width * height > max_pixels:
            raise ImageError(f"{width} x {height} pixels, more than the limit of {max_pixels}")
        turn = None
        with suppress(Exception), _quiet_pillow():  # broken EXIF says nothing about the picture
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            turn = None if image.format == "TIFF" else _TURNS.get(orientation)  # Pillow turns TIFFs itself
        box = (0.0, 0.0, float(width), float(height))
        if at_least and min(size) / 2 >= _DRAFT_MARGIN * max(at_least):
            _, box = image.draft(None, (width // 2, height // 2)) or (None, box)
        return _Decoded(_to_opaque(_to_8_bits(image)), box, size, turn, image.info.get("icc_profile"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16 bits lose the lower 8, as Pillow does itself with 16-bit colour; other pictures pass as they are.

    32-bit whole numbers count as 16-bit if they fit, or else from 0 to their maximum; floats from 0 to 1 or to 255.
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
    if (clear := image.info.get("transparency")) is not None:  # the value that is transparent
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8)))
    return grey


def _to_opaque(image: Image.Image) -> Image.Image:
    """An 8-bit picture as L, RGB or CMYK, transparency over white."""
    image.load()
    base = image.mode if image.mode == "CMYK" else "L" if Image.getmodebase(image.mode) == "L" else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == base else image.convert(base)
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert(base)


def _finish(image: Image.Image, decoded: _Decoded) -> Image.Image:
    """The picture, or the picture squashed, in sRGB and upright."""
    if decoded.profile and (transform := _to_srgb(decoded.profile, image.mode)):
        image = transform.apply(image.convert(transform.input_mode))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if decoded.turn is None else image.transpose(decoded.turn)


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an ICC profile; None where the profile is broken or changes (next to) nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            mode = "RGB"  # grey levels of a colour space
        transform = ImageCms.ImageCmsTransform(source, ImageCms.ImageCmsProfile(_SRGB), mode, "RGB")
        bands = Image.getmodebands(mode)
        levels = bytes(itertools.chain(*itertools.product(range(0, 256, 51), repeat=bands)))
        probe = Image.frombytes(mode, (len(levels) // bands, 1), levels)
        change = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except Exception:  # a picture with a broken profile is still a picture
        return None
    return transform if np.abs(change).max() > 2 else None


def _detail(image: Image.Image) -> float:
    """Mean difference of neighbouring pixels, over each 16th row and column."""
    rows = image.resize((image.width, max(1, image.height // 16)), Image.Resampling.NEAREST)
    columns = image.resize((max(1, image.width // 16), image.height), Image.Resampling.NEAREST)
    across = np.abs(np.diff(np.asarray(rows, np.int16), axis=1)).mean()
    down = np.abs(np.diff(np.asarray(columns, np.int16), axis=0)).mean()
    return float(across + down) / 2
