"""Counts and logs the updates of a training run, and reports skipped images and skipped updates."""

import time
from collections.abc import Mapping

from accelerate.utils import gather_object

from florence2ner.data.batch import Window
from florence2ner.data.shards import Faults
from florence2ner.display import Bar
from florence2ner.engine.run_files import TrainState
from florence2ner.errors import UserError
from florence2ner.training.context import Context
from florence2ner.training.saving import Checkpoints
from florence2ner.training.step import Update

_NAMED = 8  # most images named when an update is skipped


class Progress:
    """Updates the counters in `state`, and collects metrics from one log line to the next."""

    def __init__(
        self,
        context: Context,
        state: TrainState,
        epoch_size: int | None,
        bar: Bar,
        checkpoints: Checkpoints,
    ) -> None:
        self._context = context
        self._state = state
        self._epoch_size = epoch_size
        self._bar = bar
        self._checkpoints = checkpoints
        self._unlogged: list[Update] = []  # since the last log line, of this process; `state` has their sums
        self._faults = Faults()  # of a stream, in this process
        self._seconds = 0.0  # that these updates took
        self._clock = 0.0
        self._evaluated = ""  # the newest result, as the bar shows it

    def start_clock(self) -> None:
        """Start timing the next update. The time since the last `count` (evaluating, saving) is not counted."""
        self._clock = time.perf_counter()

    def count(self, window: Window, update: Update) -> None:
        """Count an update, and warn of images that were skipped. Raises UserError as `_count_bad` does."""
        state = self._state
        state.step += 1
        state.samples_seen += update.samples
        self._seconds += time.perf_counter() - self._clock
        self._unlogged.append(update)
        for batch in window.batches:
            refs = dict(zip(batch.indices, batch.refs, strict=True))
            for index, reason in batch.failures:
                key, name = refs[index]
                self._context.display.warn(f"{name} is skipped: {reason}")
                if key not in state.unreadable:
                    state.unreadable.append(key)
            if batch.origin:
                state.lanes[batch.origin.lane] = batch.origin.position
                self._note(batch.origin.faults)
        state.skipped_updates += update.skipped
        if update.suspects:
            self._count_bad(update)
            return
        if not update.skipped:
            state.skipped_in_a_row = 0
        state.unlogged_loss += update.loss_sum
        state.unlogged_tokens += update.tokens

    def _note(self, faults: Faults) -> None:
        """Count what was passed over in a stream, and warn of each kind when it comes for the first time."""
        new = {what: count for what, count in faults.counts.items() if what not in self._faults.counts}
        for line in Faults(new, faults.names).report():
            self._context.display.warn(f"{line}; more of this kind is counted at the end")
        self._faults.merge(faults.counts, faults.names)

    def report_faults(self) -> None:
        """Say what of a stream was passed over since the start or resume. Every process must call this."""
        total = Faults()
        for faults in gather_object([self._faults]):
            total.merge(faults.counts, faults.names)
        for line in total.report():
            self._context.display.say(f"of the shards, as far as they were read: {line}")

    def _count_bad(self, update: Update) -> None:
        """Count an update that was skipped. Raises UserError when there were `max_bad_updates` in a row."""
        state = self._state
        state.skipped_in_a_row += 1
        names = ", ".join(update.suspects[:_NAMED])
        what = f"the loss or gradient of update {state.step} is not finite (images: {names})"
        if state.skipped_in_a_row >= self._context.config.max_bad_updates:
            raise UserError(
                f"{what}, the {state.skipped_in_a_row}th in a row: look at these images and captions, or lower the "
                f"learning rate; last good checkpoint: {self._checkpoints.last or 'none yet'}"
            )
        self._context.display.say(f"{what}; it is skipped")

    def log(self) -> None:
        """Log the updates since the last log line: mean loss per token and images per second over all of them.

        Of the other metrics, the newest values are logged.
        """
        state, newest = self._state, self._unlogged[-1]
        figures = {
            "train/learning_rate": newest.learning_rate,
            "train/gradient_norm": newest.gradient_norm,
            "train/images_per_second": sum(update.samples for update in self._unlogged) / self._seconds,
            "train/skipped_updates": state.skipped_updates,
        }
        figures |= {f"train/learning_rate_{part}": rate for part, rate in newest.part_rates.items()}
        if self._epoch_size:
            figures["train/epoch"] = state.samples_seen / self._epoch_size
        if state.unlogged_tokens:
            figures = {"train/loss": state.unlogged_loss / state.unlogged_tokens} | figures
        self._context.accelerator.log(figures, step=state.step)
        self._bar.advance(len(self._unlogged), **self._shown(figures))
        self._unlogged, self._seconds = [], 0.0
        state.unlogged_loss, state.unlogged_tokens = 0.0, 0

    def note_evaluation(self, value: float | None) -> None:
        """Note the newest value of `metric_for_best`, for the bar; None where there is none."""
        if value is not None:
            self._evaluated = f"{value:.4f}"

    def _shown(self, figures: Mapping[str, float]) -> dict[str, str]:
        """What the bar shows of these figures, the most important first."""
        config = self._context.config
        shown = {}
        if "train/epoch" in figures:
            of = f"/{config.epochs}" if config.max_steps is None else ""
            shown["epoch"] = f"{figures['train/epoch']:.2f}{of}"
        shown["loss"] = f"{figures.get('train/loss', float('nan')):.4f}"
        if self._evaluated:
            metric = config.metric_for_best.removeprefix("eval/")
            shown["eval" if metric == "loss" else metric] = self._evaluated
        shown["images/s"] = f"{figures['train/images_per_second']:.1f}"
        shown["lr"] = f"{figures['train/learning_rate']:.2e}"
        return shown
