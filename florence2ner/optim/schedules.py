"""The learning rate over the updates of a run."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup


def build_schedule(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, restarts: int, step: int = 0
) -> LambdaLR:
    """Linear warmup, then `restarts` cosine cycles, each from the peak down to 0 (SGDR, Loshchilov & Hutter 2017).

    `step` is the number of updates done already: the schedule is a function of it and has no state to save. Step it
    once per optimizer update, and do not `prepare` it: Accelerate would step it once per process.
    """
    schedule: LambdaLR = get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, warmup_steps, total_steps, num_cycles=restarts, last_epoch=step - 1
    )
    return schedule
