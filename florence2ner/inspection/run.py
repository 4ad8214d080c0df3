"""The training run that a dataset is for: whether there is anything to train on, its updates, and its feature cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from florence2ner.config.commands import InspectConfig
from florence2ner.data.plan import build_order, count_updates, describe, drawn
from florence2ner.data.samples import Sample
from florence2ner.data.split import Split
from florence2ner.errors import UserError
from florence2ner.files import METRICS_FILE
from florence2ner.inspection.findings import Example, Figure, Finding
from florence2ner.inspection.images import Looks

# Bytes of one image's encoding by Florence-2-base at 768 pixels, in bfloat16: what `bytes_of_encoding` gives for it.
BASE_ENCODING = (577 + 1) * 1024 * 2
_SPEED, _LAST = "train/images_per_second", 20  # lines of the log whose median counts
_BYTES = {"bf16": 2, "fp32": 4}  # per value


def run_findings(split: Split | None, looks: Looks) -> list[Finding]:
    """What keeps a run from doing anything though it starts: no image of a side can be read."""
    if not split:
        return []
    readable = _digests(looks)
    return [
        Finding(
            f"nothing-to-{verb}-on",
            "breaks",
            f"[side|sides] of the dataset without an image to {verb} on that can be read",
            "fetch the images again",
            () if any(sample.image.key in readable for sample in samples) else (Example(side),),
        )
        for side, verb, samples in (("train", "train", split.train), ("eval", "evaluate", split.eval))
        if samples
    ]


def run_figures(config: InspectConfig, split: Split | None, looks: Looks, encoding: int | None) -> list[Figure]:
    """Updates, time and disk of a run on one process. `encoding`: bytes per image in bfloat16; None: not known.

    Raises UserError where the earlier run that is named tells no speed.
    """
    if not split or not split.train:
        return [Figure("trained on", "nothing: training refuses the dataset", {})]
    order = build_order(config, split.train, processes=1)
    each, updates = order.updates_per_epoch, count_updates(config, order)
    size = (encoding or BASE_ENCODING) * _BYTES[config.feature_cache_dtype] // _BYTES["bf16"]
    total = size * _count_files(drawn(split, order, updates), looks)
    how = "" if encoding else " (an estimate for Florence-2-base: --model-name measures another)"
    return [
        Figure(
            "trained on",
            f"{describe(split.train, order)}, {len(split.eval)} held out",
            {
                "train_samples": len(split.train),
                "eval_samples": len(split.eval),
                "train_images": len({sample.image.key for sample in split.train}),
                "eval_images": len({sample.image.key for sample in split.eval}),
                "samples_per_epoch": order.epoch_size,
            },
        ),
        Figure(
            "updates",
            f"{updates} of {order.global_batch} images, {each} per epoch, in one process",
            {"updates": updates, "updates_per_epoch": each},
        ),
        Figure(
            "feature cache",
            f"{total / 1e9:.3g} GB on the disk, {size / 1e6:.2f} MB per image{how}",
            {"cache_bytes": total},
        ),
        *([_time(config.earlier_run, order.epoch_size)] if config.earlier_run else []),
    ]


def _digests(looks: Looks) -> dict[str, bytes]:
    """Of the images that can be read, by their keys."""
    return {item.image.key: look.digest for item, look in looks.items() if not look.failure}


def _count_files(samples: Sequence[Sample], looks: Looks) -> int:
    """How many images the cache holds for samples: each file once, and none that can't be read."""
    digests = _digests(looks)
    return len({digests[sample.image.key] for sample in samples if sample.image.key in digests})


def _time(run: Path, samples: int) -> Figure:
    """How long an epoch of so many samples takes at the speed that a run had at its end."""
    path = run / METRICS_FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        speeds = [float(line[_SPEED]) for line in lines if line.get(_SPEED)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}): name the folder of a run with --earlier-run") from None
    if not speeds:
        raise UserError(f"{path} has no {_SPEED}: name another run with --earlier-run, or leave it out")
    speed = median(speeds[-_LAST:])
    seconds = samples / speed
    return Figure(
        "time per epoch",
        f"{seconds:.3g} seconds at the {speed:.3g} images per second of {run.name}, without evaluations",
        {"seconds_per_epoch": seconds},
    )
