"""What tests of the data share: small pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[[200, 30, 40], [20, 160, 60]], [[30, 60, 190], [250, 250, 250]]], np.uint8)
PICTURE = COLOURS.repeat(16, 0).repeat(24, 1)  # (32, 48, 3): four flat fields


def put(path: Path, caption: str | None = None) -> Path:
    """Write a small picture, with a caption beside it unless that is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
