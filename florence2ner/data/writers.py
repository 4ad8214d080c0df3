"""Files that are whole or not there, and the caption file that belongs to an image."""

import os
from collections.abc import Iterable
from pathlib import Path

from florence2ner.data.samples import CAPTION_EXTENSION
from florence2ner.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name and rename it: nobody ever sees half of it.

    Raises UserError where the folder can't be written to or the disk is full.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"can't write {path}: {error.strerror}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def sidecar_of(image: Path) -> Path:
    """The caption file of an image: same folder, same stem."""
    return image.with_suffix(CAPTION_EXTENSION)


def is_captioned(image: Path) -> bool:
    """Whether the image has a caption file that is not empty."""
    sidecar = sidecar_of(image)
    return sidecar.exists() and sidecar.stat().st_size > 0


def refuse_shared_sidecars(images: Iterable[Path]) -> None:
    """Raise UserError when two images would write the same caption file."""
    owner: dict[Path, Path] = {}
    for image in images:
        other = owner.setdefault(sidecar_of(image), image)
        if other != image:
            raise UserError(f"{other} and {image} would share the caption file {sidecar_of(image)}: rename one of them")
