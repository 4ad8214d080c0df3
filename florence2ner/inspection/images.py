"""What is wrong with the images of a dataset: unreadable, odd and doubled ones; and figures about their sizes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from florence2ner.data.look import Look
from florence2ner.data.similar import similar_groups
from florence2ner.data.split import COPY_OF_EVAL, SIMILAR_TO_EVAL
from florence2ner.inspection.dataset import Dataset, Item
from florence2ner.inspection.files import aside
from florence2ner.inspection.findings import Example, Figure, Finding, Histogram, bins_of

Looks = Mapping[Item, Look]

_TINY = 64  # pixels: a shorter side below this has hardly anything to describe, blown up to 768
_EXTREME = 4.0  # a longer side of more than this many times the shorter one
_SQUASHED = 1.5  # an aspect ratio beyond this is counted
_ASPECTS = (1.1, 1.25, 1.5, 2.0, 3.0, _EXTREME)
_SIDES = (64, 256, 512, 768, 1024, 2048)  # pixels


def image_findings(dataset: Dataset, looks: Looks, similarity: int) -> list[Finding]:
    """The findings about images. `looks` has one for each image, in their order."""
    readable = {item: look for item, look in looks.items() if not look.failure}
    return [
        _unreadable(dataset, looks),
        _odd(
            "tiny",
            f"[image has|images have] a side shorter than {_TINY} pixels",
            "at the model's 768 pixels there is little to see in them",
            {item: _by(look.size) for item, look in readable.items() if min(look.size) < _TINY},
        ),
        _odd(
            "extreme-aspect",
            f"[image is|images are] more than {_EXTREME:g} times as long as wide, or as wide as long",
            "the model sees every image squashed to a square: crop them",
            {item: _by(look.size) for item, look in readable.items() if _aspect(look.size) > _EXTREME},
        ),
        _odd(
            "single-colour",
            "[image is|images are] a single colour",
            "there is nothing to describe in them: look whether they were exported rightly",
            {item: _by(look.size) for item, look in readable.items() if look.flat},
        ),
        *_copies(dataset, readable),
        *_similar(readable, similarity),
    ]


def image_figures(looks: Looks) -> list[Figure]:
    """Sizes of the images that can be read, and what becomes of them."""
    readable = [look for look in looks.values() if not look.failure]
    if not readable:
        return []
    widths, heights = zip(*(look.size for look in readable), strict=True)
    aspects = [_aspect(look.size) for look in readable]
    squashed = sum(aspect > _SQUASHED for aspect in aspects)
    turned = sum(look.turned for look in readable)
    return [
        _spread("width", widths),
        _spread("height", heights),
        Figure(
            "squash to a square",
            f"{median(aspects):.2f} times in the median, {max(aspects):.2f} at most; "
            f"{squashed} of {len(readable)} images by more than {_SQUASHED} times",
            {"aspect_median": median(aspects), "aspect_max": max(aspects), "squashed_images": squashed},
        ),
        Figure("turned by EXIF", f"{turned} images, which training turns upright", {"turned_images": turned}),
    ]


def _spread(name: str, values: Sequence[int]) -> Figure:
    numbers = {"min": min(values), "median": median(values), "max": max(values)}
    words = " / ".join(f"{number:g}" for number in numbers.values())
    return Figure(
        name, f"{words} pixels (least / median / most)", {f"{name}_{key}_pixels": n for key, n in numbers.items()}
    )


def image_histograms(looks: Looks) -> tuple[Histogram, ...]:
    """How the images' sizes and aspect ratios are spread."""
    readable = [look for look in looks.values() if not look.failure]
    if not readable:
        return ()
    sides = bins_of([min(look.size) for look in readable], _SIDES, _labels(_SIDES))
    aspects = bins_of([_aspect(look.size) for look in readable], _ASPECTS, _labels(_ASPECTS))
    return (
        Histogram("Shorter side", "pixels", sides),
        Histogram("Squash to a square", "times", aspects, beyond=len(_ASPECTS)),
    )


def _labels(edges: Sequence[float]) -> list[str]:
    between = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g}", *between, f"from {edges[-1]:g}"]


def _aspect(size: tuple[int, int]) -> float:
    return max(size) / max(1, min(size))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _unreadable(dataset: Dataset, looks: Looks) -> Finding:
    failed = {item: look.failure for item, look in looks.items() if look.failure}
    return Finding(
        "unreadable-image",
        "hurts",
        "[image|images] can't be read",
        "training names and skips them: fetch them again, or take them out",
        tuple(Example(item.image.key, reason) for item, reason in failed.items()),
        tuple(fix for item in failed for fix in aside(dataset, item)),
    )


def _odd(kind: str, title: str, advice: str, found: Mapping[Item, str]) -> Finding:
    examples = tuple(Example(item.image.key, detail, (item.image,)) for item, detail in found.items())
    return Finding(kind, "hurts", title, advice, examples)


def _copies(dataset: Dataset, readable: Looks) -> list[Finding]:
    """Files with the same content: those that train leaves out for it, those with other captions, and the rest."""
    by_digest: defaultdict[bytes, list[Item]] = defaultdict(list)
    for item, look in readable.items():
        by_digest[look.digest].append(item)
    groups = [items for items in by_digest.values() if len(items) > 1]
    left_out = [item for item in dataset.items if item.is_copy and not _has_near_duplicates(dataset)]
    twins = {item: twin for group in groups for item in group if (twin := _evaluated(group))}
    differing = [group for group in groups if _captions_differ(group)]
    doubled = [group for group in groups if not (_captions_differ(group) or any(item.is_copy for item in group))]
    return [
        Finding(
            COPY_OF_EVAL,
            "hurts",
            "[image is a copy of one that is evaluated on, and is not trained on|"
            "images are copies of some that are evaluated on, and are not trained on]",
            "the evaluation would flatter a model that was trained on them: take them out, or evaluate on others",
            tuple(_group([item, *([twins[item]] if item in twins else [])]) for item in left_out),
            tuple(fix for item in left_out for fix in aside(dataset, item)),
        ),
        Finding(
            "copies-differ",
            "hurts",
            "[image has|images have] exact copies with another caption",
            "one image with two captions teaches the average of both: choose one",
            tuple(_group(group, captions=True) for group in differing),
        ),
        Finding(
            "copy",
            "note",
            "[image has|images have] exact copies",
            "each copy counts once more in training; a split by chance keeps them on one side",
            tuple(map(_group, doubled)),
            tuple(fix for group in doubled for item in _spare(group) for fix in aside(dataset, item)),
        ),
    ]


def _has_near_duplicates(dataset: Dataset) -> bool:
    """Whether near duplicates of what is evaluated on are left out, too, which are told as a fault of their own."""
    return any(fault.kind == SIMILAR_TO_EVAL for fault in dataset.found.faults)


def _evaluated(group: Sequence[Item]) -> Item | None:
    return next((item for item in group if item.side == "eval"), None)


def _captions_differ(group: Sequence[Item]) -> bool:
    """Whether images of a group have other captions for the same task."""
    texts: defaultdict[str, set[frozenset[str]]] = defaultdict(set)
    for item in group:
        of_task: defaultdict[str, set[str]] = defaultdict(set)
        for caption in item.captions:
            of_task[caption.task_prompt].add(caption.text)
        for prompt, captions in of_task.items():
            texts[prompt].add(frozenset(captions))
    return any(len(different) > 1 for different in texts.values())


def _spare(group: Sequence[Item]) -> list[Item]:
    """All of a group of copies but one, which has a caption if any has."""
    kept = next((item for item in group if item.captions), group[0])
    return [item for item in group if item is not kept]


def _similar(readable: Looks, similarity: int) -> list[Finding]:
    """Pictures that look the same but are not the same file. Those of a single colour all look the same."""
    first: dict[bytes, Item] = {}  # one of each group of exact copies, before others one that is used
    for item, look in readable.items():
        if not look.flat and (look.digest not in first or first[look.digest].side == "unused"):
            first[look.digest] = item
    items = list(first.values())
    groups = [[items[i] for i in indices] for indices in similar_groups([readable[item] for item in items], similarity)]
    across = [group for group in groups if _is_across(group)]
    return [
        Finding(
            "similar-across-split",
            "hurts",
            "[group|groups] of images in train and eval look nearly the same",
            "the evaluation flatters a model that was trained on nearly the same: train with "
            f"--split-by-similarity {similarity}, which keeps them on one side, or look at them",
            tuple(map(_group, across)),
        ),
        Finding(
            "similar",
            "note",
            "[group of images looks|groups of images look] nearly the same",
            "resized, recompressed or burst shots count several times",
            tuple(_group(group) for group in groups if not _is_across(group)),
        ),
    ]


def _is_across(group: Sequence[Item]) -> bool:
    return {"train", "eval"} <= {item.side for item in group}


def _group(group: Sequence[Item], *, captions: bool = False) -> Example:
    detail = [item.image.key for item in group[1:]]
    if captions:
        detail += [f'"{text}"' for text in dict.fromkeys(caption.text for item in group for caption in item.captions)]
    return Example(group[0].image.key, "  ".join(detail), tuple(item.image for item in group))
