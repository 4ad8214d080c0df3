"""The groups of options that only `eval` has."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import Config, option
from florence2ner.config.options import PageFile, ReadingOptions, UserPath, check_file
from florence2ner.config.roots import DatasetRoots, Root, resolve_roots


class EvalDatasetOptions(ReadingOptions):
    """Which images a model is evaluated on."""

    panel: ClassVar[str] = "Data"

    dataset_path: DatasetRoots = option(
        ...,
        "Folder of captioned images, whose eval/ is used when there is one; or tar shards. Repeat it for several.",
        min_length=1,
    )

    @model_validator(mode="after")
    def _roots_are_apart(self) -> Self:
        resolve_roots(self.dataset_path, self)
        return self

    @property
    def roots(self) -> tuple[Root, ...]:
        """The roots of `dataset_path`."""
        return resolve_roots(self.dataset_path, self)


class ReportOptions(Config):
    """What is written and shown of an evaluation."""

    panel: ClassVar[str] = "Output"

    output: UserPath | None = option(None, "File for all figures and captions, as JSON.")
    report: PageFile | None = option(
        None, "File for a page with scores, intervals and every caption beside the truth, as HTML in one piece."
    )
    show: int = option(12, "Captions shown beside the truth in the table.", ge=0)

    @field_validator("output")
    @classmethod
    def _output_is_a_file(cls, value: Path | None) -> Path | None:
        if value:
            check_file(value, "results.json")
        return value
