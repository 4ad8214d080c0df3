"""Splits a dataset into samples to train on and samples held out for evaluation."""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from florence2ner.config.options import ReadingOptions
from florence2ner.data.chance import chance
from florence2ner.data.formats import LeftOut, readable_images
from florence2ner.data.layouts.choice import choose_layout, discover, no_samples
from florence2ner.data.samples import Discovery, Sample, check_utf8
from florence2ner.errors import UserError

TRAIN_FOLDER, EVAL_FOLDER = "train", "eval"


@dataclass(frozen=True)
class Split:
    """The samples to train on and those held out."""

    train: tuple[Sample, ...]
    eval: tuple[Sample, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those of both sides."""
        return self.train + self.eval


@dataclass(frozen=True)
class Lists:
    """Keys of the images on both sides of a split that is given."""

    train: frozenset[str]
    eval: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Which images are held out where the dataset has no eval/ folder: by a list, a number or a share."""

    seed: int
    ratio: float
    count: int | None = None  # wins over `ratio`
    lists: Lists | None = None  # wins over both

    @property
    def setting(self) -> str:
        """The setting that the rule is made of, by name."""
        return "split" if self.lists else "eval_split_ratio" if self.count is None else "eval_split_count"


def discover_split(root: Path, options: ReadingOptions, *, rule: SplitRule | None) -> tuple[Split, Discovery]:
    """The train and eval samples of the dataset in `root`, and what was discovered in it.

    Training samples come from `root/train` where it exists, else from `root`. Held out are the samples of `root/eval`
    where it exists and no list is given, else those that the `rule` says; without a rule, none. Images in `root/eval`,
    or linked from there, are never trained on. Raises UserError when nothing is left to train or evaluate on, for
    captions that are not UTF-8, and as `discover` does.
    """
    layout = choose_layout(root, options)
    if rule and rule.lists:
        found = discover(root, options, layout=layout)
        check_utf8(found.not_utf8)
        if not found.samples:
            raise no_samples(root, found, options, layout)
        return hold_out(found, rule)
    train_root, eval_root = root / TRAIN_FOLDER, root / EVAL_FOLDER
    folder = train_root if train_root.is_dir() else root
    found = discover(root, options, folder=folder, layout=layout)
    held_out = None
    if eval_root.is_dir() and rule:
        held_out = discover(root, options, folder=eval_root, layout=layout)
    check_utf8(tuple(dict.fromkeys(found.not_utf8 + (held_out.not_utf8 if held_out else ()))))
    if not found.samples:
        raise no_samples(folder, found, options, layout)
    train = found.samples
    if eval_root.is_dir():
        hidden = {os.path.realpath(image) for image in readable_images(eval_root)}
        train = tuple(sample for sample in train if os.path.realpath(sample.image.path) not in hidden)
    if rule is None and train:
        return Split(train, ()), replace(found, samples=train)
    if held_out:
        if not train or not held_out.samples:
            empty = eval_root if train else root
            raise UserError(
                f"no image with a caption in {empty}: add some, or set eval_steps: none to train on everything"
            )
        return Split(train, held_out.samples), _merge(replace(found, samples=train), held_out)
    assert rule is not None
    return hold_out(found, rule)


def number_held_out(keys: Collection[str], ratio: float, seed: int) -> int:
    """How many of the images with these keys are held out as a share of about `ratio`: one at least."""
    return max(1, sum(_place(key, seed) < ratio for key in keys))


def _place(key: str, seed: int) -> float:
    """Where an image stands between 0 and 1: held out are those below the share."""
    return chance(seed, "held out", key)


def hold_out(found: Discovery, rule: SplitRule) -> tuple[Split, Discovery]:
    """Divide what was found by the rule. Raises UserError where that leaves nothing on a side.

    All samples of an image are on one side. Which one depends on its key and the seed only: images that are added move
    no other, except that with a number they may take the places of some.
    """
    keys = list(dict.fromkeys(sample.image.key for sample in found.samples))
    if rule.lists:
        held_out = rule.lists.eval.intersection(keys)
        unlisted = held_out.union(rule.lists.train).symmetric_difference(keys).intersection(keys)
    else:
        count = number_held_out(keys, rule.ratio, rule.seed) if rule.count is None else rule.count
        held_out = frozenset(sorted(keys, key=lambda key: _place(key, rule.seed))[:count])
        unlisted = frozenset()
    chosen = tuple(sample for sample in found.samples if sample.image.key in held_out)
    kept = tuple(sample for sample in found.samples if sample.image.key not in held_out | unlisted)
    if not kept or not chosen:
        raise UserError(
            f"{rule.setting} leaves nothing to {'evaluate' if kept else 'train'} on: of {len(keys)} images with "
            f"captions, {len(held_out)} are held out; change it, add images, or set eval_steps: none to train on "
            "everything"
        )
    paths = tuple(sample.image.path for sample in found.samples if sample.image.key in unlisted)
    return Split(kept, chosen), replace(found, samples=kept + chosen, images_in_no_list=tuple(dict.fromkeys(paths)))


def _merge(first: Discovery, second: Discovery) -> Discovery:
    return Discovery(
        first.samples + second.samples,
        tuple(dict.fromkeys(first.images_without_caption + second.images_without_caption)),
        tuple(dict.fromkeys(first.captions_without_image + second.captions_without_image)),
        LeftOut(first.left_out.folders + second.left_out.folders, first.left_out.special + second.left_out.special),
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
    )
