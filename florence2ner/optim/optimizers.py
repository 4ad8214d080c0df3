"""The optimizer over what is trained."""

import torch
from torch import nn


def build_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; those with one dimension (biases, norms) have no weight decay."""
    from timm.optim import create_optimizer_v2  # here, since timm imports all its models: a tenth of our start-up

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt="adamw", lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    return optimizer
