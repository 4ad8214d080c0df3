"""What the tests of the inspection share: a dataset without a fault, and an inspection of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from florence2ner import InspectConfig
from florence2ner.display import Display
from florence2ner.inspection.findings import Finding, Inspection
from florence2ner.inspection.inspect import look

SIZE = (96, 80)
CAPTIONS = (
    "a dog on a beach",
    "two boats near the pier",
    "snow covers an old mill",
    "children play chess outdoors",
    "somebody repairs a bicycle",
    "red tulips before a window",
    "the night train leaves",
    "an empty stadium at dawn",
    "bread cools beside the oven",
    "his guitar lacks one string",
    "rain falls into the harbour",
    "her map shows every island",
)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of soft patches of colour, unlike that of any other seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, caption: str | None, *, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """Write the picture of a seed, with a caption beside it unless that is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def make_clean(root: Path, *, split: bool = False, seed: int = 0) -> Path:
    """A dataset in which there is nothing to find; with `split`, in train/ and eval/."""
    for number, caption in enumerate(CAPTIONS):
        put(root / _folder(number, split) / f"{number}.png", caption, seed=seed + number)
    return root


def _folder(number: int, split: bool) -> str:
    return "" if not split else "eval" if number > 8 else "train"


def inspected(dataset_path: object, **settings: object) -> Inspection:
    return look(InspectConfig.model_validate({"dataset_path": dataset_path} | settings), Display(is_main=False))


def findings(dataset_path: object, **settings: object) -> dict[str, Finding]:
    """What is found, by kind."""
    return {finding.kind: finding for finding in inspected(dataset_path, **settings).findings}


def names(finding: Finding) -> list[str]:
    return [example.name for example in finding.examples]


def figures(dataset_path: object, **settings: object) -> dict[str, str]:
    """The figures in words, by name."""
    return {figure.name: figure.words for figure in inspected(dataset_path, **settings).figures}
