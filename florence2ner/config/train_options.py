"""The groups of options that only `train` has."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from florence2ner.config.base import Config, option
from florence2ner.config.options import MachineOptions, ReadingOptions, UserPath, check_file
from florence2ner.config.roots import DatasetRoots, Root, resolve_roots
from florence2ner.optim.schedules import Shape

_IMAGES = 16  # per micro-batch
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def _images_or_auto(value: Any) -> Any:
    """What is given for `train_batch_size`. Raises ValueError for what is no number of images."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if isinstance(value, str) and value.isdecimal() and int(value):
        return int(value)
    raise ValueError("must be a number of images from 1, or auto")


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_images_or_auto)]


class FreezingOptions(Config):
    """Which parts of the model are not trained."""

    panel: ClassVar[str] = "Model"

    freeze_vision: bool = option(True, "Keep the vision tower as it is.")
    freeze_language: bool = option(False, "Keep the language model as it is.")
    freeze_other: bool = option(False, "Keep the projector and its position tables as they are.")

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.freeze_vision and self.freeze_language and self.freeze_other:
            raise ValueError(
                "freeze_vision, freeze_language and freeze_other leave nothing to train; unset one of them"
            )
        return self

    @property
    def freezing_changed(self) -> str | None:
        """The name of an option of this group that isn't at its default, as it has to be with LoRA; None: all are."""
        fields = FreezingOptions.model_fields
        return next((name for name, field in fields.items() if getattr(self, name) != field.default), None)


class DatasetOptions(ReadingOptions):
    """Which images are trained on, and which are held out."""

    panel: ClassVar[str] = "Data"

    dataset_path: DatasetRoots = option(
        ...,
        "Folder of images, each with its caption in a file of the same name (see caption_extension); subfolders too; "
        "or tar shards, such as shards/{000..099}.tar. Repeat the flag for several; in YAML each may be a mapping with "
        "path, weight, task_prompt, layout and so on.",
        min_length=1,
    )
    kohya_repeats: bool = option(
        False, "Train on images in a folder named as kohya names them, such as 10_cats, ten times in each epoch."
    )
    eval_path: DatasetRoots = option(
        (), "Folder or shards to evaluate on, apart from dataset_path; none of that is held out then."
    )
    eval_split_ratio: float = option(
        0.1,
        "Share of the images held out for evaluation when the dataset has no eval/ folder: more or less, as each image "
        "is placed by its name and the seed alone.",
        gt=0,
        lt=1,
    )
    eval_split_count: int | None = option(None, "Number of images held out, instead of a share.", ge=1)
    split_by_similarity: int | None = option(
        None,
        "Keep near duplicates on one side: images whose perceptual hashes differ by at most this many of 64 bits, such "
        "as 4. Each image is decoded once more for that. none: copies only, byte for byte.",
        ge=0,
        le=15,
    )
    split: UserPath | None = option(
        None, "JSON file with the images to train on and those held out, such as the split.json of another run."
    )

    @model_validator(mode="after")
    def _held_out_in_one_way(self) -> Self:
        for name in ("eval_split_count", "split"):
            if self.eval_path and getattr(self, name) is not None:
                raise ValueError(f"eval_path and {name} both say what is evaluated on: leave out one of them")
        return self

    @model_validator(mode="after")
    def _roots_are_apart(self) -> Self:
        resolve_roots((*self.dataset_path, *self.eval_path), self)
        return self

    @property
    def roots(self) -> tuple[Root, ...]:
        """The roots of `dataset_path`."""
        return resolve_roots((*self.dataset_path, *self.eval_path), self)[: len(self.dataset_path)]

    @property
    def eval_roots(self) -> tuple[Root, ...]:
        """The roots of `eval_path`."""
        return resolve_roots((*self.dataset_path, *self.eval_path), self)[len(self.dataset_path) :]


class TagOptions(Config):
    """How captions are varied from one epoch to the next, as kohya_ss does it for tags."""

    panel: ClassVar[str] = "Data"

    shuffle_tags: bool = option(
        False, "Train on the tags of a caption in another order in each epoch. Answers with boxes stay as they are."
    )
    keep_tags: int = option(0, "This many tags stay in front, and are never left out.", ge=0)
    tag_dropout: float = option(0.0, "Share of the tags that are left out, others in each epoch.", ge=0, lt=1)
    tag_separator: str = option(",", "What is between two tags.", min_length=1)
    caption_dropout: float = option(
        0.0,
        "Share of the captions that count for nothing, others in each epoch: the model learns nothing from them then.",
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _tags_are_varied(self) -> Self:
        for name in ("keep_tags", "tag_separator"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and not (self.shuffle_tags or self.tag_dropout):
                raise ValueError(f"{name} does nothing alone: set shuffle_tags or tag_dropout, too")
        return self


class ScheduleOptions(Config):
    """The learning rate over the run."""

    panel: ClassVar[str] = "Learning rate"

    learning_rate: float = option(1e-5, "Peak learning rate, reached at the end of the warmup.", gt=0)
    min_learning_rate: float = option(0.0, "Lowest learning rate after the warmup.", ge=0)
    warmup_steps: int = option(50, "Optimizer updates of linear warmup.", ge=0)
    warmup_ratio: float | None = option(None, "Warmup as a share of the run, instead of warmup_steps.", ge=0, lt=1)
    lr_schedule: Shape = option(
        "cosine",
        "The learning rate after the warmup. constant: at its peak. linear, cosine, rex: down to min_learning_rate. "
        "wsd: at its peak, then down in the last decay_ratio of the run.",
    )
    restarts: int = option(1, "Cycles of cosine, each from a peak down (1: one descent).", ge=1)
    restart_decay: float = option(1.0, "Peak of each cycle as a share of that of the cycle before.", gt=0, le=1)
    decay_ratio: float = option(0.2, "Share of the run in which wsd goes down.", gt=0, le=1)

    @model_validator(mode="after")
    def _shape_has_these(self) -> Self:
        for name, does_nothing in (
            ("restarts", self.lr_schedule != "cosine" and "is for lr_schedule cosine"),
            ("restart_decay", self.restarts == 1 and "is for several cycles: set restarts"),
            ("decay_ratio", self.lr_schedule != "wsd" and "is for lr_schedule wsd"),
            ("min_learning_rate", self.lr_schedule == "constant" and "is for a learning rate that goes down"),
        ):
            if does_nothing and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {does_nothing}, or leave it out")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        if self.warmup_ratio is not None and "warmup_steps" in self.model_fields_set:
            raise ValueError("warmup_steps and warmup_ratio both say how long the warmup is: leave out one of them")
        return self


class MicroBatches(Config):
    """How many images there are in a micro-batch."""

    panel: ClassVar[str] = "Training"

    train_batch_size: BatchSize

    @property
    def micro_batch(self) -> int:
        """Images per micro-batch and process; where that is yet to be found, those that an update is reckoned with."""
        return _IMAGES if self.train_batch_size == "auto" else self.train_batch_size


class TrainingOptions(MicroBatches):
    """Length of the run, batch size, optimizer and order of the data."""

    panel: ClassVar[str] = "Training"

    epochs: int = option(2, "Passes over the training images.", ge=1)
    max_steps: int | None = option(None, "End after this many optimizer updates, whatever epochs says.", ge=1)
    train_batch_size: BatchSize = option(
        _IMAGES,
        f"Images per micro-batch and process. auto: as many as fit into memory, where an update takes {_IMAGES} x "
        "gradient_accumulation_steps images per process, in as many micro-batches as that needs.",
    )
    gradient_accumulation_steps: int = option(16, "Micro-batches per optimizer update.", ge=1)
    clip_grad_norm: float | None = option(1.0, "Largest gradient norm; none: no clipping.", gt=0)
    weight_decay: float = option(1e-5, "Weight decay of the optimizer; 1-d parameters are exempt.", ge=0)
    seed: int = option(42, "Seed of the split, the order of the images, dropout and sampled captions.", ge=0, lt=2**32)
    group_by_length: bool = option(
        False, "Put captions of like length into the same batch: less padding, a little less random."
    )
    max_bad_updates: int = option(
        10, "Updates in a row with a loss or gradient that is not finite after which the run stops.", ge=1
    )


class CheckpointOptions(Config):
    """Where a run is saved, from where it resumes, and where it logs to."""

    panel: ClassVar[str] = "Checkpoints and logs"

    run_name: str | None = option(
        None, "Name of the run and of its folder in output_dir. none: the dataset folder's name."
    )
    output_dir: UserPath = option(Path("checkpoints"), "Folder that holds the runs.")
    save_steps: int | None = option(50, "Optimizer updates between checkpoints; none: only the last.", ge=1)
    save_total_limit: int | None = option(3, "Checkpoints kept, the oldest go first; none: all.", ge=1)
    export_layout: Literal["native", "original"] = option(
        "native",
        "Layout of the checkpoints: native for transformers' own class, original for tools that use Microsoft's code.",
    )
    resume: str | None = option(
        None,
        "Go on with a run: latest (its newest checkpoint; a new run where there is none) or the path of a checkpoint.",
    )
    keep_states: bool = option(False, "Keep the training state of every checkpoint, not only of the newest.")
    log_every: int = option(1, "Optimizer updates between logged lines.", ge=1)
    log_with: tuple[str, ...] = option(
        ("wandb",),
        "Trackers by Accelerate's names: wandb, tensorboard, trackio, mlflow, comet_ml, aim, clearml, dvclive or "
        "swanlab; repeat the flag for several. metrics.jsonl is written beside any of them; jsonl: only that file; "
        "none: nothing.",
    )
    wandb_project: str = option("florence2ner", "Project of Weights & Biases, and of the other trackers.")

    push_to_hub: str | None = option(
        None, "Repository on the Hugging Face hub, such as somebody/mine, to upload the best checkpoint to at the end."
    )
    hub_public: bool = option(False, "Where push_to_hub makes a repository, make it public.")

    @field_validator("push_to_hub")
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        if value is not None and not _REPOSITORY.fullmatch(value):
            raise ValueError("must be a user and a name, such as somebody/my-florence-2")
        return value

    @model_validator(mode="after")
    def _public_where_something_is_pushed(self) -> Self:
        if self.hub_public and self.push_to_hub is None:
            raise ValueError("hub_public does nothing alone: set push_to_hub")
        return self

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


class ChartOptions(Config):
    """The curve of the learning rate that `schedule` draws."""

    panel: ClassVar[str] = "Curve"

    png: UserPath | None = option(None, "File for the curve as a picture.")
    processes: int = option(1, "Processes that the run will have.", ge=1)

    @field_validator("png")
    @classmethod
    def _png_is_a_file(cls, value: Path | None) -> Path | None:
        if value:
            check_file(value, "schedule.png")
            if value.suffix.lower() != ".png":
                raise ValueError("must end in .png")
        return value


class TrainMachineOptions(MachineOptions):
    """What only training needs of the machine: memory, feature cache, timeout."""

    panel: ClassVar[str] = "Machine"

    gradient_checkpointing: bool = option(
        True, "Recompute activations in the backward pass: less memory, about a fifth more time."
    )
    activation_offload: Literal["none", "cpu", "disk"] = option(
        "none",
        "Where activations wait for the backward pass. none: where they are. cpu: those of a GPU in the host's memory. "
        "disk: in an unnamed file in the folder for temporary files (TMPDIR).",
    )
    memory_limit_gb: float | None = option(
        None,
        "Memory in GB that a process may fill, for train_batch_size: auto. none: nearly all that is free.",
        gt=0,
    )
    feature_cache: Literal["auto", "memory", "disk", "off"] = option(
        "auto", "Encode each image once, where the vision tower is frozen, and keep the result. auto: on the disk."
    )
    feature_cache_dir: UserPath | None = option(
        None, "Folder of the cache on the disk. none: ~/.cache/florence2ner/features."
    )
    feature_cache_max_gb: float = option(
        50.0, "Largest size of the cache in GB; beyond it, images are encoded in every epoch.", ge=0
    )
    feature_cache_dtype: Literal["bf16", "fp32"] = option("bf16", "Precision of the cached features.")
    encode_batch_size: int = option(16, "Images per batch when they are encoded for the cache.", ge=1)
    process_timeout: int = option(600, "Seconds that a process waits for the others before it gives up.", ge=1)
