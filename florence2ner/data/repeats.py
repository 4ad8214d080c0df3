"""Repeats as kohya_ss writes them: images in a folder such as 10_cats are trained on ten times in each epoch."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from florence2ner.data.samples import Sample
from florence2ner.display import name_some

_NAME = re.compile(r"(\d+)_.*")


def apply_repeats(samples: Sequence[Sample], root: Path, *, wanted: bool) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples of the dataset in `root`, as often as their folders' names say where that is `wanted`.

    The outermost folder with such a name counts, from `root` itself on. Without any such name, or where repeats are not
    wanted, the samples are returned as they are. Also returns lines for the user: what is repeated, or could be.
    """
    top = root.resolve().name
    folders = [_folder(f"{top}/{sample.image.name}") for sample in samples]
    numbers = Counter(folder for folder in folders if folder)
    if not numbers:
        return tuple(samples), ["kohya_repeats: no folder is named as kohya names them, such as 10_cats"] * wanted
    if not wanted:
        names = name_some(sorted(numbers))
        return tuple(samples), [f"folders named as kohya names repeats count once without --kohya-repeats: {names}"]
    repeated = tuple(
        replace(sample, weight=sample.weight * _repeats(folder)) if folder else sample
        for sample, folder in zip(samples, folders, strict=True)
        if not folder or _repeats(folder)
    )
    counts = [f"{_repeats(folder)} x {number} in {folder}" for folder, number in sorted(numbers.items())]
    return repeated, [f"repeats in each epoch: {name_some(counts, 10)}"]


def _folder(path: str) -> str | None:
    """The outermost folder of an image whose name says how often it is repeated."""
    return next((name for name in path.split("/")[:-1] if _NAME.fullmatch(name)), None)


def _repeats(folder: str) -> int:
    return int(folder.partition("_")[0])
