"""Builds the Accelerator of a command: precision, seeds, timeout, and a check that all processes have met."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    set_seed,
)

from florence2ner.engine import launcher
from florence2ner.engine.collectives import is_lost_process
from florence2ner.engine.deepspeed import accelerator_class
from florence2ner.engine.sharding import check_fsdp_version
from florence2ner.errors import UserError

NARROW = (
    384  # d_model below which float32 is faster on any CPU: casts then take longer than the sums that they speed up
)


@dataclass
class _DDPOptions(DistributedDataParallelKwargs):  # type: ignore[misc]  # Accelerate has no types
    """Accelerate's options of DDP, and one that it doesn't know yet; the older name of that one is deprecated."""

    forward_sync_buffers: bool | None = None


def make_accelerator(
    mixed_precision: str,
    *,
    seed: int,
    timeout: timedelta = timedelta(days=1),
    width: Callable[[], int | None] = lambda: None,
) -> Accelerator:
    """Build the Accelerator of this process, and seed all random generators, differently in each process.

    `width` returns the d_model of the model that it is for, where that is known: the precision "auto" depends on it.
    `timeout` is how long a collective operation may wait for the other processes. Every process must call this. Raises
    UserError where the processes that the launcher started haven't joined one process group or don't come in time, or
    where the hardware doesn't support the precision asked for.
    """
    # Accelerate keeps the mixed precision of an earlier command in the same Python process and refuses to change it.
    # This forgets it, but leaves the process group alone.
    AcceleratorState._reset_state()
    check_fsdp_version()
    precision = resolve_mixed_precision(mixed_precision, width)
    try:
        accelerator = accelerator_class()(
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    except ValueError as error:
        if "precision" not in str(error):
            raise
        raise UserError(f"mixed_precision {precision} can't be used here: {error}") from error
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the {launcher.processes()} processes that were to meet at {where} did not all come within "
            f"{timeout.total_seconds():g} s: start the command on every machine, with the same address and port"
        ) from error
    _check_topology(accelerator)
    # The buffers (position tables, mean and deviation of pixels) are constant: no forward pass has to broadcast them.
    accelerator.ddp_handler = _DDPOptions(gradient_as_bucket_view=True, forward_sync_buffers=False)
    set_seed(seed, device_specific=True)
    return accelerator


def resolve_mixed_precision(asked: str, width: Callable[[], int | None] = lambda: None) -> str:
    """Replace "auto" by the setting of `accelerate launch`, else by "bf16" where that is fast, else by "no".

    On a CPU that is where it multiplies in bf16, and the model isn't narrow: `width` is as in `make_accelerator`.
    """
    if asked != "auto":
        return asked
    if told := os.environ.get("ACCELERATE_MIXED_PRECISION"):
        return told
    if _is_on_gpu():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    able = torch.cpu.get_capabilities()
    if not (able.get("amx_bf16") or able.get("avx512_bf16")):
        return "no"
    return "no" if (width() or NARROW) < NARROW else "bf16"


def precision_note(asked: str) -> str | None:
    """A line for the user whose GPU is fast at bf16 and computes in float32, only since the launcher says so; or None.

    `accelerate launch` says "no" to its processes where nobody told it anything.
    """
    says_no = asked == "auto" and os.environ.get("ACCELERATE_MIXED_PRECISION") == "no"
    if says_no and _is_on_gpu() and torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            "in float32, as accelerate launch was told no precision, though this GPU is about twice as fast in bf16: "
            "add --mixed-precision bf16 (or --mixed-precision no, to leave it so)"
        )
    return None


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """The dtype that autocast casts to; None where it is off."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def _is_on_gpu() -> bool:
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in {"1", "true"}


def _check_topology(accelerator: Accelerator) -> None:
    started = launcher.processes()
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes but they do not see each other, so each would train alone; "
            "on CPUs start with: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes "
            f"{started} -m florence2ner ..."
        )
