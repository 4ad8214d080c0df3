"""Equal files: all of them are found, and nothing that only looks like one."""

import random
from pathlib import Path

from florence2ner.data.duplicates import equal_files
from florence2ner.data.samples import ImageRef


def test_files_are_equal_that_have_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    large = rng.randbytes(20_000)
    contents = {
        "a": large,
        "b": large[:-1] + b"x",
        "c": b"x" + large[1:],  # only the beginning is another, far from the end
        "d": large,
        "e": b"short",
        "f": b"short",
        "g": b"",
        "h": b"",
        "i": large,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    images = [ImageRef.below(tmp_path, tmp_path / name) for name in [*contents, "gone", "also-gone", "a"]]
    groups = [[image.key for image in group] for group in equal_files(images)]
    assert sorted(groups) == [["a", "d", "i"], ["e", "f"]]
