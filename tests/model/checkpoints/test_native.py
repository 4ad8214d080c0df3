"""Native checkpoints in the hands of others: plain transformers, of today and of the first releases with the class."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from florence2ner import UserError, load_model, train
from florence2ner.demo import draw_dataset
from florence2ner.model.checkpoints.files import read_json, read_state_dict
from florence2ner.model.checkpoints.loading import convert, save_model
from tests.conftest import MakeConfig
from tests.programs.starting import ROOT

OLDER = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
LENIENT = os.environ | {"PYTHONWARNINGS": "ignore"}  # other people's programs, which do what is deprecated


@pytest.fixture(scope="module")
def older_transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4.57, to be put in front of this environment's packages."""
    folder = tmp_path_factory.mktemp("older")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", folder, *OLDER)
    done = subprocess.run(pip, env=LENIENT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{OLDER[0]} can't be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def ask(folder: Path | None, *args: Path) -> tuple[str, Any, Any]:
    """What tests/programs/older_client.py prints, with the packages of `folder` before all others."""
    environment = LENIENT | ({"PYTHONPATH": str(folder)} if folder else {})
    command = (sys.executable, ROOT / "tests" / "programs" / "older_client.py", *args)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    release, prompt, answer = json.loads(done.stdout.splitlines()[-1])
    return release, prompt, answer


@pytest.mark.slow
def test_transformers_4_57_captions_alike_and_what_it_saves_is_converted(
    older_transformers: Path, trained_model: Path, tmp_path: Path
) -> None:
    draw_dataset(tmp_path / "data", 1, seed=5)
    image = tmp_path / "data" / "0000.png"
    again = tmp_path / "again"
    newer, *expected = ask(None, trained_model, image)
    older, *told = ask(older_transformers, trained_model, image, again)
    assert told == expected
    assert (newer[0], older) == ("5", "4.57.6")
    # It appends a second <mask>, which has no row in the embedding.
    assert "<mask>" in json.dumps(read_json(again / "tokenizer.json"))
    convert(str(again), tmp_path / "original", layout="original")
    convert(str(trained_model), tmp_path / "direct", layout="original")
    for name in ("vocab.json", "config.json"):
        assert read_json(tmp_path / "original" / name) == read_json(tmp_path / "direct" / name)
    added, direct = (read_json(tmp_path / kind / "tokenizer.json")["added_tokens"] for kind in ("original", "direct"))
    assert added == direct


@pytest.mark.parametrize("layout", ["native", "original"])
def test_files_have_the_permissions_that_the_umask_gives(tiny_model: Path, tmp_path: Path, layout: Any) -> None:
    model, processor = load_model(tiny_model)
    before = os.umask(0o027)
    try:
        save_model(model, processor, tmp_path / "model", layout=layout)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == dict.fromkeys(
        os.listdir(tmp_path / "model"), "0o640"
    )


@pytest.mark.parametrize("layout", ["native", "original"])
def test_convert_keeps_half_precision_or_casts(tiny_model: Path, tmp_path: Path, layout: Any) -> None:
    source = tiny_model
    for dtype, expected in (("fp16", torch.float16), ("keep", torch.float16), ("bf16", torch.bfloat16)):
        destination = tmp_path / dtype
        convert(str(source), destination, layout=layout, dtype=dtype)  # type: ignore[arg-type]
        assert {tensor.dtype for tensor in read_state_dict(destination).values()} == {expected}
        source = destination
    half, whole = (sum(file.stat().st_size for file in at.glob("*.safetensors")) for at in (source, tiny_model))
    assert layout == "original" or half < 0.55 * whole
    convert(str(source), tmp_path / "fp32", layout=layout, dtype="fp32")
    assert {tensor.dtype for tensor in read_state_dict(tmp_path / "fp32").values()} == {torch.float32}


def test_a_model_that_the_original_layout_cannot_hold_is_refused_before_any_work(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    model, processor = load_model(tiny_model)
    processor.tokenizer.add_tokens(["<mine>"])
    # It has a row of its own, so it may be in use; <image> has been moved behind the vocabulary, as on the hub.
    state = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    mine = len(processor.tokenizer) - 1
    model.resize_token_embeddings(mine + 2)
    image = next(token for token in state["added_tokens"] if token["content"] == "<image>")
    state["model"]["vocab"]["<mask>"] = state["model"]["vocab"].pop("<image>", image["id"])
    image["id"] = mine
    next(token for token in state["added_tokens"] if token["content"] == "<mine>")["id"] = mine + 1
    save_model(model, processor, tmp_path / "model", weights=model.state_dict())
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(state))
    config = make_config(model_name=str(tmp_path / "model"), export_layout="original")
    with pytest.raises(UserError, match="tokens behind <image>"):
        train(config)
    assert not config.run_dir.exists()
