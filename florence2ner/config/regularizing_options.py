"""The groups of options that only `train` has, about what keeps a model from learning its images by heart."""

from typing import ClassVar

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
