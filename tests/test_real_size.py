"""The real size on real input: base-size Florence-2, photographs of 1280x960, the three commands as processes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from tests.conftest import Run
from tests.photos import SIZE, make_photos


@pytest.mark.slow
def test_base_size_trains_evaluates_captions_and_reloads(command: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_photos(photos, 24)
    assert Image.open(next(photos.glob("*.jpg"))).size == SIZE
    assert command("init-model", "base", "--preset", "base", "--dataset-path", photos).returncode == 0

    generation = ("--num-beams", 1, "--max-new-tokens", 6)
    updates = ("--max-steps", 3, "--warmup-steps", 0, "--train-batch-size", 1, "--gradient-accumulation-steps", 1)
    evaluation = ("--eval-split-ratio", 0.04, "--no-eval-before-training", "--log-with", "jsonl", "--run-name", "real")
    done = command("train", "--model-name", "base", "--dataset-path", photos, *updates, *evaluation, *generation)
    assert done.returncode == 0, done.stderr
    assert "on 23 images, 1 held out; 3 updates of 1 images" in done.stderr
    run = tmp_path / "checkpoints" / "real"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)

    checkpoint = run / "step-3"
    imgs = tmp_path / "imgs"
    make_photos(imgs, 2)
    done = command("eval", "--model-name", checkpoint, "--dataset-path", imgs, *generation, "--show", 1)
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout

    for text in imgs.glob("*.txt"):
        text.unlink()
    done = command("caption", imgs, "--model-name", checkpoint, *generation)
    assert done.returncode == 0, done.stderr
    assert len(list(imgs.glob("*.txt"))) == 2

    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint)
    assert 230e6 < model.num_parameters() < 232e6
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(images=Image.open(next(imgs.glob("*.jpg"))), text="<CAPTION>", return_tensors="pt")
    assert (inputs.input_ids == processor.image_token_id).sum() == 577
    with torch.no_grad():
        assert model(**inputs, labels=torch.tensor([[0, 5, 2]])).loss.isfinite()
