"""The one place that builds an Accelerator, and what has to be true of the processes before it is used."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    set_seed,
)
from torch import nn
from torch.distributed import DistError

from florence2ner.config import ModelOptions
from florence2ner.data.loader import Workers
from florence2ner.errors import UserError

SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED}  # no process holds the whole model


def make_accelerator(
    mixed_precision: str,
    *,
    seed: int,
    timeout: timedelta = timedelta(days=1),
    log_with: Sequence[Any] = (),
    project_dir: Path | None = None,
) -> Accelerator:
    """Build the Accelerator of this process and seed every random generator (each process its own).

    A process that waits longer than `timeout` for the others gives up.

    Raises UserError where the processes that the launcher started do not see each other, or where the hardware can't
    do the precision asked for.
    """
    # Mixed precision is the one setting that Accelerate keeps from an earlier command in the same process and refuses
    # to change; the process group itself stays.
    AcceleratorState._reset_state()
    precision = resolve_mixed_precision(mixed_precision)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(log_with) or None,
            project_config=ProjectConfiguration(project_dir=project_dir and str(project_dir)),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timeout),
            ],
        )
    except ValueError as error:
        if "precision" not in str(error):
            raise
        raise UserError(f"mixed_precision {precision} can't be used here: {error}") from error
    _check_topology(accelerator)
    set_seed(seed, device_specific=True)
    return accelerator


def resolve_mixed_precision(asked: str) -> str:
    """ "auto" -> what `accelerate launch` was told, else bf16 where the hardware is fast at it, else "no"."""
    if asked != "auto":
        return asked
    if told := os.environ.get("ACCELERATE_MIXED_PRECISION"):
        return told
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in {"1", "true"}:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))  # without AMX, bf16 is slower than fp32
    return "bf16" if fast else "no"


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """What autocast casts to; None where it is off."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def resolve_workers(accelerator: Accelerator, config: ModelOptions) -> Workers:
    """Decoding processes beside this process: what `config` asks for, or a share of the machine's cores."""
    on_gpu = accelerator.device.type == "cuda"
    asked = config.dataloader_workers
    return Workers(
        processes=_share_of_cores(accelerator) if asked is None else asked,
        prefetch=config.dataloader_prefetch,
        pin_memory=on_gpu if config.pin_memory is None else config.pin_memory,
    )


def _share_of_cores(accelerator: Accelerator) -> int:
    if accelerator.device.type == "cpu":  # the model itself keeps them busy: decoding in between costs the least
        return 0
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, (os.cpu_count() or 1) // processes_here))


def all_or_none(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do `action` in every process. Where it fails in one, all raise; none is left waiting for it."""
    failure: Exception | None = None
    try:
        action()
    except Exception as error:
        failure = error
    failures = gather_object([failure and f"{type(failure).__name__}: {failure}"])
    if failure:
        raise failure
    if first := next(filter(None, failures), None):
        raise RuntimeError(f"another process failed: {first}")


def leave() -> None:
    """Part from the other processes, at the end of a command that went well."""
    PartialState().destroy_process_group()


def check_same_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Assert that all processes hold the same weights: from here on a difference would only grow."""
    sums = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])[None]
    everywhere = accelerator.gather(sums)
    assert (everywhere == everywhere[0]).all(), "the processes hold different weights; please report this as a bug"


def check_equal(accelerator: Accelerator, facts: Mapping[str, object]) -> None:
    """Raise UserError where a fact is not the same in all processes, naming it and the processes that differ."""
    hashes = [{name: hashlib.sha256(repr(fact).encode()).hexdigest() for name, fact in facts.items()}]
    everywhere = gather_object(hashes) if accelerator.num_processes > 1 else hashes
    differing = {
        name: ranks
        for name in facts
        if (ranks := [str(rank) for rank, other in enumerate(everywhere) if other[name] != everywhere[0][name]])
    }
    if differing:
        what = "; ".join(f"the {name} of process {', '.join(ranks)}" for name, ranks in differing.items())
        raise UserError(
            f"not the same as in process 0: {what}; start the same command with the same files on every machine"
        )


def is_lost_process(error: Exception) -> bool:
    """Whether an error in a collective operation means that another process has gone, or did not answer in time."""
    text = str(error)
    return isinstance(error, DistError) or any(sign in text for sign in ("gloo", "NCCL", "process group", "by peer"))


def _check_topology(accelerator: Accelerator) -> None:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes but they do not see each other, so each would train alone; "
            "on CPUs start with: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes "
            f"{started} -m florence2ner ..."
        )
