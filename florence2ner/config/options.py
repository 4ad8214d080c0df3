"""The options that several commands share, in groups; `commands.py` puts the groups of each command together.

Each option is declared once: here, or in the `*_options.py` of the only command that has it.
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from florence2ner.config.base import Config, option


def _require_folder(path: Path) -> Path:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}; name the folder that holds the images and captions")
    return path


def check_file(path: Path, example: str) -> None:
    """Raise ValueError where `path` is there, but can't be replaced by a file; `example` is a name for the message."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise ValueError(f"{path} is {what}; name a file, such as {example}")


def check_page(path: Path) -> Path:
    """The path, where it can be that of a page. Raises ValueError where it can't."""
    check_file(path, "report.html")
    if path.suffix.lower() not in {".html", ".htm"}:
        raise ValueError("must end in .html")
    return path


UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
PageFile = Annotated[UserPath, AfterValidator(check_page)]  # for a report
DatasetFolder = Annotated[UserPath, AfterValidator(_require_folder)]
_HUB_ID = re.compile(r"[\w.-]*\w/\w[\w.-]*")


def is_on_hub(path: Path) -> bool:
    """Whether the path of a dataset, which is none on this machine, may be its id on the Hugging Face hub."""
    return not path.exists() and bool(_HUB_ID.fullmatch(path.as_posix()))


def folder_or_hub_id(path: Path) -> Path:
    """The same path, of the user's home where it begins with ~. Raises ValueError where it is neither."""
    path = path.expanduser()
    return path if is_on_hub(path) else _require_folder(path)


MAX_PIXELS = 200_000_000  # a larger image is taken for a decompression bomb


class ModelOptions(Config):
    """Which model is loaded, and with which attention kernels."""

    panel: ClassVar[str] = "Model"

    model_name: str = option(
        "microsoft/Florence-2-base",
        "Model to start from: a local directory, a Hugging Face hub id, or the folder of a run (its best checkpoint).",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = option(
        "sdpa", "Attention kernels of transformers."
    )


EXTENSION_PATTERN = r"^\.[^/\\]+$"  # of caption files
CaptionExtension = Annotated[str, Field(pattern=EXTENSION_PATTERN)]
CaptionLines = Literal["whole", "first", "each", "random"]
TooLong = Literal["skip", "truncate", "refuse"]


class TaskOptions(Config):
    """Which task the captions of a dataset answer."""

    panel: ClassVar[str] = "Data"

    task_prompt: str = option("<CAPTION>", "Florence-2 task token that asks for the caption.")


class ReadingOptions(TaskOptions):
    """How a dataset is read: its layout, and where its captions are."""

    panel: ClassVar[str] = "Data"

    caption_extension: tuple[CaptionExtension, ...] = option(
        (".txt",), "Extension of the caption files, such as kohya's .caption; repeat the flag for several captions."
    )
    caption_lines: CaptionLines = option(
        "whole",
        "What a caption file holds. whole: one caption. first, each, random: one a line, of which the first is used, "
        "each as an example of its own, or another one in each epoch.",
    )
    layout: Literal["auto", "files", "tasks", "table", "coco", "yolo", "ocr", "huggingface", "shards"] = option(
        "auto",
        "How the dataset is kept. files: caption files beside images. tasks: in folders named by their task, such as "
        "<OD>. table: rows of JSON Lines, JSON or CSV. ocr: texts with corners, as ICDAR's. "
        "huggingface: parquet files, or saved by the library datasets. shards: WebDataset's. auto: by content.",
    )
    image_column: str | None = option(None, "Column of a table with the image's path. none: one of the usual names.")
    caption_column: str | None = option(None, "Column of a table with the caption, or a list of captions.")
    prompt_column: str | None = option(None, "Column of a table with the task prompt; where empty, task_prompt counts.")
    allow_outside: bool = option(
        False, "Let a table or a COCO file name images that are outside of the dataset's folder."
    )
    only_accepted: bool = option(
        False, "Use only captions that were accepted in `review`, and are as they were then; all others are left out."
    )


class LengthOptions(Config):
    """What becomes of captions that are longer than the model can write."""

    panel: ClassVar[str] = "Data"

    too_long: TooLong = option(
        "skip",
        "What becomes of captions that are longer than the model can write. skip: they are left out. truncate: they "
        "are cut after a word, answers with boxes after a box. refuse: the command ends and names them.",
    )


class Decoding(Config):
    """How text is generated, by transformers' names; None leaves a setting to the checkpoint's generation config."""

    panel: ClassVar[str] = "Generation"

    max_new_tokens: int = option(512, "Longest caption to generate, in tokens.", ge=1)
    num_beams: int = option(3, "Beams of the beam search (1: greedy).", ge=1)
    temperature: float | None = option(None, "Sample at this temperature. none: no sampling.", gt=0)
    top_p: float | None = option(None, "Sample among the likeliest tokens that make up this share.", gt=0, le=1)
    top_k: int | None = option(None, "Sample among this many of the likeliest tokens.", ge=1)
    no_repeat_ngram_size: int | None = option(
        None, "Never write this many tokens twice; 0: off. none: the model's own.", ge=0
    )
    repetition_penalty: float | None = option(
        None, "Above 1, tokens that were written become less likely. none: the model's own.", gt=0
    )
    length_penalty: float | None = option(
        None, "Above 0 favours long captions among the beams, below 0 short ones. none: the model's own."
    )
    bad_words: tuple[str, ...] = option((), "A word never to write; repeat the flag for several.")

    @field_validator("bad_words")
    @classmethod
    def _words_are_not_blank(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(str.strip, values)):
            raise ValueError("a word is blank, which would forbid every word or none: leave it out")
        return values

    @model_validator(mode="after")
    def _sampling_has_a_temperature(self) -> Self:
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k choose among sampled tokens: set temperature, such as 0.7")
        return self

    def given(self) -> dict[str, Any]:
        """The settings that are set (not None and not empty), by name."""
        values = {name: getattr(self, name) for name in Decoding.model_fields}
        return {name: value for name, value in values.items() if value not in (None, ())}


class GenerationOptions(Decoding):
    """How captions are generated: the same options in `caption`, `eval` and the evaluations of `train`."""

    panel: ClassVar[str] = "Generation"

    retry: bool = option(True, "Ask once more, with other settings, where a caption is empty, a loop or cut off.")


class SamplingOptions(Config):
    """What a temperature draws, in `caption` and `eval`; `train` has one seed for everything."""

    panel: ClassVar[str] = "Generation"

    seed: int = option(
        42, "What is sampled with a temperature: the same seed and file name draw the same.", ge=0, lt=2**32
    )


class MachineOptions(Config):
    """Precision, compilation and data loading."""

    panel: ClassVar[str] = "Machine"

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "auto",
        "Autocast precision. auto: what `accelerate launch` was told, else bf16 where the hardware is fast at it "
        "(on a CPU, for models as wide as Microsoft's).",
    )
    compile: bool = option(
        False, "Compile the vision tower and the language model's encoder: minutes at the start, faster from then on."
    )
    dataloader_workers: int | None = option(
        None, "Processes that decode images, per training process. none: chosen from the machine.", ge=0
    )
    dataloader_prefetch: int | None = option(
        None, "Batches that each of them keeps ready. none: at least two, and an update's worth together.", ge=1
    )
    pin_memory: bool | None = option(
        None, "Page-locked memory for batches on their way to a GPU. none: wherever there is a GPU."
    )


class BatchOptions(Config):
    """How many images are processed at once."""

    panel: ClassVar[str] = "Machine"

    batch_size: int = option(16, "Images per batch and process; halved where memory runs out.", ge=1)
