"""The weights of a model directory, whichever form they have: shards, pickles, and none that runs code."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.files import read_state_dict
from florence2ner.model.checkpoints.original import load_original
from tests.model.checkpoints.support import assert_same_weights, edit_json, shard


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read(native: tuple[Any, Any], copy: Path, suffix: str) -> None:
    shard(copy, suffix)
    assert_same_weights(load_original(copy)[0], native[0])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_read(native: tuple[Any, Any], copy: Path, legacy: bool) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert_same_weights(load_original(copy)[0], native[0])


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(copy: Path, tmp_path: Path, legacy: bool) -> None:
    state: dict[str, Any] = dict(load_file(copy / "model.safetensors"))
    (copy / "model.safetensors").unlink()
    weights, trace = copy / "pytorch_model.bin", tmp_path / "trace"
    torch.save(state | {"x": RunsCode(trace)}, weights, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged, or holds more than tensors") as raised:
        load_original(copy)
    assert "\n" not in str(raised.value)
    assert not trace.exists()
    torch.load(weights, weights_only=False)  # the file is no dud: this is what was kept from happening
    assert trace.exists()


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)]])
def test_a_pickle_of_something_else_is_refused(copy: Path, content: Any) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(content, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"is not a state dict"):
        load_original(copy)


@pytest.mark.parametrize("elsewhere", ["../secret.safetensors", "/secret.safetensors", "sub/x.safetensors", "a.bin"])
def test_an_index_cannot_lead_elsewhere(copy: Path, elsewhere: str) -> None:
    index = shard(copy, ".safetensors")
    save_file({"a": torch.zeros(1)}, copy.parent / "secret.safetensors")
    edit_json(copy, index.name, lambda content: content["weight_map"].update(a=elsewhere))
    with pytest.raises(UserError, match=r"not a \.safetensors file beside it"):
        read_state_dict(copy)
