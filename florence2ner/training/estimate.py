"""Estimates the memory of a run, for `train --estimate`: its own code makes two updates, of tensors without data."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Batch, Window
from florence2ner.data.captions import fit_captions, longest_captions
from florence2ner.data.loader import image_size_of
from florence2ner.data.samples import Sample
from florence2ner.display import Display
from florence2ner.engine import launcher
from florence2ner.engine.footprint import Footprint
from florence2ner.engine.memory import resident_bytes
from florence2ner.engine.run_files import TrainState, find_model
from florence2ner.engine.runtime import make_accelerator
from florence2ner.errors import UserError
from florence2ner.model.adapt import ParameterCount, count_parameters
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import build_empty, load_empty, quiet_transformers, width_of
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.checkpoints.scratch import Preset, describe_model
from florence2ner.model.inputs import IGNORE_INDEX, Embeddings, Features, Images, Pixels, Text
from florence2ner.training.context import Context
from florence2ner.training.encode import DTYPES, keeps_features
from florence2ner.training.lora import check_lora
from florence2ner.training.optimization import check_optimizer
from florence2ner.training.run_folder import Start, discover_dataset
from florence2ner.training.setup import build_step, make_captioner
from florence2ner.training.step import UpdateStep
from florence2ner.training.streaming import find_shards

# Models on the hub whose sizes are known without a network.
_KNOWN: dict[str, Preset] = {
    f"{owner}/Florence-2-{size}{kind}": size
    for owner in ("microsoft", "florence-community")
    for size in ("base", "large")
    for kind in ("", "-ft")
}
_ASSUMED_TOKENS = 128  # of captions in shards, which nobody has read: a detailed caption
_COMPUTED = 2  # micro-batches; with the second, the gradients of the first are there


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The memory that a run takes in each process, in bytes."""

    parameters: ParameterCount
    weights: int
    gradients: int
    optimizer: int
    average: int  # of EMA
    activations: int  # and all else that an update needs at its peak
    malloc: int  # freed memory that the process keeps at that moment
    encoding: int | None  # the peak of filling the feature cache, with the weights; None: there is no cache
    saving: int | None  # the peak of a save, with weights and optimizer; None: that takes no more on this device
    process: int  # libraries; 0 on a GPU, whose own share isn't known
    on_gpu: int | None  # what a GPU would need for the same, as far as a CPU can tell; None: this is one

    @property
    def update(self) -> int:
        """The peak of an update."""
        return sum((self.weights, self.gradients, self.optimizer, self.average, self.activations, self.malloc))

    @property
    def total(self) -> int:
        """The most that the process holds at any time."""
        return self.process + max(self.update, self.encoding or 0, self.saving or 0)


@quiet_transformers()
def estimate_memory(config: TrainConfig) -> Estimate:
    """Work out and print the memory that a run with these settings takes on this machine's device. Writes nothing.

    No weights are read: the model is built from its config.json. Raises UserError as `train` does where no dataset or
    model is found, or where settings don't go together; and under a launcher of several processes.
    """
    _check_launch()
    accelerator = make_accelerator(
        config.mixed_precision, seed=config.seed, width=partial(width_of, find_model(config.model_name))
    )
    accelerator.device_placement = False  # everything is made where it belongs
    # What these change is not known without running them, and little.
    config = config.model_copy(update={"compile": False, "attn_implementation": _kernels(config)})
    display = Display(is_main=True)
    context = Context(config, accelerator, display)
    check_optimizer(context)
    check_lora(context)
    if config.train_batch_size == "auto":
        display.say(f"note: train_batch_size auto is counted as {config.micro_batch}, name others to compare")
    if config.activation_offload != "none":
        display.say("note: activation_offload is not counted, the activations are those without it")
    shards = find_shards(config)
    split, discovery = discover_dataset(config, shards)
    for line in discovery.report():
        display.say(line)
    name = find_model(config.model_name)
    model, processor, source = _load(name, split.train)
    lengths = _longest(config, model, processor, split.train)
    start = Start(model_name=name, checkpoint=None, state=TrainState(), split=split, shards=shards)
    with ExitStack() as stack:
        run = _ImaginaryRun(context, start, model, processor, stack)
        found = run.measure(lengths)
    print("\n".join(_describe(found, context, lengths, source=source, read=bool(split.train))))
    return found


def _check_launch() -> None:
    for variable, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(f"--estimate doesn't know how {what} shares the memory: start it without accelerate launch")
    if launcher.processes() > 1:
        raise UserError(
            "--estimate is for one process: start it without accelerate launch; each of several processes holds as "
            "much, and its gradients all the time"
        )


def _kernels(config: TrainConfig) -> str:
    """The attention kernels to count with: those of torch where flash attention, which takes as much, is asked for."""
    return "eager" if config.attn_implementation == "eager" else "sdpa"


def _load(name: str, samples: Sequence[Sample]) -> tuple[Florence2ForConditionalGeneration, Florence2Processor, str]:
    """A model without weights, its processor, and where they are from.

    Microsoft's models needn't be at hand: where they can't be found, a tokenizer made from the captions counts tokens.
    """
    try:
        model, processor = load_empty(name)
    except UserError:
        if name not in _KNOWN:
            raise
        captions = [caption for sample in samples for caption in sample.captions]
        processor, config = describe_model(_KNOWN[name], captions)
        return build_empty(config), processor, f"{name}, not at hand: its size is known, tokens are estimates"
    return model, processor, name


def _longest(
    config: TrainConfig,
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    samples: Sequence[Sample],
) -> list[int]:
    """The numbers of tokens of the longest captions, as many as a micro-batch has; those of shards are assumed."""
    rows = config.micro_batch
    if not samples:
        return [_ASSUMED_TOKENS] * rows
    limit = int(model.config.text_config.max_position_embeddings)
    fitting = fit_captions(samples, processor.tokenizer, limit, config.too_long).samples
    lengths = sorted(longest_captions(fitting, processor.tokenizer), reverse=True)[:rows]
    return lengths + [0] * (rows - len(lengths))  # fillers


class _ImaginaryRun:
    """The parts of a run, made of tensors without data. Inside `stack`, all tensors are such."""

    def __init__(
        self,
        context: Context,
        start: Start,
        model: Florence2ForConditionalGeneration,
        processor: Florence2Processor,
        stack: ExitStack,
    ) -> None:
        self.context = context
        self.start = start
        self.processor = processor
        self.on_cpu = context.accelerator.device.type == "cpu"
        self.footprint = Footprint(context.accelerator.device)
        self.written: list[int] = []  # bytes of each weight in a model's file
        tasks = {sample.task_prompt for sample in start.split.train} or {context.config.task_prompt}
        self.prompts = {len(expand_prompt(processor, task)) for task in tasks}
        model.set_attn_implementation(context.config.attn_implementation)
        self.process = resident_bytes() if self.on_cpu else 0

        def place(captioner: Captioner, device: torch.device) -> Captioner:
            stack.enter_context(self.footprint)
            captioner.to_empty(device=device)
            captioner.model.tie_weights()
            self.written = [weight.nbytes for weight in captioner.parameters()]
            return captioner

        self.captioner = make_captioner(context, model, processor, start.model_name, place=place)
        # Frozen weights as they were before a cast are in the model's file, or on the CPU: only a save reads them.
        self.originals = self.captioner.frozen_weights.forget()

    def measure(self, lengths: Sequence[int]) -> Estimate:
        """Encode a batch, then do two updates, whose captions have these numbers of tokens."""
        footprint, config = self.footprint, self.context.config
        caches = not self.start.shards and keeps_features(config, self.captioner)
        tower = sum(weight.nbytes for weight in self.captioner.vision.tower.parameters()) if caches else 0
        values = sum(weight.nbytes for weight in self.captioner.parameters())
        before = footprint.live
        encoding = self._encode() if caches else None
        image = footprint.most_live - before
        parameters = count_parameters(self.captioner.model)
        if caches and not self.on_cpu:
            self.captioner.model.model.vision_tower = nn.Identity()  # offloaded
        weights = footprint.live
        step, ema = self._build_step()
        average = footprint.live - weights
        batches = [self._batch(lengths, encoded=caches) for _ in range(config.gradient_accumulation_steps)]
        window = Window(tuple(batches[:_COMPUTED]))
        before = footprint.live
        step(window)
        optimizer = footprint.live - before
        footprint.restart()
        step(window)
        gradients = sum(parameter.nbytes for parameter in self._trained())
        rest = footprint.peak - weights - average - optimizer - gradients
        malloc = min(rest, footprint.peak - footprint.live_at_peak)
        update = footprint.most_live - weights + values - tower  # with no file in memory, and the tower offloaded
        return Estimate(
            parameters=parameters,
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            average=average,
            activations=rest - malloc,
            malloc=malloc,
            encoding=encoding,
            saving=self._save(step, ema) if self.on_cpu else None,
            process=self.process,
            on_gpu=max(update, values + image * config.encode_batch_size * caches) if self.on_cpu else None,
        )

    def _encode(self) -> int:
        """The peak of encoding a batch for the feature cache. On a CPU, images are encoded one after the other."""
        self.footprint.restart()
        images = Pixels(self._pixels(1 if self.on_cpu else self.context.config.encode_batch_size))
        with torch.inference_mode(), self.context.accelerator.autocast():
            self.captioner.vision.encode(images.to(self.context.accelerator.device))
        return self.footprint.peak

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.captioner.parameters() if parameter.requires_grad]

    def _build_step(self) -> tuple[UpdateStep, list[Tensor]]:
        """The step, and the values that EMA keeps: timm copies modules, which imaginary ones don't bear."""
        config = self.context.config
        plain = replace(self.context, config=config.model_copy(update={"ema_decay": None}))
        step = build_step(plain, self.captioner, self.start, total_steps=2)
        step.model.train()
        kept = self._trained() if config.ema_decay is not None else []
        return step, [torch.empty_like(weight.data, dtype=torch.float32) for weight in kept]

    def _save(self, step: UpdateStep, ema: Sequence[Tensor]) -> int:
        """The most that a save holds: what is written is read back as a whole model, beside that of the run."""
        with step.averaged():
            # Where the average is written, the trained weights are kept meanwhile.
            aside = (
                [weight.data.clone() for weight in self._trained()] if ema and self.context.config.export_ema else []
            )
            held = self.footprint.held
            del aside
        written = 0
        for weight, size in zip(self.captioner.parameters(), self.written, strict=True):
            narrow = weight.requires_grad and weight.nbytes < size  # widened when it is read back
            written += size + weight.nbytes if narrow else size
        return held + self.originals + written

    def _pixels(self, rows: int) -> Tensor:
        return torch.empty((rows, 3, *image_size_of(self.processor)), dtype=torch.uint8)

    def _images(self, rows: int, *, encoded: bool) -> Images:
        if not encoded:
            return Pixels(self._pixels(rows))
        model, dtype = self.captioner.model.config, DTYPES[self.context.config.feature_cache_dtype]
        tokens = self.processor.num_image_tokens
        if self.captioner.vision.encoded_type is Embeddings:
            return Embeddings(torch.empty(rows, tokens, model.text_config.d_model, dtype=dtype))
        side = isqrt(tokens - 1)
        return Features(torch.empty(rows, model.vision_config.embed_dim[-1], side, side, dtype=dtype))

    def _batch(self, lengths: Sequence[int], *, encoded: bool) -> Batch:
        """A micro-batch whose captions have these numbers of tokens, with the longest prompts."""
        rows, prompt, longest = len(lengths), max(self.prompts), max(lengths)
        labels = torch.full((rows, longest), IGNORE_INDEX)
        text = Text(
            input_ids=torch.zeros((rows, prompt), dtype=torch.long),
            attention_mask=torch.ones((rows, prompt), dtype=torch.long) if len(self.prompts) > 1 else None,
            labels=labels,
            label_positions=torch.zeros(sum(lengths), dtype=torch.long),
        )
        whole = (True,) * rows
        return Batch(self._images(rows, encoded=encoded), text, tuple(range(rows)), whole, (), ((0, 0),) * rows)


def _describe(found: Estimate, context: Context, lengths: Sequence[int], *, source: str, read: bool) -> list[str]:
    """Lines for the user: what takes how much, the phases of a run, and the total."""
    config, device = context.config, context.accelerator.device.type
    counts = found.parameters
    images = "pixels" if found.encoding is None else "the feature cache"
    tokens = f"captions of up to {max(lengths)} tokens" + ("" if read else ", assumed, as shards are not read")
    precision = "float32" if context.accelerator.mixed_precision == "no" else context.accelerator.mixed_precision
    rows: list[tuple[str, int | None, str]] = [
        ("weights", found.weights, f"{counts.total:,} parameters, {counts.trainable:,} of them trained"),
        ("gradients", found.gradients, ""),
        ("optimizer", found.optimizer, config.optimizer),
        ("average", found.average or None, f"ema_decay {config.ema_decay}"),
        ("activations", found.activations, f"{config.micro_batch} images from {images}, {tokens}"),
        ("malloc", found.malloc or None, "freed, but kept by the process"),
        ("update", found.update, "all of these"),
        ("encoding", found.encoding, f"{config.encode_batch_size} images for the feature cache, before the optimizer"),
        ("saving", found.saving, "with what was written, read back to compare it"),
        ("process", found.process or None, "Python and its libraries"),
        ("total", found.total, _TOTAL[device == "cpu"]),
        ("on a GPU", found.on_gpu, "the same, as far as a CPU can tell; what CUDA takes for itself is not counted"),
    ]
    lines = [f"{name:<12}{size / 1e9:>7.2f} GB  {what}".rstrip() for name, size, what in rows if size is not None]
    return [f"memory of each process: {source}, on {device}, in {precision}", *lines]


_TOTAL = {
    True: "the largest of update, encoding and saving, and the process",
    False: "the larger of update and encoding; what CUDA takes for itself is not counted",
}
