"""Batches: pixels, prompts and labels are what the processor makes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import TrainLoader, Workers
from florence2ner.data.order import ShuffledOrder
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.inputs import IGNORE_INDEX
from florence2ner.model.vision import VisionEncoder


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_what_the_processor_makes(shapes: Path, tiny_model: Path, workers: int) -> None:
    model, processor = load_model(tiny_model)
    samples = discover_samples(shapes, "<CAPTION>").samples[:5]
    plan = ShuffledOrder(samples, batch_size=2, accumulation=2, processes=1, seed=0)
    loader = TrainLoader(samples, processor, plan, process=0, first=0, end=2, workers=Workers(workers))
    windows = list(loader)
    assert [[len(batch.indices) for batch in window.batches] for window in windows] == [[2, 2], [1]]
    assert [i for window in windows for batch in window.batches for i in batch.indices] == plan.order(0).tolist()
    vision = VisionEncoder(model, processor.image_processor)
    for batch in (batch for window in windows for batch in window.batches):
        chosen = [samples[i] for i in batch.indices]
        pictures = [Image.open(sample.image.path).convert("RGB") for sample in chosen]
        expected = processor(images=pictures, text=["<CAPTION>"] * len(chosen), return_tensors="pt", padding=True)
        assert torch.equal(vision.normalise(batch.images.values), expected.pixel_values)
        assert torch.equal(batch.text.input_ids, expected.input_ids)
        assert batch.text.attention_mask is None  # nothing is padded
        assert expected.attention_mask.all()
        for row, sample in zip(batch.text.labels, chosen, strict=True):
            ids = row[row != IGNORE_INDEX]
            assert (ids[0], ids[-1]) == (0, 2)
            assert processor.tokenizer.decode(ids[1:-1]) == sample.caption
