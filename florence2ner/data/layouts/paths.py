"""Paths that the files of a dataset name: where they lead, and whether out of the dataset."""

import os
from collections.abc import Iterable
from pathlib import Path

from florence2ner.errors import UserError


def resolve(root: Path, base: Path, name: str) -> tuple[Path, bool]:
    """Where a file of the dataset in `root` leads with a `name` that counts from `base`; and whether that is in `root`.

    Only the text counts: a link in the dataset may lead elsewhere, as the user has put it there. What is in `root`
    begins with it as it is given; other paths are absolute. Neither has a `..`.
    """
    top = os.path.abspath(root)
    path = os.path.normpath(os.path.join(os.path.abspath(base), name))
    is_inside = os.path.join(path, "").startswith(os.path.join(top, ""))
    return (root / os.path.relpath(path, top) if is_inside else Path(path)), is_inside


def is_part(path: Path, root: Path, folder: Path, file: Path) -> bool:
    """Whether an image that `file` names is of this `folder` of the dataset in `root`; all as `resolve` gives them.

    An image outside of `root`, which only `allow_outside` lets in, is of the folder that the file is in.
    """
    return path.is_relative_to(folder) or (not path.is_relative_to(root) and file.is_relative_to(folder))


def find_image(root: Path, bases: Iterable[Path], name: str, place: str, *, allow_outside: bool) -> Path | None:
    """The image that the file at `place` calls `name`, looked for from each of the `bases` on; None: there is none.

    The last base is `root`. Raises UserError for a path that leads out of it, unless that is allowed.
    """
    for base in bases:
        path, is_inside = resolve(root, base, name)
        if is_inside or allow_outside:
            if path.is_file():
                return path
        elif base == root or Path(name).is_absolute():
            raise UserError(
                f"{place} names {name}, which is outside of {root}: move it there, or let it in with --allow-outside"
            )
    return None
