"""Assembles the parts of a training run and starts the loop."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import nn

from florence2ner.config import TrainConfig
from florence2ner.data.loader import Batch, TrainLoader, TrainPlan
from florence2ner.data.samples import Split, discover_split, drop_overlong, read_split, split_to_json
from florence2ner.data.writers import write_text
from florence2ner.encode import fill_cache
from florence2ner.engine.checkpoint import (
    find_resume_point,
    holds_weights,
    list_checkpoints,
    load_accelerator_state,
    load_train_state,
    sweep,
)
from florence2ner.engine.display import Display
from florence2ner.engine.loop import TrainState, UpdateStep, run_loop
from florence2ner.engine.runtime import (
    SHARDED,
    all_or_none,
    autocast_dtype,
    check_equal,
    is_lost_process,
    make_accelerator,
    resolve_workers,
)
from florence2ner.engine.signals import StopSignals
from florence2ner.engine.tracking import METRICS_FILE, build_trackers, rewind_metrics, start_trackers
from florence2ner.errors import UserError
from florence2ner.model.adapt import checkpoint_gradients, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.dropout import use_fast_dropout
from florence2ner.model.loading import load_model
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import build_schedule
from florence2ner.run import Run, resume_command

SETTINGS_FILE, SPLIT_FILE = "config.yaml", "split.json"
# What a run can't change when it is resumed: the order of the data, the optimizer's parameters, the gradient scaler.
_FIXED = ("seed", "freeze_vision", "freeze_language", "freeze_other", "mixed_precision")


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
    split, notes = _find_samples(config, checkpoint)

    accelerator = make_accelerator(
        config.mixed_precision,
        seed=config.seed,
        timeout=timedelta(seconds=config.process_timeout),
        log_with=build_trackers(config.log_with, run_dir),
        project_dir=run_dir,
    )
    display = Display(is_main=accelerator.is_main_process)
    check_equal(accelerator, {"configuration": config, "dataset": _contents(split, config), "checkpoint": state.step})
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
        notes += _check_resume(state, plan, checkpoint, config)
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

    def open_run_dir() -> None:
        if accelerator.is_main_process:
            _open_run_dir(config, split, state)

    all_or_none(accelerator, open_run_dir)
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


def token_losses(captioner: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each label token of a batch, (B, L), through whatever Accelerate wrapped the captioner in."""
    images = batch.pixel_values, batch.features, batch.encoded
    losses: torch.Tensor = captioner(
        *images, batch.input_ids, batch.attention_mask, batch.labels, batch.label_positions
    )
    return losses


def _find_samples(config: TrainConfig, checkpoint: Path | None) -> tuple[Split, list[str]]:
    """The split, and lines about what was found: discovered for a new run, read from the run that is resumed."""
    if checkpoint:
        for name in (SPLIT_FILE, SETTINGS_FILE):
            if not (checkpoint.parent / name).is_file():
                raise UserError(f"can't resume from {checkpoint}: {name} of its run is not beside it")
        return read_split(checkpoint.parent / SPLIT_FILE, config.dataset_path, config.task_prompt), []
    ratio = config.eval_split_ratio if config.eval_steps else None
    split, found = discover_split(config.dataset_path, config.task_prompt, eval_ratio=ratio, seed=config.seed)
    return split, found.report()


def _contents(split: Split, config: TrainConfig) -> list[list[tuple[str, str | None]]]:
    """Which images with which captions, for comparison between processes."""
    root = config.dataset_path
    return [[(s.image.relative_to(root).as_posix(), s.caption) for s in part] for part in (split.train, split.eval)]


def _check_resume(state: TrainState, plan: TrainPlan, checkpoint: Path, config: TrainConfig) -> list[str]:
    """Raise UserError where the run can't go on in the same data order; return what the user should know."""
    before = yaml.safe_load((checkpoint.parent / SETTINGS_FILE).read_text(encoding="utf-8"))
    if plan.global_batch != state.global_batch:
        raise UserError(
            f"the run takes {state.global_batch} images per update, this command {plan.global_batch}: choose "
            f"train_batch_size x gradient_accumulation_steps x processes = {state.global_batch}"
        )
    now = config.model_dump(mode="json")
    for key in _FIXED:
        if now[key] != before[key]:
            raise UserError(f"the run has {key} {before[key]}, this command {now[key]}: it can't change on the way")
    notes = [f"resuming from {checkpoint}, update {state.step}"]
    changed = [f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]
    if changed := [change for change in changed if not change.startswith("resume ")]:
        notes.append(f"settings that changed: {', '.join(changed)}")
    if plan.processes != state.processes:
        notes.append(
            f"{plan.processes} processes instead of {state.processes}: the data order is the same, but dropout and the "
            "rounding of sums are not, so the weights are not bit-identical to those of an uninterrupted run"
        )
    return notes


def _open_run_dir(config: TrainConfig, split: Split, state: TrainState) -> None:
    """Make the run's folder with its settings and split, and clear what a killed run left in it."""
    run_dir = config.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {run_dir} ({error.strerror}): choose another --output-dir") from error
    sweep(run_dir)
    if state.step:
        rewind_metrics(run_dir, state.step)
    else:
        (run_dir / METRICS_FILE).unlink(missing_ok=True)
    model = Path(config.model_name)
    absolute = {
        "model_name": str(model.resolve()) if model.is_dir() else config.model_name,
        "dataset_path": config.dataset_path.absolute(),
        "output_dir": config.output_dir.absolute(),
    }
    settings = config.model_copy(update=absolute | {"resume": None})
    write_text(run_dir / SETTINGS_FILE, settings.to_yaml())
    write_text(run_dir / SPLIT_FILE, split_to_json(split, config.dataset_path))
