"""What tests of the data share: small pictures, datasets by their folders, and how far boxes agree."""

import io
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.layouts.boxes import Box
from florence2ner.data.samples import Sample

COLOURS = np.array([[[200, 30, 40], [20, 160, 60]], [[30, 60, 190], [250, 250, 250]]], np.uint8)
PICTURE = COLOURS.repeat(16, 0).repeat(24, 1)  # (32, 48, 3): four flat fields


def put(path: Path, caption: str | None = None) -> Path:
    """Write a small picture, of another colour for each path, with a caption beside it unless that is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), tuple(zlib.crc32(str(path).encode()).to_bytes(4)[:3])).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


class Broken(Sequence[Sample]):
    """Samples of which none can be had: a bug, in whichever process asks for one."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("a bug")


def jpeg(name: str) -> bytes:
    """The file of a small picture, of another colour for each name."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), tuple(zlib.crc32(name.encode()).to_bytes(4)[:3])).save(file, "JPEG")
    return file.getvalue()


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar file with these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def captioned(*keys: str) -> dict[str, bytes]:
    """Members of a shard: a picture and its caption for each key."""
    return {
        name: content
        for key in keys
        for name, content in ((f"{key}.jpg", jpeg(key)), (f"{key}.txt", f"a caption of {key}".encode()))
    }


def root_of(folder: Path, options: ReadingOptions | None = None) -> Root:
    """A folder as the only root of a dataset."""
    return Root(folder, options or ReadingOptions())


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other))
    return shared / max(sum(areas) - shared, 1e-9)
