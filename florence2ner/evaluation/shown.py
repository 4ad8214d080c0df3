"""An evaluation as the terminal shows it: captions beside the truth, the figures, and two models side by side."""

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from florence2ner.evaluation.compare import Comparison
from florence2ner.evaluation.result import Evaluation
from florence2ner.evaluation.rows import Row
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import METRICS, format_figure

_FIRST = ("eval/loss", "eval/perplexity", "eval/exact_match")  # on the first line


def print_evaluation(result: Evaluation, *, show: int) -> None:
    """Print some captions beside the truth, and all figures."""
    console = _console()
    if show and result.captions:
        table = Table("image", "truth", "prediction", show_lines=True)
        for row in result.captions[:show]:
            table.add_row(*map(_plain, (Path(row.image).name, _truth(row), row.prediction or "")))
        console.print(table)
    words = [f"{METRICS[name].label} {format_figure(name, value)}" for name, value in result.figures.items()]
    first = sum(name in _FIRST for name in result.figures)
    counted = f"({result.samples} images, {result.tokens} label tokens)"
    console.print("  ".join([*words[:first], counted]), highlight=False)
    if rest := words[first:]:
        console.print("  ".join(rest), highlight=False)


def print_comparison(found: Comparison, *, before: str, after: str, show: int, by: MetricName) -> None:
    """Print each metric of two models, with wins and losses, and the images on which they differ most."""
    console = _console()
    wide = [Column(title, no_wrap=True) for title in ("metric", before, after, "difference", "95% interval")]
    table = Table(*wide, "won", "lost", "tied", padding=0, pad_edge=False)
    for entry in found.differences:
        label, *figures = entry.in_words()
        style = "green" if entry.is_better else "red" if entry.is_worse else ""
        table.add_row(label, *figures, *map(str, (entry.wins, entry.losses, entry.ties)), style=style)
    console.print(table)
    largest = found.largest(by, show)
    if largest:
        console.print(f"the largest differences in {METRICS[by].label}:", highlight=False)
        rows = Table("image", "truth", before, after, METRICS[by].label, show_lines=True)
        for index in largest:
            first, second = found.before[index], found.after[index]
            scores = f"{format_figure(by, first.scores[by])} -> {format_figure(by, second.scores[by])}"
            texts = (Path(first.image).name, _truth(first), first.prediction or "", second.prediction or "")
            rows.add_row(*map(_plain, texts), scores)
        console.print(rows)


def _console() -> Console:
    return Console(soft_wrap=True, emoji=False)


def _truth(row: Row) -> str:
    return "\n".join(row.references)


def _plain(text: str) -> str:
    """Text without a meaning to rich."""
    return text.replace("[", r"\[")
