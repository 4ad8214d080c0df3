"""How much of a caption people wrote, too: BLEU and chrF (sacrebleu), ROUGE (rouge-score), METEOR (nltk).

With several references, BLEU counts an n-gram of any of them; the others take the reference that fits best.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from florence2ner.metrics.metric import Parts
from florence2ner.metrics.observed import Observed
from florence2ner.metrics.words import words


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], tokenizer=_Words())


class _Words:
    """The tokenizer that rouge-score is given: its own knows no letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def bleu_parts(observed: Sequence[Observed]) -> Parts:
    """Of each caption: its words, those of the closest reference, matches and n-grams of 1 to 4 words (N, 10)."""
    rows = []
    for seen in observed:
        score = _bleu().sentence_score(seen.prediction or "", list(seen.references))
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, np.float64)


def bleu_value(parts: Parts) -> float:
    """BLEU-4 of a corpus from 0 to 1, as `sacrebleu.corpus_bleu` computes it (smoothing exp)."""
    return _bleu_of(parts, effective_order=False)


def bleu_of_one(parts: Parts) -> float:
    """BLEU-4 of a single caption, which may have fewer than four words: as `sacrebleu.sentence_bleu` computes it."""
    return _bleu_of(parts, effective_order=True)


def _bleu_of(parts: Parts, *, effective_order: bool) -> float:
    if not parts[1]:
        return float("nan")
    length, reference, *matches = map(int, parts)
    correct, total = matches[:4], matches[4:]
    score = _bleu().compute_bleu(
        correct, total, length, reference, smooth_method="exp", effective_order=effective_order
    )
    return float(score.score) / 100


def chrf_parts(observed: Sequence[Observed]) -> Parts:
    """Of each caption: the n-grams of 1 to 6 letters, those of its reference, and the matches, by n (N, 18)."""
    # The library sums these itself, but says so only of whole corpora; a test holds them to its published score.
    rows = [
        _chrf()._extract_corpus_statistics([seen.prediction or ""], [[text] for text in seen.references])[0]
        for seen in observed
    ]
    return np.array(rows, np.float64)


def chrf_value(parts: Parts) -> float:
    """chrF from 0 to 1, as `sacrebleu.corpus_chrf` computes it."""
    if not parts.any():
        return float("nan")
    return float(_chrf()._compute_score_from_stats(parts.tolist()).score) / 100


def rouge(observed: Sequence[Observed], name: str) -> list[float]:
    """The F-measure of each caption, from 0 to 1; `name` is rouge1, rouge2 or rougeL."""
    scorer = _rouge(name)
    return [float(scorer.score_multi(list(seen.references), seen.prediction or "")[name].fmeasure) for seen in observed]


def has_word_list() -> bool:
    """Whether METEOR's list of synonyms, WordNet, is among nltk's data, and can be read. Nothing is downloaded."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        return False
    return True


def meteor(observed: Sequence[Observed]) -> list[float]:
    """METEOR of each caption, from 0 to 1, as nltk computes it, on words in lower case.

    After Lavie and Agarwal, "METEOR: An Automatic Metric for MT Evaluation with High Levels of Correlation with Human
    Judgments" (2007); but nltk looks for synonyms of what it has stemmed: "large" is none of "big", as it is "larg".
    """
    from nltk.translate.meteor_score import meteor_score

    return [
        float(meteor_score([words(text) for text in seen.references], words(seen.prediction or "")))
        for seen in observed
    ]
