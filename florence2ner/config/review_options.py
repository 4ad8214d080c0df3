"""The groups of options that only `review` has."""

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from florence2ner.config.base import Config, option
from florence2ner.config.options import MAX_PIXELS, CaptionExtension, DatasetFolder, TaskOptions, UserPath


class ReviewedOptions(TaskOptions):
    """Which captions are looked through."""

    panel: ClassVar[str] = "Data"

    directory: DatasetFolder = option(
        ..., "Folder of images, each with its caption in a file of the same name; subfolders too.", positional=True
    )
    caption_extension: tuple[CaptionExtension, ...] = option(
        (".txt",), "Extension of the caption files, such as kohya's .caption; repeat the flag for several captions."
    )
    findings: UserPath | None = option(
        None, "JSON file of `inspect --json` about this folder: its findings become filters of the page."
    )
    allow_outside: bool = option(
        False, "Show images, and change captions, that links in the folder lead to outside of it."
    )
    max_pixels: int = option(MAX_PIXELS, "Images with more pixels than this are not shown.", ge=1)

    @field_validator("findings")
    @classmethod
    def _findings_are_there(cls, value: Path | None) -> Path | None:
        if value and not value.is_file():
            raise ValueError(f"there is no file {value}: make it with florence2ner inspect --json")
        return value


class ReviewedModelOptions(Config):
    """The model that is asked for other captions."""

    panel: ClassVar[str] = "Model"

    model_name: str | None = option(
        None,
        "Model to ask for other captions: a directory, hub id or run; it is loaded when it is first asked. none: no "
        "model is asked.",
    )


class PageOptions(Config):
    """Where the page is served."""

    panel: ClassVar[str] = "Page"

    host: str = option(
        "127.0.0.1",
        "Address to serve the page at. Any but 127.0.0.1 lets other machines in, if they know the token, and is not "
        "encrypted.",
        min_length=1,
    )
    port: int | None = option(None, "Port to serve the page at. none: a free one.", ge=1, le=65535)
    open: bool = option(
        False,
        "Open the page in this machine's browser. Others who are logged in here may see the browser's command line, "
        "with the token in it.",
    )
