"""Which samples are trained on and which are held out for evaluation."""

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from florence2ner.data.formats import CAPTION_EXTENSION, readable_images
from florence2ner.data.layouts.pairs import Discovery, caption_of, discover_samples
from florence2ner.data.samples import Sample
from florence2ner.errors import UserError

TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"


@dataclass(frozen=True)
class Split:
    """The samples to train on and those held out."""

    train: tuple[Sample, ...]
    eval: tuple[Sample, ...]


def discover_split(root: Path, task_prompt: str, *, eval_ratio: float | None, seed: int) -> tuple[Split, Discovery]:
    """The train and eval samples of a dataset, and all that was discovered on the way.

    `root/train` and `root/eval` are used when present; otherwise a share of `eval_ratio` is held out, chosen by `seed`
    alone. `eval_ratio` None holds nothing out. What is in `root/eval`, be it by a link, is never trained on. Raises
    UserError when that leaves nothing to train or evaluate on.
    """
    train_root, eval_root = root / TRAIN_FOLDER, root / EVAL_FOLDER
    found = discover_samples(train_root if train_root.is_dir() else root, task_prompt)
    if not found.samples:
        raise UserError(
            f"no image with a caption in {root}: each image needs a {CAPTION_EXTENSION} of the same name beside it "
            f"({len(found.images_without_caption)} images without a caption were found)"
        )
    train = found.samples
    if eval_root.is_dir():
        hidden = {os.path.realpath(image) for image in readable_images(eval_root)}
        train = tuple(sample for sample in train if os.path.realpath(sample.image) not in hidden)
    if eval_ratio is None and train:
        return Split(train, ()), replace(found, samples=train)
    if eval_root.is_dir():
        held_out = discover_samples(eval_root, task_prompt)
        if not train or not held_out.samples:
            empty = eval_root if train else root
            raise UserError(
                f"no image with a caption in {empty}: add some, or set eval_steps: none to train on everything"
            )
        return Split(train, held_out.samples), _merge(replace(found, samples=train), held_out)
    assert eval_ratio is not None
    count = max(1, round(len(found.samples) * eval_ratio))
    if count >= len(found.samples):
        raise UserError(
            f"eval_split_ratio {eval_ratio} of {len(found.samples)} samples leaves nothing to train on: "
            "lower it, add images, or set eval_steps: none to train on everything"
        )
    held_out_indices = set(random.Random(seed).sample(range(len(found.samples)), count))
    chosen = tuple(sample for i, sample in enumerate(found.samples) if i in held_out_indices)
    kept = tuple(sample for i, sample in enumerate(found.samples) if i not in held_out_indices)
    return Split(kept, chosen), found


def split_to_json(split: Split, root: Path) -> str:
    """Which images are trained on and which are held out, relative to `root`; `read_split` reads it back."""
    names = {"dataset_path": str(root.resolve())} | {
        part: [sample.image.relative_to(root).as_posix() for sample in samples]
        for part, samples in (("train", split.train), ("eval", split.eval))
    }
    text = json.dumps(names, indent=1, ensure_ascii=False) + "\n"
    # Bytes of a name that are not UTF-8 are lone surrogates in Python, which no file can hold but escaped.
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):04x}", text)


def read_split(path: Path, root: Path, task_prompt: str) -> Split:
    """The split that a run wrote, with the captions as they are now. Raises UserError when a file of it is gone."""
    names = json.loads(path.read_text(encoding="utf-8"))

    def read(part: str) -> tuple[Sample, ...]:
        return tuple(Sample(image, task_prompt, caption_of(image)) for image in (root / name for name in names[part]))

    return Split(read("train"), read("eval"))


def drop_overlong(split: Split, count_tokens: Callable[[Sequence[str]], Sequence[int]], limit: int) -> Split:
    """The split without the samples whose caption has more than `limit` tokens.

    Raises UserError when that leaves nothing to train or evaluate on.
    """

    def fitting(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        lengths = count_tokens([sample.caption or "" for sample in samples]) if samples else []
        return tuple(sample for sample, length in zip(samples, lengths, strict=True) if length <= limit)

    kept = Split(fitting(split.train), fitting(split.eval))
    if not kept.train or (split.eval and not kept.eval):
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return kept


def _merge(first: Discovery, second: Discovery) -> Discovery:
    return Discovery(
        first.samples + second.samples,
        tuple(dict.fromkeys(first.images_without_caption + second.images_without_caption)),
        tuple(dict.fromkeys(first.captions_without_image + second.captions_without_image)),
        tuple(dict.fromkeys(first.unreadable_folders + second.unreadable_folders)),
    )
