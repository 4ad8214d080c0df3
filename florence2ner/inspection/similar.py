"""Finds groups of similar pictures by their perceptual hashes, without comparing each with each."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from florence2ner.inspection.look import COARSE, Look

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

    for bucket in _buckets(hashes, distance):
        for position, node in enumerate(bucket[:-1]):
            others = bucket[position + 1 :]
            others = others[np.bitwise_count(hashes[others] ^ hashes[node]) <= distance]
            difference = np.abs(coarse[others].astype(np.int16) - coarse[node]).max(axis=1, initial=0)
            for other in others[difference <= _MOST_DIFFERENCE]:
                leaders[leader(int(other))] = leader(int(node))
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for node, indices in enumerate(members):
        groups[leader(node)] += indices
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def _buckets(hashes: Ints, distance: int) -> list[Ints]:
    """The positions of hashes that agree in a band, for each of `distance` + 1 bands."""
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    found: list[Ints] = []
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        found += [bucket for bucket in np.split(order, starts) if len(bucket) > 1]
    return found
