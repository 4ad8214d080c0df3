"""What only a GPU can show: `make gpu`. Without one, all tests here are skipped."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
FIGURES = "FLORENCE2NER_FIGURES"  # environment variable: the file for what was measured


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    """The GPU; skips the test where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def figures(gpu: torch.device) -> Iterator[dict[str, Any]]:
    """What the tests measure, by name; written at the end to the file that FLORENCE2NER_FIGURES names."""
    measured: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    yield measured
    if file := os.environ.get(FIGURES):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(measured, indent=1) + "\n")
