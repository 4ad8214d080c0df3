"""What a part of a run knows of it: the processes that decode images."""

import os
from types import SimpleNamespace

import pytest
import torch

from florence2ner.data.loader import Workers
from florence2ner.display import Display
from florence2ner.training.context import Context
from tests.conftest import MakeConfig


def workers(make_config: MakeConfig, device: str, **settings: object) -> Workers:
    accelerator = SimpleNamespace(device=torch.device(device))
    return Context(make_config(**settings), accelerator, Display(is_main=True)).workers  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("pinned", [True, False])
def test_what_is_asked_for_wins(make_config: MakeConfig, device: str, pinned: bool) -> None:
    asked = {"dataloader_workers": 13, "dataloader_prefetch": 7, "pin_memory": pinned}
    assert workers(make_config, device, **asked) == Workers(13, 7, pinned)
    assert workers(make_config, device, **asked | {"dataloader_workers": 0}).processes == 0


def test_a_processor_decodes_by_itself(make_config: MakeConfig) -> None:
    assert workers(make_config, "cpu") == Workers(0, None, False)


@pytest.mark.parametrize(("cores", "processes", "expected"), [(16, 1, 8), (16, 4, 4), (6, 2, 3), (2, 8, 1), (1, 1, 1)])
def test_a_gpu_has_its_share_of_the_cores_and_locked_memory(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers(make_config, "cuda") == Workers(expected, None, True)
