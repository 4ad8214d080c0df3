"""CIDEr-D against the COCO caption evaluation's scorer, whose values on the same words are in cider.json."""

import json
from pathlib import Path

import pytest

from florence2ner.metrics.cider import cider_d
from tests.metrics.pairs import made_pairs


def test_it_is_the_published_scorers_value_for_each_of_200_captions() -> None:
    published = json.loads(Path(__file__).with_name("cider.json").read_text())["scores"]
    predictions, references = made_pairs()
    found = cider_d(predictions, references)
    assert found == pytest.approx(published, abs=1e-6)
    assert len({round(value, 3) for value in found}) > 100, "the captions differ"


def test_the_truth_gets_all_of_ten_and_nonsense_nothing() -> None:
    truths = ["a red star in the corner", "two dogs play on grass", "an old map of a city"]
    assert cider_d(truths, [[text] for text in truths]) == pytest.approx([10.0] * 3)
    assert cider_d(["xyz"] * 3, [[text] for text in truths]) == [0.0] * 3


def test_a_single_image_says_nothing_of_what_is_rare() -> None:
    assert cider_d(["a star"], [["a star"]]) == [0.0]
