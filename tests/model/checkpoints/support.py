"""What tests of checkpoints share: Microsoft's numbers, and files that are read, changed and compared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration

from tests.model.support import ORACLE


@dataclass
class Oracle:
    """Microsoft's tiny model as we load it, and what their code computed with it."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    model: Florence2ForConditionalGeneration
    processor: Any

    def inputs(self, image: int, prompt: int) -> dict[str, torch.Tensor]:
        return self.processor(
            images=Image.open(ORACLE / self.facts["images"][image]["file"]),
            text=self.facts["prompts"][prompt]["task"],
            return_tensors="pt",
        )

    def batch(self) -> dict[str, torch.Tensor]:
        """All three images with <CAPTION>."""
        rows = [self.inputs(image, 0) for image in range(3)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def labels(self, name: str, *, count_padding: bool = False) -> torch.Tensor:
        labels = self.tensor(name)
        return labels if count_padding else labels.masked_fill(labels == 1, -100)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit_json(directory: Path, name: str, change: Callable[[Any], object]) -> None:
    content = read(directory / name)
    change(content)
    (directory / name).write_text(json.dumps(content), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    save_file(state, path)


def shard(directory: Path, suffix: str) -> Path:
    """Replace model.safetensors by two shards and an index, as transformers writes them."""
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for part in range(2):
        path = directory / f"{stem}-{part + 1:05}-of-00002{suffix}"
        names = sorted(state)[part::2]
        tensors = {name: state[name] for name in names}
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        weight_map |= dict.fromkeys(names, path.name)
    index = directory / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return index


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if first[name].dtype != second[name].dtype] == []
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
