"""The options that commands share, a class for each group of them: name, type, default, unit and help text."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from florence2ner.config.base import Config, option

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class ModelOptions(Config):
    """Which model, and how it is computed: shared by train, eval and caption."""

    model_name: str = option(
        "microsoft/Florence-2-base", "Model to start from: a local directory or a Hugging Face hub id.", "Model"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = option(
        "sdpa", "Attention kernels of transformers.", "Model"
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "auto",
        "Autocast precision. auto: what `accelerate launch` was told, else bf16 where the hardware is fast at it.",
        "Machine",
    )
    compile: bool = option(
        False,
        "Compile the vision tower and the language model's encoder: minutes at the start, faster from then on.",
        "Machine",
    )
    dataloader_workers: int | None = option(
        None, "Processes that decode images, per training process. none: chosen from the machine.", "Machine", ge=0
    )
    dataloader_prefetch: int | None = option(
        None,
        "Batches that each of them keeps ready. none: at least two, and an update's worth together.",
        "Machine",
        ge=1,
    )
    pin_memory: bool | None = option(
        None, "Page-locked memory for batches on their way to a GPU. none: wherever there is a GPU.", "Machine"
    )


class PromptOptions(Config):
    """What is asked of the images of a dataset."""

    task_prompt: str = option("<CAPTION>", "Florence-2 task token that asks for the caption.", "Data")


class GenerationOptions(Config):
    """How captions are generated."""

    max_new_tokens: int = option(512, "Longest caption to generate, in tokens.", "Generation", ge=1)
    num_beams: int = option(3, "Beams of the beam search (1: greedy).", "Generation", ge=1)
