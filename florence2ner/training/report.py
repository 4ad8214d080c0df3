"""Keeps the report of a training run up to date: report.html in its folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from florence2ner.data.samples import Sample
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.tracking import read_metrics
from florence2ner.evaluation.compare import Comparison, Difference
from florence2ner.evaluation.record import read_figures, read_rows, recorded_steps
from florence2ner.files import write_text
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import METRICS, format_figure
from florence2ner.report.rows import in_order_of_use
from florence2ner.report.thumbnails import thumbnails
from florence2ner.report.training import SHOWN, Captions, training_page
from florence2ner.training.context import Context
from florence2ner.training.verdict import tell_whether_better

REPORT_FILE = "report.html"
_LINES = 3  # metrics that are compared above all others


class RunReport:
    """Writes the page of a run, from what is in its folder: so a run that is resumed goes on with the whole of it."""

    def __init__(self, context: Context, state: TrainState, total_steps: int, samples: Sequence[Sample]) -> None:
        self._context = context
        self._state = state
        self._total_steps = total_steps
        self._samples = samples
        self._evaluations: list[Captions] = []
        self._figures: dict[int, Mapping[str, float]] = {}  # of the evaluations, by their steps
        self._followed: list[tuple[tuple[str, str], str]] = []  # (image, task prompt), picture
        self._has_failed = False

    def conclude(self) -> Comparison | None:
        """Tell whether the run made the model better, at its end, on the page and in the terminal.

        Returns the comparison, see `tell_whether_better`. Every process must call this.
        """
        comparison = tell_whether_better(self._context, self._state)
        self.renew(comparison)
        return comparison

    def renew(self, comparison: Comparison | None = None) -> None:
        """Write the page anew; `comparison` is that of the first evaluation with the best, once the run is over.

        Does nothing in other processes than the main one. A page that can't be written is warned of once.
        """
        if not self._context.accelerator.is_main_process:
            return
        try:
            self._read_evaluations()
            write_text(self._context.config.run_dir / REPORT_FILE, self._page(comparison))
        except Exception as error:  # a full disk, or files that somebody has changed: no reason to end a run
            if not self._has_failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._context.display.warn(f"the report could not be written, training goes on: {reason}")
            self._has_failed = True

    def _read_evaluations(self) -> None:
        """Read the evaluations that are not known yet. The first one decides which images are followed."""
        run_dir = self._context.config.run_dir
        for step in recorded_steps(run_dir):
            if step in self._figures:
                continue
            rows = [row for row in read_rows(run_dir, step) if row.prediction is not None]
            if not self._followed:
                images = {sample.image.key: sample.image for sample in self._samples}
                pictures = thumbnails([images.get(row.image) for row in rows[:SHOWN]])
                self._followed = [(row.name, text or "") for row, text in zip(rows, pictures, strict=False)]
            names = {name for name, _ in self._followed}
            self._figures[step] = read_figures(run_dir, step)
            self._evaluations.append(Captions(step, [row for row in rows if row.name in names]))

    def _page(self, comparison: Comparison | None) -> str:
        config, state = self._context.config, self._state
        lines = read_metrics(config.run_dir) or [{"step": step, **found} for step, found in self._figures.items()]
        facts = {"update": f"{state.step:,} of {self._total_steps:,}", "images seen": f"{state.samples_seen:,}"}
        if self._samples:
            facts["held out"] = f"{len(self._samples):,}"
        if state.best_step is not None:
            facts["best checkpoint"] = f"step {state.best_step:,}"
        notes = [f"{state.skipped_updates:,} updates were skipped: their loss or gradient was not finite."]
        return training_page(
            title=config.run_dir.name,
            lead=self._lead(comparison),
            facts=facts,
            lines=lines,
            evaluations=self._evaluations,
            followed=self._followed,
            settings=config.model_dump(mode="json"),
            notes=notes if state.skipped_updates else [],
        )

    def _lead(self, comparison: Comparison | None) -> list[str]:
        """Whether it got better: with intervals at the end, by the figures until then."""
        wanted = self._context.config.metric_for_best
        if comparison:
            known = {entry.metric: entry for entry in comparison.differences}
            return [f"{known[name]}: {_verdict(known[name])}".replace("->", "→") for name in _first(wanted, known)]
        if len(self._figures) < 2:
            return []
        first, last = min(self._figures), max(self._figures)
        before, after = self._figures[first], self._figures[last]
        words = [
            f"{METRICS[name].label} {format_figure(name, before[name])} → {format_figure(name, after[name])}"
            for name in _first(wanted, before)
            if name in after
        ]
        return [f"From update {first:,} to {last:,}: {', '.join(words)}."]


def _verdict(found: Difference) -> str:
    return "better" if found.is_better else "worse" if found.is_worse else "no clear change"


def _first(wanted: MetricName, known: Mapping[Any, object]) -> list[MetricName]:
    """The metrics to tell of: what decides on the best checkpoint, and those that tell most."""
    return [*dict.fromkeys(name for name in (wanted, *in_order_of_use(known)) if name in known)][:_LINES]
