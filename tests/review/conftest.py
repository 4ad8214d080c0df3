"""Fixtures of the review's tests."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def photos(tmp_path: Path, shapes: Path) -> Path:
    """A folder of six captioned images, to be changed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        shutil.copy(shapes / f"{number:04d}.png", folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red thing, number {number}\n")
    return folder
