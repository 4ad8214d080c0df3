"""The train command: finds out what a run starts from, puts its parts together and runs it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial

from florence2ner.config.commands import TrainConfig
from florence2ner.data.captions import special_tokens_warning
from florence2ner.data.order import DataOrder, ShuffledOrder
from florence2ner.data.plan import build_order, count_updates, describe
from florence2ner.data.shards import labels
from florence2ner.display import Display
from florence2ner.engine.collectives import all_or_none, check_equal, check_shared, lost_process_in_one_line
from florence2ner.engine.deepspeed import configure_deepspeed
from florence2ner.engine.hub import doubt_about_upload
from florence2ner.engine.memory import out_of_memory_in_one_line
from florence2ner.engine.run_files import list_checkpoints
from florence2ner.engine.runtime import make_accelerator, precision_note
from florence2ner.engine.signals import StopSignals
from florence2ner.engine.tracking import check_trackers, tracking
from florence2ner.model.adapt import ParameterCount, count_parameters
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import quiet_transformers, width_of
from florence2ner.model.lora import is_adapted
from florence2ner.model.tasks import doubt_about
from florence2ner.training.batch_size import check_batch_size, find_batch_size, note_batch_size, settle_batch_size
from florence2ner.training.callbacks import Callback, Callbacks
from florence2ner.training.card import ModelCard
from florence2ner.training.context import Context
from florence2ner.training.encode import Filled, fill_cache
from florence2ner.training.length import advise, check_warmup, settle_warmup
from florence2ner.training.lora import write_merged
from florence2ner.training.offload import check_offload, start_offload
from florence2ner.training.optimization import check_optimizer
from florence2ner.training.result import TrainResult, result_of
from florence2ner.training.run import assemble
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
from florence2ner.training.saving import push_best
from florence2ner.training.setup import (
    TrainData,
    build_data,
    build_loader,
    build_model,
    build_step,
    build_stream,
    check_average,
)
from florence2ner.training.step import LESS_MEMORY
from florence2ner.training.streaming import settle_lanes, stream_order
from florence2ner.training.verdict import check_wanted_metrics
from florence2ner.watching.record import recording


@quiet_transformers()
def train(config: TrainConfig, *, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Fine-tune a Florence-2 as `config` says, or resume a run. `callbacks` are told of updates, evaluations and saves.

    Every process must call this. Raises UserError for what the user can mend (no dataset, no model, a run folder that
    is in use, a full disk, a process that was lost), and Interrupted after SIGINT or SIGTERM, once everything is saved.
    """
    with (
        hold_run_folder(config),
        lost_process_in_one_line(lambda: _how_to_go_on(config), timeout=config.process_timeout),
        out_of_memory_in_one_line(LESS_MEMORY),
        ExitStack() as stack,
    ):
        check_trackers(config.log_with)
        start = find_start(config)
        config = settle_batch_size(config, start.state)
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
            return result_of(context, start.state, start.checkpoint)
        check_warmup(config, data.total_steps)
        config, cut = settle_warmup(config, data.total_steps, before=start.warmup_steps)
        context = replace(context, config=config)
        filled = Filled() if data.stream else fill_cache(context, captioner, data.drawn(), stack)
        saving = start_offload(context, captioner, stack)
        context, data = find_batch_size(context, captioner, data, filled.features, saving)
        config = context.config
        note_batch_size(config, start.state)
        signals = StopSignals()
        step = build_step(context, captioner, start, data.total_steps, signal=lambda: signals.received, saving=saving)
        loader = build_loader(context, captioner, data, filled.features, start.state)
        stack.enter_context(signals)
        _open_run(context, start, data, parameters, filled.digests, stack)
        if cut:
            context.display.say(cut)
        if advice := advise(config, start, data.order, data.total_steps):
            context.display.say(advice)

        state = start.state
        state.unreadable = sorted({*state.unreadable, *filled.unreadable})
        bar = stack.enter_context(context.display.bar("training", total=data.total_steps, completed=state.step))
        told = Callbacks(context.accelerator, callbacks)
        card = _card(context, start, captioner, data, parameters)
        run = assemble(context, start, captioner, data, step, filled.features, bar, signals, card, told)
        run.go(loader)
        run.progress.report_faults()
        write_merged(context)
        last = run.checkpoints.last
        assert last is not None
        comparison = run.report.conclude()
        context.display.say(f"done: {last}")
        result = result_of(context, state, last, comparison)
    push_best(context)
    return result


def _join_processes(config: TrainConfig, start: Start) -> Context:
    """Make the Accelerator and check that all processes agree on settings and data, and that their number fits.

    Records precision, processes and global batch in `start.state`. Raises UserError where a check fails.
    """
    accelerator = make_accelerator(
        config.mixed_precision,
        seed=config.seed,
        timeout=timedelta(seconds=config.process_timeout),
        width=partial(width_of, start.model_name),
    )
    display = Display(is_main=accelerator.is_main_process)
    check_average(accelerator, config)
    check_batch_size(Context(config, accelerator, display))
    configure_deepspeed(
        accelerator,
        micro_batch=config.micro_batch,
        micro_batches=config.gradient_accumulation_steps,
        clip_grad_norm=config.clip_grad_norm,
    )
    facts = {"configuration": config, "dataset": keys_and_captions(start.split), "checkpoint": start.state.step}
    facts |= {"model": start.model_name, "shards": labels([shard.path for shard in start.shards])}
    check_equal(accelerator, facts)
    check_shared(accelerator, config.run_dir, "choose an --output-dir that all machines share")
    processes, context = accelerator.num_processes, Context(config, accelerator, display)
    check_optimizer(context)
    check_wanted_metrics(config, start.split.eval)
    check_offload(context)
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
    if config.push_to_hub and (no_upload := doubt_about_upload()):
        display.warn_once(no_upload)
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
    if accelerator.is_main_process:
        steps = {"first_step": start.state.step, "total_steps": data.total_steps}
        stack.enter_context(recording(config.run_dir, **steps, processes=accelerator.num_processes))
    settings = config.model_dump(mode="json")
    settings |= {"mixed_precision": accelerator.mixed_precision, "processes": accelerator.num_processes}
    settings |= {"total_steps": data.total_steps, "images_per_update": data.order.global_batch}
    stack.enter_context(
        tracking(
            accelerator,
            display,
            config.run_dir,
            settings,
            log_with=config.log_with,
            project=config.wandb_project,
            tracker_id=start.state.tracker_id,
            step=start.state.step,
        )
    )
    if data.note:
        display.say(data.note)
    display.say(
        f"training {parameters} on {_describe(data)}, {len(data.split.eval)} held out; "
        f"{data.total_steps} updates of {data.order.global_batch} images; "
        f"{accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}; {config.run_dir}"
    )


def _card(
    context: Context, start: Start, captioner: Captioner, data: TrainData, parameters: ParameterCount
) -> ModelCard:
    return ModelCard(
        config=context.config,
        base_model=start.first_model or start.model_name,
        trained_on=_describe(data),
        held_out=len(data.split.eval),
        parameters=str(parameters),
        is_adapter=is_adapted(captioner.model),
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
