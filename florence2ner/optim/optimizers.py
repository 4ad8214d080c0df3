"""The optimizer: AdamW over the trainable parameters."""

import torch
from torch import nn


def build_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; those with one dimension (biases, norms) get no weight decay."""
    from timm.optim import create_optimizer_v2  # a slow import, as it brings in all of timm's models: only in training

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt="adamw", lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    return optimizer
