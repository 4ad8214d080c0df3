"""Splits a dataset into samples to train on and samples held out for evaluation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from florence2ner.config.roots import Root
from florence2ner.data.chance import chance
from florence2ner.data.duplicates import equal_files
from florence2ner.data.formats import readable_images
from florence2ner.data.layouts.choice import discover, folder_of, no_samples, with_layout
from florence2ner.data.repeats import apply_repeats
from florence2ner.data.samples import Discovery, Fault, ImageRef, Sample, Side, merge
from florence2ner.data.similar import with_similar
from florence2ner.display import name_some
from florence2ner.errors import UserError

# Kinds of faults: what is not trained on, as it is evaluated on.
COPY_OF_EVAL, SIMILAR_TO_EVAL = "copy-across-split", "near-duplicate-of-eval"


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


@dataclass(frozen=True)
class Part:
    """A folder of a root that is read for a run."""

    root: Root  # with its layout
    folder: Path
    side: Side
    divided: bool = False  # whether the rule says what of it is held out


def discover_split(
    roots: Sequence[Root], *, rule: SplitRule | None, eval_roots: Sequence[Root] = (), kohya_repeats: bool = False
) -> tuple[Split, Discovery]:
    """The train and eval samples of a dataset, and what was discovered in its `roots`.

    Training samples of a root come from its train/ where that exists, else from all of it. Held out are the samples of
    its eval/ where that exists and no list is given, else those that the `rule` says; without a rule, none. With
    `eval_roots`, just their samples are held out. Images in an eval/, or linked from there, and copies of what is held
    out, or its near duplicates where the rule has a `similarity`, are never trained on. Raises UserError when nothing
    is left to train or evaluate on, for captions that can't be read, and as `discover` does.
    """
    parts = list_parts(roots, rule=rule, eval_roots=eval_roots)
    return divide([(part, read_part(part)) for part in parts], rule=rule, kohya_repeats=kohya_repeats)


def list_parts(roots: Sequence[Root], *, rule: SplitRule | None, eval_roots: Sequence[Root] = ()) -> list[Part]:
    """The folders that `discover_split` reads for these arguments. Raises UserError as `choose_layout` does."""
    whole = bool(rule and rule.lists)
    trained = [with_layout(root) for root in roots]
    parts: list[Part] = []
    for root in trained:
        has_eval = bool(rule and not whole and not eval_roots and folder_of("eval", root))
        folder = None if whole else folder_of("train", root)
        parts.append(Part(root, folder or root.path, "train", divided=bool(rule and not eval_roots and not has_eval)))
        if has_eval:
            parts.append(Part(root, folder_of("eval", root) or root.path, "eval"))
    if rule:
        parts += [Part(root, root.path, "eval") for root in map(with_layout, eval_roots)]
    return parts


def read_part(part: Part) -> Discovery:
    """What is found in a part. Raises UserError as `discover` does."""
    return discover(part.root, folder=part.folder)


def divide(
    read: Sequence[tuple[Part, Discovery]], *, rule: SplitRule | None, kohya_repeats: bool = False
) -> tuple[Split, Discovery]:
    """The result of `discover_split`, from its parts and what was found in them. Raises UserError as that does."""
    _check(read)
    divided: list[Discovery] = []  # by the rule
    apart: list[Discovery] = []  # from what is held out otherwise
    for part, found in read:
        if part.side == "train":
            samples = found.samples if rule and rule.lists else _not_of_eval(part, found)
            samples, notes = apply_repeats(samples, part.root.path, wanted=kohya_repeats)
            found = replace(found, samples=samples, notes=(*found.notes, *notes))
            (divided if part.divided else apart).append(found)
    held_out = [found for part, found in read if part.side == "eval"]
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
    train, faults = _without_copies(train, chosen, copies, rule.similarity)
    if not train:
        names = name_some(list(dict.fromkeys(part.root.path for part, _ in read if part.side == "train")))
        raise UserError(f"every image of {names} is evaluated on, too: nothing is left to train")
    return Split(train, chosen), replace(found, samples=train + chosen, faults=(*found.faults, *faults))


def discover_held_out(roots: Sequence[Root]) -> Discovery:
    """What is held out in roots that are evaluated on as a whole. Raises UserError as `discover_split` does."""
    parts = [Part(root, root.path, "eval") for root in map(with_layout, roots)]
    read = [(part, read_part(part)) for part in parts]
    _check(read)
    return merge([found for _, found in read])


def _check(read: Sequence[tuple[Part, Discovery]]) -> None:
    """Raise UserError for captions that can't be read, all in one go, and for a part without samples."""
    merge([found for _, found in read]).refused.check()
    for part, found in read:
        if not found.samples:
            raise no_samples(part.folder, found, part.root.options, part.root.options.layout)


def _not_of_eval(part: Part, found: Discovery) -> tuple[Sample, ...]:
    """The samples of a part whose images are not in its root's eval/, nor linked from there."""
    folder = folder_of("eval", part.root)
    if not folder:
        return found.samples
    hidden = {os.path.realpath(image) for image in readable_images(folder)}
    kept = tuple(sample for sample in found.samples if os.path.realpath(sample.image.path) not in hidden)
    if not kept:
        raise UserError(f"all images of {part.root.path} are in {folder}: nothing is left to train on")
    return kept


def _without_copies(
    train: tuple[Sample, ...],
    held_out: tuple[Sample, ...],
    copies: Sequence[Sequence[ImageRef]],
    similarity: int | None,
) -> tuple[tuple[Sample, ...], list[Fault]]:
    """The samples to train on that are no `copies` of what is held out, and a fault about the others.

    With a `similarity`, the copies are near duplicates.
    """
    chosen = {sample.image.key for sample in held_out}
    groups = [{image.key for image in group} for group in copies]
    leaks = chosen.union(*(keys for keys in groups if keys & chosen))  # a table may name an image on both sides
    kept = tuple(sample for sample in train if sample.image.key not in leaks)
    if len(kept) == len(train):
        return train, []
    names = list(dict.fromkeys(str(sample.image) for sample in train if sample.image.key in leaks))
    kind, name = (COPY_OF_EVAL, "copies") if similarity is None else (SIMILAR_TO_EVAL, "near duplicates")
    what = f"images are {name} of some that are evaluated on, and are not trained on"
    return kept, [Fault(kind, what, tuple(names))]


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
