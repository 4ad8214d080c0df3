"""BLEU, chrF and ROUGE against other implementations: nltk's, a plain loop and torchmetrics'. METEOR by its formula."""

from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import sacrebleu
from nltk.translate.bleu_score import corpus_bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torchmetrics.functional.text import rouge_score

from florence2ner import UserError
from florence2ner.metrics import overlap
from florence2ner.metrics.table import METRICS, check_metrics, measure, names_for, scores_of_each
from tests.conftest import ColdStart
from tests.metrics.pairs import made_pairs
from tests.metrics.support import observed

PREDICTIONS, REFERENCES = made_pairs()
SEEN = observed(PREDICTIONS, REFERENCES)
PAIRS = list(zip(PREDICTIONS, REFERENCES, strict=True))
STREAMS = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(3)]  # as sacrebleu takes them


def test_bleu_is_sacrebleus_and_nltks() -> None:
    found = measure(SEEN, ["eval/bleu4"])["eval/bleu4"]
    assert found == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, STREAMS).score / 100, rel=1e-9)
    split = Tokenizer13a()
    tokens = [(split(text).split(), [split(truth).split() for truth in texts]) for text, texts in PAIRS]
    long = [number for number, (text, _) in enumerate(tokens) if len(text) > 3]  # nltk counts no n-gram as one
    assert len(long) > 150
    plain = corpus_bleu([tokens[number][1] for number in long], [tokens[number][0] for number in long])
    found = measure([SEEN[number] for number in long], ["eval/bleu4"])["eval/bleu4"]
    assert found == pytest.approx(plain, rel=1e-9)
    assert 0.2 < found < 0.9


def test_bleu_of_one_caption_is_sacrebleus_sentence_bleu() -> None:
    each = scores_of_each(SEEN, ["eval/bleu4"])
    for scores, text, texts in zip(each, PREDICTIONS, REFERENCES, strict=True):
        assert scores["eval/bleu4"] == pytest.approx(sacrebleu.sentence_bleu(text, texts).score / 100, abs=1e-12)


def plain_chrf(predictions: list[str], references: list[list[str]]) -> float:
    """Popović (2015), with the statistics of the reference that fits best summed over the corpus."""

    def grams(text: str, n: int) -> Counter[str]:
        letters = "".join(text.split())
        return Counter(letters[i : i + n] for i in range(len(letters) - n + 1))

    def rows(text: str, truth: str) -> np.ndarray:
        pairs = [(grams(text, n), grams(truth, n)) for n in range(1, 7)]
        # sacrebleu counts no n-grams of a caption that is too short for a reference's, and the other way round
        return np.array([(a.total() if b else 0, b.total(), (a & b).total()) for a, b in pairs], float)

    def score(stats: np.ndarray) -> float:
        known = stats[(stats[:, 0] > 0) & (stats[:, 1] > 0)]
        if not len(known):
            return 0.0
        p, r = (known[:, 2] / known[:, 0]).mean(), (known[:, 2] / known[:, 1]).mean()
        return 5 * p * r / (4 * p + r) if p + r else 0.0

    best = [
        max((rows(text, truth) for truth in texts), key=score)
        for text, texts in zip(predictions, references, strict=True)
    ]
    return score(sum(best))


def test_chrf_is_a_plain_loops_and_sacrebleus() -> None:
    found = measure(SEEN, ["eval/chrf"])["eval/chrf"]
    assert found == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, STREAMS).score / 100, rel=1e-9)
    assert found == pytest.approx(plain_chrf(PREDICTIONS, REFERENCES), rel=1e-6)
    each = scores_of_each(SEEN, ["eval/chrf"])
    for scores, text, texts in zip(each, PREDICTIONS, REFERENCES, strict=True):
        if text:
            assert scores["eval/chrf"] == pytest.approx(sacrebleu.sentence_chrf(text, texts).score / 100, abs=1e-12)


def test_rouge_is_torchmetrics() -> None:
    names = {"eval/rouge1": "rouge1", "eval/rouge2": "rouge2", "eval/rouge_l": "rougeL"}
    found = measure(SEEN, list(names))
    for ours, theirs in names.items():
        # one by one: of several references the best F-measure, as rouge-score has it
        values = [
            max(float(rouge_score(text, truth, rouge_keys=theirs)[f"{theirs}_fmeasure"]) for truth in texts)
            for text, texts in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert found[ours] == pytest.approx(np.mean(values), abs=1e-6)


def test_other_scripts_count() -> None:
    seen = observed(["красная звезда"], [["красная звезда"]])
    assert measure(seen, ["eval/rouge1", "eval/bleu4"])["eval/rouge1"] == 1.0


@pytest.mark.skipif(overlap.has_word_list(), reason="WordNet is installed")
def test_meteor_without_its_word_list_is_left_out_or_refused_in_one_line() -> None:
    assert "eval/meteor" not in names_for(SEEN)
    with pytest.raises(UserError, match=r"eval/meteor needs WordNet: python -m nltk\.downloader wordnet"):
        check_metrics(["eval/meteor"])


@pytest.fixture
def word_list(tmp_path: Path) -> Path:
    """A folder of nltk's data with WordNet in it, zipped as its downloader leaves it; made of Debian's packages."""
    files = Path("/usr/share/wordnet")
    if not (files / "index.sense").exists():
        pytest.skip("needs Debian's wordnet-base and wordnet-sense-index")
    with ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for path in files.iterdir():
            archive.write(path, f"wordnet/{path.name}")
        # What WordNet's lexicographers called their 45 files, which METEOR has no use for, is not among them.
        archive.writestr("wordnet/lexnames", "".join(f"{number:02}\tname\t1\n" for number in range(45)))
    (tmp_path / "corpora").mkdir()
    (tmp_path / "wordnet.zip").rename(tmp_path / "corpora" / "wordnet.zip")
    return tmp_path


@pytest.mark.slow
def test_meteor_counts_words_stems_and_synonyms(cold_start: ColdStart, word_list: Path) -> None:
    written = ["a red sofa", "two dogs", "a dog on a sofa", "It is a guide to action which ensures that the military"]
    truths = [["a red couch"], ["two dog", "no"], ["snow"], ["the military is guided to ensure that action"]]
    code = f"""
from florence2ner.metrics.table import check_metrics, measure, names_for
from tests.metrics.support import observed
check_metrics(["eval/meteor"])
for text, texts in zip({written}, {truths}):
    seen = observed([text], [texts])
    print(measure(seen, names_for(seen))["eval/meteor"])
"""
    run = cold_start("-c", code, NLTK_DATA=str(word_list))
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors

    def score(matches: int, chunks: int, words: int, truth: int) -> float:
        """The formula of the paper."""
        precision, recall = matches / words, matches / truth
        return precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 * (chunks / matches) ** 3)

    expected = [score(3, 1, 3, 3), score(2, 1, 2, 2), 0.0, score(8, 5, 11, 8)]
    assert [float(line) for line in output.split()] == pytest.approx(expected)


def test_a_word_list_of_which_only_a_part_is_there_is_none(cold_start: ColdStart, tmp_path: Path) -> None:
    (tmp_path / "corpora" / "wordnet").mkdir(parents=True)
    (tmp_path / "corpora" / "wordnet" / "data.noun").touch()
    code = "from florence2ner.metrics.overlap import has_word_list; print(has_word_list())"
    run = cold_start("-c", code, NLTK_DATA=str(tmp_path))
    assert run.communicate(timeout=60)[0] == "False\n"


def test_no_caption_at_all_has_no_score() -> None:
    assert measure(observed([None], [["a star"]]), ["eval/bleu4", "eval/chrf", "eval/rouge1"]) == {}
    assert METRICS["eval/bleu4"].of_one(np.zeros(10)) != METRICS["eval/bleu4"].of_one(np.zeros(10)), "NaN"
