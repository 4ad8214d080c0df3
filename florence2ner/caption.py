"""Folder in, captions out."""

import time
from collections import Counter
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object

from florence2ner.config import CaptionConfig
from florence2ner.data.loader import SequentialLoader, Window
from florence2ner.data.samples import Sample, discover_images
from florence2ner.data.writers import is_captioned, refuse_shared_sidecars, sidecar_of, write_text
from florence2ner.engine.display import Display
from florence2ner.engine.loop import run_loop
from florence2ner.engine.runtime import make_accelerator, resolve_workers
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.model.loading import load_model


@dataclass(frozen=True)
class CaptionSummary:
    """What a captioning run did, over all processes, in images."""

    done: int
    kept: int
    failed: int


def caption(config: CaptionConfig) -> CaptionSummary:
    """Write a caption file beside every image named or below the folders named; existing ones are kept by default.

    Each process takes its share of what is not done yet. An image that can't be read is named, counted and skipped.
    Raises UserError when there is no image, or when two images would share one caption file.
    """
    accelerator = make_accelerator(config.mixed_precision, seed=0)
    display = Display(is_main=accelerator.is_main_process)
    images = discover_images(config.paths)
    if not images:
        raise UserError(f"no image in {', '.join(map(str, config.paths))}")
    refuse_shared_sidecars(images)
    todo = images if config.existing == "overwrite" else [image for image in images if not is_captioned(image)]
    accelerator.wait_for_everyone()  # every process has listed what is to do before one of them writes
    kept = len(images) - len(todo)
    if not todo:
        display.say(f"nothing to do: all {kept} images have captions (--existing overwrite replaces them)")
        return CaptionSummary(done=0, kept=kept, failed=0)

    model, processor = load_model(
        config.model_name, device=accelerator.device, attn_implementation=config.attn_implementation
    )
    captioner = Captioner(model, processor).to(accelerator.device).eval()
    samples = [Sample(image, config.task_prompt) for image in todo]
    loader = SequentialLoader(
        samples,
        processor,
        batch_size=config.batch_size,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=resolve_workers(accelerator, config.dataloader_workers),
        pin_memory=accelerator.device.type == "cuda",
    )

    def step(window: Window) -> list[str]:
        (batch,) = window.batches
        with torch.no_grad(), accelerator.autocast():
            return captioner.generate(
                batch.pixel_values,
                batch.input_ids,
                batch.attention_mask,
                num_beams=config.num_beams,
                max_new_tokens=config.max_new_tokens,
            )

    counts: Counter[str] = Counter()
    start = time.perf_counter()
    with display.bar("captioning", total=len(loader)) as bar:

        def write(window: Window, texts: list[str]) -> bool:
            (batch,) = window.batches
            for index, counted, text in zip(batch.indices, batch.counted, texts, strict=True):
                if counted:
                    write_text(sidecar_of(todo[index]), text + "\n")
                    counts["done"] += 1
            for index, reason in batch.failures:
                display.warn(f"{todo[index]} is skipped: {reason}")
                counts["failed"] += 1
            bar.advance(images_per_second=f"{counts['done'] / (time.perf_counter() - start):.1f}")
            return False

        run_loop(loader, step, write, device=accelerator.device)
    if accelerator.num_processes > 1:
        counts = sum(gather_object([counts]), Counter())
    summary = CaptionSummary(done=counts["done"], kept=kept, failed=counts["failed"])
    rate = summary.done / (time.perf_counter() - start)
    display.say(f"{summary.done} captioned, {summary.kept} kept, {summary.failed} failed ({rate:.1f} images/s)")
    return summary
