"""Tags against plain sets."""

import random

import pytest

from florence2ner.metrics.table import measure, names_for
from florence2ner.metrics.tags import are_tags, tags_of
from tests.metrics.support import observed

TAGS = ("1girl", "long hair", "Blue  Eyes", "smile", "outdoors", "night", "from behind")


def test_what_is_right_is_counted_over_all_captions() -> None:
    rng = random.Random(2)
    lists = [(rng.sample(TAGS, rng.randint(1, 7)), rng.sample(TAGS, rng.randint(1, 7))) for _ in range(200)]
    seen = observed([", ".join(a) for a, _ in lists], [[" ,".join(b)] for _, b in lists])
    right = sum(len({*a} & {*b}) for a, b in lists)
    mine, theirs = (sum(len(pair[side]) for pair in lists) for side in (0, 1))
    found = measure(seen, ["eval/tag_precision", "eval/tag_recall", "eval/tag_f1"])
    p, r = right / mine, right / theirs
    assert found == pytest.approx(
        {"eval/tag_precision": p, "eval/tag_recall": r, "eval/tag_f1": 2 * p * r / (p + r)}, rel=1e-12
    )


def test_tags_are_compared_without_case_and_spaces() -> None:
    assert tags_of("Blue  Eyes, smile ,, SMILE") == {"blue eyes", "smile"}


def test_only_lists_are_counted_unasked() -> None:
    assert are_tags("1girl, long hair, smile")
    assert not are_tags("a red star, in the corner of the picture, and nothing else that one could see")
    assert not are_tags("A star. It is red, small, old.")
    assert not are_tags("a star")
    tags, text = "1girl, long hair, smile", "a red star in the top left corner"
    assert "eval/tag_f1" in names_for(observed([tags] * 4, [[tags]] * 3 + [[text]]))
    assert "eval/tag_f1" not in names_for(observed([tags] * 4, [[tags]] * 2 + [[text]] * 2))
    assert "eval/tag_f1" in names_for(observed([text], [[text]]), ["eval/tag_f1"])
