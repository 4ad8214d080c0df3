"""What happens around the updates of a training run: logging, evaluation, checkpoints, and reasons to stop."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Window
from florence2ner.data.images import ImageError, load_image
from florence2ner.data.loader import FeatureSource, resolve_workers
from florence2ner.data.split import Split
from florence2ner.display import Bar, Display
from florence2ner.engine.checkpoint import TrainState, list_checkpoints, save_checkpoint
from florence2ner.engine.collectives import check_same_weights
from florence2ner.engine.runtime import SHARDED
from florence2ner.engine.signals import StopSignals
from florence2ner.engine.tracking import log_captions
from florence2ner.errors import Interrupted, UserError
from florence2ner.evaluation.evaluate import Evaluation, evaluate_samples
from florence2ner.metrics import is_better
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import save_model
from florence2ner.training.run_folder import resume_command
from florence2ner.training.step import Update

_THUMBNAIL = (192, 192)  # pixels, of the pictures in the table of captions


@dataclass
class Run:
    """One process's view of a run. `after_update` is called by the loop, in all processes alike."""

    config: TrainConfig
    accelerator: Accelerator
    display: Display
    bar: Bar
    signals: StopSignals
    prepared: nn.Module  # the captioner as Accelerate wrapped it
    captioner: Captioner
    split: Split
    state: TrainState
    total_steps: int
    features: FeatureSource | None = None
    resumed_from: tuple[int, ...] = ()  # the step of the checkpoint, if any: never deleted
    last_checkpoint: Path | None = None
    unlogged: list[Update] = field(default_factory=list)  # of this process's life; their sums are in `state` too
    seconds: float = 0.0  # spent on the updates in `unlogged`
    clock: float = 0.0

    def begin(self) -> None:
        """Evaluate what the run starts from."""
        self.last_checkpoint = next(reversed(list_checkpoints(self.config.run_dir)), None)
        if self.state.evaluation_due or (self.config.eval_before_training and not self.state.step):
            self.evaluate()
        self.prepared.train()
        self.clock = time.perf_counter()

    def after_update(self, window: Window, update: Update) -> bool:
        """Count the update, then log, evaluate and save when due; True ends the run.

        Raises Interrupted after a signal and UserError after too many bad updates, with a good checkpoint on the disk.
        """
        state, config = self.state, self.config
        self._count(window, update)
        last = state.step == self.total_steps
        stop = None if last else self.signals.agreed(self.accelerator)  # at the end there is nothing left to stop
        if last or _due(state.step, config.log_every):
            self.log()
        if last or _due(state.step, config.eval_steps):
            state.evaluation_due = True
            if not stop:
                self.evaluate()
                self.prepared.train()
                stop = None if last else self.signals.agreed(self.accelerator)
        patience = config.early_stopping_patience
        if patience is not None and state.evaluations_since_best >= patience and not last:
            self.display.say(f"no better {config.metric_for_best} in {patience} evaluations: stopping early")
            last = True
        if last or stop or _due(state.step, config.save_steps):
            self.save()
        if stop and not last:
            raise Interrupted(
                f"stopped by signal {stop} after update {state.step} of {self.total_steps}, saved in "
                f"{self.last_checkpoint}; {resume_command(config, self.last_checkpoint)}",
                signal=stop,
            )
        self.clock = time.perf_counter()
        return last

    def _count(self, window: Window, update: Update) -> None:
        state = self.state
        state.step += 1
        state.samples_seen += update.samples
        self.seconds += time.perf_counter() - self.clock
        self.unlogged.append(update)
        for batch in window.batches:
            for index, reason in batch.failures:
                self.display.warn(f"{self.split.train[index].image} is skipped: {reason}")
        if not update.suspects:
            state.skipped_in_a_row = 0
            state.unlogged_loss += update.loss_sum.item()
            state.unlogged_tokens += update.tokens
            return
        state.skipped_updates += 1
        state.skipped_in_a_row += 1
        names = ", ".join(str(self.split.train[index].image) for index in update.suspects[:8])
        what = f"the loss or gradient of update {state.step} is not finite (images: {names})"
        if state.skipped_in_a_row >= self.config.max_bad_updates:
            raise UserError(
                f"{what}, the {state.skipped_in_a_row}th in a row: look at these images and captions, or lower the "
                f"learning rate; last good checkpoint: {self.last_checkpoint or 'none yet'}"
            )
        self.display.say(f"{what}; it is skipped")

    def log(self) -> None:
        """Log the updates since the last time: the token-weighted mean loss, the newest of the rest."""
        state, newest = self.state, self.unlogged[-1]
        figures = {
            "train/learning_rate": newest.learning_rate,
            "train/gradient_norm": newest.gradient_norm.item(),
            "train/epoch": state.samples_seen / len(self.split.train),
            "train/images_per_second": sum(update.samples for update in self.unlogged) / self.seconds,
            "train/skipped_updates": state.skipped_updates,
        }
        if state.unlogged_tokens:
            figures = {"train/loss": state.unlogged_loss / state.unlogged_tokens} | figures
        self.accelerator.log(figures, step=state.step)
        self.bar.advance(
            len(self.unlogged),
            loss=f"{figures.get('train/loss', float('nan')):.4f}",
            lr=f"{newest.learning_rate:.2e}",
            images_per_second=f"{figures['train/images_per_second']:.1f}",
        )
        self.unlogged, self.seconds = [], 0.0
        state.unlogged_loss, state.unlogged_tokens = 0.0, 0

    def evaluate(self) -> None:
        """Loss on the held-out samples, and captions of the first batch beside the truth. A signal cuts it short."""
        last = self.state.step == self.total_steps
        if not self.split.eval:
            self.state.evaluation_due = False
            return
        result = evaluate_samples(
            self.accelerator,
            self.display,
            self.captioner,
            self.split.eval,
            batch_size=self.config.eval_batch_size,
            workers=resolve_workers(self.accelerator, self.config),
            num_beams=self.config.num_beams,
            max_new_tokens=self.config.max_new_tokens,
            generate=self.config.eval_batch_size,
            features=self.features,
            give_up=lambda: self.signals.received is not None and not last,
        )
        if result is None:
            return
        step = self.state.step
        self.state.evaluation_due = False
        self.accelerator.log(result.figures(), step=step)
        self.display.say(f"step {step}: eval loss {result.loss:.4f}, perplexity {result.perplexity:.3f}")
        for row in result.captions[:2]:
            self.display.say(f"  truth      {row.reference}\n  prediction {row.prediction}")
        if self.accelerator.is_main_process:
            self._log_table(result)
        value = result.figures().get(self.config.metric_for_best)
        if step and value is not None:
            self._note_best(value)

    def _note_best(self, value: float) -> None:
        state, config = self.state, self.config
        if is_better(config.metric_for_best, value, state.best_value):
            state.evaluations_since_best, state.best_value = 0, value
        else:
            state.evaluations_since_best += 1
        is_saved = state.step == self.total_steps or _due(state.step, config.save_steps)
        if is_saved and is_better(config.metric_for_best, value, state.best_saved_value):
            state.best_step, state.best_saved_value = state.step, value

    def _log_table(self, result: Evaluation) -> None:
        if not any(tracker.name == "wandb" for tracker in self.accelerator.trackers):
            return
        rows = []
        for row in result.captions:
            with suppress(ImageError):  # deleted since it was evaluated
                thumbnail = load_image(Path(row.image))
                thumbnail.thumbnail(_THUMBNAIL)
                rows.append((row.reference, row.prediction, thumbnail))
        log_captions(self.accelerator, rows, step=self.state.step)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        config = self.config
        weights = None
        if self.accelerator.distributed_type in SHARDED:  # where the tower is never parked
            gathered = self.accelerator.get_state_dict(self.prepared)
            weights = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
        elif self.accelerator.num_processes > 1:
            check_same_weights(self.accelerator, self.captioner)

        def export(directory: Path) -> None:
            model, processor = self.captioner.model, self.captioner.processor
            save_model(model, processor, directory, layout=config.export_layout, weights=weights)

        with self.captioner.whole():
            self.last_checkpoint = save_checkpoint(
                self.accelerator,
                config.run_dir,
                self.state,
                export,
                keep=config.save_total_limit,
                keep_states=config.keep_states,
                keep_steps=self.resumed_from,
                with_weights=config.export_layout != "native",
            )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
