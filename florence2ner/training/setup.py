"""Builds the parts of a training run: model, data, optimizer step and loader. `train.py` puts them together."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.config.commands import TrainConfig
from florence2ner.data.augment import Augmentation, names_side
from florence2ner.data.batch import FeatureSource
from florence2ner.data.captions import fit_captions, longest_captions, overlong_note
from florence2ner.data.lanes import Position, StreamOrder
from florence2ner.data.loader import TrainLoader
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.plan import build_order, count_updates, drawn
from florence2ner.data.samples import Sample
from florence2ner.data.split import Split
from florence2ner.data.stream import Stream, StreamLoader
from florence2ner.data.tags import CaptionRule
from florence2ner.engine.checkpoint import load_accelerator_state
from florence2ner.engine.deepspeed import uses_deepspeed
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.runtime import autocast_dtype
from florence2ner.engine.sharding import is_sharded, leave_whole, name_of_sharding
from florence2ner.errors import UserError
from florence2ner.model.build import Place, build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.original import check_original
from florence2ner.optim.average import WeightAverage
from florence2ner.optim.schedule_free import averages
from florence2ner.optim.schedules import Schedule
from florence2ner.training.context import Context
from florence2ner.training.lora import check_lora, settle_lora
from florence2ner.training.optimization import make_optimizer, trained_dtype
from florence2ner.training.run_folder import Start
from florence2ner.training.step import UpdateStep, token_losses
from florence2ner.training.streaming import make_stream, stream_order


def build_model(context: Context, start: Start) -> Captioner:
    """Load the model to train, on its device and frozen as the settings say.

    Raises UserError as `load_model` and `settle_lora` do, and for a model that the layout to export can't hold.
    """
    check_lora(context)
    model, processor = load_model(start.model_name, attn_implementation=context.config.attn_implementation, merge=False)
    return make_captioner(context, model, processor, start.model_name)


def make_captioner(
    context: Context,
    model: Florence2ForConditionalGeneration,
    processor: Florence2Processor,
    name: str,
    *,
    place: Place = Captioner.to,
) -> Captioner:
    """What `build_model` makes of a model that was loaded by `name`; `place` is as in `build_captioner`."""
    config, accelerator = context.config, context.accelerator
    frozen = settle_lora(context, model, name)
    captioner = build_captioner(
        model,
        processor,
        device=accelerator.device,
        frozen=frozen,
        dtype=autocast_dtype(accelerator),
        trained_dtype=trained_dtype(config),
        gradient_checkpointing=config.gradient_checkpointing,
        compiled=config.compile,
        # FSDP can't shard such weights, DeepSpeed can't even send frozen ones.
        channels_last=not uses_deepspeed(accelerator) and (frozen.vision or not is_sharded(accelerator)),
        place=place,
    )
    captioner.label_smoothing = config.label_smoothing
    if config.export_layout == "original":
        check_original(captioner.model, captioner.processor)
    return captioner


@dataclass(frozen=True)
class TrainData:
    """The samples of a run, with captions that the model can write, and the order in which they are taken."""

    split: Split  # with nothing to train on where that is in a stream
    order: ShuffledOrder | StreamOrder
    total_steps: int  # optimizer updates of the whole run
    note: str | None  # a line for the user about captions that are too long
    stream: Stream | None = None  # where `order` is one of its lanes

    def drawn(self) -> list[Sample]:
        """The samples that the run will use: for training, in the order of their first use, then those held out.

        Of a stream nothing is known before.
        """
        if isinstance(self.order, StreamOrder):
            return []
        return drawn(self.split, self.order, self.total_steps)


def build_data(config: TrainConfig, split: Split, captioner: Captioner, *, processes: int) -> TrainData:
    """Drop or cut captions that are too long, and order the samples. Raises UserError as `fit_captions` does."""
    tokenizer, longest = captioner.processor.tokenizer, captioner.longest_caption
    fitted = [fit_captions(samples, tokenizer, longest, config.too_long) for samples in (split.train, split.eval)]
    fitting = Split(fitted[0].samples, fitted[1].samples)
    lengths = longest_captions(fitting.train, tokenizer) if config.group_by_length else None
    order = build_order(config, fitting.train, processes=processes, lengths=lengths)
    return TrainData(fitting, order, count_updates(config, order), overlong_note(fitted, longest))


def build_stream(config: TrainConfig, start: Start, captioner: Captioner, *, processes: int) -> TrainData:
    """The same for shards, of which only what is held out is known. Raises UserError as `fit_captions` does."""
    longest = captioner.longest_caption
    held_out = fit_captions(start.split.eval, captioner.processor.tokenizer, longest, config.too_long)
    order = stream_order(config, start.state, processes=processes)
    stream = make_stream(config, start.shards, held_out.samples, longest=longest)
    note = overlong_note([held_out], longest)
    return TrainData(Split((), held_out.samples), order, count_updates(config, order), note, stream)


def schedule_of(config: TrainConfig, total_steps: int) -> Schedule:
    """The learning rate of a run with so many updates."""
    return Schedule(
        shape=config.lr_schedule,
        total_steps=total_steps,
        warmup_steps=config.warmup_steps,
        restarts=config.restarts,
        restart_decay=config.restart_decay,
        decay_ratio=config.decay_ratio,
        floor=config.min_learning_rate / config.learning_rate,
    )


def check_average(accelerator: Accelerator, config: TrainConfig) -> None:
    """Raise UserError where the weights are sharded that are to be averaged."""
    how = name_of_sharding(accelerator)
    if config.ema_decay is not None and how:
        raise UserError(
            f"ema_decay can't be used under {how}: leave it out, or start with accelerate_configs/multi_gpu.yaml"
        )


def build_step(
    context: Context,
    captioner: Captioner,
    start: Start,
    total_steps: int,
    *,
    signal: Callable[[], int | None] = lambda: None,
    saving: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> UpdateStep:
    """Build optimizer and schedule, prepare them with the captioner, and restore the checkpoint that the run resumes.

    Every process must call this. Nothing may change the layers of `captioner` afterwards. For `signal` and `saving` see
    `UpdateStep`.
    """
    config, accelerator = context.config, context.accelerator
    optimizer = make_optimizer(config, captioner)
    leave_whole(accelerator, captioner, captioner.frozen_parts)
    # DeepSpeed saves frozen weights too, and looks for them in each process now.
    with captioner.as_loaded() if uses_deepspeed(accelerator) else nullcontext():
        prepared, prepared_optimizer = accelerator.prepare(captioner, optimizer)
    average = None
    if config.ema_decay is not None:  # from here on, as DDP has given all processes the same weights by now
        average = WeightAverage(captioner.named_parameters(), config.ema_decay)
        accelerator.register_for_checkpointing(average)
    if start.checkpoint:
        wanted = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        with captioner.as_loaded():
            restored = load_accelerator_state(accelerator, start.checkpoint)
        if not restored:
            context.display.say(
                f"note: {start.checkpoint} has no random generators for all of these processes and devices: dropout is "
                "not that of an uninterrupted run"
            )
        # The settings of this command win over those in the checkpoint.
        for group, (lr, decay) in zip(optimizer.param_groups, wanted, strict=True):
            group |= {"initial_lr": lr, "weight_decay": decay}
    if averages(optimizer):
        prepared_optimizer.train()
    # Not prepared by Accelerate, which would step it once per process. Its only state is the number of updates.
    schedule = LambdaLR(optimizer, schedule_of(config, total_steps), last_epoch=start.state.step - 1)
    parts = accelerator, prepared, prepared_optimizer, schedule, token_losses
    return UpdateStep(
        *parts,
        clip_grad_norm=config.clip_grad_norm,
        average=average,
        images_at_once=start.state.images_at_once,
        signal=signal,
        saving=saving,
        holding=nullcontext if name_of_sharding(accelerator) else captioner.trained_weights.held,
        warn=context.display.warn,
    )


def build_augmentation(config: TrainConfig, samples: Sequence[Sample]) -> Augmentation:
    """How images are varied. None of `samples` is mirrored of whose image any caption, for any task, names a side."""
    return Augmentation(config.seed, frozenset(sample.image.key for sample in samples if names_side(sample)))


def build_loader(
    context: Context, captioner: Captioner, data: TrainData, features: FeatureSource | None, state: TrainState
) -> TrainLoader | StreamLoader:
    """The loader of this process's windows, from the first update that `state` lacks to the end of the run."""
    config, process = context.config, context.accelerator.process_index
    rule = CaptionRule(
        seed=config.seed,
        shuffle=config.shuffle_tags,
        keep=config.keep_tags,
        tag_dropout=config.tag_dropout,
        separator=config.tag_separator,
        caption_dropout=config.caption_dropout,
    )
    augmentation = build_augmentation(config, data.split.train) if config.augment else None
    if isinstance(data.order, StreamOrder):
        assert data.stream is not None
        return StreamLoader(
            data.stream,
            captioner.processor,
            data.order,
            process=process,
            first=state.step,
            end=data.total_steps,
            positions=[Position(*numbers) for numbers in state.lanes],
            rule=rule,
            augmentation=augmentation,
            workers=context.workers,
        )
    return TrainLoader(
        data.split.train,
        captioner.processor,
        data.order,
        process=process,
        first=state.step,
        end=data.total_steps,
        workers=context.workers,
        features=features,
        depth=config.gradient_accumulation_steps,
        rule=rule,
        augmentation=augmentation,
    )
