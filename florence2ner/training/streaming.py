"""What is different where a run trains on tar shards, whose samples nobody has counted: settings, lanes, resuming."""

from collections.abc import Sequence

from accelerate.utils import gather_object

from florence2ner.config.commands import TrainConfig
from florence2ner.data.duplicates import digest_of
from florence2ner.data.lanes import Position, StreamOrder, check_lanes, lanes_for
from florence2ner.data.layouts.shards import means_shards
from florence2ner.data.samples import Sample
from florence2ner.data.shards import expand, labels
from florence2ner.data.stream import Shard, Stream
from florence2ner.engine.run_files import TrainState
from florence2ner.errors import UserError
from florence2ner.training.context import Context

# Settings that need a list of all images, and what they are where they ask for nothing.
_FOR_LISTS = {
    "split": None,
    "eval_split_count": None,
    "split_by_similarity": None,
    "kohya_repeats": False,
    "group_by_length": False,
}


def find_shards(config: TrainConfig) -> tuple[Shard, ...]:
    """The shards to train on, none of which is opened; nothing where the dataset is kept otherwise.

    Raises UserError for shards beside other roots, shards that are missing, and settings that don't fit shards.
    """
    others = [root for root in config.roots if not means_shards(root)]
    if len(others) == len(config.roots):
        return ()
    if others:
        raise UserError(f"{others[0]} holds no tar shards, as the other roots do: train on one kind alone")
    _check_settings(config)
    return tuple(Shard(path, root.options, root.weight) for root in config.roots for path in expand(str(root)))


def _check_settings(config: TrainConfig) -> None:
    for name, default in _FOR_LISTS.items():
        if getattr(config, name) != default:
            raise UserError(f"{name} needs a list of all images, which tar shards don't give: leave it out")
    if config.feature_cache in ("memory", "disk"):
        raise UserError(
            f"feature_cache {config.feature_cache} is for images that come again soon, and those of tar shards may "
            "not: leave it out"
        )
    if not config.max_steps:
        raise UserError("nobody knows how many images tar shards hold, and how long an epoch is: set --max-steps")
    if config.eval_steps is not None and not config.eval_path:
        raise UserError("nothing of tar shards is held out: name an --eval-path, or set --eval-steps none")


def check_same_shards(before: Sequence[str], shards: Sequence[Shard]) -> None:
    """Raise UserError where a resumed run, which had the shards in `before`, would have others or another order.

    The folder that they are in may be another one.
    """
    now = [shard.path for shard in shards]
    if len(before) != len(now):
        raise UserError(f"the run reads {len(before)} shards, this command {len(now)}: they can't change on the way")
    if labels(before) != labels(now):
        first = next(pair for pair in zip(labels(before), labels(now), strict=True) if len({*pair}) > 1)
        raise UserError(f"the run reads {first[0]} where this command has {first[1]}: they can't change on the way")


def settle_lanes(context: Context, state: TrainState) -> None:
    """Begin with lanes that fit all processes and their workers, or check those of a run which is resumed.

    Every process must call this. Raises UserError in all of them where lanes can't be shared evenly.
    """
    processes = context.accelerator.num_processes
    workers = gather_object([context.workers.processes])
    if not state.lanes:
        state.lanes = [Position().numbers()] * lanes_for(processes, workers)
    for number in workers:
        check_lanes(len(state.lanes), processes, number)


def stream_order(config: TrainConfig, state: TrainState, *, processes: int) -> StreamOrder:
    """The order of a run with these lanes."""
    return StreamOrder(
        batch_size=config.micro_batch,
        accumulation=config.gradient_accumulation_steps,
        processes=processes,
        seed=config.seed,
        lanes=len(state.lanes),
    )


def make_stream(config: TrainConfig, shards: Sequence[Shard], held_out: Sequence[Sample], *, longest: int) -> Stream:
    """What is trained on: all but copies of the samples that are evaluated on."""
    digests = {digest_of(image) for image in {sample.image.key: sample.image for sample in held_out}.values()}
    return Stream(
        shards=tuple(shards),
        longest=longest,
        too_long=config.too_long,
        held_out=frozenset(digest for digest in digests if digest),
    )


def furthest(lanes: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """Where each lane is, from what each process knows: only one has gone on with it."""
    return [max(positions, key=lambda numbers: numbers[-2:]) for positions in zip(*lanes, strict=True)]
