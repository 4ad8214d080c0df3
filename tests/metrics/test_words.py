"""What counts as a word."""

from rouge_score.tokenize import tokenize

from florence2ner.metrics.words import ngrams, words
from tests.metrics.pairs import made_pairs


def test_words_of_ascii_are_those_of_rouge_score() -> None:
    predictions, references = made_pairs()
    for text in [*predictions, *(text for texts in references for text in texts), "It's 3-d_x, e.g. 50%"]:
        assert words(text) == tokenize(text, None)


def test_other_scripts_have_words_too() -> None:
    assert words("Ein großes Haus, «дом» 家!") == ["ein", "großes", "haus", "дом", "家"]


def test_ngrams_are_counted() -> None:
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert not ngrams(["a"], 2)
