"""Assembles the parts of a training run and starts the loop."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from florence2ner.config.commands import TrainConfig
from florence2ner.data.loader import TrainLoader, resolve_workers
from florence2ner.data.order import TrainPlan
from florence2ner.data.split import drop_overlong
from florence2ner.display import Display
from florence2ner.engine.checkpoint import (
    TrainState,
    find_resume_point,
    holds_weights,
    list_checkpoints,
    load_accelerator_state,
    load_train_state,
)
from florence2ner.engine.collectives import all_or_none, check_equal, is_lost_process
from florence2ner.engine.loop import run_loop
from florence2ner.engine.runtime import SHARDED, autocast_dtype, make_accelerator
from florence2ner.engine.signals import StopSignals
from florence2ner.engine.tracking import build_trackers, start_trackers
from florence2ner.errors import UserError
from florence2ner.model.adapt import checkpoint_gradients, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.kernels.dropout import use_fast_dropout
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import build_schedule
from florence2ner.training.encode import fill_cache
from florence2ner.training.progress import Run
from florence2ner.training.run_folder import check_resume, contents, find_samples, open_run_dir, resume_command
from florence2ner.training.step import UpdateStep, token_losses


def train(config: TrainConfig) -> Path:
    """Fine-tune a Florence-2 as `config` says, or go on with a run. Returns the directory of the last checkpoint.

    Raises UserError for what the user can mend (no dataset, no model, a run directory that is taken, a full disk, a
    process that was lost), and Interrupted after SIGINT or SIGTERM, once everything is saved.
    """
    with ExitStack() as stack:
        return _train(config, stack)


def _train(config: TrainConfig, stack: ExitStack) -> Path:
    run_dir = config.run_dir
    checkpoint = find_resume_point(config.resume, run_dir)
    state = load_train_state(checkpoint) if checkpoint else TrainState(tracker_id=secrets.token_hex(4))
    if checkpoint and checkpoint.parent != run_dir.resolve():
        state.tracker_id = secrets.token_hex(4)  # a fork is a run of its own
    split, notes = find_samples(config, checkpoint)

    accelerator = make_accelerator(
        config.mixed_precision,
        seed=config.seed,
        timeout=timedelta(seconds=config.process_timeout),
        log_with=build_trackers(config.log_with, run_dir),
        project_dir=run_dir,
    )
    display = Display(is_main=accelerator.is_main_process)
    check_equal(accelerator, {"configuration": config, "dataset": contents(split, config), "checkpoint": state.step})
    # The export of a native checkpoint holds the weights to the bit; one in the original layout may have fewer rows.
    source = str(checkpoint) if checkpoint and not holds_weights(checkpoint) else config.model_name
    model, processor = load_model(source, attn_implementation=config.attn_implementation)
    limit = model.config.text_config.max_position_embeddings

    def count_tokens(captions: Sequence[str]) -> Sequence[int]:
        lengths: Sequence[int] = processor.tokenizer(captions, return_length=True).length
        return lengths

    fitting = drop_overlong(split, count_tokens, limit)
    parameters = freeze(model, vision=config.freeze_vision, language=config.freeze_language, other=config.freeze_other)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    if accelerator.device.type == "cpu" and not config.compile:  # which has a fast one of its own
        use_fast_dropout(model.model.language_model)
    captioner = Captioner(model, processor).to(accelerator.device)
    if config.compile:
        captioner.compile_model()

    plan = TrainPlan(
        samples=len(fitting.train),
        batch_size=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        processes=accelerator.num_processes,
        seed=config.seed,
        lengths=tuple(count_tokens([s.caption or "" for s in fitting.train])) if config.group_by_length else None,
    )
    total_steps = config.max_steps or config.epochs * plan.updates_per_epoch
    if checkpoint and state.step >= total_steps:
        display.say(f"{checkpoint} has all {total_steps} updates already: raise epochs or max_steps to go on")
        return checkpoint
    patience = config.early_stopping_patience
    if patience is not None and state.evaluations_since_best >= patience:
        display.say(f"{checkpoint} was stopped early: raise early_stopping_patience to go on")
        assert checkpoint is not None
        return checkpoint
    drawn = [fitting.train[i] for i in plan.order(0)[: total_steps * plan.global_batch]]
    cache = fill_cache(config, accelerator, display, captioner, [*drawn, *fitting.eval], stack)
    features = cache.load if cache else None
    dtype = autocast_dtype(accelerator)
    if dtype and accelerator.distributed_type not in SHARDED:  # which want all weights of one type
        captioner.lower_frozen(dtype)
    optimizer = build_optimizer(captioner, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    if checkpoint:
        notes += check_resume(state, plan, checkpoint, config)
        wanted = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        with captioner.whole():
            load_accelerator_state(accelerator, checkpoint)
        for group, (lr, decay) in zip(optimizer.param_groups, wanted, strict=True):  # what this command says counts
            group |= {"initial_lr": lr, "weight_decay": decay}
    state.processes, state.global_batch = plan.processes, plan.global_batch
    schedule = build_schedule(
        optimizer,
        warmup_steps=config.warmup_steps,
        total_steps=total_steps,
        restarts=config.restarts,
        step=state.step,
    )
    loader = TrainLoader(
        fitting.train,
        processor,
        plan,
        process=accelerator.process_index,
        first=state.step,
        end=total_steps,
        workers=resolve_workers(accelerator, config),
        features=features,
    )

    def open_folder() -> None:
        if accelerator.is_main_process:
            open_run_dir(config, split, state)

    all_or_none(accelerator, open_folder)
    settings = config.model_dump(mode="json")
    start_trackers(accelerator, display, run_dir, settings, project=config.wandb_project, tracker_id=state.tracker_id)
    dropped = len(split.train) + len(split.eval) - len(fitting.train) - len(fitting.eval)
    if dropped:
        notes.append(f"{dropped} captions are longer than the {limit} tokens that the model can write and are left out")
    for note in notes:
        display.say(note)
    display.say(
        f"training {parameters} on {plan.samples} images, {len(fitting.eval)} held out; {total_steps} updates of "
        f"{plan.global_batch} images; {accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}; {run_dir}"
    )
    if config.warmup_steps >= total_steps:
        display.warn(
            f"the learning rate never reaches {config.learning_rate:g}: warmup_steps {config.warmup_steps} is not "
            f"below the run's {total_steps} updates; lower warmup_steps or gradient_accumulation_steps, or train longer"
        )
    step = UpdateStep(
        accelerator, prepared, prepared_optimizer, schedule, token_losses, clip_grad_norm=config.clip_grad_norm
    )
    signals = stack.enter_context(StopSignals())
    bar = stack.enter_context(display.bar("training", total=total_steps, completed=state.step))
    for tracker in accelerator.trackers:
        stack.callback(tracker.finish)
    run = Run(config, accelerator, display, bar, signals, prepared, captioner, fitting, state, total_steps, features)
    run.resumed_from = (state.step,) if checkpoint else ()
    try:
        run.begin()
        run_loop(loader, step, run.after_update, device=accelerator.device)
    except Exception as error:
        if accelerator.num_processes > 1 and is_lost_process(error):
            newest = next(reversed(list_checkpoints(run_dir)), None)  # a save may have been cut off behind its end
            raise UserError(
                "lost contact with another process, which was killed, failed or fell silent for "
                f"{config.process_timeout} s; {resume_command(config, newest)}"
            ) from error
        raise
    assert run.last_checkpoint is not None
    display.say(f"done: {run.last_checkpoint}")
    return run.last_checkpoint
