"""The groups of options that only `train` has, about what keeps a model from learning its images by heart."""

from typing import ClassVar, Self

from pydantic import model_validator

from florence2ner.config.base import Config, option


class RegularizationOptions(Config):
    """What of captions and images is blurred or varied, in training alone."""

    panel: ClassVar[str] = "Regularization"

    label_smoothing: float = option(
        0.0,
        "Share of each label that is spread over the whole vocabulary. The logged train loss is that of such labels, "
        "eval/loss that of the captions.",
        ge=0,
        lt=1,
    )
    augment: bool = option(
        False,
        "Vary the images: colour, a slight turn and crop, mirrored where no caption names left or right. Answers with "
        "places, and texts in pictures, get other colours only. There is no feature cache then.",
    )


class AveragingOptions(Config):
    """The moving average of the trained weights."""

    panel: ClassVar[str] = "Averaged weights"

    ema_decay: float | None = option(
        None,
        "Keep a moving average of the trained weights, of which each update keeps this share, such as 0.999 (less at "
        "the start of a run), and evaluate the average. none: no average.",
        gt=0,
        lt=1,
    )
    export_ema: bool = option(
        True, "Save the averaged weights as the model, where there are some; off: those that are trained."
    )

    @model_validator(mode="after")
    def _there_is_an_average(self) -> Self:
        if self.ema_decay is None and not self.export_ema:
            raise ValueError("export_ema does nothing alone: set ema_decay, such as 0.999")
        return self
