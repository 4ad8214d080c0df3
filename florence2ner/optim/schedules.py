"""The learning rate schedule: linear warmup, then cosine cycles."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup


def build_schedule(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, restarts: int, step: int = 0
) -> LambdaLR:
    """Linear warmup, then `restarts` cosine cycles, each from the peak down to 0 (SGDR, Loshchilov & Hutter 2017).

    `step` is the number of optimizer updates done already; the schedule has no other state, so none is saved. Where it
    is not 0, the optimizer's param groups must have their "initial_lr". Step the schedule once per update, and do not
    pass it to `Accelerator.prepare`, which would step it once per process.
    """
    schedule: LambdaLR = get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, warmup_steps, total_steps, num_cycles=restarts, last_epoch=step - 1
    )
    return schedule
