"""The run folder: where a run starts or resumes, checks before any work, writing config.yaml and split.json."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from florence2ner.config.base import SETTINGS_FILE
from florence2ner.config.commands import TrainConfig
from florence2ner.config.roots import absolute_roots, absolute_shard
from florence2ner.data.layouts.choice import discover
from florence2ner.data.order import DataOrder
from florence2ner.data.plan import split_rule
from florence2ner.data.samples import Discovery, merge
from florence2ner.data.split import Split, discover_held_out, discover_split
from florence2ner.data.split_file import (
    SPLIT_FILE,
    Contents,
    read_shards_of_run,
    read_split,
    split_to_json,
)
from florence2ner.data.stream import Shard
from florence2ner.display import Display, name_some
from florence2ner.engine import launcher
from florence2ner.engine.checkpoint import sweep
from florence2ner.engine.run_files import TrainState, find_model, find_resume_point, holds_weights, load_train_state
from florence2ner.engine.tracking import rewind_metrics
from florence2ner.errors import UserError
from florence2ner.evaluation.record import rewind_records
from florence2ner.files import METRICS_FILE, check_writable, hold, write_text
from florence2ner.inspection.at_start import notes_at_start
from florence2ner.model.checkpoints.adapters import is_adapter
from florence2ner.model.checkpoints.original import is_original
from florence2ner.training.streaming import check_same_shards, find_shards
from florence2ner.watching.record import how_to_resume

# Settings that a resumed run can't change: order of the data and optimizer state depend on them.
_FIXED = (
    *("seed", "freeze_vision", "freeze_language", "freeze_other", "kohya_repeats"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_dora", "use_rslora"),
    *("optimizer", "optimizer_args", "vision_lr", "other_lr", "layer_decay", "weights_dtype"),
)

# Those that a resumed run keeps where the command says nothing.
_KEPT = {"model_name", "warmup_steps"}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from: a new state, or that of a checkpoint."""

    model_name: str  # hub id or path of the model whose weights are loaded
    checkpoint: Path | None  # None: a new run
    state: TrainState
    split: Split
    shards: tuple[Shard, ...] = ()  # that are trained on; `split` has only what is held out then
    before: Contents | None = None  # what images and captions were when the run began; None: it begins now
    first_model: str | None = None  # that the run which is resumed started from
    warmup_steps: int | None = None  # of the run which is resumed
    notes: list[str] = field(default_factory=list)  # lines for the user


def hold_run_folder(config: TrainConfig) -> AbstractContextManager[None]:
    """A context manager that keeps the run folder for this run alone, over all machines that share it.

    Only the main process enters it. Raises UserError where the folder can't be written to or another run holds it.
    """
    if not launcher.is_main():
        return nullcontext()
    check_writable(config.run_dir, "choose another --output-dir")
    return hold(config.run_dir, str(config.run_dir), "wait until that run ends, stop it, or choose another --run-name")


def find_start(config: TrainConfig) -> Start:
    """Find out from settings and files what a run starts from; changes nothing on the disk.

    Raises UserError for what would fail later: a run folder that has checkpoints already, a checkpoint that can't be
    resumed from or doesn't fit the settings, a cache folder that can't be written to, and a dataset with nothing to
    train or evaluate on.
    """
    checkpoint = find_resume_point(config.resume, config.run_dir)
    if config.feature_cache == "disk":
        check_writable(config.features_dir, "choose another --feature-cache-dir")
    shards = find_shards(config)
    if checkpoint is not None:
        return _resume(config, checkpoint, shards)
    split, found = discover_dataset(config, shards)
    model_name = find_model(config.model_name)
    notes = [*found.report(), *notes_at_start(found.samples, (*config.roots, *config.eval_roots))]
    if model_name != config.model_name:
        notes.append(f"starting from {model_name}")
    state = TrainState(tracker_id=secrets.token_hex(4))
    return Start(model_name=model_name, checkpoint=None, state=state, split=split, shards=shards, notes=notes)


def discover_dataset(config: TrainConfig, shards: Sequence[Shard]) -> tuple[Split, Discovery]:
    """What is trained on and held out, and what was found: beside shards to train on, only what is held out.

    Raises UserError for a dataset that can't be read.
    """
    if not shards:
        if config.split_by_similarity is not None and config.eval_steps is not None:
            Display(is_main=launcher.is_main()).say("decoding every image once, to find near duplicates")
        return discover_split(
            config.roots, rule=split_rule(config), eval_roots=config.eval_roots, kohya_repeats=config.kohya_repeats
        )
    found = discover_held_out(config.eval_roots if config.eval_steps is not None else ())
    return Split((), found.samples), found


def _resume(config: TrainConfig, checkpoint: Path, shards: tuple[Shard, ...]) -> Start:
    """Read from the disk what a resumed run starts from. Raises UserError where that doesn't fit the settings."""
    for name in (SPLIT_FILE, SETTINGS_FILE):
        if not (checkpoint.parent / name).is_file():
            raise UserError(f"can't resume from {checkpoint}: {name} of its run is not beside it")
    state = load_train_state(checkpoint)
    settings = _read_settings(checkpoint)
    notes = [f"resuming from {checkpoint}, update {state.step}", *_compare_settings(settings, config)]
    if checkpoint.parent != config.run_dir.resolve():
        state.tracker_id = secrets.token_hex(4)  # a fork into another run folder is another W&B run
    split_file = checkpoint.parent / SPLIT_FILE
    check_same_shards(read_shards_of_run(split_file), shards)
    if shards and config.train_batch_size not in ("auto", settings["train_batch_size"]):
        notes.append("with another train_batch_size, images of shards are not in the order of an uninterrupted run")
    roots = (*(() if shards else config.roots), *config.eval_roots)
    found = merge([discover(root) for root in roots])
    split, before = read_split(split_file, roots, found, unreadable=state.unreadable)
    if changed := before.changed_captions(split):
        notes.append(f"{len(changed)} captions have changed since the run began: {_of_another_run(changed)}")
    # A native checkpoint or an adapter is loaded; where it has averaged weights, its state replaces them. A model in
    # the original layout may lack embedding rows: its state is loaded into the model that the run started from.
    lacks_rows = holds_weights(checkpoint) and not is_adapter(checkpoint) and is_original(checkpoint)
    model_name = settings["model_name"] if lacks_rows else str(checkpoint)
    return Start(
        model_name=model_name,
        checkpoint=checkpoint,
        state=state,
        split=split,
        shards=shards,
        before=before,
        first_model=settings["model_name"],
        warmup_steps=settings["warmup_steps"],
        notes=notes,
    )


def check_same_run(start: Start, order: DataOrder, *, processes: int, precision: str) -> list[str]:
    """Raise UserError where a resumed run has another global batch, and so another order of the data, or precision.

    Returns lines for the user about a different number of processes.
    """
    state = start.state
    if start.checkpoint and precision != state.precision:
        raise UserError(
            f"the run has precision {state.precision}, this command {precision}: add --mixed-precision "
            f"{state.precision}, as it can't change on the way"
        )
    if start.checkpoint and order.global_batch != state.global_batch:
        raise UserError(
            f"the run takes {state.global_batch} images per update, this command {order.global_batch}: choose "
            f"train_batch_size x gradient_accumulation_steps x processes = {state.global_batch}"
        )
    if start.checkpoint and processes != state.processes:
        return [
            f"{processes} processes instead of {state.processes}: the data order is the same, but dropout and the "
            "rounding of sums are not, so the weights are not bit-identical to those of an uninterrupted run"
        ]
    return []


def why_it_is_over(config: TrainConfig, start: Start, total_steps: int) -> str | None:
    """Why there is nothing left to do in a run that is to be resumed; None where there is."""
    state, patience = start.state, config.early_stopping_patience
    if start.checkpoint and state.step >= total_steps:
        return f"{start.checkpoint} has all {total_steps} updates already: raise epochs or max_steps to go on"
    if patience is not None and state.evaluations_since_best >= patience:
        return f"{start.checkpoint} was stopped early: raise early_stopping_patience to go on"
    return None


def images_that_changed(start: Start, digests: Mapping[str, str]) -> str | None:
    """A warning where images are not what they were when the run began, else None.

    `digests` are those of the feature cache, by key, where there is one.
    """
    changed = start.before.changed_images(start.split, digests) if start.before else []
    return f"{len(changed)} images have changed since the run began: {_of_another_run(changed)}" if changed else None


def _of_another_run(names: Sequence[str]) -> str:
    return f"{name_some(names)}; it ends with other weights than it would have"


def keys_and_captions(split: Split) -> list[list[tuple[str, tuple[str, ...], float]]]:
    """The keys, captions and weights of the train and eval samples, for `check_equal`."""
    return [
        [(sample.image.key, sample.captions, sample.weight) for sample in part] for part in (split.train, split.eval)
    ]


def open_run_folder(config: TrainConfig, start: Start, digests: Mapping[str, str]) -> None:
    """Make the run folder, write config.yaml and split.json, and clean up what a killed run left. Main process only.

    `digests` are those of the feature cache, by the images' keys, as far as there are any.
    Lines of metrics.jsonl and evaluations after the resumed step are removed. Raises UserError where the
    folder can't be written to.
    """
    run_dir = config.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {run_dir} ({error.strerror}): choose another --output-dir") from error
    sweep(run_dir)
    if start.state.step:
        rewind_metrics(run_dir, start.state.step)
    else:
        (run_dir / METRICS_FILE).unlink(missing_ok=True)
    rewind_records(run_dir, start.state.step if start.state.step else -1)
    first_model = start.first_model or absolute_model(start.model_name)
    settings = _by_absolute_paths(config).model_copy(update={"model_name": first_model, "resume": None})
    write_text(run_dir / SETTINGS_FILE, settings.to_yaml())
    contents = start.before or Contents.of(start.split, digests)
    roots = (*config.roots, *config.eval_roots)
    shards = [absolute_shard(shard.path) for shard in start.shards]
    write_text(run_dir / SPLIT_FILE, split_to_json(start.split, roots, contents, shards))


def _by_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same settings as config.yaml keeps them: they mean the same from any folder."""
    absolute = {
        "dataset_path": absolute_roots(config.dataset_path),
        "eval_path": absolute_roots(config.eval_path),
        "output_dir": config.output_dir.absolute(),
    }
    return config.model_copy(update=absolute)


def resume_command(config: TrainConfig, checkpoint: Path | None) -> str:
    """A clause for a message that says how to resume the run."""
    return how_to_resume(config.run_dir, checkpoint, processes=launcher.processes())


def _read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to. Raises UserError where they are not complete."""
    path = checkpoint.parent / SETTINGS_FILE
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in (*_FIXED, *_KEPT, "dataset_path"):
        if key not in settings:
            raise UserError(f"{path} doesn't say {key}: it is damaged, or of another version; start a new run")
    return settings


def _compare_settings(before: dict[str, Any], config: TrainConfig) -> list[str]:
    """Lines for the user about settings that changed since the checkpoint, whose run had those in `before`.

    Raises UserError where one of them can't change when a run is resumed.
    """
    now = _by_absolute_paths(config).model_dump(mode="json")
    for key in _FIXED:
        if now[key] != before[key]:
            raise UserError(f"the run has {key} {before[key]}, this command {now[key]}: it can't change on the way")
    weights = [[_weight(root) for root in settings["dataset_path"]] for settings in (before, now)]
    if weights[0] != weights[1]:
        raise UserError(f"the run has weights {weights[0]}, this command {weights[1]}: they can't change on the way")
    averages = [settings.get("ema_decay") for settings in (before, now)]
    if (averages[0] is None) != (averages[1] is None):
        said = ["none" if decay is None else decay for decay in averages]
        raise UserError(f"the run has ema_decay {said[0]}, this command {said[1]}: an average is of the whole run")
    if "model_name" in config.model_fields_set and not _is_model_of_run(config.model_name, before["model_name"]):
        raise UserError(
            f"the run started from {before['model_name']}, this command names {config.model_name}: leave out "
            "--model-name to go on with the run, or choose another --run-name to start from another model"
        )
    free = {"resume", "model_name", "warmup_ratio", *(_KEPT - config.model_fields_set)}
    if config.train_batch_size == "auto":  # the run keeps what it found; images per update are compared elsewhere
        free |= {"train_batch_size", "gradient_accumulation_steps", "memory_limit_gb"}
    changed = [
        f"{key} {before[key]} -> {value}"
        for key, value in now.items()
        if key in before and before[key] != value and key not in free
    ]
    return [f"settings that changed: {', '.join(changed)}"] if changed else []


def _weight(root: str | dict[str, Any]) -> float:
    """The weight of a root as config.yaml holds it."""
    return 1.0 if isinstance(root, str) else float(root.get("weight", 1.0))


def absolute_model(name: str) -> str:
    """The name of a model as it means the same from any folder: an absolute path, or a hub id."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _is_model_of_run(name: str, first: str) -> bool:
    """Whether `name` is the model that a run started from, by its own name or by the folder of its run."""
    return first in (name, absolute_model(name)) or Path(first).parent == Path(name).resolve()
