"""The metrics of an evaluation, in one table: how each is computed, what it counts, and what is better."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from florence2ner.errors import UserError
from florence2ner.metrics import answers, diversity, overlap, tags
from florence2ner.metrics.cider import cider_d
from florence2ner.metrics.metric import Goal, Metric, Parts, Summed, Whole, ratio, shares
from florence2ner.metrics.names import ALWAYS, MetricName
from florence2ner.metrics.observed import Observed

_MOSTLY = 0.75  # share of the captions that are lists of tags, from which on tags are counted


def _always(seen: Observed) -> bool:
    return True


def _written(seen: Observed) -> bool:
    return seen.prediction is not None


def _captions(seen: Observed) -> bool:
    return seen.prediction is not None and seen.kind == "caption"


def _exact(observed: Sequence[Observed]) -> list[float]:
    return [(seen.prediction or "").strip() in {text.strip() for text in seen.references} for seen in observed]


def _cider(observed: Sequence[Observed]) -> list[float]:
    return cider_d([seen.prediction or "" for seen in observed], [seen.references for seen in observed])


def _mean(
    values: Callable[[Sequence[Observed]], Sequence[float]],
    label: str,
    meaning: str,
    goal: Goal = "higher",
    applies: Callable[[Observed], bool] = _captions,
    *,
    percent: bool = False,
) -> Summed:
    """A metric that is the mean of a value for each image."""
    return Summed(
        label=label,
        meaning=meaning,
        goal=goal,
        applies=applies,
        percent=percent,
        parts=lambda observed: shares(values(observed)),
        value=ratio,
    )


def _nats(observed: Sequence[Observed]) -> Parts:
    return np.array([(seen.nats, seen.tokens) for seen in observed], np.float64)


def _perplexity(parts: Parts) -> float:
    return math.exp(min(ratio(parts), 700.0))  # exp overflows a float beyond 709


def _tags(label: str, meaning: str, value: Callable[[Parts], float]) -> Summed:
    return Summed(
        label=label,
        meaning=meaning,
        goal="higher",
        applies=_captions,
        percent=True,
        parts=tags.tag_parts,
        value=value,
    )


METRICS: dict[MetricName, Metric] = {
    "eval/loss": Summed(
        label="loss", meaning="nats per label token", goal="lower", applies=_always, parts=_nats, value=ratio
    ),
    "eval/perplexity": Summed(
        label="perplexity", meaning="e to the loss", goal="lower", applies=_always, parts=_nats, value=_perplexity
    ),
    "eval/exact_match": _mean(
        _exact,
        "exact match",
        "share of captions that are a reference to the letter, but for white space around them",
        applies=_written,
        percent=True,
    ),
    "eval/bleu4": Summed(
        label="BLEU-4",
        meaning="precision of one to four words in a row, from 0 to 1 (sacrebleu)",
        goal="higher",
        applies=_captions,
        parts=overlap.bleu_parts,
        value=overlap.bleu_value,
        value_of_one=overlap.bleu_of_one,
    ),
    "eval/chrf": Summed(
        label="chrF",
        meaning="precision and recall of one to six letters in a row, from 0 to 1 (sacrebleu)",
        goal="higher",
        applies=_captions,
        parts=overlap.chrf_parts,
        value=overlap.chrf_value,
    ),
    "eval/rouge1": _mean(
        partial(overlap.rouge, name="rouge1"), "ROUGE-1", "F-measure of words, from 0 to 1 (rouge-score)"
    ),
    "eval/rouge2": _mean(
        partial(overlap.rouge, name="rouge2"), "ROUGE-2", "F-measure of pairs of words, from 0 to 1 (rouge-score)"
    ),
    "eval/rouge_l": _mean(
        partial(overlap.rouge, name="rougeL"),
        "ROUGE-L",
        "F-measure of the longest sequence of words in common, from 0 to 1 (rouge-score)",
    ),
    "eval/cider": _mean(_cider, "CIDEr-D", "likeness to the references where rare words count more, from 0 to 10"),
    "eval/meteor": _mean(
        overlap.meteor, "METEOR", "words, stems and synonyms in common, from 0 to 1 (nltk with WordNet)"
    ),
    "eval/length_ratio": Summed(
        label="length ratio",
        meaning="words written by words of the reference whose length is closest",
        goal="one",
        applies=_captions,
        parts=diversity.length_parts,
        value=ratio,
    ),
    "eval/distinct1": Whole(
        label="distinct-1",
        meaning="different words by all words of the captions",
        goal="higher",
        applies=_captions,
        compute=partial(diversity.distinct, n=1),
    ),
    "eval/distinct2": Whole(
        label="distinct-2",
        meaning="different pairs of words by all pairs of the captions",
        goal="higher",
        applies=_captions,
        compute=partial(diversity.distinct, n=2),
    ),
    "eval/repetition_rate": _mean(
        lambda observed: [seen.is_loop for seen in observed],
        "repetition rate",
        "share of answers that repeat themselves more than people do",
        "lower",
        _written,
        percent=True,
    ),
    "eval/truncation_rate": _mean(
        lambda observed: [seen.is_cut_off for seen in observed],
        "truncation rate",
        "share of answers that max_new_tokens cut off",
        "lower",
        _written,
        percent=True,
    ),
    "eval/tag_precision": _tags("tag precision", "share of the tags written that are right", tags.precision),
    "eval/tag_recall": _tags("tag recall", "share of the right tags that were written", tags.recall),
    "eval/tag_f1": _tags("tag F1", "harmonic mean of both", tags.f1),
    "eval/map": Whole(
        label="mAP",
        meaning="mean average precision of boxes over IoU 0.50 to 0.95, from 0 to 1",
        goal="higher",
        applies=lambda seen: seen.prediction is not None and seen.kind == "boxes",
        package="florence2ner[detection]",
        module="torchmetrics",
        compute=answers.mean_average_precision,
    ),
    "eval/cer": Summed(
        label="character error rate",
        meaning="letters to insert, delete or replace by letters of the reference, for <OCR>",
        goal="lower",
        applies=lambda seen: seen.prediction is not None and seen.kind == "ocr",
        percent=True,
        parts=answers.error_parts,
        value=ratio,
    ),
}
_TAGS = ("eval/tag_precision", "eval/tag_recall", "eval/tag_f1")


def check_metrics(names: Sequence[MetricName]) -> None:
    """Raise UserError for a metric that was asked for and whose package or word list is not installed."""
    for name in names:
        metric = METRICS[name]
        if not metric.is_there():
            raise UserError(f"{name} needs a package that is not installed: pip install '{metric.package}'")
        if name == "eval/meteor" and not overlap.has_word_list():
            raise UserError("eval/meteor needs WordNet: python -m nltk.downloader wordnet")


def names_for(observed: Sequence[Observed], asked: Sequence[MetricName] = ()) -> tuple[MetricName, ...]:
    """The metrics to compute: loss, perplexity and those that were asked for; with none asked for, all that apply.

    Tags are counted unasked where most captions are lists of tags. What needs something that isn't installed is left
    out unless it was asked for.
    """
    if asked:
        wanted = {*ALWAYS, *asked}
        return tuple(name for name in METRICS if name in wanted and any(map(METRICS[name].applies, observed)))
    return tuple(name for name in METRICS if _is_worth_it(name, observed))


def _is_worth_it(name: MetricName, observed: Sequence[Observed]) -> bool:
    counted = [seen for seen in observed if METRICS[name].applies(seen)]
    if not counted or not METRICS[name].is_there() or (name == "eval/meteor" and not overlap.has_word_list()):
        return False
    return name not in _TAGS or sum(tags.are_tags(seen.references[0]) for seen in counted) >= _MOSTLY * len(counted)


def measure(observed: Sequence[Observed], names: Sequence[MetricName]) -> dict[MetricName, float]:
    """The metrics by name, each over the images that it applies to; without those that apply to none."""
    found = {name: _measure(METRICS[name], observed) for name in names}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _measure(metric: Metric, observed: Sequence[Observed]) -> float:
    if isinstance(metric, Summed):
        return metric.value(parts_of(metric, observed).sum(axis=0))
    counted = [seen for seen in observed if metric.applies(seen)]
    return metric.compute(counted) if counted else math.nan


def parts_of(metric: Summed, observed: Sequence[Observed]) -> Parts:
    """The parts (N, K) of a metric for all N images; rows of zeros for those that it doesn't apply to."""
    rows = [number for number, seen in enumerate(observed) if metric.applies(seen)]
    if not rows:
        return np.zeros((len(observed), 2))
    found = metric.parts([observed[row] for row in rows])
    parts = np.zeros((len(observed), found.shape[1]))
    parts[rows] = found
    return parts


def scores_of_each(observed: Sequence[Observed], names: Sequence[MetricName]) -> list[dict[MetricName, float]]:
    """Of each image, the metrics that can be said of one alone."""
    scores: list[dict[MetricName, float]] = [{} for _ in observed]
    for name in names:
        metric = METRICS[name]
        if isinstance(metric, Summed):
            for row, seen, found in zip(parts_of(metric, observed), observed, scores, strict=True):
                if metric.applies(seen) and not math.isnan(value := metric.of_one(row)):
                    found[name] = value
    return scores


def is_better(name: MetricName, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; None: there is none yet. NaN never does."""
    if best is None:
        return not math.isnan(value)
    return METRICS[name].is_better(value, best)


def label_of(name: str) -> str:
    """A metric as people call it; of a figure that is no metric of ours its own name."""
    metric = _known(name)
    return metric.label if metric else name


def _known(name: str) -> Metric | None:
    metrics: Mapping[str, Metric] = METRICS  # type: ignore[assignment]
    return metrics.get(name)


def format_figure(name: str, value: float) -> str:
    """A figure as people read it: 0.4127, 15.99 or 43.8%."""
    metric = _known(name)
    if metric and metric.percent:
        return f"{value:.1%}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"
