"""The weights that a schedule-free optimizer stands for: an average, where those it trains are somewhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights to evaluate and export are others than those that are trained."""
    return any("train_mode" in group for group in optimizer.param_groups)


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A context manager in which the model has the weights to evaluate and export; for most optimizers, those it has.

    Afterwards it has the trained ones again, to the bit: an evaluation or a checkpoint changes nothing of a run.
    """
    if not averages(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        for parameter, weight in zip(parameters, trained, strict=True):
            parameter.data.copy_(weight)
