"""The training run that a dataset is for: whether there is anything to train on, its updates, and its feature cache."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from florence2ner.config.commands import InspectConfig
from florence2ner.config.train_options import TrainingOptions
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.split import number_held_out
from florence2ner.errors import UserError
from florence2ner.files import METRICS_FILE
from florence2ner.inspection.findings import Example, Figure, Finding
from florence2ner.inspection.folder import Folder
from florence2ner.inspection.images import Looks

# Bytes of one image's encoding by Florence-2-base at 768 pixels, in bfloat16: what `bytes_of_encoding` gives for it.
BASE_ENCODING = (577 + 1) * 1024 * 2
_SPEED, _LAST = "train/images_per_second", 20  # lines of the log whose median counts
_BYTES = {"bf16": 2, "fp32": 4}  # per value


@dataclass(frozen=True)
class Usable:
    """How many images a run trains on and holds out."""

    train: int
    held_out: int


def usable(folder: Folder, looks: Looks, ratio: float) -> Usable:
    """The images with a caption that can be read, divided as `data/split.py` divides them."""
    good = [item for item, look in looks.items() if item.caption and not look.failure]
    keys = [item.image.key for item in good if item.side == "train"]
    if folder.has_eval:
        return Usable(len(keys), sum(item.side == "eval" for item in good))
    drawn = number_held_out(keys, ratio, TrainingOptions.model_fields["seed"].default) if keys else 0
    return Usable(len(keys) - drawn, drawn)


def run_findings(folder: Folder, found: Usable, ratio: float) -> list[Finding]:
    """What keeps a run from starting."""
    findings = []
    if not found.train:
        drawn = "" if folder.has_eval or not found.held_out else f" after a share of {ratio:g} is held out"
        extension = f"each image needs a {folder.extension} of the same name beside it"
        findings.append(
            Finding(
                "nothing-to-train-on",
                "breaks",
                f"[dataset has|datasets have] nothing to train on{drawn}",
                f"{extension}, with text in it" if not drawn else "add images",
                (Example(folder.root.as_posix(), f"{len(folder.items)} images"),),
            )
        )
    if folder.has_eval and not found.held_out:
        findings.append(
            Finding(
                "nothing-to-evaluate-on",
                "breaks",
                "[eval/ folder has|eval/ folders have] no image with a caption that can be read",
                "fill it, take it away, or train with --eval-steps none",
                (Example("eval"),),
            )
        )
    return findings


def run_figures(config: InspectConfig, found: Usable, encoding: int | None) -> list[Figure]:
    """Updates, time and disk. `encoding`: bytes per image in bfloat16; None: not known.

    Raises UserError where the earlier run that is named tells no speed.
    """
    numbers: dict[str, float] = {"train_images": found.train, "eval_images": found.held_out}
    figures = [Figure("trained on", f"{found.train} images, {found.held_out} held out", numbers)]
    if not found.train:
        return figures
    batch, accumulation = config.train_batch_size, config.gradient_accumulation_steps
    each = ShuffledOrder(range(found.train), batch, accumulation, 1, seed=0).updates_per_epoch
    updates = config.max_steps or config.epochs * each
    size = (encoding or BASE_ENCODING) * _BYTES[config.feature_cache_dtype] // _BYTES["bf16"]
    total = size * (found.train + found.held_out)
    how = "" if encoding else " (an estimate for Florence-2-base: --model-name measures another)"
    return [
        *figures,
        Figure(
            "updates",
            f"{updates} of {batch * accumulation} images, {each} per epoch, in one process",
            {"updates": updates, "updates_per_epoch": each},
        ),
        Figure(
            "feature cache",
            f"{total / 1e9:.3g} GB on the disk, {size / 1e6:.2f} MB per image{how}",
            {"cache_bytes": total},
        ),
        *([_time(config.earlier_run, found.train)] if config.earlier_run else []),
    ]


def _time(run: Path, images: int) -> Figure:
    """How long an epoch takes at the speed that a run had at its end."""
    path = run / METRICS_FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        speeds = [float(line[_SPEED]) for line in lines if line.get(_SPEED)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}): name the folder of a run with --earlier-run") from None
    if not speeds:
        raise UserError(f"{path} has no {_SPEED}: name another run with --earlier-run, or leave it out")
    speed = median(speeds[-_LAST:])
    seconds = images / speed
    return Figure(
        "time per epoch",
        f"{seconds:.3g} seconds at the {speed:.3g} images per second of {run.name}, without evaluations",
        {"seconds_per_epoch": seconds},
    )
