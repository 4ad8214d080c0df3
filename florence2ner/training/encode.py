"""Fills the feature cache before the first update, so that a frozen vision tower encodes each image only once."""

import itertools
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Batch, FeatureSource, Window
from florence2ner.data.features import FeatureCache, fingerprint_of, memory_directory
from florence2ner.data.loader import SequentialLoader
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.display import name_some
from florence2ner.engine.loop import run_loop
from florence2ner.engine.queue import WorkQueue
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.model.inputs import Encoded, Pixels
from florence2ner.training.context import Context

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_GIGABYTE = 10**9
_STORED_BEHIND = 2  # most batches that wait to be stored while others are encoded
_rounds = itertools.count()  # numbers the work queues, the same in all processes


@dataclass(frozen=True)
class Filled:
    """The feature cache as a run begins, and what was learnt about the images while it was filled."""

    features: FeatureSource | None = None  # None: there is no cache
    digests: Mapping[str, str] = field(default_factory=dict)  # of image files, by the images' keys
    unreadable: Collection[str] = ()  # keys of images that can't be read


def keeps_features(config: TrainConfig, captioner: Captioner) -> bool:
    """Whether images are encoded once, in advance."""
    return config.feature_cache != "off" and captioner.vision.is_frozen and not config.augment


def fill_cache(context: Context, captioner: Captioner, samples: Sequence[Sample], stack: ExitStack) -> Filled:
    """Encode the samples' images that are not in the feature cache yet.

    Every process must call this. A cache in memory is removed when `stack` is closed. Images for which the cache has no
    room are encoded during training; if there are none, and every image can be read, the vision tower is offloaded.
    Where the cache's directory can't be used, `feature_cache` "auto" goes on without a cache, "memory" and "disk" raise
    UserError.
    """
    config, accelerator = context.config, context.accelerator
    if config.feature_cache == "off" or not captioner.vision.is_frozen:
        return Filled()
    if not keeps_features(config, captioner):
        context.display.say(
            "augment: images differ each time, so there is no feature cache; each is encoded every time"
        )
        return Filled()
    directory = _directory(config, accelerator, stack)
    images = sorted({sample.image for sample in samples}, key=lambda image: image.key)
    try:
        cache = _open_cache(context, captioner, directory, images)
    except UserError as error:
        if config.feature_cache != "auto":
            raise
        if accelerator.is_main_process:
            context.display.warn(f"{error}; going on without, images are encoded in every epoch")
        return Filled()
    left, unreadable = _fill(context, captioner, cache, images)
    if not (left or unreadable):  # an unreadable image becomes a blank picture, which the tower must encode
        captioner.vision.offload()
    features = FeatureSource(cache.load, captioner.vision.encoded_type)
    return Filled(features, cache.digests, [image.key for image in unreadable])


def _open_cache(context: Context, captioner: Captioner, directory: Path, images: Sequence[ImageRef]) -> FeatureCache:
    """Open the cache and fill its `digests`: each process identifies a part of the images.

    Raises UserError in every process if one of them can't use the directory.
    """
    accelerator, vision = context.accelerator, captioner.vision
    dtype = DTYPES[context.config.feature_cache_dtype]
    fingerprint = fingerprint_of(vision.weights(), vision.facts(), dtype, accelerator.mixed_precision)
    problem, found = "", {}
    patience = context.config.process_timeout
    with WorkQueue(accelerator, f"identify-{next(_rounds)}", patience=patience) as queue:
        try:
            cache = FeatureCache(directory, fingerprint)
            found = cache.identify(images[accelerator.process_index :: accelerator.num_processes])
        except UserError as error:
            problem = str(error)
        # New files are read as a whole, for hours where there are many: longer than a collective operation may take.
        queue.wait_for_all()
    everywhere = gather_object([(problem, found)])
    if problem := next((problem for problem, _ in everywhere if problem), ""):
        raise UserError(problem)
    for _, digests in everywhere:
        cache.digests |= digests
    return cache


def _fill(
    context: Context, captioner: Captioner, cache: FeatureCache, images: Sequence[ImageRef]
) -> tuple[int, Collection[ImageRef]]:
    """Encode the images that the cache lacks, as far as it has room.

    Returns how many it has no place for in some process, and those of `images` that can't be read.
    """
    config, accelerator, display = context.config, context.accelerator, context.display
    # The last bits of a feature depend on the batch in which it is encoded. So the batches depend on the images only,
    # not on what is cached or which process encodes, and are always encoded as a whole.
    size = config.encode_batch_size
    unique = list({cache.digests[image.key]: image for image in images if image.key in cache.digests}.values())
    chunks = [unique[at : at + size] for at in range(0, len(unique), size)]
    # Each machine may have a cache of its own. The largest number counts, since all processes must encode or none.
    missing = max(gather_object([len(cache.missing(unique))]))
    unreadable = {image: "can't be opened" for image in images if image.key not in cache.digests}
    if missing:
        bytes_each = captioner.vision.encoded_bytes(DTYPES[config.feature_cache_dtype])
        room = min(gather_object([cache.room(bytes_each, config.feature_cache_max_gb * _GIGABYTE)]))
        todo = [chunk for chunk in chunks if cache.missing(chunk)][: room // size if room < missing else None]
        number = missing if room >= missing else len(todo) * size
        display.say(f"encoding {number} of {len(unique)} images, once for all")
        # By the number of all images, of which an interrupted run finds a part in the cache: bits depend on it.
        count = 0 if config.compile else len(unique)
        with ExitStack() as stack:
            with torch.inference_mode(), accelerator.autocast():
                stack.enter_context(captioner.vision.compiled_for(count, say=display.say, warn=display.warn))
            unreadable |= _encode(context, captioner, cache, todo)
    left = max(gather_object([len(set(cache.missing(unique)) - unreadable.keys())]))
    if unreadable and accelerator.is_main_process:
        some = name_some([f"{image} ({reason})" for image, reason in unreadable.items()])
        display.warn(f"{len(unreadable)} images can't be read and are skipped: {some}")
    if left and accelerator.is_main_process:
        display.warn(
            f"{left} images have no place in the feature cache {cache.directory} and are encoded in every epoch"
        )
    return left, unreadable


def _encode(
    context: Context, captioner: Captioner, cache: FeatureCache, chunks: Sequence[Sequence[ImageRef]]
) -> dict[ImageRef, str]:
    """Encode whole chunks and store their features. Returns the images that can't be read in any process, and why.

    Each process starts at another chunk, goes through all of them, and skips those that the cache then holds. This also
    works when machines have caches of their own.
    """
    accelerator = context.accelerator
    dtype = DTYPES[context.config.feature_cache_dtype]
    unreadable: dict[ImageRef, str] = {}
    samples = [Sample(image, "") for chunk in chunks for image in chunk]
    starts = [sum(map(len, chunks[:i])) for i in range(len(chunks))]
    first = accelerator.process_index * len(chunks) // accelerator.num_processes

    def remaining() -> Iterator[list[int]]:
        for i in (*range(first, len(chunks)), *range(first)):
            if cache.missing(chunks[i]):
                yield list(range(starts[i], starts[i] + len(chunks[i])))

    def step(window: Window) -> Encoded:
        batch = window.batches[0].to(accelerator.device)
        assert isinstance(batch.images, Pixels)
        with torch.inference_mode(), accelerator.autocast():
            return captioner.vision.encode(batch.images)

    loader = SequentialLoader(samples, captioner.processor, remaining(), text=False, workers=context.workers)
    being_stored: deque[Future[int]] = deque()
    captioner.eval()
    patience = context.config.process_timeout
    with (
        WorkQueue(accelerator, f"encode-{next(_rounds)}", patience=patience) as queue,
        context.display.bar("encoding", total=len(samples)) as bar,
    ):

        def show(more: int) -> None:
            # Processes on machines with caches of their own encode the same images: the count may exceed the total.
            bar.reach(min(queue.add("done", more), len(samples)))

        def after_step(window: Window, encoded: Encoded) -> bool:
            (batch,) = window.batches
            unreadable.update((samples[index].image, reason) for index, reason in batch.failures)
            keys = [samples[index].image.key for index in batch.indices]
            being_stored.append(storing.submit(_store, cache, keys, batch, encoded.values, dtype))
            while being_stored and (being_stored[0].done() or len(being_stored) > _STORED_BEHIND):
                show(being_stored.popleft().result())
            return False

        # Waiting for the device and the disk is done in a thread, so that the next batch is encoded meanwhile.
        with ThreadPoolExecutor(1) as storing:
            run_loop(loader, step, after_step)
            for stored in being_stored:
                show(stored.result())
        # No collective operation: where machines have caches of their own, one may have nothing to do while another
        # encodes for hours.
        queue.wait_for_all(meanwhile=lambda: show(0))
        show(0)
    return {image: reason for found in gather_object([unreadable]) for image, reason in found.items()}


def _store(cache: FeatureCache, keys: Sequence[str], batch: Batch, values: Tensor, dtype: torch.dtype) -> int:
    """Wait for the encodings of a batch, store those of images that could be read, and return its number of images."""
    for key, valid, feature in zip(keys, batch.valid, values.to("cpu", dtype), strict=True):
        if valid:
            cache.store(key, feature)
    return len(keys)


def _directory(config: TrainConfig, accelerator: Accelerator, stack: ExitStack) -> Path:
    """The cache's directory, the same in all processes of a machine. Every process must call this."""
    if config.feature_cache != "memory":
        return config.features_dir
    mine = str(stack.enter_context(memory_directory())) if accelerator.is_local_main_process else ""
    everywhere = gather_object([(accelerator.process_index - accelerator.local_process_index, mine)])
    machine = accelerator.process_index - accelerator.local_process_index
    return Path(next(path for first, path in everywhere if first == machine and path))
