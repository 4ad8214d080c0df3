"""Splits a dataset into samples to train on and samples held out for evaluation."""

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

from florence2ner.data.formats import CAPTION_EXTENSION, LeftOut, readable_images
from florence2ner.data.layouts.pairs import discover_samples, no_captions
from florence2ner.data.samples import Discovery, Sample, check_utf8
from florence2ner.errors import UserError

TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"


@dataclass(frozen=True)
class Split:
    """The samples to train on and those held out."""

    train: tuple[Sample, ...]
    eval: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.train) + len(self.eval)


def discover_split(
    root: Path, task_prompt: str, *, eval_ratio: float | None, seed: int, extension: str = CAPTION_EXTENSION
) -> tuple[Split, Discovery]:
    """The train and eval samples of the dataset in `root`, and what was discovered in it.

    Training samples come from `root/train` where it exists, else from `root`. Held out are the samples of `root/eval`
    where it exists, else a share `eval_ratio` of those found, chosen by `seed` alone; with `eval_ratio` None, nothing.
    Images in `root/eval`, or linked from there, are never trained on. `extension` is that of the caption files. Raises
    UserError when nothing is left to train or evaluate on, and for captions that are not UTF-8.
    """
    train_root, eval_root = root / TRAIN_FOLDER, root / EVAL_FOLDER
    folder = train_root if train_root.is_dir() else root
    found = discover_samples(root, task_prompt, folder=folder, extension=extension)
    held_out = None
    if eval_root.is_dir() and eval_ratio is not None:
        held_out = discover_samples(root, task_prompt, folder=eval_root, extension=extension)
    check_utf8(tuple(dict.fromkeys(found.not_utf8 + (held_out.not_utf8 if held_out else ()))))
    if not found.samples:
        raise no_captions(folder, found, extension)
    train = found.samples
    if eval_root.is_dir():
        hidden = {os.path.realpath(image) for image in readable_images(eval_root)}
        train = tuple(sample for sample in train if os.path.realpath(sample.image.path) not in hidden)
    if eval_ratio is None and train:
        return Split(train, ()), replace(found, samples=train)
    if held_out:
        if not train or not held_out.samples:
            empty = eval_root if train else root
            raise UserError(
                f"no image with a caption in {empty}: add some, or set eval_steps: none to train on everything"
            )
        return Split(train, held_out.samples), _merge(replace(found, samples=train), held_out)
    assert eval_ratio is not None
    return _hold_out(found.samples, eval_ratio, seed), found


def _hold_out(samples: tuple[Sample, ...], ratio: float, seed: int) -> Split:
    count = max(1, round(len(samples) * ratio))
    if count >= len(samples):
        raise UserError(
            f"eval_split_ratio {ratio} of {len(samples)} samples leaves nothing to train on: "
            "lower it, add images, or set eval_steps: none to train on everything"
        )
    held_out = set(random.Random(seed).sample(range(len(samples)), count))
    chosen = tuple(sample for i, sample in enumerate(samples) if i in held_out)
    kept = tuple(sample for i, sample in enumerate(samples) if i not in held_out)
    return Split(kept, chosen)


def _merge(first: Discovery, second: Discovery) -> Discovery:
    return Discovery(
        first.samples + second.samples,
        tuple(dict.fromkeys(first.images_without_caption + second.images_without_caption)),
        tuple(dict.fromkeys(first.captions_without_image + second.captions_without_image)),
        LeftOut(first.left_out.folders + second.left_out.folders, first.left_out.special + second.left_out.special),
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
    )
