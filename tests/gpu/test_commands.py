"""Commands on a GPU: captioning when its memory runs out, and the benchmark with real batches."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from florence2ner import CaptionConfig, caption
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.demo import draw_dataset
from florence2ner.model.checkpoints.scratch import init_model

GIGABYTE = 10**9


@pytest.fixture
def little_memory(gpu: torch.device) -> Iterator[None]:
    """Three gigabytes of the GPU: enough for a model of the base size and a few images, not for 32."""
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3 * GIGABYTE / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_captioning_goes_on_with_smaller_batches_when_memory_runs_out(
    little_memory: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    draw_dataset(images, 40, seed=1)
    init_model(tmp_path / "base", preset="base", captions=read_captions(images), seed=0)
    for text in images.glob("*.txt"):
        text.unlink()
    how = {"batch_size": 32, "num_beams": 3, "max_new_tokens": 8, "mixed_precision": "no", "retry": False}
    result = caption(CaptionConfig(paths=(images,), model_name=str(tmp_path / "base"), **how))
    assert (result.done, result.failed) == (40, 0)
    assert len(list(images.glob("*.txt"))) == 40
    assert "out of memory with 32 images at once: going on with 16" in capsys.readouterr().err


def test_the_benchmark_runs_with_batches_of_32(tmp_path: Path, figures: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--device", "cuda", "--batch-size", "32"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    figures["benchmarks"] = json.loads((tmp_path / "benchmarks" / "benchmarks.json").read_text())
