"""Chance as a pure function: what is drawn for an image depends on seed, purpose and image, and on nothing else."""

import hashlib

_RANGE = 2**64


def chance(seed: int, purpose: str, *parts: object) -> float:
    """A number from 0 up to, but not including, 1: the same for the same arguments, on any machine, in any order.

    `purpose` says what is drawn, so that two draws for the same image have nothing to do with each other.
    """
    text = "\0".join((str(seed), " ".join((purpose, *map(str, parts)))))
    digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
    # 53 bits, as a float has no more: 64 could be rounded up to 1.
    return (int.from_bytes(digest, "big") >> 11) / (_RANGE >> 11)
