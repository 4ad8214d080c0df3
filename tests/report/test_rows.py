"""What pages share: which metric comes first, pictures each once, settings without secrets."""

from pathlib import Path

import pytest

from florence2ner.metrics.table import METRICS
from florence2ner.report.rows import (
    Pictures,
    in_order_of_use,
    main_metric,
    metric_infos,
    settings_block,
    truth_and,
    without_secrets,
)
from tests.report.support import images_of, row


def test_the_metric_that_tells_most_comes_first_unless_another_was_asked_for() -> None:
    names = ["eval/loss", "eval/exact_match", "eval/cider", "train/loss"]
    assert in_order_of_use(names) == ["eval/cider", "eval/exact_match", "eval/loss"]
    assert main_metric(names) == "eval/cider"
    assert main_metric(names, ["eval/map", "eval/exact_match"]) == "eval/exact_match"
    assert main_metric([]) is None
    assert metric_infos().keys() == METRICS.keys()


def test_a_picture_is_made_once_and_is_empty_where_there_is_none(tmp_path: Path) -> None:
    pictures = Pictures(images_of(tmp_path, [row("a.png", "x", "y")]))
    assert [pictures.place_of(key) for key in ("a.png", "lost.png", "a.png")] == [0, 1, 0]
    first, second = pictures.make()
    assert first.startswith("data:image/jpeg")
    assert second == ""


def test_the_closest_reference_stands_beside_the_prediction_and_the_others_are_kept() -> None:
    truth, written, others = truth_and("a blue star", ["one boat", "a red star"])
    assert "".join(truth) == "a red star"
    assert "".join(written) == "a blue star"
    assert others == ["one boat"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photos/eval", "photos/eval"),
        ("https://me:pass@example.org/{00..09}.tar", "https://example.org/{00..09}.tar"),
        ("https://example.org/a.tar?X-Signature=secret", "https://example.org/a.tar?…"),
        ("pipe:curl -H 'Authorization: secret' https://example.org", "pipe:curl …"),
        ("a caption: why?", "a caption: why?"),
    ],
)
def test_settings_are_shown_without_what_may_be_a_secret(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    settings = {"flag": True, "unset": None, "paths": [text, 1], "root": {"path": text, "weight": None}}
    facts = {"flag": "true", "paths": f"{shown}, 1", "root": f"path: {shown}"}
    assert settings_block(settings)["facts"] == [list(pair) for pair in facts.items()]
