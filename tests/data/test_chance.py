"""Chance that can be computed again."""

import hashlib

import numpy as np

from florence2ner.data.chance import chance


def test_it_is_the_same_everywhere_and_for_ever() -> None:
    digest = hashlib.blake2b(b"42\0held out a.png", digest_size=8).digest()
    assert chance(42, "held out", "a.png") == (int.from_bytes(digest, "big") >> 11) / 2**53
    assert chance(42, "dropout", 3, "a.png") != chance(42, "dropout", 4, "a.png")
    assert 0 <= chance(0, "odd", "\udce9") < 1


def test_it_is_even_and_purposes_have_nothing_to_do_with_each_other() -> None:
    one, two = (np.array([chance(7, purpose, n) for n in range(4000)]) for purpose in ("one", "two"))
    counts, _ = np.histogram(one, bins=10, range=(0, 1))
    assert ((counts > 330) & (counts < 470)).all()
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
