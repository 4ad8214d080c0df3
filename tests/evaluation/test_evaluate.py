"""The evaluation's loss against a plain loop's."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from florence2ner import EvalConfig, evaluate
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.model.checkpoints.loading import load_model


def test_eval_loss_is_the_mean_over_tokens_that_a_plain_loop_gives(shapes: Path, tiny_model: Path) -> None:
    model, processor = load_model(tiny_model)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sample in discover_samples(shapes, "<CAPTION>").samples:
            inputs = processor(images=Image.open(sample.image.path), text="<CAPTION>", return_tensors="pt")
            labels = processor.tokenizer(sample.caption, return_tensors="pt").input_ids
            total += model(**inputs, labels=labels).loss.item() * labels.numel()
            tokens += labels.numel()
    result = evaluate(
        EvalConfig(model_name=str(tiny_model), dataset_path=shapes, num_beams=1, max_new_tokens=2, batch_size=7, show=0)
    )
    assert result.tokens == tokens
    assert result.loss == pytest.approx(total / tokens, rel=1e-5)
