"""What `train` says of a dataset at its start: what `inspect` finds without opening a file."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from florence2ner.config.roots import Root
from florence2ner.data.samples import Sample
from florence2ner.inspection.captions import ENOUGH, EVERYWHERE, OPENING, opening_of
from florence2ner.inspection.findings import plain, shell_word


def notes_at_start(samples: Sequence[Sample], roots: Sequence[Root]) -> list[str]:
    """One line for each thing that looks wrong in the samples of a root, and how to know more; none in a usual one."""
    by_root: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_root[sample.image.root].append(sample)
    lines = {
        f"{note}; florence2ner inspect {shell_word(root.path)} says more": None
        for root in roots
        if not root.shards  # inspect looks at folders
        for note in (_alike(by_root[root.name]), _collisions(by_root[root.name]))
        if note
    }
    return list(lines)


def _alike(samples: Sequence[Sample]) -> str:
    """What is alike in the captions of nearly all images."""
    images = {sample.image.key for sample in samples}
    captions = [caption for sample in samples for caption in sample.captions]
    if len(images) < ENOUGH:
        return ""
    caption, count = Counter(captions).most_common(1)[0]
    if count > EVERYWHERE * len(captions):
        return f"{count} of {len(captions)} captions are the same: {plain(caption, 100)}"
    opening, count = Counter(map(opening_of, captions)).most_common(1)[0]
    if opening and count > EVERYWHERE * len(captions):
        return f"{count} of {len(captions)} captions begin with the same {OPENING} words: {plain(opening, 100)}"
    return ""


def _collisions(samples: Sequence[Sample]) -> str:
    """How many captions are shared by images such as a.jpg and a.png."""
    paths: defaultdict[object, set[str]] = defaultdict(set)
    for sample in samples:
        path = sample.image.path
        paths[path.with_suffix(""), sample.task_prompt, sample.captions].add(path.name)
    shared = [" and ".join(sorted(names)) for names in paths.values() if len(names) > 1]
    if not shared:
        return ""
    return f"{len(shared)} captions are shared by images that differ in their extension only: {shared[0]}"
