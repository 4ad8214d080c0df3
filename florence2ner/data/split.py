"""Splits a dataset into samples to train on and samples held out for evaluation."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from florence2ner.config.roots import Root
from florence2ner.data.chance import chance
from florence2ner.data.duplicates import equal_files
from florence2ner.data.formats import readable_images
from florence2ner.data.layouts.choice import choose_layout, discover, folder_of, no_samples, with_layout
from florence2ner.data.repeats import apply_repeats
from florence2ner.data.samples import Discovery, ImageRef, Sample, check_utf8, merge
from florence2ner.data.similar import with_similar
from florence2ner.display import name_some
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
    similarity: int | None = (
        None  # bits of 64 by which hashes of near duplicates differ at most; None: only copies count
    )

    @property
    def setting(self) -> str:
        """The setting that the rule is made of, by name."""
        return "split" if self.lists else "eval_split_ratio" if self.count is None else "eval_split_count"


def discover_split(
    roots: Sequence[Root], *, rule: SplitRule | None, eval_roots: Sequence[Root] = (), kohya_repeats: bool = False
) -> tuple[Split, Discovery]:
    """The train and eval samples of a dataset, and what was discovered in its `roots`.

    Training samples of a root come from its train/ where that exists, else from all of it. Held out are the samples of
    its eval/ where that exists and no list is given, else those that the `rule` says; without a rule, none. With
    `eval_roots`, just their samples are held out. Images in an eval/, or linked from there, and copies of what is held
    out, or its near duplicates where the rule has a `similarity`, are never trained on. Raises UserError when nothing
    is left to train or evaluate on, for captions that are not UTF-8, and as `discover` does.
    """
    whole = bool(rule and rule.lists)
    roots = [with_layout(root) for root in roots]
    with_eval = [] if whole or eval_roots or not rule else [root for root in roots if folder_of("eval", root)]
    parts = [_read(root, None if whole else folder_of("train", root)) for root in roots]
    of_eval = [_read(root, folder_of("eval", root)) for root in with_eval]
    if rule:
        of_eval += [_read(root) for root in eval_roots]
    _check([*parts, *of_eval])
    divided: list[Discovery] = []  # by the rule
    apart: list[Discovery] = []  # from what is held out otherwise
    for part in parts:
        samples = part.found.samples if whole else _not_of_eval(part)
        samples, notes = apply_repeats(samples, part.root.path, wanted=kohya_repeats)
        found = replace(part.found, samples=samples, notes=(*part.found.notes, *notes))
        (apart if eval_roots or part.root in with_eval else divided).append(found)
    held_out = [part.found for part in of_eval]
    found = merge([*divided, *apart, *held_out])
    if rule is None:
        return Split(found.samples, ()), found
    train, chosen = merge(apart).samples, merge(held_out).samples
    images = [sample.image for sample in found.samples]
    copies = equal_files(images)
    if rule.similarity is not None:
        copies = with_similar(images, copies, rule.similarity)
    if divided:
        split, unlisted = hold_out(merge(divided).samples, rule, copies)
        train, chosen = train + split.train, chosen + split.eval
        found = replace(found, images_in_no_list=unlisted)
    train, note = _without_copies(train, chosen, copies, "copies" if rule.similarity is None else "near duplicates")
    if not train:
        raise UserError(
            f"every image of {name_some([root.path for root in roots])} is evaluated on, too: nothing is left to train"
        )
    return Split(train, chosen), replace(found, samples=train + chosen, notes=(*found.notes, *note))


def discover_held_out(roots: Sequence[Root]) -> Discovery:
    """What is held out in roots that are evaluated on as a whole. Raises UserError as `discover_split` does."""
    parts = [_read(root) for root in roots]
    _check(parts)
    return merge([part.found for part in parts])


@dataclass(frozen=True)
class _Part:
    """What was found in a folder of a root."""

    root: Root
    folder: Path
    layout: str
    found: Discovery


def _read(root: Root, folder: Path | None = None) -> _Part:
    """What is found in a folder of a root; None: in all of it."""
    folder = folder or root.path
    layout = choose_layout(root.path, root.options)
    return _Part(root, folder, layout, discover(root, folder=folder, layout=layout))


def _check(parts: Sequence[_Part]) -> None:
    """Raise UserError for captions that are not UTF-8, all in one go, and for a part without samples."""
    check_utf8(merge([part.found for part in parts]).not_utf8)
    for part in parts:
        if not part.found.samples:
            raise no_samples(part.folder, part.found, part.root.options, part.layout)


def _not_of_eval(part: _Part) -> tuple[Sample, ...]:
    """The samples of a part whose images are not in its root's eval/, nor linked from there."""
    folder = folder_of("eval", part.root)
    if not folder:
        return part.found.samples
    hidden = {os.path.realpath(image) for image in readable_images(folder)}
    kept = tuple(sample for sample in part.found.samples if os.path.realpath(sample.image.path) not in hidden)
    if not kept:
        raise UserError(f"all images of {part.root.path} are in {folder}: nothing is left to train on")
    return kept


def _without_copies(
    train: tuple[Sample, ...], held_out: tuple[Sample, ...], copies: Sequence[Sequence[ImageRef]], name: str
) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples to train on that are no copies of what is held out, and a line about the others, called `name`."""
    chosen = {sample.image.key for sample in held_out}
    groups = [{image.key for image in group} for group in copies]
    leaks = chosen.union(*(keys for keys in groups if keys & chosen))  # a table may name an image on both sides
    kept = tuple(sample for sample in train if sample.image.key not in leaks)
    if len(kept) == len(train):
        return train, []
    names = list(dict.fromkeys(str(sample.image) for sample in train if sample.image.key in leaks))
    return kept, [
        f"{len(names)} images are {name} of some that are evaluated on, and are not trained on: {name_some(names)}"
    ]


def number_held_out(keys: Collection[str], ratio: float, seed: int) -> int:
    """How many of the images with these keys are held out as a share of about `ratio`: one at least."""
    return max(1, sum(_place(key, seed) < ratio for key in keys))


def _place(key: str, seed: int) -> float:
    """Where an image stands between 0 and 1: held out are those below the share."""
    return chance(seed, "held out", key)


def hold_out(
    samples: Sequence[Sample], rule: SplitRule, copies: Sequence[Sequence[ImageRef]] = ()
) -> tuple[Split, tuple[Path, ...]]:
    """Divide samples by the rule; also returns the images that are in none of its lists.

    All samples of an image, and all `copies` of it, are on one side. Which one depends on its name in its root and the
    seed only (for copies, on the first of them): images that are added move no other, except that with a number they
    may take the places of some. Raises UserError where nothing is left on a side.
    """
    images = {sample.image.key: sample.image for sample in samples}
    if rule.lists:
        held_out = rule.lists.eval.intersection(images)
        unlisted = images.keys() - rule.lists.eval - rule.lists.train
    else:
        held_out, unlisted = _by_place(images, rule, copies), set()
    not_trained_on = held_out | unlisted
    chosen = tuple(sample for sample in samples if sample.image.key in held_out)
    kept = tuple(sample for sample in samples if sample.image.key not in not_trained_on)
    if not kept or not chosen:
        alike = "" if rule.similarity is None else " or similar"
        doubled = f" ({sum(map(len, copies))} of them in {len(copies)} groups of equal{alike} files)" if copies else ""
        raise UserError(
            f"{rule.setting} leaves nothing to {'evaluate' if kept else 'train'} on: of {len(images)} images with "
            f"captions, {len(held_out)} are held out{doubled}; change it, add images, or set eval_steps: none to train "
            "on everything"
        )
    return Split(kept, chosen), tuple(images[key].path for key in images if key in unlisted)


def _by_place(images: Mapping[str, ImageRef], rule: SplitRule, copies: Sequence[Sequence[ImageRef]]) -> frozenset[str]:
    """Keys of the images that are held out by number or share."""
    places = {key: _place(image.name, rule.seed) for key, image in images.items()}
    for group in copies:
        keys = sorted(image.key for image in group if image.key in images)
        places |= dict.fromkeys(keys, places[keys[0]] if keys else 0)
    in_order = sorted(places.values())
    number = rule.count or max(1, sum(place < rule.ratio for place in in_order))
    last = in_order[min(number, len(in_order)) - 1]
    return frozenset(key for key, place in places.items() if place <= last)
