"""The loop of a training run, and what is done after each of its updates."""

from collections.abc import Iterable
from dataclasses import dataclass

from florence2ner.data.batch import FeatureSource, Window
from florence2ner.display import Bar
from florence2ner.engine.loop import run_loop
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.signals import StopSignals
from florence2ner.errors import Interrupted
from florence2ner.model.captioner import Captioner
from florence2ner.training.callbacks import Callbacks
from florence2ner.training.card import ModelCard
from florence2ner.training.context import Context
from florence2ner.training.progress import Progress
from florence2ner.training.report import RunReport
from florence2ner.training.run_folder import Start, resume_command
from florence2ner.training.saving import Checkpoints
from florence2ner.training.setup import TrainData
from florence2ner.training.step import Update, UpdateStep
from florence2ner.training.timetable import Timetable
from florence2ner.training.validation import Validation


@dataclass(kw_only=True)
class Run:
    """The loop of a run, and what is done after each of its updates."""

    context: Context
    state: TrainState
    timetable: Timetable
    signals: StopSignals
    step: UpdateStep
    progress: Progress
    validation: Validation
    checkpoints: Checkpoints
    callbacks: Callbacks
    report: RunReport

    def go(self, loader: Iterable[Window]) -> None:
        """Evaluate before the first update, if that is asked for or still due, then run the loop.

        Raises what `after_update` raises.
        """
        if self.state.evaluation_due:
            if self._is_over_after_late_evaluation():
                return
        elif self.context.config.eval_before_training and not self.state.step:
            self._evaluate()
        self.step.model.train()
        self.progress.start_clock()
        run_loop(loader, self.step, self.after_update)

    def after_update(self, window: Window, update: Update) -> bool:
        """Count the update; log, evaluate and save where that is due. Returns True to end the run.

        All processes take the same decisions. Raises Interrupted after a signal, once the checkpoint is saved, and
        UserError after too many skipped updates or when the disk is full.
        """
        self.progress.count(window, update)
        step, state = self.state.step, self.state
        state.images_at_once = self.step.images_at_once
        stop = None if self.timetable.is_last(step) else update.signal  # none matters then
        if self.timetable.is_log_due(step):
            self.progress.log()
        asked = self.callbacks.updated(step, update)
        if self.timetable.is_evaluation_due(step):
            state.evaluation_due = True  # until it is done: if a signal prevents that, the resumed run starts with it
            if not stop:
                self._evaluate()
                self.step.model.train()
                stop = None if self.timetable.is_last(step) else self.signals.agreed(self.context.accelerator)
        if asked:
            self.context.display.say(f"a callback ends the run after update {step}")
        over = self.timetable.is_last(step) or asked or self._is_patience_over()
        if over or stop or self.timetable.is_save_due(step):
            self.checkpoints.save(state)
        if stop and not over:
            raise self._interrupted(stop)
        self.progress.start_clock()
        return over

    def _is_over_after_late_evaluation(self) -> bool:
        """Do the evaluation that a signal prevented before this run was resumed. Returns whether it ends the run.

        Raises Interrupted where another signal comes meanwhile.
        """
        self._evaluate()
        if self.state.evaluation_due:
            signal = self.signals.agreed(self.context.accelerator)
            assert signal is not None
            raise self._interrupted(signal)
        if over := self._is_patience_over():
            self.checkpoints.amend(self.state)
        return over

    def _evaluate(self) -> None:
        """Evaluate, and give up at a signal; but not after the last update, when the run is about to end anyway."""
        last = self.timetable.is_last(self.state.step)
        with self.step.averaged():
            self.validation.evaluate(give_up=lambda: self.signals.received is not None and not last)
        self.progress.note_evaluation(self.validation.newest)

    def _is_patience_over(self) -> bool:
        config = self.context.config
        if over := self.validation.is_patience_over():
            self.context.display.say(
                f"no better {config.metric_for_best} in {config.early_stopping_patience} evaluations: stopping early"
            )
        return over

    def _interrupted(self, signal: int) -> Interrupted:
        last = self.checkpoints.last
        saved = f", saved in {last}" if last else ""  # not where another run's checkpoint was to be evaluated first
        return Interrupted(
            f"stopped by signal {signal} after update {self.state.step} of {self.timetable.total_steps}{saved}; "
            f"{resume_command(self.context.config, last)}",
            signal=signal,
        )


def assemble(
    context: Context,
    start: Start,
    captioner: Captioner,
    data: TrainData,
    step: UpdateStep,
    features: FeatureSource | None,
    bar: Bar,
    signals: StopSignals,
    card: ModelCard,
    callbacks: Callbacks,
) -> Run:
    """Put together what is done after each update."""
    config, state = context.config, start.state
    timetable = Timetable(data.total_steps, config.log_every, config.eval_steps, config.save_steps)
    resumed_from = state.step if start.checkpoint else None
    checkpoints = Checkpoints(context, captioner, step, card, callbacks, resumed_from=resumed_from)
    report = RunReport(context, state, data.total_steps, data.split.eval)
    return Run(
        context=context,
        state=state,
        timetable=timetable,
        signals=signals,
        step=step,
        progress=Progress(context, state, data.order.epoch_size, bar, checkpoints),
        validation=Validation(context, state, timetable, captioner, data.split.eval, features, card, callbacks, report),
        checkpoints=checkpoints,
        callbacks=callbacks,
        report=report,
    )
