"""Checkpoints that are whole or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

STATE_FOLDER = "state"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


def save_checkpoint(
    accelerator: Accelerator, run_dir: Path, step: int, export: Callable[[Path], None], *, keep: int | None
) -> Path:
    """Write a checkpoint and drop the oldest beyond `keep`. Every process must call this.

        run_dir/step-<n>/          what `export` writes: model and processor, for plain `from_pretrained`
        run_dir/step-<n>/state/    optimizer, schedule, random generators, counters (`Accelerator.save_state`)

    It is written under another name, flushed to disk and renamed, so that a `step-<n>` is always complete.
    """
    unfinished, final = run_dir / f"{_UNFINISHED}{_PREFIX}{step}", run_dir / f"{_PREFIX}{step}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        export(unfinished)
    accelerator.wait_for_everyone()
    hook = accelerator.register_save_state_pre_hook(_leave_out_weights)
    accelerator.save_state(str(unfinished / STATE_FOLDER))
    hook.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _flush(unfinished)
        unfinished.rename(final)
        _flush_file(run_dir)
        for old in list_checkpoints(run_dir)[: -keep if keep else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    found = [path for path in run_dir.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimizer updates behind a checkpoint directory."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _leave_out_weights(models: list[Any], weights: list[Any], directory: str) -> None:
    """The weights stand in the export already; Accelerate would write them a second time."""
    weights.clear()


def _flush(directory: Path) -> None:
    """Wait until everything in `directory` is on the disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _flush_file(Path(folder, name))
        _flush_file(Path(folder))


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
