"""The groups of options that only `caption` has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import Config, option
from florence2ner.config.options import EXTENSION_PATTERN, MAX_PIXELS, PageFile, UserPath, check_file
from florence2ner.config.roots import is_shard_text


class ImageOptions(Config):
    """Which images are captioned, and with which tasks."""

    panel: ClassVar[str] = "Data"

    paths: tuple[UserPath, ...] = option(
        (),
        "Images, and folders with images (subfolders too); or tar shards, such as shards/{000..099}.tar.",
        positional=True,
    )
    shards: tuple[str, ...] = option(
        (),
        "Tar shards: files, URLs or commands after pipe:, several of them with braces. PATHS may name them, too.",
    )
    task_prompt: tuple[str, ...] = option(
        ("<CAPTION>",),
        "What is asked of each image; repeat the flag for several tasks. Tasks about places give boxes in JSON.",
        min_length=1,
    )
    text: str | None = option(
        None, "Input of the tasks that take one, such as <CAPTION_TO_PHRASE_GROUNDING>.", min_length=1
    )
    max_pixels: int = option(MAX_PIXELS, "Images with more pixels than this are refused.", ge=1)
    watch: bool = option(False, "Go on captioning images as they appear in the folders, until Ctrl-C.")
    dry_run: bool = option(False, "Say what would be done, and do nothing.")

    @model_validator(mode="before")
    @classmethod
    def _shards_among_the_paths(cls, values: Any) -> Any:
        paths = values.get("paths") if isinstance(values, Mapping) else None
        if not isinstance(paths, list | tuple):
            return values
        shards = tuple(str(path) for path in paths if is_shard_text(str(path)))
        rest = tuple(path for path in paths if not is_shard_text(str(path)))
        return {**values, "paths": rest, "shards": (*(values.get("shards") or ()), *shards)}

    @model_validator(mode="after")
    def _something_to_caption(self) -> Self:
        if not self.paths and not self.shards:
            raise ValueError("paths is missing: give PATHS, images or folders with images")
        if self.paths and self.shards:
            raise ValueError("paths: tar shards and images are captioned in runs of their own: leave out one of them")
        return self

    @field_validator("paths")
    @classmethod
    def _exist(cls, values: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in values:
            if not path.exists():
                raise ValueError(f"there is no file or folder {path}")
        return values

    @model_validator(mode="after")
    def _watch_or_look(self) -> Self:
        if self.dry_run and self.watch:
            raise ValueError("dry_run and watch exclude each other")
        return self


class OutputOptions(Config):
    """Where captions are written, and what becomes of existing ones."""

    panel: ClassVar[str] = "Output"

    existing: Literal["skip", "overwrite", "append", "prepend"] = option(
        "skip", "What becomes of a caption that exists. An empty file counts as missing."
    )
    separator: str = option(" ", "What append and prepend put between the old text and the new.")
    backup: bool = option(False, "Keep the old text as a .bak before it is overwritten or extended.")
    caption_extension: str = option(".txt", "Extension of the caption files.", pattern=EXTENSION_PATTERN)
    output_dir: UserPath | None = option(
        None, "Folder for the caption files, in the same tree as the images. none: beside the images."
    )
    on_collision: Literal["refuse", "full-name"] = option(
        "refuse", "What to do with a.jpg and a.png, which would share a.txt. full-name: a.jpg.txt, a.png.txt."
    )
    output: UserPath | None = option(
        None,
        "One file for all captions, instead of a file for each: .jsonl, .csv, .json or a metadata.jsonl for "
        "imagefolder; - for JSON Lines on standard output.",
    )
    shard_form: Literal["jsonl", "tar"] = option(
        "jsonl",
        "What is written for each tar shard into output_dir. jsonl: its captions. tar: a new shard of the images with "
        "their captions.",
    )
    csv_safe: bool = option(
        False,
        "In a .csv, put ' in front of a cell that begins with =, +, - or @, which a spreadsheet would take for a "
        "formula.",
    )
    report: PageFile | None = option(
        None,
        "File for a page of the images that this run captions, those that look wrong first, as HTML in one piece; "
        "of at most 5,000 images.",
    )
    failures: UserPath | None = option(
        None, "File for the images that could not be captioned, with the reasons, as JSON Lines."
    )

    @field_validator("output")
    @classmethod
    def _output_has_a_known_form(cls, value: Path | None) -> Path | None:
        if value is not None and str(value) != "-" and value.suffix not in {".jsonl", ".csv", ".json"}:
            raise ValueError("must end in .jsonl, .csv or .json, or be - for standard output")
        if value is not None and str(value) != "-":
            check_file(value, "captions.jsonl")
        return value

    @field_validator("failures")
    @classmethod
    def _failures_is_a_file(cls, value: Path | None) -> Path | None:
        if value and value.is_dir():
            raise ValueError(f"{value} is a folder; name a file, such as failures.jsonl")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.csv_safe and (self.output is None or self.output.suffix != ".csv"):
            raise ValueError("csv_safe is about the cells of a .csv: leave it out, or set output to one")
        if self.output is not None:
            for name in ("append", "prepend"):
                if self.existing == name:
                    raise ValueError(f"existing: {name} extends caption files; with output choose skip or overwrite")
            if self.output_dir is not None:
                raise ValueError("output is one file, output_dir a folder of caption files: choose one of them")
        return self


class TextOptions(Config):
    """What is changed in a caption before it is written."""

    panel: ClassVar[str] = "Text"

    prefix: str = option("", "Put in front of every caption, as it is.")
    suffix: str = option("", "Put behind every caption, as it is.")
    trigger_word: str | None = option(None, "Put in front of every caption that doesn't begin with it.")
    strip_opening: bool = option(False, 'Remove "The image shows" and its kin.')
    single_line: bool = option(False, "Join the lines of a caption.")
    template: str | None = option(
        None, "Text around a caption, with {caption}, {stem} (of the image) and {folder} (it lies in)."
    )
