"""The options of the optimizer: which one it is, the rates of parts of the model, and the precision of its weights."""

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import option
from florence2ner.config.train_options import FreezingOptions, ScheduleOptions
from florence2ner.optim.catalog import KAHAN, SCHEDULE_FREE, parse_settings


class PartRateOptions(FreezingOptions, ScheduleOptions):
    """Learning rates of parts of the model; the schedule scales all of them alike."""

    panel: ClassVar[str] = "Learning rate"

    vision_lr: float | None = option(
        None, "Peak learning rate of the vision tower. none: learning_rate, as for the rest.", gt=0
    )
    other_lr: float | None = option(
        None, "Peak learning rate of the projector and its position tables. none: learning_rate.", gt=0
    )
    layer_decay: float | None = option(
        None,
        "Each block of the vision tower learns at this share of the rate of the block after it; such as 0.9.",
        gt=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _rates_are_of_trained_parts(self) -> Self:
        for name, frozen in (
            ("vision_lr", "freeze_vision"),
            ("layer_decay", "freeze_vision"),
            ("other_lr", "freeze_other"),
        ):
            if getattr(self, name) is not None and getattr(self, frozen):
                raise ValueError(f"{name} is for a part that is trained: set {frozen}: false, or leave it out")
        own = {"freeze_vision": self.vision_lr, "freeze_other": self.other_lr, "freeze_language": None}
        if all(getattr(self, frozen) or rate for frozen, rate in own.items()):
            given = [name for name in ("vision_lr", "other_lr") if getattr(self, name)]
            raise ValueError(f"nothing is left for learning_rate: set that instead of {given[0]}")
        return self


class OptimizerOptions(PartRateOptions):
    """Which optimizer makes the updates, and in which precision the trained weights are kept."""

    panel: ClassVar[str] = "Optimizer"

    optimizer: str = option(
        "adamw", "Optimizer by its name, such as lion, adopt, muon or cadamw; --list-optimizers prints all."
    )
    optimizer_args: tuple[str, ...] = option(
        (),
        "A setting of the optimizer: betas=0.9,0.95, eps=1e-6, momentum=0.95 or decouple_lr=true; may be repeated.",
    )
    weights_dtype: Literal["fp32", "bf16"] = option(
        "fp32",
        "Precision of the trained weights, their gradients and the optimizer's state. bf16: half the memory; for "
        "optimi_adamw and others whose Kahan summation loses no small update.",
    )

    @field_validator("optimizer_args")
    @classmethod
    def _arguments_can_be_read(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        parse_settings(values)
        return values

    @model_validator(mode="after")
    def _optimizer_has_these(self) -> Self:
        if self.optimizer.startswith(SCHEDULE_FREE) and self.lr_schedule != "constant":
            raise ValueError(
                f"{self.optimizer} makes up for a schedule: set lr_schedule: constant (a warmup is right), not "
                f"{self.lr_schedule}"
            )
        if self.weights_dtype == "bf16" and self.optimizer not in KAHAN:
            raise ValueError(
                f"weights_dtype: bf16 loses small updates with {self.optimizer}, which has no Kahan summation: set "
                f"optimizer: optimi_adamw, or another of {', '.join(sorted(KAHAN))}"
            )
        return self
