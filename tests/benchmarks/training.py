"""A training step of the base size: ways that a user could pick, and ours with and without its cache filled.

All train the language model of the same random weights on the same photographs, with the vision tower frozen, in
micro-batches alike: a plain loop and Hugging Face's Trainer, in the precision that `auto` gives, and, where that is
bf16, the original script's way, with weights in bf16. Ratios are to the fastest of them.
`python -m tests.benchmarks.training NAME FOLDER` trains one in a process of its own, for its peak memory.
"""

import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optimi
import torch
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import FeatureSource
from florence2ner.data.layouts.pairs import discover_samples, read_captions
from florence2ner.data.loader import TrainLoader
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.samples import Sample
from florence2ner.display import Display
from florence2ner.engine.loop import run_loop
from florence2ner.engine.runtime import autocast_dtype, make_accelerator, resolve_mixed_precision
from florence2ner.model.adapt import freeze
from florence2ner.model.build import Frozen, build_captioner
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.inputs import IGNORE_INDEX
from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedules import Schedule
from florence2ner.training.context import Context
from florence2ner.training.encode import fill_cache
from florence2ner.training.step import UpdateStep, token_losses
from tests.benchmarks.machine import Machine, medians, take_turns
from tests.photos import make_photos

ACCUMULATION, PROMPT, RATE, DECAY, CLIP = 2, "<CAPTION>", 1e-5, 1e-5, 1.0
UPDATES = {"cpu": 1, "cuda": 4}  # in an epoch
Measure = dict[str, Any]


def make_dataset(folder: Path, count: int) -> Path:
    """Photographs with captions of one to five sentences."""
    photos = folder / "photos"
    if not photos.exists():
        make_photos(photos, count)
        for number, path in enumerate(sorted(photos.glob("*.txt"))):
            path.write_text(". ".join([path.read_text().strip()] * (1 + number % 5)) + "\n")
    return photos


class Contestant(ABC):
    """One way to train. `epoch` passes once over the dataset."""

    def __init__(self, machine: Machine, photos: Path, batch_size: int) -> None:
        self.machine, self.batch_size = machine, batch_size
        self.samples: tuple[Sample, ...] = tuple(discover_samples(photos, PROMPT).samples)
        self.model, self.processor = build_model("base", read_captions(photos), seed=0)
        freeze(self.model, vision=True, language=False, other=False)
        self.model.to(machine.device)

    @abstractmethod
    def epoch(self) -> None: ...

    def inputs(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        """What the processor makes of a batch, and labels padded to its longest caption."""
        images = [Image.open(sample.image.path).convert("RGB") for sample in samples]
        prompts = [sample.task_prompt for sample in samples]
        inputs = dict(self.processor(images=images, text=prompts, padding=True, return_tensors="pt"))
        captions = [sample.caption for sample in samples]
        labels = self.processor.tokenizer(captions, padding=True, return_tensors="pt").input_ids
        return inputs | {"labels": labels.masked_fill(labels == self.processor.tokenizer.pad_token_id, IGNORE_INDEX)}


class Reference(Contestant):
    """The loop as one writes it: processor in the loop, the tower in every step, torch's defaults."""

    def __init__(self, machine: Machine, photos: Path, batch_size: int) -> None:
        super().__init__(machine, photos, batch_size)
        self.model.activation_checkpointing_enable()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=DECAY)

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.machine.autocast():
            loss: torch.Tensor = self.model(**inputs).loss
        return loss

    def epoch(self) -> None:
        self.model.train()
        workers = self.machine.workers
        loader = DataLoader(
            self.samples,
            self.batch_size,
            shuffle=True,
            collate_fn=self.inputs,
            num_workers=workers.processes,
            pin_memory=workers.pin_memory,
        )
        for number, inputs in enumerate(loader, start=1):
            loss = self.loss({name: value.to(self.machine.device) for name, value in inputs.items()})
            (loss / ACCUMULATION).backward()
            if number % ACCUMULATION == 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.optimizer.zero_grad()


class Original(Reference):
    """The original script's way, on the native class: weights in bf16, AdamW with Kahan summation."""

    def __init__(self, machine: Machine, photos: Path, batch_size: int) -> None:
        super().__init__(machine, photos, batch_size)
        self.model.to(torch.bfloat16)
        self.optimizer = optimi.AdamW(self.trained, lr=RATE, weight_decay=DECAY, kahan_sum=True)

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = self.model(**inputs | {"pixel_values": inputs["pixel_values"].to(torch.bfloat16)}).loss
        return loss


class HuggingFace(Contestant):
    """Hugging Face's Trainer."""

    def __init__(self, machine: Machine, photos: Path, batch_size: int) -> None:
        super().__init__(machine, photos, batch_size)
        arguments = TrainingArguments(
            output_dir=str(photos.parent / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=ACCUMULATION,
            activation_checkpointing=True,
            learning_rate=RATE,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            bf16=machine.precision == "bf16",
            use_cpu=machine.device.type == "cpu",
            dataloader_num_workers=machine.workers.processes,
            dataloader_pin_memory=machine.workers.pin_memory,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        self.trainer = Trainer(self.model, arguments, self.inputs, self.samples)
        self.trainer.remove_callback(PrinterCallback)

    def epoch(self) -> None:
        self.trainer.train()


class Ours(Contestant):
    """florence2ner's loader, cache, step and loop, as `florence2ner train` puts them together."""

    weights: torch.dtype | None = None
    optimizer = "adamw"

    def __init__(self, machine: Machine, photos: Path, batch_size: int) -> None:
        super().__init__(machine, photos, batch_size)
        self.accelerator = make_accelerator(machine.precision, seed=0)
        dtype = autocast_dtype(self.accelerator)
        self.config = TrainConfig(dataset_path=photos, feature_cache_dir=photos.parent / "features")
        self.context = Context(self.config, self.accelerator, Display(is_main=False))
        parts = Frozen(vision=True, language=False, other=False)
        how = {"device": machine.device, "frozen": parts, "dtype": dtype, "gradient_checkpointing": True}
        self.captioner = build_captioner(self.model, self.processor, **how, trained_dtype=self.weights)
        optimizer = build_optimizer(self.captioner, name=self.optimizer, learning_rate=RATE, weight_decay=DECAY)
        self.prepared, prepared_optimizer = self.accelerator.prepare(self.captioner, optimizer)
        schedule = LambdaLR(optimizer, Schedule(shape="cosine", total_steps=10**6))
        parts = self.accelerator, self.prepared, prepared_optimizer, schedule, token_losses
        self.step = UpdateStep(*parts, clip_grad_norm=CLIP, holding=self.captioner.trained_weights.held)
        self.plan = ShuffledOrder(self.samples, batch_size, ACCUMULATION, processes=1, seed=0)
        self.features: FeatureSource | None = None
        self.epochs = 0

    def first_epoch(self) -> None:
        """Fill an empty cache, then train."""
        assert self.config.feature_cache_dir
        shutil.rmtree(self.config.feature_cache_dir, ignore_errors=True)
        self.captioner.vision.restore()
        with ExitStack() as stack:
            self.features = fill_cache(self.context, self.captioner, self.samples, stack).features
        self.epoch()

    def epoch(self) -> None:
        self.prepared.train()
        updates = self.plan.updates_per_epoch
        loader = TrainLoader(
            self.samples,
            self.processor,
            self.plan,
            process=0,
            first=self.epochs * updates,
            end=(self.epochs + 1) * updates,
            workers=self.machine.workers,
            features=self.features,
        )
        run_loop(loader, self.step, lambda *_: False)
        self.epochs += 1


class OursInBf16(Ours):
    """With `--weights-dtype bf16 --optimizer optimi_adamw`: what the original script keeps, weights and sums alike."""

    weights, optimizer = torch.bfloat16, "optimi_adamw"


OURS, OURS_IN_BF16, ORIGINAL = "ours", "ours, weights in bf16", "the original script's way"
REFERENCES: dict[str, Callable[[Machine, Path, int], Contestant]] = {
    "a plain loop": Reference,
    "Trainer": HuggingFace,
    ORIGINAL: Original,
}
CONTESTANTS = REFERENCES | {OURS: Ours, OURS_IN_BF16: OursInBf16}


def measure(machine: Machine, folder: Path, batch_size: int, peak: float) -> Measure:
    """Seconds per image, ratios, memory, and the share of the matmul peak that our later epochs reach."""
    images = batch_size * ACCUMULATION * UPDATES[machine.device.type]
    photos = make_dataset(folder, images)
    # A processor without bf16 takes minutes an image in it, which nobody would wait for.
    names = [name for name in CONTESTANTS if name not in (ORIGINAL, OURS_IN_BF16) or machine.precision == "bf16"]
    memory = {name: _memory_of(name, machine, photos, batch_size) for name in names}
    built = {name: CONTESTANTS[name](machine, photos, batch_size) for name in names}
    turns: dict[str, Callable[[], None]] = {}
    for name, contestant in built.items():
        if isinstance(contestant, Ours):
            contestant.first_epoch()  # the others run after it, warm as it is
            turns |= {f"{name}, first epoch": contestant.first_epoch, f"{name}, later epochs": contestant.epoch}
        else:
            turns[name] = contestant.epoch
    taken = take_turns(machine, turns, seconds=100, rounds=(2, 5))
    seconds = {name: value / images for name, value in medians(taken).items()}
    fastest = min(seconds[name] for name in names if name in REFERENCES)
    original = ORIGINAL if ORIGINAL in names else next(iter(REFERENCES))
    ours = built[OURS]
    assert isinstance(ours, Ours)
    with FlopCounterMode(display=False) as counter:
        ours.epoch()
    operations = counter.get_total_flops() / images
    tokens = sum(len(ours.processor.tokenizer(sample.caption).input_ids) for sample in ours.samples) / images
    of_ours = [name for name in turns if name.startswith(OURS)]
    return {
        "train_ratios": {name: fastest / seconds[name] for name in of_ours},
        f"train_ratios_to_{original}": {name: seconds[original] / seconds[name] for name in of_ours},
        f"peak_memory_ratios_to_{original}": {
            name: memory[name] / memory[original] for name in names if name.startswith(OURS)
        },
        "matmul_peak_share": operations / seconds[f"{OURS}, later epochs"] / peak,
        "train_label_tokens_per_second": {name: tokens / value for name, value in seconds.items()},
        "train_seconds_per_image": seconds,
        "train_seconds": taken,
        "peak_memory_gb": {name: value / 1e9 for name, value in memory.items()},
    }


def _memory_of(name: str, machine: Machine, photos: Path, batch_size: int) -> int:
    arguments = [name, str(photos), str(batch_size), str(machine.device)]
    command = [sys.executable, "-m", "tests.benchmarks.training", *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main(name: str, photos: str, batch_size: str, device: str) -> None:
    """Train one contestant for two epochs and print its peak memory in bytes."""
    machine = Machine(torch.device(device), resolve_mixed_precision("auto"))
    contestant = CONTESTANTS[name](machine, Path(photos), int(batch_size))
    contestant.first_epoch() if isinstance(contestant, Ours) else contestant.epoch()
    contestant.epoch()
    print(machine.peak_memory())


if __name__ == "__main__":
    main(*sys.argv[1:])
