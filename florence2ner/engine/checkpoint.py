"""Checkpoints of a training run: writing them atomically, deleting old ones, and restoring the state from one."""

import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel, gather_object, load
from accelerate.utils.constants import RNG_STATE_NAME
from accelerate.utils.other import id_tensor_storage
from torch import Tensor

from florence2ner.engine.collectives import all_or_none
from florence2ner.engine.deepspeed import check_state
from florence2ner.engine.run_files import (
    BEST,
    LATEST,
    PREFIX,
    STATE_FILE,
    STATE_FOLDER,
    TrainState,
    checkpoint_step,
    holds_weights,
    list_checkpoints,
)
from florence2ner.errors import UserError
from florence2ner.files import is_disk_full, write_text

UNFINISHED = ".unfinished-"  # begins the name of what is being written or deleted in a run folder


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept. The newest and the best always are."""

    limit: int | None  # the number to keep, the oldest are deleted first; None: all
    states: bool = False  # whether all of them keep their training state, or only the newest
    spared: Collection[int] = ()  # steps of further checkpoints that are never deleted


def save_checkpoint(
    accelerator: Accelerator,
    run_dir: Path,
    state: TrainState,
    export: Callable[[Path], None],
    *,
    retention: Retention,
    with_weights: bool = False,
) -> Path:
    """Write a checkpoint, delete those that `retention` doesn't keep, return its path. Every process must call this.

        run_dir/step-<n>/          what `export` writes, in the main process: model and processor, for `from_pretrained`
        run_dir/step-<n>/state/    optimizer and random generators (`Accelerator.save_state`), and `state` as JSON;
                                   with `with_weights` also the weights, for exports that don't hold them exactly
        run_dir/latest, best       links to checkpoints

    A checkpoint is written under another name, flushed to disk and renamed, and renamed again before it is deleted: a
    folder named `step-<n>` is always complete. Raises UserError, in every process, when the disk is full; earlier
    checkpoints are then untouched.
    """
    unfinished, final = run_dir / f"{UNFINISHED}{PREFIX}{state.step}", run_dir / f"{PREFIX}{state.step}"

    try:
        _write(accelerator, unfinished, final, state, export, with_weights=with_weights)
    except Exception as error:
        full = is_disk_full(error, run_dir)
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        if full:
            kept = list_checkpoints(run_dir)
            way_back = f"resume from {kept[-1]}" if kept else "start again"
            raise UserError(f"the disk is full, {final} can't be written: free some space and {way_back}") from error
        raise
    if accelerator.is_main_process:
        _link(run_dir / LATEST, final)
        _link_best(run_dir, state)
        _prune(run_dir, retention, {state.step, *([state.best_step] if state.best_step else [])})
    accelerator.wait_for_everyone()
    return final


def amend_checkpoint(accelerator: Accelerator, checkpoint: Path, state: TrainState) -> None:
    """Replace the `TrainState` of a complete checkpoint, atomically, by one of the same step.

    Every process must call this. Raises UserError where the file can't be written.
    """

    def amend() -> None:
        if accelerator.is_main_process:
            write_text(checkpoint / STATE_FOLDER / STATE_FILE, _to_json(state))
            _link_best(checkpoint.parent, state)

    all_or_none(accelerator, amend)


def load_accelerator_state(accelerator: Accelerator, checkpoint: Path) -> bool:
    """Restore optimizer and random generators, and weights if the state contains them. Every process must call this.

    Returns whether the generators of all processes are as they were; Accelerate goes on without a word where a state
    has none for a process, or for its device, as after a move from a CPU to a GPU or to fewer GPUs. Raises UserError
    for a state that was saved under DeepSpeed and is to be loaded without it, or the other way round.
    """
    folder = checkpoint / STATE_FOLDER
    check_state(accelerator, folder)
    hook = accelerator.register_load_state_pre_hook(_unwrap_models if holds_weights(checkpoint) else _leave_out_models)
    try:
        accelerator.load_state(str(folder))
    finally:
        hook.remove()
    return all(gather_object([_are_generators_restored(folder, accelerator)]))


def sweep(run_dir: Path) -> None:
    """Remove checkpoints that a run was writing or deleting when it was killed. Only one process may call this."""
    for leftover in run_dir.glob(f"{UNFINISHED}*"):
        if leftover.is_symlink():
            leftover.unlink()
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(
    accelerator: Accelerator,
    unfinished: Path,
    final: Path,
    state: TrainState,
    export: Callable[[Path], None],
    *,
    with_weights: bool,
) -> None:
    """Write a checkpoint to `unfinished`, then rename it to `final`. When a part fails in one process, all raise."""

    def write_export() -> None:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            export(unfinished)

    def write_state() -> None:
        hook = accelerator.register_save_state_pre_hook(_unwrap_weights if with_weights else _leave_out_weights)
        scaler = accelerator.scaler  # the same in all processes, of which each would write the same file
        accelerator.scaler = scaler if accelerator.is_main_process else None
        try:
            accelerator.save_state(str(unfinished / STATE_FOLDER))
        finally:
            accelerator.scaler = scaler
            hook.remove()

    def put_in_place() -> None:
        if accelerator.is_main_process:
            (unfinished / STATE_FOLDER / STATE_FILE).write_text(_to_json(state), encoding="utf-8")
            _flush(unfinished)
            unfinished.rename(final)
            _flush_file(final.parent)

    for action in (write_export, write_state, put_in_place):
        all_or_none(accelerator, action)


def _are_generators_restored(folder: Path, accelerator: Accelerator) -> bool:
    """Whether torch's generators of this process, on the CPU and on its device, are as `folder` has them."""
    try:
        saved = load(folder / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl")
    except Exception:  # a missing or damaged file can raise anything
        return False
    same = torch.equal(torch.get_rng_state(), saved["torch_manual_seed"])
    if accelerator.device.type == "cuda":
        devices = dict(enumerate(saved.get("torch_cuda_manual_seed", ())))
        device = devices.get(accelerator.device.index or 0)
        same = same and device is not None and torch.equal(torch.cuda.get_rng_state(accelerator.device), device)
    return same


def _prune(run_dir: Path, retention: Retention, kept: set[int]) -> None:
    """Delete states and checkpoints that `retention` doesn't keep, but no checkpoint whose step is in `kept`."""
    older = list_checkpoints(run_dir)[:-1]
    if not retention.states:
        for checkpoint in older:
            if (checkpoint / STATE_FOLDER).exists():
                _discard(checkpoint / STATE_FOLDER, run_dir / f"{UNFINISHED}{checkpoint.name}-{STATE_FOLDER}")
    excess = 0 if retention.limit is None else len(older) + 1 - retention.limit
    spare = [checkpoint for checkpoint in older if checkpoint_step(checkpoint) not in kept.union(retention.spared)]
    for checkpoint in spare[: max(excess, 0)]:
        _discard(checkpoint)


def _discard(directory: Path, through: Path | None = None) -> None:
    """Delete a directory. It is renamed (to `through`) first, so that a kill leaves no incomplete `step-<n>`."""
    doomed = through or directory.with_name(f"{UNFINISHED}{directory.name}-old")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # `sweep` removes what is left, such as a file that is open over NFS


def _to_json(state: TrainState) -> str:
    return json.dumps(asdict(state), indent=1)


def _link_best(run_dir: Path, state: TrainState) -> None:
    if state.best_step is not None and (best := run_dir / f"{PREFIX}{state.best_step}").exists():
        _link(run_dir / BEST, best)


def _link(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target` in the same folder, atomically. Does nothing where that can't be done."""
    unfinished = link.with_name(f"{UNFINISHED}{link.name}")
    with suppress(OSError):
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(target.name, target_is_directory=True)
        unfinished.replace(link)


def _leave_out_weights(models: list[Any], weights: list[Any], directory: str) -> None:
    """Save hook: have Accelerate write no weights, as the export holds them already."""
    weights.clear()


def _unwrap_weights(models: list[Any], weights: list[dict[str, Any]], directory: str) -> None:
    """Save hook: write weights without DDP's prefix of names, so that any number of processes can load them."""
    weights[:] = [
        _without_copies(extract_model_from_parallel(model).state_dict())
        for model, _ in zip(models, weights, strict=False)
    ]


def _without_copies(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without second names of the same storage, as safetensors wants them.

    Accelerate would drop second names too, but not in silence.
    """
    once = {id_tensor_storage(tensor): name for name, tensor in reversed(state_dict.items())}
    return {name: tensor.contiguous() for name, tensor in state_dict.items() if once[id_tensor_storage(tensor)] == name}


def _unwrap_models(models: list[Any], directory: str) -> None:
    """Load hook, the counterpart of `_unwrap_weights`: load into the models without their DDP wrappers."""
    models[:] = [extract_model_from_parallel(model) for model in models]


def _leave_out_models(models: list[Any], directory: str) -> None:
    """Load hook: have Accelerate load no weights, as the model was loaded from the export."""
    models.clear()


def _flush(directory: Path) -> None:
    """fsync everything in `directory`."""
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
