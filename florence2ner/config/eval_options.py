"""The groups of options that only `eval` has."""

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from florence2ner.config.base import Config, option
from florence2ner.config.options import DatasetFolder, ReadingOptions, UserPath, check_file


class EvalDatasetOptions(ReadingOptions):
    """Which images a model is evaluated on."""

    panel: ClassVar[str] = "Data"

    dataset_path: DatasetFolder = option(
        ..., "Folder of captioned images; its eval/ subfolder is used when there is one."
    )


class ReportOptions(Config):
    """What is written and shown of an evaluation."""

    panel: ClassVar[str] = "Output"

    output: UserPath | None = option(None, "File for all figures and captions, as JSON.")
    show: int = option(12, "Captions shown beside the truth in the table.", ge=0)

    @field_validator("output")
    @classmethod
    def _output_is_a_file(cls, value: Path | None) -> Path | None:
        if value:
            check_file(value, "results.json")
        return value
