"""Fixtures: Microsoft's tiny model, and one of our own in its layout."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Florence2ForConditionalGeneration

from florence2ner.model.checkpoints.original import load_original, save_original
from florence2ner.model.checkpoints.scratch import build_model
from tests.model.checkpoints.support import Oracle
from tests.model.support import ORACLE, TINY


@pytest.fixture(scope="module")
def oracle(facts: dict[str, Any]) -> Oracle:
    arrays = dict(np.load(ORACLE / "original-tiny-expected.npz"))
    return Oracle(arrays, facts, *load_original(TINY))


@pytest.fixture(scope="module")
def native() -> tuple[Florence2ForConditionalGeneration, Any]:
    """A tiny model of our own. Read only."""
    captions = ["a red circle on a blue ground", "two green squares beside a triangle", "What does the image describe?"]
    model, processor = build_model("tiny", captions, seed=0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def exported(native: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`native` in Microsoft's layout. Read only."""
    directory = tmp_path_factory.mktemp("exported") / "model"
    save_original(*native, directory)
    return directory


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """`exported`, to be changed or damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))
