"""Adapters on the disk: what plain peft and Microsoft's layout make of ours, we of others', and what is refused."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from florence2ner.config.options import Decoding
from florence2ner.errors import UserError
from florence2ner.model.answers import plain_text
from florence2ner.model.build import build_captioner
from florence2ner.model.checkpoints.adapters import base_of, is_adapter, save_adapter
from florence2ner.model.checkpoints.loading import convert, load_model, load_processor, save_model
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Pixels
from florence2ner.model.lora import adapted_layers, config_of, is_adapted
from tests.model.checkpoints.support import assert_same_weights, edit_json, read
from tests.model.support import IMAGES, model_inputs, prompts
from tests.model.test_lora import adapted, like
from tests.support import files_in

PROCESSOR = {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
ORIGINAL_PROCESSOR = {"preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
Model = Florence2ForConditionalGeneration

# transformers' complaint about peft's own class, which is used here for comparison
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(writing_model: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`writing_model` as a directory. Read only."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(*writing_model, folder)
    return folder


@pytest.fixture(scope="module")
def model(writing_model: tuple[Any, Any], base: Path) -> Model:
    """It with adapters everywhere. Read only."""
    model = adapted(writing_model, like())
    config_of(model).base_model_name_or_path = str(base)
    return model.eval()


@pytest.fixture(scope="module")
def saved(model: Model, writing_model: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its adapter in both layouts. Read only."""
    folder = tmp_path_factory.mktemp("adapters")
    for layout in ("native", "original"):
        save_model(model, writing_model[1], folder / layout, layout=layout)
    return {layout: folder / layout for layout in ("native", "original")}


@pytest.fixture
def damaged(saved: dict[str, Path], tmp_path: Path) -> Path:
    """The adapter in the native layout, to be changed."""
    return Path(shutil.copytree(saved["native"], tmp_path / "adapter"))


@torch.no_grad()
def logits(model: torch.nn.Module, processor: Any) -> Tensor:
    return model.eval()(**model_inputs(processor)).logits


def rename(directory: Path, before: str, after: str) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({name.replace(before, after): tensor for name, tensor in load_file(path).items()}, path)


def test_the_directory_has_the_adapter_and_the_processor_alone(saved: dict[str, Path], base: Path) -> None:
    assert files_in(saved["native"]) == ADAPTER | PROCESSOR
    assert files_in(saved["original"]) == ADAPTER | ORIGINAL_PROCESSOR
    settings = read(saved["native"] / "adapter_config.json")
    assert (settings["base_model_name_or_path"], settings["inference_mode"]) == (str(base), True)
    assert base_of(saved["original"]) == str(base)
    assert is_adapter(saved["original"])
    assert not is_adapter(base)
    mode = (saved["native"] / "adapter_config.json").stat().st_mode
    assert (saved["native"] / "adapter_model.safetensors").stat().st_mode == mode


def test_plain_peft_loads_it_and_writes_our_captions(
    saved: dict[str, Path], model: Model, base: Path, pictures: Tensor
) -> None:
    plain = peft.PeftModel.from_pretrained(Model.from_pretrained(base), saved["native"]).eval()
    processor = AutoProcessor.from_pretrained(saved["native"])
    expected = logits(model, processor)
    torch.testing.assert_close(logits(plain, processor), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(logits(Model.from_pretrained(base), processor), expected, atol=0.1), "without it"
    auto = peft.AutoPeftModel.from_pretrained(saved["native"])
    torch.testing.assert_close(logits(auto, processor), expected, rtol=0, atol=1e-5)

    merged, _ = load_model(saved["native"])
    torch.testing.assert_close(logits(merged, processor), expected, rtol=0, atol=1e-5)
    captioner = build_captioner(merged, processor, device=torch.device("cpu"))
    ids, _ = prompts(processor, padded=False)
    with torch.no_grad():
        ours = generate(
            captioner, captioner.vision.embed(Pixels(pictures)), ids, None, Decoding(num_beams=3, max_new_tokens=20)
        )
        pixels = captioner.vision.normalise(pictures)
        theirs = plain.generate(pixel_values=pixels, input_ids=ids, num_beams=3, max_new_tokens=20)
    texts = [plain_text(text) for text in processor.batch_decode(theirs)]
    assert [text.text for text in ours] == texts
    assert len(set(texts)) > 1, f"not the same for all {IMAGES}"


@pytest.mark.parametrize("layout", ["native", "original"])
def test_either_layout_comes_back_to_the_bit(saved: dict[str, Path], model: Model, tmp_path: Path, layout: str) -> None:
    loaded, processor = load_model(saved[layout], merge=False)
    assert is_adapted(loaded)
    assert_same_weights(loaded, model)
    save_adapter(loaded, processor, tmp_path / "again", layout="native")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        saved["native"] / "adapter_model.safetensors"
    ).read_bytes()


def test_the_names_in_the_original_layout_are_those_of_microsofts_layers(
    saved: dict[str, Path], model: Model, base: Path, tmp_path: Path
) -> None:
    convert(str(base), tmp_path / "original", layout="original")
    weights = load_file(tmp_path / "original" / "model.safetensors")
    tensors = load_file(saved["original"] / "adapter_model.safetensors")
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    assert len(layers) == len(adapted_layers(model))
    assert set(read(saved["original"] / "adapter_config.json")["target_modules"]) == layers
    for layer in layers:
        out, in_ = weights[f"{layer}.weight"].shape
        assert tensors[f"base_model.model.{layer}.lora_A.weight"].shape == (4, in_)
        assert tensors[f"base_model.model.{layer}.lora_B.weight"].shape == (out, 4)


def test_what_microsofts_code_has_as_a_bare_matrix_is_refused(writing_model: tuple[Any, Any], tmp_path: Path) -> None:
    model = adapted(writing_model, like(targets=r".*image_projection"))
    with pytest.raises(UserError, match="image_projection is no layer in Microsoft's code"):
        save_model(model, writing_model[1], tmp_path / "adapter", layout="original")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("layout", ["native", "original"])
def test_convert_writes_the_whole_model_in_full_precision(
    saved: dict[str, Path], model: Model, base: Path, tmp_path: Path, layout: str
) -> None:
    half = tmp_path / "half"
    convert(str(base), half, layout=layout, dtype="fp16")
    adapter = Path(shutil.copytree(saved["native"], tmp_path / "adapter"))
    edit_json(adapter, "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(half)))
    convert(str(adapter), tmp_path / "whole", layout=layout)
    whole, processor = load_model(tmp_path / "whole")
    assert not is_adapter(tmp_path / "whole")
    assert {tensor.dtype for tensor in load_file(tmp_path / "whole" / "model.safetensors").values()} == {torch.float32}
    torch.testing.assert_close(logits(whole, processor), logits(load_model(adapter)[0], processor), rtol=0, atol=1e-5)


def test_the_processor_is_that_of_the_base(saved: dict[str, Path], base: Path) -> None:
    processor, config = load_processor(saved["original"])
    assert processor.tokenizer.get_vocab() == load_processor(base)[0].tokenizer.get_vocab()
    assert config.model_type == "florence2"


def test_adapters_that_peft_wrote_are_read(writing_model: tuple[Any, Any], base: Path, tmp_path: Path) -> None:
    plain, processor = copy.deepcopy(writing_model[0]), writing_model[1]
    names = ["q_proj", "fc1"]
    config = peft.LoraConfig(
        r=2, target_modules=names, rank_pattern={"fc1": 3}, alpha_pattern={"fc1": 5}, init_lora_weights=False
    )
    wrapped = peft.get_peft_model(plain, config)
    config.base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = logits(wrapped, processor)
    torch.testing.assert_close(logits(load_model(tmp_path / "theirs")[0], processor), expected, rtol=0, atol=1e-5)
    ours, _ = load_model(tmp_path / "theirs", merge=False)
    save_model(ours, processor, tmp_path / "ours")
    torch.testing.assert_close(logits(load_model(tmp_path / "ours")[0], processor), expected, rtol=0, atol=1e-5)


def change_shape(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("fc1.lora_A.weight"))
    save_file(tensors | {name: tensors[name][:, 1:].contiguous()}, path)


def change_config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory, "adapter_config.json", lambda config: config.update(changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(base_model_name_or_path="/nowhere"), "is an adapter for /nowhere, which can't be found"),
        (change_config(base_model_name_or_path=None), "doesn't say base_model_name_or_path"),
        (change_config(peft_type="LOHA"), "is of the kind LOHA: only LORA can be read"),
        (change_config(r=8), r"does not fit .* \(4, .* instead of \(8, .* made for another model, or is damaged"),
        (change_config(target_modules=".*q_proj"), "does not fit .* it has .*; it was made"),
        (change_config(target_modules=["nothing"]), "does not fit .*nothing"),
        (change_config(r="four"), "does not fit|can't be read"),
        (change_shape, "does not fit .* instead of"),
        (
            lambda folder: rename(folder, "layers.1.fc1", "layers.7.fc1"),
            "does not fit .* lacks",
        ),
        (lambda folder: rename(folder, "lora_A", "hada_w1"), "no adapter of a linear layer"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"12345678"), "damaged or incomplete"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    ],
)
def test_what_does_not_fit_or_is_damaged_is_one_line(
    damaged: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(damaged)
    with pytest.raises(UserError, match=message) as raised:
        load_model(damaged)
    assert "\n" not in str(raised.value)


def test_an_adapter_of_an_adapter_is_refused(damaged: Path, saved: dict[str, Path]) -> None:
    change_config(base_model_name_or_path=str(saved["native"]))(damaged)
    with pytest.raises(UserError, match="which is an adapter too"):
        load_model(damaged)


def test_the_config_is_json_that_does_not_change(saved: dict[str, Path], tmp_path: Path) -> None:
    loaded, processor = load_model(saved["native"], merge=False)
    save_adapter(loaded, processor, tmp_path / "again", layout="native")
    first, second = (json.loads((d / "adapter_config.json").read_text()) for d in (saved["native"], tmp_path / "again"))
    assert first == second
