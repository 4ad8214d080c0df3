"""Where the "imagefolder" loader of Hugging Face datasets looks for a metadata.jsonl, and where it doesn't."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from florence2ner.display import name_some

# Folders that `datasets` takes for splits (its data_files.py): these words, alone or between the characters "-._ 0-9".
# Where there are such folders, it takes their files only, and so sees no metadata.jsonl above them.
_SPLIT = re.compile(
    r"(?:.*[-._ 0-9])?(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?:[-._ 0-9].*)?"
)


def unseen_metadata(path: Path, images: Iterable[Path]) -> str | None:
    """A warning that `datasets` won't see the metadata.jsonl at `path`, as images are in folders of splits below it.

    None where it will see it. No file is looked at.
    """
    above = Path(os.path.abspath(path)).parent
    splits: dict[Path, None] = {}
    for folder in {Path(os.path.abspath(image)).parent for image in images}:
        if folder.is_relative_to(above):
            parts = folder.relative_to(above).parts
            number = next((at for at, part in enumerate(parts) if _SPLIT.fullmatch(part)), None)
            if number is not None:
                splits[path.parent.joinpath(*parts[: number + 1])] = None
    if not splits:
        return None
    names = sorted(splits)
    return (
        f"Hugging Face datasets won't see {path}, as it takes folders below it for splits ({name_some(names)}): write "
        f"one for each, such as caption {names[0]} --output {names[0] / path.name}"
    )
