"""Assembles the parts of a training run, and says what is due after each update."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedTokenizerBase

from florence2ner.config import TrainConfig
from florence2ner.data.images import load_image
from florence2ner.data.loader import Batch, TrainLoader, TrainPlan, Window
from florence2ner.data.samples import Sample, Split, discover_split, write_split
from florence2ner.engine.checkpoint import list_checkpoints, save_checkpoint
from florence2ner.engine.display import Bar, Display
from florence2ner.engine.loop import TrainState, Update, UpdateStep, run_loop
from florence2ner.engine.runtime import make_accelerator, resolve_workers
from florence2ner.engine.tracking import METRICS_FILE, build_trackers, log_captions, start_trackers
from florence2ner.errors import UserError
from florence2ner.evaluate import Evaluation, evaluate_samples
from florence2ner.model.adapt import checkpoint_gradients, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.loading import load_model, save_model
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import build_schedule

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED}  # no process holds the whole model
THUMBNAIL = (192, 192)  # pixels, of the pictures in the table of captions


def train(config: TrainConfig) -> Path:
    """Fine-tune a Florence-2 as `config` says. Returns the directory of the last checkpoint.

    Raises UserError for what the user can mend: no dataset, no model, a run directory that is taken.
    """
    run_dir = config.run_dir
    if list_checkpoints(run_dir):
        raise UserError(f"{run_dir} already has checkpoints: choose another --run-name, or delete that folder")
    eval_ratio = config.eval_split_ratio if config.eval_steps else None
    split, found = discover_split(config.dataset_path, config.task_prompt, eval_ratio=eval_ratio, seed=config.seed)
    accelerator = make_accelerator(
        config.mixed_precision, seed=config.seed, log_with=build_trackers(config.log_with, run_dir), project_dir=run_dir
    )
    display = Display(is_main=accelerator.is_main_process)
    for line in found.report():
        display.say(line)

    model, processor = load_model(config.model_name, attn_implementation=config.attn_implementation)
    split = _without_overlong(split, processor.tokenizer, model.config.text_config.max_position_embeddings, display)
    parameters = freeze(model, vision=config.freeze_vision, language=config.freeze_language, other=config.freeze_other)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    captioner = Captioner(model, processor)
    plan = TrainPlan(
        samples=len(split.train),
        batch_size=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        processes=accelerator.num_processes,
        seed=config.seed,
    )
    total_steps = config.max_steps or config.epochs * plan.updates_per_epoch
    optimizer = build_optimizer(captioner, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    schedule = build_schedule(
        optimizer, warmup_steps=config.warmup_steps, total_steps=total_steps, restarts=config.restarts
    )
    prepared, optimizer = accelerator.prepare(captioner, optimizer)
    state = TrainState()
    accelerator.register_for_checkpointing(schedule, state)
    loader = TrainLoader(
        split.train,
        processor,
        plan,
        process=accelerator.process_index,
        first=state.step,
        end=total_steps,
        workers=resolve_workers(accelerator, config.dataloader_workers),
        pin_memory=accelerator.device.type == "cuda",
    )

    if accelerator.is_main_process:
        _open_run_dir(config, split)
    start_trackers(accelerator, display, run_dir, config.model_dump(mode="json"), project=config.wandb_project)
    display.say(
        f"training {parameters} on {plan.samples} images, {len(split.eval)} held out; {total_steps} updates of "
        f"{plan.global_batch} images; {accelerator.num_processes} x {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}; {run_dir}"
    )
    if config.warmup_steps >= total_steps:
        display.warn(
            f"the learning rate never reaches {config.learning_rate:g}: warmup_steps {config.warmup_steps} is not "
            f"below the run's {total_steps} updates; lower warmup_steps or gradient_accumulation_steps, or train longer"
        )
    step = UpdateStep(accelerator, prepared, optimizer, schedule, _token_losses, clip_grad_norm=config.clip_grad_norm)
    with display.bar("training", total=total_steps, completed=state.step) as bar:
        run = _Run(config, accelerator, display, bar, prepared, captioner, split, plan, state, total_steps)
        run.begin()
        run_loop(loader, step, run.after_update, device=accelerator.device)
    accelerator.end_training()
    last = list_checkpoints(run_dir)[-1]
    display.say(f"done: {last}")
    return last


def _token_losses(captioner: nn.Module, batch: Batch) -> torch.Tensor:
    losses: torch.Tensor = captioner(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.labels)
    return losses


@dataclass
class _Run:
    """What happens around the updates of a run: logging, evaluation, checkpoints."""

    config: TrainConfig
    accelerator: Accelerator
    display: Display
    bar: Bar
    prepared: nn.Module  # the captioner as Accelerate wrapped it
    captioner: Captioner
    split: Split
    plan: TrainPlan
    state: TrainState
    total_steps: int
    unlogged: list[Update] = field(default_factory=list)
    seconds: float = 0.0  # spent on the updates in `unlogged`
    clock: float = 0.0

    def begin(self) -> None:
        """Evaluate what the run starts from."""
        if self.split.eval and self.config.eval_before_training:
            self.evaluate()
        self.prepared.train()
        self.clock = time.perf_counter()

    def after_update(self, window: Window, update: Update) -> bool:
        """Count the update, then log, evaluate and save when due. Never stops early."""
        state, config = self.state, self.config
        state.step += 1
        state.samples_seen += update.samples
        self.seconds += time.perf_counter() - self.clock
        self.unlogged.append(update)
        for batch in window.batches:
            for index, reason in batch.failures:
                self.display.warn(f"{self.split.train[index].image} is skipped: {reason}")
        last = state.step == self.total_steps
        if last or state.step % config.log_every == 0:
            self.log()
        if self.split.eval and (last or _due(state.step, config.eval_steps)):
            self.evaluate()
            self.prepared.train()
        if last or _due(state.step, config.save_steps):
            self.save()
        self.clock = time.perf_counter()
        return False

    def log(self) -> None:
        """Log the updates since the last time: the token-weighted mean loss, the newest of the rest."""
        updates, newest = self.unlogged, self.unlogged[-1]
        tokens = sum(update.tokens for update in updates)
        loss = sum(update.loss_sum.item() for update in updates) / max(tokens, 1)
        images_per_second = sum(update.samples for update in updates) / self.seconds
        figures = {
            "train/loss": loss,
            "train/learning_rate": newest.learning_rate,
            "train/gradient_norm": newest.gradient_norm.item(),
            "train/epoch": self.state.samples_seen / self.plan.samples,
            "train/images_per_second": images_per_second,
        }
        self.accelerator.log(figures, step=self.state.step)
        self.bar.advance(
            len(updates),
            loss=f"{loss:.4f}",
            lr=f"{newest.learning_rate:.2e}",
            images_per_second=f"{images_per_second:.1f}",
        )
        self.unlogged, self.seconds = [], 0.0

    def evaluate(self) -> None:
        """Loss on the held-out samples, and captions of the first batch beside the truth."""
        result = evaluate_samples(
            self.accelerator,
            self.display,
            self.captioner,
            self.split.eval,
            batch_size=self.config.eval_batch_size,
            workers=self.config.dataloader_workers,
            num_beams=self.config.num_beams,
            max_new_tokens=self.config.max_new_tokens,
            generate=self.config.eval_batch_size,
        )
        step = self.state.step
        self.accelerator.log(result.figures(), step=step)
        self.display.say(f"step {step}: eval loss {result.loss:.4f}, perplexity {result.perplexity:.3f}")
        for row in result.captions[:2]:
            self.display.say(f"  truth      {row.reference}\n  prediction {row.prediction}")
        if self.accelerator.is_main_process:
            self._log_table(result)

    def _log_table(self, result: Evaluation) -> None:
        rows = []
        for row in result.captions:
            thumbnail = load_image(Path(row.image))
            thumbnail.thumbnail(THUMBNAIL)
            rows.append((row.reference, row.prediction, thumbnail))
        log_captions(self.accelerator, rows, step=self.state.step)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        weights = None
        if self.accelerator.distributed_type in _SHARDED:
            gathered = self.accelerator.get_state_dict(self.prepared)
            weights = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}

        def export(directory: Path) -> None:
            model, processor = self.captioner.model, self.captioner.processor
            save_model(model, processor, directory, layout=self.config.export_layout, weights=weights)

        save_checkpoint(
            self.accelerator, self.config.run_dir, self.state.step, export, keep=self.config.save_total_limit
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _without_overlong(split: Split, tokenizer: PreTrainedTokenizerBase, limit: int, display: Display) -> Split:
    """Drop the samples whose caption is longer than the decoder's `limit` of positions, and say how many."""

    def fitting(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        lengths = tokenizer([sample.caption or "" for sample in samples], return_length=True).length if samples else []
        return tuple(sample for sample, length in zip(samples, lengths, strict=True) if length <= limit)

    kept = Split(fitting(split.train), fitting(split.eval))
    dropped = len(split.train) + len(split.eval) - len(kept.train) - len(kept.eval)
    if dropped:
        display.say(f"{dropped} captions are longer than the {limit} tokens that the model can write and are left out")
    if not kept.train or (split.eval and not kept.eval):
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return replace(kept)


def _open_run_dir(config: TrainConfig, split: Split) -> None:
    """Make the run's folder with its settings and split. Figures of a run that never saved are dropped."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / METRICS_FILE).unlink(missing_ok=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    write_split(split, config.dataset_path, config.run_dir / "split.json")
