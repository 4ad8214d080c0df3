"""How long a run is, how much of it is warmup, and a word of advice where it is too short to learn from."""

from dataclasses import replace
from typing import TypeVar

from florence2ner.config.commands import TrainConfig
from florence2ner.data.order import DataOrder, ShuffledOrder
from florence2ner.errors import UserError
from florence2ner.training.run_folder import Start

Settings = TypeVar("Settings", bound=TrainConfig)
_FEW_UPDATES, _ENOUGH_UPDATES = 100, 400  # in a run: below the first it is advised to make at least the second
_SHORT_RUN_RATE = "5e-5"  # the learning rate for so many; 1e-5, for thousands of updates, would hardly move the weights


def check_warmup(config: TrainConfig, total_steps: int) -> None:
    """Raise UserError where the run ends before the warmup that was asked for."""
    if "warmup_steps" in config.model_fields_set and config.warmup_steps >= total_steps:
        raise UserError(
            f"the learning rate never reaches {config.learning_rate:g}: warmup_steps {config.warmup_steps} is not "
            f"below the run's {total_steps} updates; lower warmup_steps or gradient_accumulation_steps, or train longer"
        )


def settle_warmup(config: Settings, total_steps: int, *, before: int | None = None) -> tuple[Settings, str | None]:
    """The settings with the warmup that the run has, in updates: what was asked for, else `before`, if it is resumed.

    In a new run the default is cut to a tenth of the updates, since a longer warmup leaves little for learning; a line
    for the user says so.
    """
    if "warmup_steps" in config.model_fields_set:
        return config, None
    ratio = config.warmup_ratio
    if before is not None:
        steps = before
    elif ratio is not None:
        steps = int(ratio * total_steps)
    else:
        steps = min(config.warmup_steps, total_steps // 10)
    settled = config.model_copy(update={"warmup_steps": steps, "warmup_ratio": None})
    if before is not None or ratio is not None or steps == config.warmup_steps:
        return settled, None
    return settled, (
        f"note: warmup_steps is {steps}, a tenth of the run's {total_steps} updates, instead of {config.warmup_steps}; "
        "set it to have another"
    )


def advise(config: TrainConfig, start: Start, order: DataOrder, total_steps: int) -> str | None:
    """A line for the user whose new run makes too few updates to learn from its images, else None.

    It names the settings that make enough: each update takes a tenth of the images at most, in as many epochs as that
    needs, at a higher rate where none was asked for.
    """
    if total_steps >= _FEW_UPDATES or config.max_steps or start.checkpoint:
        return None
    assert isinstance(order, ShuffledOrder), "others need max_steps"
    images, processes = len(order.samples), order.processes
    batch = 1
    while 2 * batch <= config.micro_batch and 20 * batch * processes <= images:
        batch *= 2
    per_epoch = replace(order, batch_size=batch, accumulation=1).updates_per_epoch
    epochs = max(config.epochs, -(-_ENOUGH_UPDATES // per_epoch))
    rate = "" if "learning_rate" in config.model_fields_set else f" --learning-rate {_SHORT_RUN_RATE}"
    return (
        f"note: this run makes only {total_steps} updates, from which a model learns little; for {images} images try "
        f"--train-batch-size {batch} --gradient-accumulation-steps 1 --epochs {epochs}{rate}, which makes "
        f"{epochs * per_epoch}"
    )
