"""What a 12-megapixel JPEG costs, on one core.

A is plain Pillow, open, convert and resize; B is `load_pixels`, which also sees to orientation and profile. They take
turns, A B A B ..., and the ratio of their medians counts, since machines drift.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from skimage import data

from florence2ner.data.images import load_pixels
from florence2ner.data.samples import ImageRef

SIZE, TARGET = (4000, 3000), (768, 768)
SUBJECTS = ("astronaut", "coffee", "chelsea")
ROUNDS = 5


def measure(size: tuple[int, int] = SIZE, rounds: int = ROUNDS, **options: object) -> dict[str, float]:
    """Milliseconds per image on one core, plain and ours, and the ratio of ours to plain.

    `size` is (width, height) of the JPEGs; `options` go to Pillow's `save`, as `exif=` and `icc_profile=`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    milliseconds: dict[str, list[float]] = {"plain": [], "ours": []}
    try:
        with TemporaryDirectory() as folder:
            paths = [_write_photo(Path(folder, f"{name}.jpg"), name, size, options) for name in SUBJECTS]
            for _ in range(rounds + 1):
                for path in paths:
                    for name, load in (("plain", _plain), ("ours", _ours)):
                        milliseconds[name].append(_time(load, path))
    finally:
        torch.set_num_threads(threads)
    warm = {name: statistics.median(times[len(SUBJECTS) :]) for name, times in milliseconds.items()}
    return {"plain_ms": warm["plain"], "ours_ms": warm["ours"], "ratio": warm["ours"] / warm["plain"]}


def _write_photo(path: Path, name: str, size: tuple[int, int], options: dict[str, object]) -> Path:
    """A photograph enlarged, with the grain of a sensor, so that the file is as heavy as a camera's."""
    photo = np.asarray(Image.fromarray(getattr(data, name)()).resize(size, Image.Resampling.LANCZOS), np.float32)
    grain = np.random.default_rng(0).normal(0, 5, photo.shape)
    Image.fromarray((photo + grain).clip(0, 255).astype(np.uint8)).save(path, quality=92, **options)
    return path


def _plain(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        small = image.convert("RGB").resize(TARGET[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _ours(path: Path) -> torch.Tensor:
    return load_pixels(ImageRef.at(path), TARGET).pixels


def _time(load: Callable[[Path], torch.Tensor], path: Path) -> float:
    start = time.process_time()
    load(path)
    return (time.process_time() - start) * 1e3
