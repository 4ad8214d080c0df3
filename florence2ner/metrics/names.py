"""The names of the metrics, for settings: importing this imports nothing else."""

from typing import Any, Literal

MetricName = Literal[
    "eval/loss",
    "eval/perplexity",
    "eval/exact_match",
    "eval/bleu4",
    "eval/chrf",
    "eval/rouge1",
    "eval/rouge2",
    "eval/rouge_l",
    "eval/cider",
    "eval/meteor",
    "eval/length_ratio",
    "eval/distinct1",
    "eval/distinct2",
    "eval/repetition_rate",
    "eval/truncation_rate",
    "eval/tag_precision",
    "eval/tag_recall",
    "eval/tag_f1",
    "eval/map",
    "eval/cer",
]
ALWAYS: tuple[MetricName, ...] = ("eval/loss", "eval/perplexity")  # computed whatever is asked for


def whole_name(value: Any) -> Any:
    """The name of a metric for the short form of it, such as eval/cider for cider. Anything else is left as it is."""
    return f"eval/{value}" if isinstance(value, str) and "/" not in value else value
