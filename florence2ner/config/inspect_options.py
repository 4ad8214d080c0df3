"""The groups of options that only `inspect` has."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import Config, option
from florence2ner.config.metric_options import EvaluationOptions
from florence2ner.config.options import MAX_PIXELS, DatasetFolder, PageFile, UserPath, check_file
from florence2ner.config.roots import DatasetRoots
from florence2ner.config.train_options import (
    BatchSize,
    DatasetOptions,
    MicroBatches,
    TrainingOptions,
    TrainMachineOptions,
)


def _as_in_train(group: type[Config], name: str) -> Any:
    """The setting of that name of `train`, with its default, limits and help text."""
    return group.model_fields[name]


class InspectedOptions(DatasetOptions):
    """Which dataset is looked at, as `train` takes it, and what its captions are to have."""

    panel: ClassVar[str] = "Data"

    dataset_path: DatasetRoots = option(
        ...,
        "Folders of captioned images, as `train` takes them; in YAML each may be a mapping, as there.",
        positional=True,
        min_length=1,
    )
    trigger_word: str | None = option(None, "A word that every caption is to have.", min_length=1)
    model_name: str | None = option(
        None,
        "Model whose tokenizer the captions are measured with: a directory, hub id or run. none: they are not.",
    )
    similarity: int = option(
        4, "Near duplicates differ by at most this many of the 64 bits of their perceptual hashes.", ge=0, le=15
    )
    common_opening: float = option(
        0.2, "Share of the captions from which on a common opening of three words is named.", gt=0, le=1
    )
    max_pixels: int = option(MAX_PIXELS, "Images with more pixels than this count as unreadable.", ge=1)
    decode_threads: int | None = option(None, "Threads that decode images. none: one per core.", ge=1)


class FindingsOptions(Config):
    """Where the findings go."""

    panel: ClassVar[str] = "Output"

    json_file: UserPath | None = option(
        None, "File for all findings and figures, as JSON; - for standard output.", flag="--json"
    )
    report: PageFile | None = option(None, "File for a page with pictures and histograms, as HTML in one piece.")
    fix: bool = option(
        False, "Print shell commands that mend what can be mended. Nothing is changed until you run them."
    )

    @field_validator("json_file")
    @classmethod
    def _is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and str(value) != "-":
            check_file(value, "findings.json")
        return value

    @model_validator(mode="after")
    def _one_thing_on_standard_output(self) -> Self:
        if self.fix and str(self.json_file) == "-":
            raise ValueError("fix and json_file - would both write to standard output: name a file for the JSON")
        return self


class PlannedRunOptions(MicroBatches):
    """The training run that the dataset is for: these settings of `train` decide its split, length and cache."""

    panel: ClassVar[str] = "Training"

    earlier_run: DatasetFolder | None = option(
        None, "Folder of an earlier run on this machine: its speed says how long an epoch takes."
    )
    epochs: int = _as_in_train(TrainingOptions, "epochs")
    max_steps: int | None = _as_in_train(TrainingOptions, "max_steps")
    train_batch_size: BatchSize = _as_in_train(TrainingOptions, "train_batch_size")
    gradient_accumulation_steps: int = _as_in_train(TrainingOptions, "gradient_accumulation_steps")
    eval_steps: int | None = _as_in_train(EvaluationOptions, "eval_steps")
    seed: int = _as_in_train(TrainingOptions, "seed")
    feature_cache_dtype: Literal["bf16", "fp32"] = _as_in_train(TrainMachineOptions, "feature_cache_dtype")
