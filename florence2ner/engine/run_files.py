"""What a training run has on the disk: its checkpoints, the progress that they keep, and which one is meant."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from florence2ner.errors import UserError

STATE_FOLDER, STATE_FILE = "state", "train_state.json"
LATEST, BEST = "latest", "best"
PREFIX = "step-"


@dataclass(kw_only=True)
class TrainState:
    """The progress of a training run. Only numbers and text, as it is saved as JSON beside the optimizer's state."""

    step: int = 0  # optimizer updates done, skipped ones included; also the position in the data
    samples_seen: int = 0
    skipped_updates: int = 0  # because of a loss or gradient that was not finite
    skipped_in_a_row: int = 0  # skipped updates since the last good one
    unlogged_loss: float = 0.0  # sum over all label tokens since the last log line, in nats
    unlogged_tokens: int = 0  # the number of these tokens
    best_step: int | None = None  # the step of the checkpoint with the best metric
    best_saved_value: float | None = None  # that checkpoint's metric
    best_value: float | None = None  # the best metric of all evaluations, for early stopping
    evaluation_due: bool = False  # this step's evaluation is still to be done, because a signal came first
    evaluations_since_best: int = 0
    unreadable: list[str] = field(default_factory=list)  # keys of images that could not be read so far
    processes: int = 1
    precision: str = "no"  # of autocast: what the setting "auto" came to
    micro_batch: int = 0  # samples per micro-batch and process
    images_at_once: int = 0  # in a forward pass: a micro-batch, or fewer since memory ran out
    global_batch: int = 0  # samples per update; with the seed, it determines the order of the data
    lanes: list[list[int]] = field(default_factory=list)  # where those of a stream of shards are: see `Position`
    tracker_id: str = ""  # of the Weights & Biases run


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first. All are complete."""
    found = [path for path in run_dir.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimizer updates after which a checkpoint was written, from its directory's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def find_model(name: str) -> str:
    """The model that a user means by `name`: of a run's folder its best checkpoint, else its newest; else `name`."""
    folder = Path(name)
    # Of all folders, only those of runs hold checkpoints and no model.
    checkpoints = list_checkpoints(folder) if folder.is_dir() and not (folder / "config.json").exists() else []
    if not checkpoints:
        return name
    best = folder / BEST
    return str(folder / best.resolve().name if best.is_dir() else checkpoints[-1])


def find_resume_point(resume: str | None, run_dir: Path) -> Path | None:
    """The checkpoint to resume from, or None for a new run. `resume` is "latest", the path of a checkpoint or None.

    "latest" starts a new run where there is no checkpoint yet, so that the same command works each time that a job is
    started. Raises UserError for a path without a training state, and when `run_dir` has checkpoints of which the
    newest is not the one to resume from: old and new ones would mix.
    """
    checkpoints = list_checkpoints(run_dir)
    if resume is None or (resume == LATEST and not checkpoints):
        checkpoint = None
    else:
        checkpoint = (checkpoints[-1] if resume == LATEST else Path(resume)).resolve()
    if checkpoint and not (checkpoint / STATE_FOLDER / STATE_FILE).is_file():
        what = "has no training state" if checkpoint.is_dir() else "does not exist"
        raise UserError(
            f"can't resume from {checkpoint}: it {what}; give a step-<n> folder with state/ in it "
            "(only the newest keeps its state, unless --keep-states)"
        )
    if checkpoints and checkpoint != checkpoints[-1].resolve():
        raise UserError(
            f"{run_dir} already has checkpoints: add --resume latest to go on from {checkpoints[-1].name}, "
            "choose another --run-name, or delete those after the one to go on from"
        )
    return checkpoint


def load_train_state(checkpoint: Path) -> TrainState:
    """The `TrainState` that was saved in a checkpoint. Raises UserError where it is damaged or of another version."""
    path = checkpoint / STATE_FOLDER / STATE_FILE
    try:
        return TrainState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is damaged, or of another version: start a new run with --model-name {checkpoint}"
        ) from None


def holds_weights(checkpoint: Path) -> bool:
    """Whether the training state contains the weights (see `with_weights` of `save_checkpoint`)."""
    state = checkpoint / STATE_FOLDER
    return any(any(state.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*"))
