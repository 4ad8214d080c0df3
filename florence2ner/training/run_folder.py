"""The folder of a run: where the run starts, what it is told to keep, and what is refused."""

import os
import shlex
from pathlib import Path

import yaml

from florence2ner.config.commands import TrainConfig
from florence2ner.data.order import TrainPlan
from florence2ner.data.split import Split, discover_split, read_split, split_to_json
from florence2ner.engine.checkpoint import (
    TrainState,
    sweep,
)
from florence2ner.engine.tracking import METRICS_FILE, rewind_metrics
from florence2ner.errors import UserError
from florence2ner.files import write_text

SETTINGS_FILE, SPLIT_FILE = "config.yaml", "split.json"


# What a run can't change when it is resumed: the order of the data, the optimizer's parameters, the gradient scaler.
_FIXED = ("seed", "freeze_vision", "freeze_language", "freeze_other", "mixed_precision")


def find_samples(config: TrainConfig, checkpoint: Path | None) -> tuple[Split, list[str]]:
    """The split, and lines about what was found: discovered for a new run, read from the run that is resumed."""
    if checkpoint:
        for name in (SPLIT_FILE, SETTINGS_FILE):
            if not (checkpoint.parent / name).is_file():
                raise UserError(f"can't resume from {checkpoint}: {name} of its run is not beside it")
        return read_split(checkpoint.parent / SPLIT_FILE, config.dataset_path, config.task_prompt), []
    ratio = config.eval_split_ratio if config.eval_steps else None
    split, found = discover_split(config.dataset_path, config.task_prompt, eval_ratio=ratio, seed=config.seed)
    return split, found.report()


def contents(split: Split, config: TrainConfig) -> list[list[tuple[str, str | None]]]:
    """Which images with which captions, for comparison between processes."""
    root = config.dataset_path
    return [[(s.image.relative_to(root).as_posix(), s.caption) for s in part] for part in (split.train, split.eval)]


def check_resume(state: TrainState, plan: TrainPlan, checkpoint: Path, config: TrainConfig) -> list[str]:
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


def open_run_dir(config: TrainConfig, split: Split, state: TrainState) -> None:
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


def resume_command(config: TrainConfig, checkpoint: Path | None) -> str:
    """How to go on with the run, as a clause of a message."""
    if checkpoint is None:
        return "there is no checkpoint yet: start the same command again"
    launcher = "accelerate launch (your options) -m " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    settings = shlex.quote(str(config.run_dir / "config.yaml"))
    return f"resume with: {launcher}florence2ner train --config {settings} --resume latest"
