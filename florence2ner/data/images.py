"""Decodes any image file to the pixels that the model takes."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.pictures import QUARTER_TURNS, decode, finish, reasons
from florence2ner.data.samples import ImageRef

# What was decoded at half its size is kept if its neighbouring pixels differ by no more than this (of 255) on average.
_MOST_DETAIL = 10


@dataclass(frozen=True)
class Picture:
    """A decoded image at the model's size, and its original size."""

    pixels: torch.Tensor  # uint8 (3, H, W) at the model's size
    size: tuple[int, int]  # (width, height) of the upright picture in the file, in pixels


def load_pixels(image: ImageRef, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Like `to_pixels(load_image(image), size)`, but faster; `size` is (height, width). Raises ImageError likewise.

    Colours and orientation are converted after resizing, when there are fewer pixels, and a large JPEG without fine
    detail is decoded at half its size. Where neither applies (an upright file without ICC profile, decoded in full),
    the pixels are equal.
    """
    with reasons(image):
        decoded = decode(image, max_pixels, at_least=size)
        if decoded.image.size != decoded.size and _detail(decoded.image) > _MOST_DETAIL:
            decoded = decode(image, max_pixels)
        turned = decoded.turn in QUARTER_TURNS
        width, height = decoded.size
        small = decoded.image.resize(size if turned else size[::-1], Image.Resampling.BICUBIC, decoded.box)
        return Picture(to_pixels(finish(small, decoded), size), (height, width) if turned else (width, height))


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Resize an RGB picture to `size` = (height, width), bicubic, ignoring the aspect ratio. Returns uint8 (3, H, W).

    This is the resizing of the Florence-2 processor. Its rescaling and normalisation are left to
    `VisionEncoder.normalise` on the device: uint8 is a quarter of the bytes to transfer.
    """
    height, width = size
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    return rearrange(torch.from_numpy(array), "h w c -> c h w").contiguous()


def _detail(image: Image.Image) -> float:
    """Mean absolute difference of neighbouring pixels (0 to 255), over every 16th row and every 16th column."""
    rows = image.resize((image.width, max(1, image.height // 16)), Image.Resampling.NEAREST)
    columns = image.resize((max(1, image.width // 16), image.height), Image.Resampling.NEAREST)
    across = np.abs(np.diff(np.asarray(rows, np.int16), axis=1)).mean()
    down = np.abs(np.diff(np.asarray(columns, np.int16), axis=0)).mean()
    return float(across + down) / 2
