"""The optimizer of a run: built as the settings say, with learning rates by part, and what can't be used together."""

import torch
from torch import nn

from florence2ner.config.commands import TrainConfig
from florence2ner.engine.sharding import name_of_sharding
from florence2ner.errors import UserError
from florence2ner.model.adapt import tower_depths
from florence2ner.model.captioner import Captioner
from florence2ner.optim.catalog import find_optimizer, parse_settings
from florence2ner.optim.optimizers import Rate, build_optimizer
from florence2ner.training.context import Context


def check_optimizer(context: Context) -> None:
    """Raise UserError where the optimizer can't be used, at all or with these processes and this precision."""
    config, accelerator = context.config, context.accelerator
    find_optimizer(config.optimizer)
    if config.weights_dtype == "bf16" and accelerator.mixed_precision != "bf16":
        raise UserError(
            f"weights_dtype bf16 needs a forward pass in bf16, here it is {accelerator.mixed_precision}: add "
            "--mixed-precision bf16"
        )
    if how := name_of_sharding(accelerator):
        if config.optimizer != "adamw":
            raise UserError(f"optimizer {config.optimizer} doesn't work under {how}: choose adamw, or another launcher")
        for name in ("vision_lr", "other_lr", "layer_decay"):
            if getattr(config, name) is not None:
                raise UserError(f"{name} doesn't work under {how}: leave it out, or choose another launcher")


def make_optimizer(config: TrainConfig, captioner: Captioner) -> torch.optim.Optimizer:
    """The optimizer of a run, over the trained weights. Raises UserError as `build_optimizer` does."""
    return build_optimizer(
        captioner,
        name=config.optimizer,
        settings=parse_settings(config.optimizer_args),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        rates=_rates(config, captioner),
    )


def trained_dtype(config: TrainConfig) -> torch.dtype | None:
    """The dtype that the trained weights are cast to; None: as they are loaded."""
    return torch.bfloat16 if config.weights_dtype == "bf16" else None


def _rates(config: TrainConfig, captioner: Captioner) -> dict[nn.Parameter, Rate]:
    """The learning rates of weights that have one of their own."""
    rates = {}
    if config.vision_lr is not None or config.layer_decay is not None:
        peak, decay = config.vision_lr or config.learning_rate, config.layer_decay or 1.0
        part = None if config.vision_lr is None else "vision"
        for parameter, depth in tower_depths(captioner.vision.tower).items():
            depth = 0 if config.layer_decay is None else depth
            rates[parameter] = Rate(value=peak * decay**depth, part=part, depth=depth)
    if config.other_lr is not None:
        for parameter in captioner.vision.projector.parameters():
            rates[parameter] = Rate(value=config.other_lr, part="other")
    return rates
