"""Encode each image of a run once, before the first update, so that the frozen vision tower never runs again."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Window
from florence2ner.data.features import FeatureCache, fingerprint_of, memory_directory
from florence2ner.data.loader import SequentialLoader, resolve_workers
from florence2ner.data.samples import Sample
from florence2ner.display import Display, name_some
from florence2ner.engine.loop import run_loop
from florence2ner.engine.queue import SharedCounts
from florence2ner.engine.runtime import SHARDED
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_DEFAULT_DIRECTORY = Path("~/.cache/florence2ner/features")
_GIGABYTE = 10**9
_rounds = itertools.count()


def fill_cache(
    config: TrainConfig,
    accelerator: Accelerator,
    display: Display,
    captioner: Captioner,
    samples: Sequence[Sample],
    stack: ExitStack,
) -> FeatureCache | None:
    """The features of the samples' images, encoded now where no earlier run has. None where there is no cache.

    `captioner` is on its device. Features in memory last as long as `stack`. Beyond the limit of the cache the rest is
    left to be computed on the fly; else the tower leaves the device. Where the cache's directory can't be used, `auto`
    goes on without a cache, and the others raise UserError.
    """
    if config.feature_cache == "off" or not config.freeze_vision:
        return None
    directory = _directory(config, accelerator, stack)
    dtype = _DTYPES[config.feature_cache_dtype]
    facts = (captioner.image_facts(), dtype, accelerator.mixed_precision)
    fingerprint = fingerprint_of(captioner.encoder_weights(), *facts)
    images = sorted({sample.image for sample in samples})
    try:
        cache = _open_cache(accelerator, directory, fingerprint, images)
    except UserError as error:
        if config.feature_cache != "auto":
            raise
        if accelerator.is_main_process:
            display.warn(f"{error}; going on without, images are encoded in every epoch")
        return None

    # Batches are the same in every run, and encoded as a whole: who encodes an image with which others must not change
    # the last bits of its features.
    size = config.encode_batch_size
    unique = list({cache.keys[image]: image for image in images if image in cache.keys}.values())
    chunks = [unique[at : at + size] for at in range(0, len(unique), size)]
    # Machines may have caches of their own: the one that lacks the most counts, and all encode if one does.
    missing = max(gather_object([len(cache.missing(unique))]))
    unreadable = {image: "can't be opened" for image in images if image not in cache.keys}
    if missing:
        entry = captioner.feature_bytes(dtype)
        room = min(gather_object([cache.room(entry, config.feature_cache_max_gb * _GIGABYTE)]))
        todo = [chunk for chunk in chunks if cache.missing(chunk)][: room // size if room < missing else None]
        display.say(
            f"encoding {missing if room >= missing else len(todo) * size} of {len(unique)} images, once for all"
        )
        unreadable |= _encode(config, accelerator, display, captioner, cache, todo, dtype)
    left = max(gather_object([len(set(cache.missing(unique)) - unreadable.keys())]))
    if unreadable and accelerator.is_main_process:
        some = name_some([f"{image} ({reason})" for image, reason in unreadable.items()])
        display.warn(f"{len(unreadable)} images can't be read and are skipped: {some}")
    if left and accelerator.is_main_process:
        display.warn(f"{left} images have no place in the feature cache {directory} and are encoded in every epoch")
    # The blank picture in the place of an unreadable one takes the tower too; FSDP wraps its layers by name.
    if not (left or unreadable) and accelerator.distributed_type not in SHARDED:
        captioner.park_tower()
    return cache


def _open_cache(accelerator: Accelerator, directory: Path, fingerprint: str, images: Sequence[Path]) -> FeatureCache:
    """The cache, with the images that can be opened identified by all processes together.

    Raises UserError in every process where one of them can't use the directory.
    """
    problem, found = "", {}
    try:
        cache = FeatureCache(directory, fingerprint)
        found = cache.identify(images[accelerator.process_index :: accelerator.num_processes])
    except UserError as error:
        problem = str(error)
    everywhere = gather_object([(problem, found)])
    if problem := next((problem for problem, _ in everywhere if problem), ""):
        raise UserError(problem)
    for _, keys in everywhere:
        cache.keys |= keys
    return cache


def _encode(
    config: TrainConfig,
    accelerator: Accelerator,
    display: Display,
    captioner: Captioner,
    cache: FeatureCache,
    chunks: Sequence[Sequence[Path]],
    dtype: torch.dtype,
) -> dict[Path, str]:
    """Encode whole chunks and keep their features. Processes start apart and pass over what another has done.

    Returns the images that can't be read, with the reasons, from all processes.
    """
    counts = SharedCounts(accelerator, f"encode-{next(_rounds)}")
    unreadable: dict[Path, str] = {}
    samples = [Sample(image, config.task_prompt) for chunk in chunks for image in chunk]
    starts = [sum(map(len, chunks[:i])) for i in range(len(chunks))]
    first = accelerator.process_index * len(chunks) // accelerator.num_processes

    def remaining() -> Iterator[list[int]]:
        for i in (*range(first, len(chunks)), *range(first)):
            if cache.missing(chunks[i]):
                yield list(range(starts[i], starts[i] + len(chunks[i])))

    def step(window: Window) -> Tensor:
        (batch,) = window.batches
        assert batch.pixel_values is not None
        with torch.inference_mode(), accelerator.autocast():
            return captioner.encode(batch.pixel_values).to("cpu", dtype)

    loader = SequentialLoader(
        samples,
        captioner.processor,
        remaining(),
        workers=resolve_workers(accelerator, config),
    )
    captioner.eval()
    with display.bar("encoding", total=len(samples)) as bar:

        def show(more: int) -> None:
            # Processes without a cache in common do the same images.
            bar.reach(min(counts.add("done", more), len(samples)))

        def after_step(window: Window, features: Tensor) -> bool:
            (batch,) = window.batches
            for index, counted, feature in zip(batch.indices, batch.counted, features, strict=True):
                if counted:
                    cache.store(samples[index].image, feature)
            unreadable.update((samples[index].image, reason) for index, reason in batch.failures)
            show(len(batch.indices))
            return False

        run_loop(loader, step, after_step, device=accelerator.device)
        accelerator.wait_for_everyone()
        show(0)
    return {image: reason for found in gather_object([unreadable]) for image, reason in found.items()}


def _directory(config: TrainConfig, accelerator: Accelerator, stack: ExitStack) -> Path:
    """The cache's directory, the same for all processes of a machine."""
    if config.feature_cache != "memory":
        return config.feature_cache_dir or _DEFAULT_DIRECTORY.expanduser()
    mine = str(stack.enter_context(memory_directory())) if accelerator.is_local_main_process else ""
    everywhere = gather_object([(accelerator.process_index - accelerator.local_process_index, mine)])
    machine = accelerator.process_index - accelerator.local_process_index
    return Path(next(path for first, path in everywhere if first == machine and path))
