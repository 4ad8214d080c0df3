"""The names of the metrics, for settings: importing this imports nothing else."""

from typing import Literal

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
