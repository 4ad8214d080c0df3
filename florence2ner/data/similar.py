"""Finds groups of similar pictures by their perceptual hashes, without comparing each with each."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.look import COARSE, Look, look_at_all
from florence2ner.data.samples import ImageRef

_BITS = 64
# Levels of 255 by which the coarse pictures of near duplicates differ at most, in any pixel and colour. The hash is
# blind to colour, and to what is small on an even ground.
_MOST_DIFFERENCE = 24

Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]


def similar_groups(looks: Sequence[Look], distance: int) -> list[list[int]]:
    """Groups of two or more pictures, by their indices, each similar to another one of its group.

    Two are similar where their hashes differ in at most `distance` bits and their coarse pictures hardly. Of
    `distance` + 1 bands of bits, two such hashes have one in common: only hashes that share a band are compared.
    """
    alike: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, look in enumerate(looks):
        alike[look.hash, look.coarse].append(index)
    members = list(alike.values())
    hashes = np.array([hash_ for hash_, _ in alike], np.uint64)
    coarse = np.frombuffer(b"".join(pixels for _, pixels in alike), np.uint8).reshape(-1, COARSE * COARSE * 3)
    leaders = list(range(len(members)))  # a forest: each node's parent

    def leader(node: int) -> int:
        while leaders[node] != node:
            leaders[node] = node = leaders[leaders[node]]
        return node

    for first, second in _near_pairs(hashes, distance):
        difference = np.abs(coarse[first].astype(np.int16) - coarse[second]).max(axis=1, initial=0)
        close = difference <= _MOST_DIFFERENCE
        for node, other in zip(first[close].tolist(), second[close].tolist(), strict=True):
            leaders[leader(other)] = leader(node)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for node, indices in enumerate(members):
        groups[leader(node)] += indices
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def with_similar(
    images: Sequence[ImageRef], copies: Sequence[Sequence[ImageRef]], distance: int
) -> list[list[ImageRef]]:
    """The groups of `copies`, and of images that are similar as in `similar_groups`: an image is in one at most.

    Every image is decoded, but of copies only the first. Those that can't be read are similar to none.
    """
    groups = {group[0].key: list(group) for group in copies}
    others = {image.key for group in copies for image in group[1:]}
    for image in images:
        if image.key not in others:
            groups.setdefault(image.key, [image])
    looks = look_at_all([group[0] for group in groups.values()], max_pixels=MAX_PIXELS)
    seen = [(key, look) for key, look in zip(groups, looks, strict=True) if not look.failure]
    for indices in similar_groups([look for _, look in seen], distance):
        first, *rest = (seen[index][0] for index in indices)
        for key in rest:
            groups[first] += groups.pop(key)
    return [group for group in groups.values() if len(group) > 1]


def _near_pairs(hashes: Ints, distance: int) -> Iterator[tuple[Ints, Ints]]:
    """Positions of hashes that agree in one of `distance` + 1 bands and differ in at most `distance` bits.

    Sorted by a band, hashes that agree in it follow each other: each is compared with the next, then with the next but
    one, and so on, all at the same time.
    """
    edges = np.linspace(0, _BITS, distance + 2).astype(int).tolist()
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        ends = np.searchsorted(band[order], band[order], side="right")
        here = np.arange(len(hashes))
        step = 1
        while len(here := here[here + step < ends[here]]):
            first, second = order[here], order[here + step]
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= distance
            yield first[near], second[near]
            step += 1
