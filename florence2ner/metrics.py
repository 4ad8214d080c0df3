"""Strings in, numbers out: how good captions are."""

from collections.abc import Sequence


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to their reference, white space at the ends aside. Raises ValueError when empty."""
    if not references:
        raise ValueError("no captions to compare")
    hits = [
        prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)
