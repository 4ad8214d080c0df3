"""The group of options for LoRA: small matrices that are trained beside the weights, which stay as they are."""

import re
from typing import ClassVar, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import Config, option

VISION_TARGETS = ("vision", "all")
LORA_FREEZES = "which freezes the whole model: lora_targets says what is trained; leave it out"


class LoraOptions(Config):
    """What LoRA trains; nothing of the model itself."""

    panel: ClassVar[str] = "LoRA"

    lora_rank: int | None = option(
        None, "Train adapters of this rank (LoRA) and nothing else; none: train the model itself.", ge=1
    )
    lora_alpha: float | None = option(
        None, "Scale of the adapters: what they add is multiplied by this / rank. none: the rank.", gt=0
    )
    lora_dropout: float = option(0.0, "Dropout before the adapters.", ge=0, lt=1)
    lora_targets: str = option(
        "language",
        "Which layers get adapters. language: q_proj k_proj v_proj out_proj fc1 fc2 of the language model. vision: qkv "
        "proj fc1 fc2 of the vision tower. all: both. Else a regular expression for the whole names of linear layers.",
        min_length=1,
    )
    use_dora: bool = option(False, "DoRA: train a magnitude for each output of a layer too (Liu et al. 2024).")
    use_rslora: bool = option(False, "rsLoRA: scale by alpha / sqrt(rank), for high ranks (Kalajdzievski 2023).")
    lora_merge: bool = option(
        False, "At the end write merged/ in the run folder: the whole model of the best checkpoint, else the newest."
    )

    @field_validator("lora_targets")
    @classmethod
    def _targets_can_be_read(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _adapters_are_trained(self) -> Self:
        if self.lora_rank is None:
            for name in ("lora_alpha", "lora_dropout", "lora_targets", "use_dora", "use_rslora"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} does nothing alone: set lora_rank, too")
        return self
