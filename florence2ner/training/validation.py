"""Evaluates a training run on its held-out samples; keeps track of the best result and of early stopping."""

from collections.abc import Callable
from contextlib import suppress

from florence2ner.data.batch import FeatureSource
from florence2ner.data.pictures import ImageError, load_image
from florence2ner.data.samples import Sample
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.sharding import gathered
from florence2ner.engine.tracking import has_tables, log_captions
from florence2ner.evaluation.record import write_record
from florence2ner.evaluation.result import Evaluation
from florence2ner.evaluation.samples import evaluate_samples
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import METRICS, format_figure, is_better
from florence2ner.model.captioner import Captioner
from florence2ner.training.callbacks import Callbacks
from florence2ner.training.card import ModelCard
from florence2ner.training.context import Context
from florence2ner.training.report import RunReport
from florence2ner.training.timetable import Timetable

_TOLD: tuple[MetricName, ...] = (
    "eval/loss",
    "eval/perplexity",
    "eval/exact_match",
    "eval/cider",
    "eval/map",
    "eval/cer",
)
_SHOWN = 2  # captions printed after each evaluation
_THUMBNAIL = (192, 192)  # largest width and height, in pixels, of the images in the table of captions


class Validation:
    """Runs evaluations, and keeps the best result in `state`."""

    def __init__(
        self,
        context: Context,
        state: TrainState,
        timetable: Timetable,
        captioner: Captioner,
        samples: tuple[Sample, ...],
        features: FeatureSource | None,
        card: ModelCard,
        callbacks: Callbacks,
        report: RunReport,
    ) -> None:
        self._context = context
        self._state = state
        self._timetable = timetable
        self._captioner = captioner
        self._samples = samples
        self._features = features
        self._card = card
        self._callbacks = callbacks
        self._report = report
        asked = context.config.eval_metrics
        self._metrics = (*asked, context.config.metric_for_best) if asked else ()
        self.newest: float | None = None  # value of `metric_for_best`, of the evaluations of this process

    def evaluate(self, give_up: Callable[[], bool]) -> None:
        """Evaluate the loss on the held-out samples, and captions for `eval_captions` of them; log and keep both.

        When `give_up` returns True in any process, the evaluation is abandoned in all of them and stays due. Leaves the
        captioner in evaluation mode. Every process must call this.
        """
        config, accelerator, display = self._context.config, self._context.accelerator, self._context.display
        if not self._samples:
            self._state.evaluation_due = False
            return
        with gathered(accelerator, self._captioner):
            result = evaluate_samples(
                accelerator,
                display,
                self._captioner,
                self._samples,
                generation=config,
                seed=config.seed,
                batch_size=config.eval_batch_size,
                workers=self._context.workers,
                metrics=self._metrics,
                captions=config.eval_captions,
                features=self._features,
                give_up=give_up,
            )
        if result is None:
            return
        step = self._state.step
        self._state.evaluation_due = False
        self._state.unreadable = sorted({*self._state.unreadable, *result.unreadable})
        accelerator.log(dict(result.figures), step=step)
        if accelerator.is_main_process:
            write_record(config.run_dir, step, result)
        words = [
            f"{METRICS[name].label} {format_figure(name, result.figures[name])}"
            for name in _TOLD
            if name in result.figures
        ]
        display.say(f"step {step}: eval {', '.join(words)}")
        self._card.captions = [row.prediction or "" for row in result.captions]
        for row in result.captions[:_SHOWN]:
            display.say(f"  truth      {row.references[0]}\n  prediction {row.prediction}")
        if accelerator.is_main_process and has_tables(accelerator):
            self._log_table(result)
        value = self.newest = result.figures.get(config.metric_for_best)
        if step and value is not None:
            self._note_best(value)
        self._report.renew()
        self._callbacks.evaluated(step, result)

    def is_patience_over(self) -> bool:
        """Whether the run is to end early: the last `early_stopping_patience` evaluations brought nothing better."""
        patience = self._context.config.early_stopping_patience
        return patience is not None and self._state.evaluations_since_best >= patience

    def _note_best(self, value: float) -> None:
        state, metric = self._state, self._context.config.metric_for_best
        if is_better(metric, value, state.best_value):
            state.evaluations_since_best, state.best_value = 0, value
        else:
            state.evaluations_since_best += 1
        if self._timetable.is_save_due(state.step) and is_better(metric, value, state.best_saved_value):
            state.best_step, state.best_saved_value = state.step, value

    def _log_table(self, result: Evaluation) -> None:
        images = {sample.image.key: sample.image for sample in self._samples}
        rows = []
        for row in result.captions:
            with suppress(ImageError):  # such as a file that was deleted since
                thumbnail = load_image(images[row.image])
                thumbnail.thumbnail(_THUMBNAIL)
                rows.append(("\n".join(row.references), row.prediction or "", thumbnail))
        log_captions(self._context.accelerator, rows, step=self._state.step)
