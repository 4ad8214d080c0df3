"""The settings of train, schedule, eval, caption, inspect and review: which options each has, and checks across groups.

Flags (`cli/flags.py`), YAML keys and the guide's tables are all made from these models.
"""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from florence2ner.config.caption_options import ImageOptions, OutputOptions, TextOptions
from florence2ner.config.eval_options import EvalDatasetOptions, ReportOptions
from florence2ner.config.inspect_options import FindingsOptions, InspectedOptions, PlannedRunOptions
from florence2ner.config.lora_options import LORA_FREEZES, VISION_TARGETS, LoraOptions
from florence2ner.config.metric_options import CompareOptions, EvaluationOptions
from florence2ner.config.optimizer_options import OptimizerOptions
from florence2ner.config.options import (
    BatchOptions,
    GenerationOptions,
    LengthOptions,
    MachineOptions,
    ModelOptions,
    SamplingOptions,
)
from florence2ner.config.regularizing_options import AveragingOptions, RegularizationOptions
from florence2ner.config.review_options import PageOptions, ReviewedModelOptions, ReviewedOptions
from florence2ner.config.train_options import (
    ChartOptions,
    CheckpointOptions,
    DatasetOptions,
    TagOptions,
    TrainingOptions,
    TrainMachineOptions,
)
from florence2ner.optim.catalog import SCHEDULE_FREE

_LONGEST_NAME = 100  # of a run that has none of its own, in characters

# pydantic collects fields from the last base to the first, so that the last group comes first in `--help`.


class TrainConfig(
    CheckpointOptions,
    TrainMachineOptions,
    GenerationOptions,
    EvaluationOptions,
    AveragingOptions,
    RegularizationOptions,
    OptimizerOptions,
    TrainingOptions,
    LoraOptions,
    ModelOptions,
    TagOptions,
    LengthOptions,
    DatasetOptions,
):
    """Settings of `florence2ner train`."""

    @model_validator(mode="after")
    def _cache_needs_a_frozen_tower(self) -> Self:
        if self.feature_cache in ("memory", "disk"):
            cause = "set freeze_vision: true" if not self.freeze_vision else ""
            if self.lora_rank is not None and self.lora_targets in VISION_TARGETS:
                cause = "leave the tower out of lora_targets"
            if cause:
                raise ValueError(
                    f"feature_cache: {self.feature_cache} keeps what a frozen vision tower makes; {cause}, "
                    "or leave feature_cache at auto"
                )
        return self

    @model_validator(mode="after")
    def _limit_is_for_something(self) -> Self:
        if self.memory_limit_gb is not None and self.train_batch_size != "auto":
            raise ValueError("memory_limit_gb does nothing alone: set train_batch_size: auto")
        return self

    @model_validator(mode="after")
    def _lora_freezes(self) -> Self:
        if self.lora_rank is not None and (name := self.freezing_changed):
            raise ValueError(f"{name} does nothing with LoRA, {LORA_FREEZES}")
        if self.lora_rank is not None and self.weights_dtype == "bf16":
            raise ValueError("weights_dtype: bf16 saves next to nothing with LoRA, whose weights are few: leave it out")
        return self

    @model_validator(mode="after")
    def _averaged_once(self) -> Self:
        if self.ema_decay is not None and self.optimizer.startswith(SCHEDULE_FREE):
            raise ValueError(f"{self.optimizer} averages the weights already: leave out ema_decay")
        return self

    @model_validator(mode="after")
    def _cache_needs_the_same_images_again(self) -> Self:
        if self.feature_cache in ("memory", "disk") and self.augment:
            raise ValueError(
                f"feature_cache: {self.feature_cache} keeps images that come again, and with augment none does; leave "
                "feature_cache at auto"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The folder of this run, with its checkpoints, split, settings and metrics."""
        names = dict.fromkeys(root.name for root in self.dataset_path)
        return self.output_dir / (self.run_name or "+".join(names)[:_LONGEST_NAME])

    @property
    def features_dir(self) -> Path:
        """The folder of the feature cache, where it is kept on the disk."""
        return self.feature_cache_dir or Path("~/.cache/florence2ner/features").expanduser()


class ScheduleConfig(TrainConfig, ChartOptions):
    """Settings of `florence2ner schedule`: those of `train`, and where the curve goes."""


class EvalConfig(
    BatchOptions,
    MachineOptions,
    ReportOptions,
    CompareOptions,
    SamplingOptions,
    GenerationOptions,
    ModelOptions,
    LengthOptions,
    EvalDatasetOptions,
):
    """Settings of `florence2ner eval`."""


class CaptionConfig(
    BatchOptions,
    MachineOptions,
    TextOptions,
    OutputOptions,
    SamplingOptions,
    GenerationOptions,
    ModelOptions,
    ImageOptions,
):
    """Settings of `florence2ner caption`."""


class InspectConfig(PlannedRunOptions, FindingsOptions, LengthOptions, InspectedOptions):
    """Settings of `florence2ner inspect`. A file of them may be a run's, whose other settings are passed over."""

    also_known: ClassVar[frozenset[str]] = frozenset(TrainConfig.model_fields)


class ReviewConfig(PageOptions, SamplingOptions, GenerationOptions, ReviewedModelOptions, ReviewedOptions):
    """Settings of `florence2ner review`."""
