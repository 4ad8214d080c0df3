"""What metrics are computed from, of pairs of captions."""

from collections.abc import Sequence

from florence2ner.metrics.observed import Observed


def observed(predictions: Sequence[str | None], references: Sequence[Sequence[str]]) -> list[Observed]:
    """The captions as an evaluation finds them, with a loss of 1 nat for each of 10 tokens."""
    return [
        Observed(nats=10.0, tokens=10, references=tuple(texts), prediction=text)
        for text, texts in zip(predictions, references, strict=True)
    ]
