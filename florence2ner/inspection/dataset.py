"""The dataset to inspect: what `train` finds in it with the same settings, and how it divides that."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from florence2ner.config.commands import InspectConfig
from florence2ner.config.roots import Root
from florence2ner.data.layouts.pairs import caption_files
from florence2ner.data.layouts.shards import means_shards
from florence2ner.data.plan import split_rule
from florence2ner.data.samples import Discovery, ImageRef, Sample, merge
from florence2ner.data.split import COPY_OF_EVAL, SIMILAR_TO_EVAL, Part, Split, divide, list_parts, read_part
from florence2ner.errors import UserError
from florence2ner.model.tasks import find_task

Side = Literal["train", "eval", "unused"]


@dataclass(frozen=True, slots=True)
class Caption:
    """What is known about an image for one task."""

    image: ImageRef
    task_prompt: str
    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """An image of the dataset, with all of its captions. Two are equal only if they are the same."""

    image: ImageRef
    root: Root  # with its layout
    side: Side  # where `train` puts it; where that refuses the dataset, where it lies
    captions: tuple[Caption, ...] = ()
    files: tuple[Path, ...] = ()  # its caption files, where the layout has them beside images
    is_copy: bool = False  # of an image that is evaluated on: it is not trained on


@dataclass(kw_only=True)
class Dataset:
    """A dataset as it was found."""

    roots: tuple[Root, ...]  # with their layouts, where these are known
    parts: list[tuple[Part, Discovery]]
    found: Discovery  # in all parts; after the division where there is one
    items: list[Item]
    split: Split | None  # None: `train` refuses the dataset
    refusals: list[str] = field(default_factory=list)  # why, but for captions that can't be read

    @cached_property
    def captions(self) -> list[Caption]:
        """All captions of all images."""
        return [caption for item in self.items for caption in item.captions]

    @cached_property
    def shared(self) -> dict[Path, list[ImageRef]]:
        """The caption files that several images share, with these."""
        images: defaultdict[Path, list[ImageRef]] = defaultdict(list)
        for item in self.items:
            for path in item.files:
                images[path].append(item.image)
        return {path: sharing for path, sharing in images.items() if len(sharing) > 1}

    @property
    def unused(self) -> list[Item]:
        """The images with captions that `train` takes for neither side, though they are no copies and in no list."""
        if not self.split:
            return []
        unlisted = {*self.found.images_in_no_list}
        return [
            item
            for item in self.items
            if item.side == "unused" and item.captions and not item.is_copy and item.image.path not in unlisted
        ]

    def name_of(self, path: Path) -> str:
        """What a file of the dataset is called: as the key of an image."""
        for root in self.roots:
            if path.is_relative_to(root.path):
                return replace(ImageRef.below(root.path, path), root=root.name).key
        return str(path)


def read_dataset(config: InspectConfig) -> Dataset:
    """Read the names and captions of a dataset, and divide it as `train` does; no image is decoded for that.

    What `train` refuses is collected; the rest is read all the same. Raises UserError for tar shards, a given split
    that can't be read, and a task prompt in the settings that is none.
    """
    roots = (*config.roots, *config.eval_roots)
    _check_shards(roots)
    find_task(config.task_prompt)
    rule = split_rule(config)
    refusals: list[str] = []
    read: list[tuple[Part, Discovery]] = []
    try:
        parts = list_parts(config.roots, rule=rule, eval_roots=config.eval_roots)
    except UserError as error:
        parts = []
        refusals.append(str(error))
    for part in parts:
        try:
            read.append((part, read_part(part)))
        except UserError as error:
            refusals.append(str(error))
    found, split = merge([found for _, found in read]), None
    refusals += _no_tasks(found.samples)
    if not (refusals or found.refused.not_utf8 or found.refused.unreadable):
        try:
            split, found = divide(read, rule=rule, kohya_repeats=config.kohya_repeats)
        except UserError as error:
            refusals.append(str(error))
    known = {part.root.path: part.root for part in parts}
    return Dataset(
        roots=tuple(known.get(root.path, root) for root in roots),
        parts=read,
        found=found,
        items=[*_items(read, split, found)],
        split=split,
        refusals=list(dict.fromkeys(refusals)),
    )


def _check_shards(roots: Sequence[Root]) -> None:
    for root in roots:
        if means_shards(root):
            raise UserError(
                f"{root} means tar shards, which are read as a stream, and inspect looks at files: name the folder "
                "that they were made of, or one into which you unpack some of them (tar -xf)"
            )


def _no_tasks(samples: Iterable[Sample]) -> list[str]:
    """Why task prompts that the dataset has are none."""
    reasons = []
    for prompt in dict.fromkeys(sample.task_prompt for sample in samples):
        try:
            find_task(prompt)
        except UserError as error:
            reasons.append(str(error))
    return reasons


def _items(read: Sequence[tuple[Part, Discovery]], split: Split | None, found: Discovery) -> Iterator[Item]:
    """The images in all parts, by their keys: where a part lies in another, each of its images is in both."""
    images: dict[str, tuple[ImageRef, Part]] = {}
    captions: defaultdict[str, dict[Caption, None]] = defaultdict(dict)
    for part, discovery in read:
        for sample in discovery.samples:
            _, before = images.get(sample.image.key, (None, part))
            images[sample.image.key] = sample.image, part if part.side == "eval" else before
            texts = (Caption(sample.image, sample.task_prompt, text) for text in sample.captions)
            captions[sample.image.key].update(dict.fromkeys(texts))
        if part.root.options.layout != "huggingface":  # where paths are names, and no files
            for path in discovery.images_without_caption:
                image = replace(ImageRef.below(part.root.path, path), root=part.root.name)
                images.setdefault(image.key, (image, part))
    sides: dict[str, Side] = {key: part.side for key, (_, part) in images.items()}
    if split:
        sides = dict.fromkeys((sample.image.key for sample in split.eval), "eval")
        sides |= dict.fromkeys((sample.image.key for sample in split.train), "train")
    copies = {name for fault in found.faults if fault.kind in (COPY_OF_EVAL, SIMILAR_TO_EVAL) for name in fault.names}
    files = _files_beside_images(read)
    for key in sorted(images):
        image, part = images[key]
        side = sides.get(key, "unused") if key in captions else "unused"
        beside = tuple(files.get(image.path.with_suffix(""), ()))
        yield Item(image, part.root, side, tuple(captions.get(key, ())), beside, str(image) in copies)


def _files_beside_images(read: Sequence[tuple[Part, Discovery]]) -> dict[Path, dict[Path, None]]:
    """The caption files in the parts whose layout has them beside images, by their path without extension."""
    files: defaultdict[Path, dict[Path, None]] = defaultdict(dict)
    for part, _ in read:
        if part.root.options.layout == "files":
            for of_stem in caption_files(part.folder, part.root.options.caption_extension, None).values():
                for stem, path in of_stem.items():
                    files[stem][path] = None
    return files
