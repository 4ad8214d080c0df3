"""Any image file -> an upright RGB picture, or a clear error."""

import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(Exception):
    """The file is not a picture that can be read; the message says why, without the path."""


def load_image(path: Path) -> Image.Image:
    """Decode an image file to RGB: turned as its EXIF orientation says, transparency over white.

    Raises ImageError for a file that is missing, empty, truncated, of an unknown format or far too large.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageError("empty file" if path.stat().st_size == 0 else "not an image that can be read") from None
    except Exception as error:  # decoders of broken files raise almost anything
        raise ImageError(str(error) or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit greyscale: Pillow would clip it to 8 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Squash an RGB picture to `size` = (height, width), bicubic. Returns uint8 (3, height, width).

    This is the resize of the Florence-2 processor; `Captioner` does its rescaling and normalisation on the device, so
    that a quarter of the bytes travels.
    """
    height, width = size
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    return rearrange(torch.from_numpy(array), "h w c -> c h w").contiguous()
