"""The settings of train, schedule, eval, caption and inspect: which options each has, and checks across groups.

Flags (`cli.py`), YAML keys and the guide's tables are all made from these models.
"""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from florence2ner.config.caption_options import ImageOptions, OutputOptions, TextOptions
from florence2ner.config.eval_options import EvalDatasetOptions, ReportOptions
from florence2ner.config.inspect_options import FindingsOptions, InspectedOptions, PlannedRunOptions
from florence2ner.config.optimizer_options import OptimizerOptions
from florence2ner.config.options import (
    BatchOptions,
    GenerationOptions,
    LengthOptions,
    MachineOptions,
    ModelOptions,
    SamplingOptions,
)
from florence2ner.config.train_options import (
    ChartOptions,
    CheckpointOptions,
    DatasetOptions,
    EvaluationOptions,
    TagOptions,
    TrainingOptions,
    TrainMachineOptions,
)

_LONGEST_NAME = 100  # of a run that has none of its own, in characters

# pydantic collects fields from the last base to the first, so that the last group comes first in `--help`.


class TrainConfig(
    CheckpointOptions,
    TrainMachineOptions,
    GenerationOptions,
    EvaluationOptions,
    OptimizerOptions,
    TrainingOptions,
    ModelOptions,
    TagOptions,
    LengthOptions,
    DatasetOptions,
):
    """Settings of `florence2ner train`."""

    @model_validator(mode="after")
    def _cache_needs_a_frozen_tower(self) -> Self:
        if self.feature_cache in ("memory", "disk") and not self.freeze_vision:
            raise ValueError(
                f"feature_cache: {self.feature_cache} keeps what a frozen vision tower makes; set freeze_vision: true, "
                "or leave feature_cache at auto"
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
    """Settings of `florence2ner inspect`."""
