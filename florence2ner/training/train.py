"""The train command: puts the parts of a training run together and runs its loop."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from torch import nn

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Window
from florence2ner.data.captions import special_tokens_warning
from florence2ner.data.order import DataOrder, ShuffledOrder
from florence2ner.data.plan import build_order, count_updates, describe
from florence2ner.data.shards import labels
from florence2ner.display import Display
from florence2ner.engine.collectives import all_or_none, check_equal, check_shared, lost_process_in_one_line
from florence2ner.engine.deepspeed import configure_deepspeed
from florence2ner.engine.loop import run_loop
from florence2ner.engine.run_files import TrainState, list_checkpoints
from florence2ner.engine.runtime import make_accelerator, precision_note
from florence2ner.engine.signals import StopSignals
from florence2ner.engine.tracking import check_trackers, tracking
from florence2ner.errors import Interrupted
from florence2ner.model.adapt import ParameterCount, count_parameters
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import quiet_transformers
from florence2ner.model.tasks import doubt_about
from florence2ner.training.context import Context
from florence2ner.training.encode import Filled, fill_cache
from florence2ner.training.length import advise, check_warmup, settle_warmup
from florence2ner.training.lora import write_merged
from florence2ner.training.progress import Progress
from florence2ner.training.run_folder import (
    Start,
    check_same_run,
    find_start,
    hold_run_folder,
    images_that_changed,
    keys_and_captions,
    open_run_folder,
    resume_command,
    why_it_is_over,
)
from florence2ner.training.saving import Checkpoints
from florence2ner.training.setup import (
    TrainData,
    build_data,
    build_loader,
    build_model,
    build_step,
    build_stream,
)
from florence2ner.training.step import Update, UpdateStep
from florence2ner.training.streaming import settle_lanes, stream_order
from florence2ner.training.timetable import Timetable
from florence2ner.training.validation import Validation


@quiet_transformers()
def train(config: TrainConfig) -> Path:
    """Fine-tune a Florence-2 as `config` says, or resume a run. Returns the directory of the last checkpoint.

    Every process must call this. Raises UserError for what the user can mend (no dataset, no model, a run folder that
    is in use, a full disk, a process that was lost), and Interrupted after SIGINT or SIGTERM, once everything is saved.
    """
    with (
        hold_run_folder(config),
        lost_process_in_one_line(lambda: _how_to_go_on(config), timeout=config.process_timeout),
        ExitStack() as stack,
    ):
        check_trackers(config.log_with)
        start = find_start(config)
        context = _join_processes(config, start)
        captioner = build_model(context, start)
        parameters = count_parameters(captioner.model)
        data = _build_data(context, start, captioner)
        if warning := special_tokens_warning(data.split.train + data.split.eval, captioner.processor.tokenizer):
            context.display.warn_once(warning)
        if reason := why_it_is_over(config, start, data.total_steps):
            context.display.say(reason)
            write_merged(context)
            assert start.checkpoint is not None
            return start.checkpoint
        check_warmup(config, data.total_steps)
        config, cut = settle_warmup(config, data.total_steps, before=start.warmup_steps)
        context = replace(context, config=config)
        filled = Filled() if data.stream else fill_cache(context, captioner, data.drawn(), stack)
        signals = StopSignals()
        step = build_step(context, captioner, start, data.total_steps, signal=lambda: signals.received)
        loader = build_loader(context, captioner, data, filled.features, start.state)
        stack.enter_context(signals)
        _open_run(context, start, data, parameters, filled.digests, stack)
        if cut:
            context.display.say(cut)
        if advice := advise(config, start, data.order, data.total_steps):
            context.display.say(advice)

        state, samples = start.state, data.split
        state.unreadable = sorted({*state.unreadable, *filled.unreadable})
        timetable = Timetable(data.total_steps, config.log_every, config.eval_steps, config.save_steps)
        bar = stack.enter_context(context.display.bar("training", total=data.total_steps, completed=state.step))
        checkpoints = Checkpoints(context, captioner, step.model, state.step if start.checkpoint else None)
        run = _Run(
            context=context,
            state=state,
            timetable=timetable,
            signals=signals,
            model=step.model,
            progress=Progress(context, state, data.order.epoch_size, bar, checkpoints),
            validation=Validation(context, state, timetable, captioner, samples.eval, filled.features),
            checkpoints=checkpoints,
        )
        run.go(loader, step)
        run.progress.report_faults()
        write_merged(context)
    assert checkpoints.last is not None
    context.display.say(f"done: {checkpoints.last}")
    return checkpoints.last


@dataclass(kw_only=True)
class _Run:
    """The loop of a run, and what is done after each of its updates."""

    context: Context
    state: TrainState
    timetable: Timetable
    signals: StopSignals
    model: nn.Module  # as Accelerate wrapped it
    progress: Progress
    validation: Validation
    checkpoints: Checkpoints

    def go(self, loader: Iterable[Window], step: UpdateStep) -> None:
        """Evaluate before the first update, if that is asked for or still due, then run the loop.

        Raises what `after_update` raises.
        """
        if self.state.evaluation_due:
            if self._is_over_after_late_evaluation():
                return
        elif self.context.config.eval_before_training and not self.state.step:
            self._evaluate()
        self.model.train()
        self.progress.start_clock()
        run_loop(loader, step, self.after_update)

    def after_update(self, window: Window, update: Update) -> bool:
        """Count the update; log, evaluate and save where that is due. Returns True to end the run.

        All processes take the same decisions. Raises Interrupted after a signal, once the checkpoint is saved, and
        UserError after too many skipped updates or when the disk is full.
        """
        self.progress.count(window, update)
        step, state = self.state.step, self.state
        stop = None if self.timetable.is_last(step) else update.signal  # none matters then
        if self.timetable.is_log_due(step):
            self.progress.log()
        if self.timetable.is_evaluation_due(step):
            state.evaluation_due = True  # until it is done: if a signal prevents that, the resumed run starts with it
            if not stop:
                self._evaluate()
                self.model.train()
                stop = None if self.timetable.is_last(step) else self.signals.agreed(self.context.accelerator)
        over = self.timetable.is_last(step) or self._is_patience_over()
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
        self.validation.evaluate(give_up=lambda: self.signals.received is not None and not last)

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


def _join_processes(config: TrainConfig, start: Start) -> Context:
    """Make the Accelerator and check that all processes agree on settings and data, and that their number fits.

    Records precision, processes and global batch in `start.state`. Raises UserError where a check fails.
    """
    accelerator = make_accelerator(
        config.mixed_precision,
        seed=config.seed,
        timeout=timedelta(seconds=config.process_timeout),
    )
    configure_deepspeed(
        accelerator,
        micro_batch=config.train_batch_size,
        micro_batches=config.gradient_accumulation_steps,
        clip_grad_norm=config.clip_grad_norm,
    )
    display = Display(is_main=accelerator.is_main_process)
    facts = {"configuration": config, "dataset": keys_and_captions(start.split), "checkpoint": start.state.step}
    facts |= {"model": start.model_name, "shards": labels([shard.path for shard in start.shards])}
    check_equal(accelerator, facts)
    check_shared(accelerator, config.run_dir, "choose an --output-dir that all machines share")
    processes, context = accelerator.num_processes, Context(config, accelerator, display)
    order: DataOrder
    if start.shards:
        settle_lanes(context, start.state)
        order = stream_order(config, start.state, processes=processes)
    else:
        order = build_order(config, start.split.train, processes=processes)
    precision = accelerator.mixed_precision
    notes = start.notes + check_same_run(start, order, processes=processes, precision=precision)
    check_warmup(config, count_updates(config, order))
    for note in notes:
        display.say(note)
    if doubt := doubt_about(config.task_prompt):
        display.warn_once(doubt)
    if slow := precision_note(config.mixed_precision):
        display.say(f"note: {slow}")
    state = start.state
    state.processes, state.precision, state.global_batch = processes, precision, order.global_batch
    return context


def _build_data(context: Context, start: Start, captioner: Captioner) -> TrainData:
    config, processes = context.config, context.accelerator.num_processes
    if start.shards:
        return build_stream(config, start, captioner, processes=processes)
    return build_data(config, start.split, captioner, processes=processes)


def _open_run(
    context: Context,
    start: Start,
    data: TrainData,
    parameters: ParameterCount,
    digests: Mapping[str, str],
    stack: ExitStack,
) -> None:
    """Make the run folder, start the trackers (`stack` finishes them) and print what is going to be done.

    `digests` are those of the feature cache.
    """
    config, accelerator, display = context.config, context.accelerator, context.display

    def open_folder() -> None:
        if accelerator.is_main_process:
            if changed := images_that_changed(start, digests):
                display.warn(changed)
            open_run_folder(config, start, digests)

    all_or_none(accelerator, open_folder)
    settings = config.model_dump(mode="json")
    run_dir, tracker_id = config.run_dir, start.state.tracker_id
    names, project = config.log_with, config.wandb_project
    stack.enter_context(
        tracking(accelerator, display, run_dir, settings, log_with=names, project=project, tracker_id=tracker_id)
    )
    if data.note:
        display.say(data.note)
    display.say(
        f"training {parameters} on {_describe(data)}, {len(data.split.eval)} held out; "
        f"{data.total_steps} updates of {data.order.global_batch} images; "
        f"{accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}; {config.run_dir}"
    )


def _describe(data: TrainData) -> str:
    """What there is to train on."""
    if data.stream:
        return f"{len(data.stream.shards)} shards"
    assert isinstance(data.order, ShuffledOrder)
    return describe(data.split.train, data.order)


def _how_to_go_on(config: TrainConfig) -> str:
    # From the disk: a save may have been interrupted after it had put its checkpoint in place.
    return resume_command(config, next(reversed(list_checkpoints(config.run_dir)), None))
