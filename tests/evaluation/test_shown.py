"""What the terminal shows."""

import pytest

from florence2ner.evaluation.compare import compare
from florence2ner.evaluation.result import summarise
from florence2ner.evaluation.shown import print_comparison, print_evaluation
from tests.evaluation.test_compare import rows_of


def test_captions_and_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = summarise(rows_of(["a [red] star", "b"], [["a [red] star", "a star"], ["a dog"]]), (), samples=2)
    print_evaluation(result, show=1)
    printed = capsys.readouterr().out
    assert "0.png" in printed
    assert "1.png" not in printed
    assert "a [red] star" in printed
    line = "loss 1.0500  perplexity 2.8577  exact match 50.0%  (2 images, 20 label tokens)\n"
    assert line in printed
    assert "CIDEr-D" in printed.split(line)[1]


def test_two_models_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    texts = ["a red star", "a blue dog", "a map", "a hat", "no"]
    truths = [[text] for text in texts]
    before, after = rows_of(["no", "a blue dog", "x", "y", "no"], truths), rows_of(texts, truths)
    print_comparison(compare(before, after), before="old", after="new", show=1, by="eval/exact_match")
    printed = capsys.readouterr().out
    assert "the largest differences in exact match:" in printed
    assert "0.0% -> 100.0%" in printed
    exact = next(line for line in printed.splitlines() if "exact match" in line)
    assert [cell.strip() for cell in exact.split("│")[1:-1]] == [
        "exact match",
        "40.0%",
        "100.0%",
        "+60.0",
        "[0.0, 100.0]",
        "3",
        "0",
        "2",
    ]
    assert "old" in printed
    assert "new" in printed
