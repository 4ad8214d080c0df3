"""Strings in, numbers out: how good captions are."""

from collections.abc import Sequence

LOWER_IS_BETTER = frozenset({"eval/loss", "eval/perplexity"})


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` of `metric` beats the best so far (None: there is none). Not a number never does."""
    if best is None:
        return value == value
    return value < best if metric in LOWER_IS_BETTER else value > best


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to their reference, white space at the ends aside. Raises ValueError when empty."""
    if not references:
        raise ValueError("no captions to compare")
    hits = [
        prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)
