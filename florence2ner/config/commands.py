"""Every setting of every command: its name, type, default, unit and help text, each written once.

Flags (`cli.py`), YAML keys and the README's table are all made from these models.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import field_validator, model_validator

from florence2ner.config.base import option
from florence2ner.config.options import GenerationOptions, ModelOptions, PromptOptions, UserPath


class TrainConfig(ModelOptions, GenerationOptions, PromptOptions):
    """Settings of `florence2ner train`."""

    dataset_path: UserPath = option(
        ..., "Folder of images, each with a caption in a .txt file of the same name; subfolders too.", "Data"
    )
    run_name: str | None = option(
        None,
        "Name of the run and of its folder in output_dir. none: the dataset folder's name.",
        "Checkpoints and logs",
    )
    epochs: int = option(2, "Passes over the training images.", "Training", ge=1)
    max_steps: int | None = option(
        None, "End after this many optimizer updates, whatever epochs says.", "Training", ge=1
    )
    learning_rate: float = option(1e-5, "Peak learning rate, reached at the end of the warmup.", "Training", gt=0)
    train_batch_size: int = option(16, "Images per micro-batch and process.", "Training", ge=1)
    gradient_accumulation_steps: int = option(16, "Micro-batches per optimizer update.", "Training", ge=1)
    clip_grad_norm: float | None = option(1.0, "Largest gradient norm; none: no clipping.", "Training", gt=0)
    weight_decay: float = option(1e-5, "AdamW weight decay; 1-d parameters are exempt.", "Training", ge=0)
    warmup_steps: int = option(50, "Optimizer updates of linear warmup.", "Training", ge=0)
    restarts: int = option(
        1,
        "Cosine cycles after the warmup, each from the peak learning rate down to 0 (1: one descent).",
        "Training",
        ge=1,
    )
    seed: int = option(42, "Seed of the split, the order of the images and dropout.", "Training", ge=0, lt=2**32)
    freeze_vision: bool = option(True, "Keep the vision tower as it is.", "Model")
    freeze_language: bool = option(False, "Keep the language model as it is.", "Model")
    freeze_other: bool = option(False, "Keep the projector and its position tables as they are.", "Model")
    gradient_checkpointing: bool = option(
        True, "Recompute activations in the backward pass: less memory, about a quarter more time.", "Machine"
    )
    feature_cache: Literal["auto", "memory", "disk", "off"] = option(
        "auto",
        "Encode each image once, where the vision tower is frozen, and keep the result. auto: on the disk.",
        "Machine",
    )
    feature_cache_dir: UserPath | None = option(
        None, "Folder of the cache on the disk. none: ~/.cache/florence2ner/features.", "Machine"
    )
    feature_cache_max_gb: float = option(
        50.0, "Largest size of the cache in GB; beyond it, images are encoded in every epoch.", "Machine", ge=0
    )
    feature_cache_dtype: Literal["bf16", "fp32"] = option("bf16", "Precision of the cached features.", "Machine")
    encode_batch_size: int = option(16, "Images per batch when they are encoded for the cache.", "Machine", ge=1)
    group_by_length: bool = option(
        False, "Put captions of like length into the same batch: less padding, a little less random.", "Training"
    )
    eval_split_ratio: float = option(
        0.1,
        "Share of the images held out for evaluation when the dataset has no eval/ folder.",
        "Data",
        gt=0,
        lt=1,
    )
    eval_batch_size: int = option(16, "Images per batch and process in evaluation.", "Evaluation", ge=1)
    eval_steps: int | None = option(
        50, "Optimizer updates between evaluations; none: train on everything and never evaluate.", "Evaluation", ge=1
    )
    eval_before_training: bool = option(True, "Evaluate once before the first update.", "Evaluation")
    output_dir: UserPath = option(Path("checkpoints"), "Folder that holds the runs.", "Checkpoints and logs")
    save_steps: int | None = option(
        50, "Optimizer updates between checkpoints; none: only the last.", "Checkpoints and logs", ge=1
    )
    save_total_limit: int | None = option(
        3, "Checkpoints kept, the oldest go first; none: all.", "Checkpoints and logs", ge=1
    )
    export_layout: Literal["native", "original"] = option(
        "native",
        "Layout of the checkpoints: native for transformers' own class, original for tools that use Microsoft's code.",
        "Checkpoints and logs",
    )
    resume: str | None = option(
        None,
        "Go on with a run: latest (its newest checkpoint; a new run where there is none) or the path of a checkpoint.",
        "Checkpoints and logs",
    )
    keep_states: bool = option(
        False, "Keep the training state of every checkpoint, not only of the newest.", "Checkpoints and logs"
    )
    metric_for_best: Literal["eval/loss", "eval/perplexity", "eval/exact_match"] = option(
        "eval/loss",
        "Metric of the `best` link, which follows the checkpoints that were evaluated at their own step.",
        "Evaluation",
    )
    early_stopping_patience: int | None = option(
        None, "Evaluations without a better metric_for_best after which the run ends; none: never.", "Evaluation", ge=1
    )
    max_bad_updates: int = option(
        10, "Updates in a row with a loss or gradient that is not finite after which the run stops.", "Training", ge=1
    )
    process_timeout: int = option(
        600, "Seconds that a process waits for the others before it gives up.", "Machine", ge=1
    )
    log_every: int = option(1, "Optimizer updates between logged lines.", "Checkpoints and logs", ge=1)
    log_with: tuple[Literal["wandb", "tensorboard", "jsonl", "none"], ...] = option(
        ("wandb",),
        "Trackers; repeat the flag for several. metrics.jsonl is written beside any of them; jsonl: only that file; "
        "none: nothing.",
        "Checkpoints and logs",
    )
    wandb_project: str = option("florence2ner", "Weights & Biases project.", "Checkpoints and logs")

    @field_validator("run_name")
    @classmethod
    def _run_name_is_one_folder(cls, value: str | None) -> str | None:
        if value is not None and (value in {"", ".", ".."} or Path(value).name != value):
            raise ValueError("must be the name of one folder, without slashes")
        return value

    @field_validator("log_with")
    @classmethod
    def _none_stands_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in value and len(value) > 1:
            raise ValueError("none can't be combined with other trackers")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.freeze_vision and self.freeze_language and self.freeze_other:
            raise ValueError(
                "freeze_vision, freeze_language and freeze_other leave nothing to train; unset one of them"
            )
        if self.feature_cache in ("memory", "disk") and not self.freeze_vision:
            raise ValueError(
                f"feature_cache: {self.feature_cache} keeps what a frozen vision tower makes; set freeze_vision: true, "
                "or leave feature_cache at auto"
            )
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs evaluations: set eval_steps")
        _require_folder(self.dataset_path)
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run: checkpoints, split, settings, metrics."""
        return self.output_dir / (self.run_name or self.dataset_path.resolve().name)


class EvalConfig(ModelOptions, GenerationOptions, PromptOptions):
    """Settings of `florence2ner eval`."""

    dataset_path: UserPath = option(
        ..., "Folder of captioned images; its eval/ subfolder is used when there is one.", "Data"
    )
    batch_size: int = option(16, "Images per batch and process.", "Machine", ge=1)
    output: UserPath | None = option(None, "File for all figures and captions, as JSON.", "Output")
    show: int = option(12, "Captions shown beside the truth in the table.", "Output", ge=0)

    @model_validator(mode="after")
    def _paths(self) -> Self:
        _require_folder(self.dataset_path)
        if self.output and self.output.is_dir():
            raise ValueError(f"output: {self.output} is a folder; name a file, such as results.json")
        return self


class CaptionConfig(ModelOptions, GenerationOptions):
    """Settings of `florence2ner caption`."""

    paths: tuple[UserPath, ...] = option(
        ..., "Images, and folders with images (subfolders too).", "Data", positional=True, min_length=1
    )
    task_prompt: tuple[str, ...] = option(
        ("<CAPTION>",),
        "What is asked of each image; repeat the flag for several tasks. Tasks about places give boxes in JSON.",
        "Data",
        min_length=1,
    )
    text: str | None = option(
        None, "Input of the tasks that take one, such as <CAPTION_TO_PHRASE_GROUNDING>.", "Data", min_length=1
    )
    max_pixels: int = option(200_000_000, "Images with more pixels than this are refused.", "Data", ge=1)
    watch: bool = option(False, "Go on captioning images as they appear in the folders, until Ctrl-C.", "Data")
    dry_run: bool = option(False, "Say what would be done, and do nothing.", "Data")
    existing: Literal["skip", "overwrite", "append", "prepend"] = option(
        "skip", "What becomes of a caption that exists. An empty file counts as missing.", "Output"
    )
    separator: str = option(" ", "What append and prepend put between the old text and the new.", "Output")
    backup: bool = option(False, "Keep the old text as a .bak before it is overwritten or extended.", "Output")
    caption_extension: str = option(".txt", "Extension of the caption files.", "Output", pattern=r"^\.[^/\\]+$")
    output_dir: UserPath | None = option(
        None, "Folder for the caption files, in the same tree as the images. none: beside the images.", "Output"
    )
    on_collision: Literal["refuse", "full-name"] = option(
        "refuse", "What to do with a.jpg and a.png, which would share a.txt. full-name: a.jpg.txt, a.png.txt.", "Output"
    )
    output: UserPath | None = option(
        None,
        "One file for all captions, instead of a file for each: .jsonl, .csv, .json or a metadata.jsonl for "
        "imagefolder; - for JSON Lines on standard output.",
        "Output",
    )
    failures: UserPath | None = option(
        None, "File for the images that could not be captioned, with the reasons, as JSON Lines.", "Output"
    )
    prefix: str = option("", "Put in front of every caption, as it is.", "Text")
    suffix: str = option("", "Put behind every caption, as it is.", "Text")
    trigger_word: str | None = option(None, "Put in front of every caption that doesn't begin with it.", "Text")
    strip_opening: bool = option(False, 'Remove "The image shows" and its kin.', "Text")
    single_line: bool = option(False, "Join the lines of a caption.", "Text")
    template: str | None = option(
        None, "Text around a caption, with {caption}, {stem} (of the image) and {folder} (it lies in).", "Text"
    )
    batch_size: int = option(16, "Images per batch and process; halved where memory runs out.", "Machine", ge=1)
    temperature: float | None = option(None, "Sample at this temperature. none: no sampling.", "Generation", gt=0)
    top_p: float | None = option(
        None, "Sample among the likeliest tokens that make up this share.", "Generation", gt=0, le=1
    )
    top_k: int | None = option(None, "Sample among this many of the likeliest tokens.", "Generation", ge=1)
    no_repeat_ngram_size: int | None = option(
        None,
        "Never write this many tokens twice; 0: off. none: the model's own.",
        "Generation",
        ge=0,
    )
    repetition_penalty: float | None = option(
        None, "Above 1, tokens that were written become less likely. none: the model's own.", "Generation", gt=0
    )
    length_penalty: float | None = option(
        None, "Above 0 favours long captions among the beams, below 0 short ones. none: the model's own.", "Generation"
    )
    bad_words: tuple[str, ...] = option((), "A word never to write; repeat the flag for several.", "Generation")
    retry: bool = option(
        True, "Ask once more, with other settings, where a caption is empty, a loop or cut off.", "Generation"
    )

    @field_validator("output")
    @classmethod
    def _output_has_a_known_form(cls, value: Path | None) -> Path | None:
        if value is not None and str(value) != "-" and value.suffix not in {".jsonl", ".csv", ".json"}:
            raise ValueError("must end in .jsonl, .csv or .json, or be - for standard output")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for path in self.paths:
            if not path.exists():
                raise ValueError(f"there is no file or folder {path}")
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k choose among sampled tokens: set temperature, such as 0.7")
        if self.output is not None:
            for name in ("append", "prepend"):
                if self.existing == name:
                    raise ValueError(f"existing: {name} extends caption files; with output choose skip or overwrite")
            if self.output_dir is not None:
                raise ValueError("output is one file, output_dir a folder of caption files: choose one of them")
            if self.output.is_dir():
                raise ValueError(f"output: {self.output} is a folder; name a file, such as captions.jsonl")
        if self.dry_run and self.watch:
            raise ValueError("dry_run and watch exclude each other")
        return self


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ValueError(f"dataset_path: {path} {what}; name the folder that holds the images and captions")
