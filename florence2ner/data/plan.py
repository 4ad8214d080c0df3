"""What the settings of a run make of its dataset: the rule of the split, the order of the samples, the updates."""

from collections.abc import Sequence

from florence2ner.config.commands import InspectConfig, TrainConfig
from florence2ner.data.order import DataOrder, ShuffledOrder
from florence2ner.data.samples import Sample
from florence2ner.data.split import Split, SplitRule
from florence2ner.data.split_file import read_lists

PlannedRun = TrainConfig | InspectConfig  # `inspect` looks ahead to a run


def split_rule(config: PlannedRun) -> SplitRule | None:
    """How images are held out; None: not at all. Raises UserError for a given split that can't be read."""
    if config.eval_steps is None:
        return None
    return SplitRule(
        seed=config.seed,
        ratio=config.eval_split_ratio,
        count=config.eval_split_count,
        lists=read_lists(config.split) if config.split else None,
        similarity=config.split_by_similarity,
    )


def build_order(
    config: PlannedRun, samples: Sequence[Sample], *, processes: int, lengths: tuple[int, ...] | None = None
) -> ShuffledOrder:
    """The order in which the run takes the samples."""
    weights = [sample.weight for sample in samples]
    return ShuffledOrder(
        samples,
        config.micro_batch,
        config.gradient_accumulation_steps,
        processes,
        config.seed,
        lengths,
        None if set(weights) == {1.0} else weights,
    )


def count_updates(config: PlannedRun, order: DataOrder) -> int:
    """The number of optimizer updates of the whole run, from its very start."""
    if config.max_steps:
        return config.max_steps
    assert order.updates_per_epoch is not None, "where it is unknown, max_steps is set"
    return config.epochs * order.updates_per_epoch


def drawn(split: Split, order: ShuffledOrder, updates: int) -> list[Sample]:
    """The samples that a run uses: for training, in the order of their first use, then those held out."""
    return [*(split.train[index] for index in order.used(updates)), *split.eval]


def describe(samples: Sequence[Sample], order: ShuffledOrder) -> str:
    """How many images are trained on, how many captions and how many an epoch takes, where these differ."""
    images = len({sample.image.key for sample in samples})
    number = f"{images} images" if images == len(samples) else f"{len(samples)} captions of {images} images"
    size = order.epoch_size
    return f"{number}, of which an epoch takes {size}" if size != len(samples) else number
