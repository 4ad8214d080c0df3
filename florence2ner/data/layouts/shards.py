"""The dataset layout of WebDataset's tar shards, as far as all of their samples are in memory: for evaluation."""

from pathlib import Path

from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.samples import Discovery
from florence2ner.data.shards import Faults, expand, is_shards, read_shards

AT_MOST = 10_000  # samples that are read


def matches(root: Path) -> bool:
    """Whether a dataset's path means tar shards. None of them is opened."""
    return is_shards(str(root))


def means_shards(root: Root) -> bool:
    """Whether a root means tar shards, by its layout or by content. None of them is opened."""
    layout = root.options.layout
    return layout == "shards" or (layout == "auto" and matches(root.path))


def discover(shards: str, options: ReadingOptions) -> Discovery:
    """The first samples of the shards that a text or the path of a folder means (see `expand`).

    Raises UserError for shards that are missing, and where they have no sample.
    """
    faults = Faults()
    samples = read_shards(expand(shards), options, faults, limit=AT_MOST + 1)
    notes = faults.report()
    if len(samples) > AT_MOST:
        notes.append(f"only the first {AT_MOST} samples of {shards} are used, as all of them are in memory")
    return Discovery(tuple(samples[:AT_MOST]), notes=tuple(notes))
