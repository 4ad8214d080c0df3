"""Finds images whose files are equal, byte for byte, without reading those that can't be."""

import hashlib
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from florence2ner.data.samples import ImageRef

_END = 4096  # bytes at the end of a file, by which nearly all different pictures of the same size are told apart


def equal_files(images: Iterable[ImageRef]) -> list[list[ImageRef]]:
    """Groups of two or more images with equal files, each in the order of `images`.

    Only files of the same size, and then with the same end, are read as a whole. Empty ones, and those that can't be
    read, are equal to none.
    """
    groups = [list({image.key: image for image in images}.values())]
    groups = [part for group in groups for part in _divide(group, (image.size() for image in group))]
    with ThreadPoolExecutor() as pool:  # threads help, as reading and hashing release the GIL
        for trait in (_end, digest_of):
            groups = [part for group in groups for part in _divide(group, pool.map(trait, group))]
    return groups


def digest_of(image: ImageRef) -> bytes | None:
    """A hash of an image's file; None where it can't be read."""
    with suppress(OSError), image.open() as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    return None


def _divide(images: list[ImageRef], traits: Iterable[Hashable]) -> Iterable[list[ImageRef]]:
    """Parts of two or more images that have a trait in common; those without it (0, empty or None) are left out."""
    parts: dict[Hashable, list[ImageRef]] = {}
    for image, trait in zip(images, traits, strict=True):
        if trait:
            parts.setdefault(trait, []).append(image)
    return [part for part in parts.values() if len(part) > 1]


def _end(image: ImageRef) -> bytes | None:
    with suppress(OSError), image.open() as file:
        file.seek(max(0, (image.size() or 0) - _END))
        return file.read(_END)
    return None
