"""Similar pictures: the bands miss no pair that comparing each with each finds, and are much faster."""

import random
import time
from itertools import combinations

from florence2ner.inspection.look import COARSE, Look
from florence2ner.inspection.similar import similar_groups

GREY = bytes([128]) * (COARSE * COARSE * 3)


def pairs_of(groups: list[list[int]]) -> set[tuple[int, int]]:
    return {pair for group in groups for pair in combinations(group, 2)}


def test_the_groups_are_those_of_comparing_each_with_each() -> None:
    rng = random.Random(1)
    for distance in (0, 1, 4, 15):
        hashes = [rng.getrandbits(64) for _ in range(150)]
        for at in range(60):  # and of these a few that differ in a few bits
            for _ in range(2):
                flipped = sum(1 << bit for bit in rng.sample(range(64), rng.randint(0, distance + 2)))
                hashes.append(hashes[at] ^ flipped)
        looks = [Look(hash=hash_, coarse=GREY) for hash_ in hashes]
        near = {
            (a, b) for a, b in combinations(range(len(hashes)), 2) if (hashes[a] ^ hashes[b]).bit_count() <= distance
        }
        found = similar_groups(looks, distance)
        assert near <= pairs_of(found)
        for group in found:  # each hangs together
            reached, ahead = {group[0]}, [group[0]]
            while ahead:
                here = ahead.pop()
                new = {b for b in group if b not in reached and (hashes[here] ^ hashes[b]).bit_count() <= distance}
                reached |= new
                ahead += new
            assert reached == {*group}


def test_the_same_hash_with_other_colours_is_not_similar() -> None:
    red = bytes([200, 20, 20]) * (COARSE * COARSE)
    assert similar_groups([Look(hash=5, coarse=GREY), Look(hash=5, coarse=red), Look(hash=5, coarse=GREY)], 4) == [
        [0, 2]
    ]
    assert similar_groups([], 4) == []


def test_time_is_far_from_quadratic() -> None:
    rng = random.Random(2)
    looks = [Look(hash=rng.getrandbits(64), coarse=GREY) for _ in range(50_000)]
    looks += [Look(hash=1, coarse=GREY)] * 50_000  # all the same: they are one
    start = time.perf_counter()
    groups = similar_groups(looks, 4)
    assert time.perf_counter() - start < 30  # each with each would be 5 billion comparisons
    assert [len(group) for group in groups] == [50_000]
