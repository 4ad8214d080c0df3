"""Captioning a folder end to end with the tiny model, against a plain loop: `python -m tests.benchmarks.captioning`.

The plain loop is what one writes first: open, processor, `generate`, write, one image after the other. Both write the
same captions with the same beams, in turns A B A B; the ratio of their medians counts, since machines drift.
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from florence2ner import CaptionConfig, caption, load_model
from florence2ner.data.samples import discover_images, read_captions
from florence2ner.model.scratch import init_model
from tests.photos import make_photos

IMAGES, ROUNDS, BEAMS, TOKENS = 96, 3, 3, 16


def measure() -> dict[str, float]:
    """Images per second of the plain loop and of ours, and their ratio."""
    with TemporaryDirectory() as folder:
        photos, directory = Path(folder, "photos"), Path(folder, "model")
        make_photos(photos, IMAGES)
        init_model(directory, preset="tiny", captions=read_captions(photos), seed=0)

        def plain() -> None:
            model, processor = load_model(directory)
            for path in discover_images([photos]):
                inputs = processor(images=Image.open(path).convert("RGB"), text="<CAPTION>", return_tensors="pt")
                with torch.no_grad():
                    ids = model.generate(**inputs, num_beams=BEAMS, max_new_tokens=TOKENS)
                text = processor.batch_decode(ids, skip_special_tokens=True)[0]
                path.with_suffix(".plain").write_text(text + "\n")

        def ours() -> None:
            settings = {"num_beams": BEAMS, "max_new_tokens": TOKENS, "existing": "overwrite", "retry": False}
            caption(CaptionConfig(paths=(photos,), model_name=str(directory), **settings))

        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(ROUNDS):
            for name, run in (("plain", plain), ("ours", ours)):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    plain_rate, our_rate = (IMAGES / statistics.median(seconds[name]) for name in ("plain", "ours"))
    return {
        "tiny_caption_plain_images_per_second": plain_rate,
        "tiny_caption_images_per_second": our_rate,
        "tiny_caption_ratio": our_rate / plain_rate,
    }


if __name__ == "__main__":
    figures = measure()
    print("  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
