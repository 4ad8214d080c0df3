"""The captions as a tokenizer reads them: lengths against the limit, and characters that it spells or doesn't know."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from florence2ner import InspectConfig, UserError
from florence2ner.inspection.dataset import read_dataset
from florence2ner.inspection.tokens import measure
from florence2ner.model.checkpoints.loading import load_model
from tests.inspection.support import figures, findings, inspected, make_clean, names


def test_what_is_longer_than_the_model_writes_is_found(tmp_path: Path, tiny_model: Path) -> None:
    make_clean(tmp_path)
    model, processor = load_model(tiny_model)
    limit = model.config.text_config.max_position_embeddings
    words = "x " * limit
    (tmp_path / "2.txt").write_text(words)
    found = findings(tmp_path, model_name=str(tiny_model))["too-long"]
    assert names(found) == ["2.png"]
    assert found.severity == "hurts"
    assert "--too-long truncate" in found.advice
    assert figures(tmp_path, model_name=str(tiny_model))["trained on"] == "10 images, 1 held out"
    assert figures(tmp_path, model_name=str(tiny_model), too_long="truncate")["trained on"] == "11 images, 1 held out"
    assert inspected(tmp_path, model_name=str(tiny_model), too_long="refuse").breaks
    length = len(processor.tokenizer(words.strip()).input_ids)
    assert found.examples[0].detail == f"{length} tokens"
    inspection = inspected(tmp_path, model_name=str(tiny_model))
    assert (
        figures(tmp_path, model_name=str(tiny_model))["longest caption"]
        == f"{length} tokens; the model can write {limit}"
    )
    (histogram,) = (h for h in inspection.histograms if h.unit == "tokens")
    assert sum(number for _, number in histogram.bins) == 12
    assert histogram.bins[-1] == (f"over {limit}", 1)
    for text in tmp_path.glob("*.txt"):
        text.write_text(words)
    assert inspected(tmp_path, model_name=str(tiny_model)).breaks  # training refuses them all


def test_characters_without_a_token_of_their_own_are_named(tmp_path: Path, tiny_model: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "3.txt").write_text("a cat 🐱")
    (tmp_path / "4.txt").write_text("two cats 🐱")
    found = findings(tmp_path, model_name=str(tiny_model))
    assert [*found] == ["spelled-character"]
    (example,) = found["spelled-character"].examples
    assert example.name == "🐱 (U+1F431)"
    assert "in 2 captions, such as 3.png" in example.detail


def test_unknown_characters_are_named(tmp_path: Path, tiny_model: Path) -> None:
    """With a tokenizer that lost its letter z: byte-level ones know every byte."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    make_clean(tmp_path / "data")
    (tmp_path / "data" / "3.txt").write_text("zebra")
    path = model / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab = state["model"]["vocab"]
    vocab["\u0142"] = vocab.pop("z")
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "z" not in "".join(pair)]
    for token in [token for token in vocab if "z" in token and token != "z"]:
        vocab[token.replace("z", "\u0142")] = vocab.pop(token)
    state["model"]["unk_token"] = "<unk>"
    Tokenizer.from_str(json.dumps(state))
    path.write_text(json.dumps(state))
    found = findings(tmp_path / "data", model_name=str(model))["unknown-character"]
    assert found.examples[0].name == "z (U+007A)"


def test_no_weights_are_needed_and_a_model_that_is_none_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    dataset = read_dataset(InspectConfig(dataset_path=make_clean(tmp_path / "data")))
    given = dataset.captions, dataset.split
    assert measure(*given, str(model), "skip").figure.numbers["longest_caption_tokens"] > 3
    with pytest.raises(UserError, match="can't find the model nowhere/at-all"):
        measure(*given, "nowhere/at-all", "skip")
