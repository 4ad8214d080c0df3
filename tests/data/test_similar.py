"""Similar pictures: the bands miss no pair that comparing each with each finds, and are much faster."""

import random
import time
from itertools import combinations
from pathlib import Path

from florence2ner.data.look import COARSE, Look
from florence2ner.data.samples import ImageRef
from florence2ner.data.similar import similar_groups, with_similar
from tests.inspection.support import picture

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


def test_copies_and_what_is_similar_to_them_are_one_group(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        picture(seed).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    picture(0, (60, 50)).save(tmp_path / "small.jpg", quality=80)
    for name in ("broken.png", "broken_too.png"):
        (tmp_path / name).write_bytes(b"no picture")
    images = [ImageRef.below(tmp_path, path) for path in sorted(tmp_path.iterdir())]
    by_name = {image.name: image for image in images}
    copies = [[by_name[name] for name in pair] for pair in (("a.png", "copy.png"), ("broken.png", "broken_too.png"))]
    groups = [sorted(image.name for image in group) for group in with_similar(images, copies, 4)]
    assert groups == [["a.png", "copy.png", "small.jpg"], ["broken.png", "broken_too.png"]]
