"""Microsoft's layout in and out: against what Microsoft's own code computed, by round trip, and with broken files."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer
from transformers import (
    AutoProcessor,
    BartTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.original import (
    is_original,
    load_original,
    native_to_original_config,
    original_name,
    save_original,
)
from florence2ner.model.checkpoints.processing import build_generation_config, build_processor
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.tasks import TASK_TOKENS
from tests.model.checkpoints.support import Oracle, assert_same_weights, edit_json, edit_weights, read, shard
from tests.model.support import ORACLE, TINY, needs_oracle

CASES = [(image, prompt) for image in range(3) for prompt in range(3)]
FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
}


# --- against Microsoft's code -----------------------------------------------------------------------------------------


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


@needs_oracle
def test_pixels_logits_and_losses_are_the_originals(oracle: Oracle) -> None:
    for image, prompt in CASES:
        case, inputs = f"case{image}{prompt}", oracle.inputs(image, prompt)
        assert torch.equal(inputs["pixel_values"], oracle.tensor(f"img{image}/pixel_values"))
        with torch.no_grad():
            output = oracle.model(**inputs, labels=oracle.tensor(f"{case}/labels"))
            features = oracle.model.get_image_features(inputs["pixel_values"])
        assert difference(output.logits, oracle.tensor(f"{case}/logits")) < 1e-4
        assert difference(output.loss, oracle.tensor(f"{case}/loss")) < 1e-5
        assert difference(output.encoder_last_hidden_state, oracle.tensor(f"{case}/encoder_last_hidden_state")) < 1e-4
        assert difference(features.pooler_output, oracle.tensor(f"img{image}/image_features")) < 1e-4


@needs_oracle
def test_batches_are_the_originals(oracle: Oracle) -> None:
    inputs = oracle.batch()
    with torch.no_grad():
        ignored = oracle.model(**inputs, labels=oracle.labels("batch/labels"))
        counted = oracle.model(**inputs, labels=oracle.labels("batch/labels", count_padding=True))
    assert difference(ignored.logits, oracle.tensor("batch/logits")) < 1e-4
    assert difference(ignored.loss, oracle.tensor("batch/loss_pad_ignored")) < 1e-5
    assert difference(counted.loss, oracle.tensor("batch/loss_pad_counted")) < 1e-5


@needs_oracle
def test_padded_prompts_are_the_originals_when_padding_is_attended_as_there(oracle: Oracle) -> None:
    text = oracle.tensor("mixed/input_ids")
    features = torch.full((3, oracle.processor.num_image_tokens), oracle.processor.image_token_id)
    inputs = oracle.batch() | {"input_ids": torch.cat([features, text], dim=1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        output = oracle.model(**inputs, labels=oracle.labels("mixed/labels"))
    assert difference(output.logits, oracle.tensor("mixed/logits")) < 1e-4
    assert difference(output.loss, oracle.tensor("mixed/loss")) < 1e-5


@needs_oracle
@pytest.mark.parametrize(
    ("name", "settings"), [("greedy", {"num_beams": 1}), ("beam3", {"num_beams": 3}), ("default", {})]
)
def test_generated_ids_are_the_originals(oracle: Oracle, name: str, settings: dict[str, int]) -> None:
    for image, prompt in CASES:
        ids = oracle.model.generate(**oracle.inputs(image, prompt), max_new_tokens=20, **settings)
        assert ids.tolist() == oracle.arrays[f"case{image}{prompt}/{name}_ids"].tolist(), (image, prompt)


@needs_oracle
def test_gradient_norms_are_the_originals(oracle: Oracle) -> None:
    model, _ = load_original(TINY)
    model(**oracle.batch(), labels=oracle.labels("batch/labels")).loss.backward()
    norms = {original_name(name): p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    # The original trains the head apart from the table; here the two are one, with the sum of both gradients.
    table = norms.pop("language_model.model.shared.weight")
    assert table == pytest.approx(oracle.facts["grad_norm_shared_plus_lm_head"], rel=1e-4)
    expected = {name: norm for name, norm in oracle.facts["grad_norms"].items() if name in norms}
    assert len(expected) == len(oracle.facts["grad_norms"]) - 2
    assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5)
    total = sum(norm**2 for norm in (*norms.values(), table)) ** 0.5
    assert total == pytest.approx(oracle.facts["grad_norm_total_tied"], rel=1e-4)


@needs_oracle
def test_a_head_that_was_trained_apart_stays_apart(oracle: Oracle, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "untied", ignore=shutil.ignore_patterns("*.bin"), copy_function=shutil.copyfile)
    weights = load_file(TINY / "model.safetensors") | load_file(ORACLE / "extra/untied-lm_head.safetensors")
    (tmp_path / "untied/model.safetensors").chmod(0o644)
    save_file(weights, tmp_path / "untied/model.safetensors")
    model, processor = load_original(tmp_path / "untied")
    model.save_pretrained(tmp_path / "native")
    native = Florence2ForConditionalGeneration.from_pretrained(tmp_path / "native").eval()
    save_original(model, processor, tmp_path / "again")
    for same in (model, native, load_original(tmp_path / "again")[0]):
        assert same.lm_head.weight is not same.model.language_model.shared.weight
        encoder, decoder = same.model.language_model.encoder, same.model.language_model.decoder
        assert encoder.embed_tokens.weight is decoder.embed_tokens.weight is same.model.language_model.shared.weight
        with torch.no_grad():
            output = same(**oracle.batch(), labels=oracle.labels("batch/labels"))
        assert difference(output.logits, oracle.tensor("untied/logits")) < 1e-4
        assert difference(output.loss, oracle.tensor("untied/loss")) < 1e-5
    ids = model.generate(**oracle.batch(), max_new_tokens=20, num_beams=1)
    assert ids.tolist() == oracle.arrays["untied/greedy_ids"].tolist()


@needs_oracle
def test_a_pickle_and_a_config_saved_by_the_original_code_give_the_same_model(oracle: Oracle, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, tmp_path / name)
    shutil.copyfile(ORACLE / "extra/config-resaved-by-original-code.json", tmp_path / "config.json")
    assert is_original(tmp_path)
    model, _ = load_original(tmp_path)
    assert_same_weights(model, oracle.model)
    assert model.config.to_dict() == oracle.model.config.to_dict()
    assert model.generation_config.to_dict() == oracle.model.generation_config.to_dict()


@needs_oracle
def test_every_key_is_where_the_key_map_says() -> None:
    key_map = json.loads((ORACLE / "extra/key-map.json").read_text(encoding="utf-8"))
    del key_map["language_model.final_logits_bias"]
    assert {original_name(native): native for native in key_map.values()} == key_map


@needs_oracle
def test_what_is_written_is_what_the_hub_has(oracle: Oracle, tmp_path: Path) -> None:
    save_original(oracle.model, oracle.processor, tmp_path)
    written = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert written == {name: facts["shape"] for name, facts in oracle.facts["state_dict"].items()}
    assert read(tmp_path / "vocab.json") == read(TINY / "vocab.json")
    assert (tmp_path / "merges.txt").read_bytes() == (ORACLE / "extra/merges.txt").read_bytes()
    mine, hub = read(tmp_path / "tokenizer.json"), read(TINY / "tokenizer.json")
    assert mine["model"]["vocab"] == hub["model"]["vocab"]
    assert mine["model"]["merges"] == hub["model"]["merges"]
    assert mine["added_tokens"][:5] == hub["added_tokens"]
    assert [token["content"] for token in mine["added_tokens"][5:]] == list(TASK_TOKENS)
    assert without_names(read(tmp_path / "config.json")) == without_names(read(TINY / "config.json"))
    # What the original's processor does: a Bart tokenizer from these files, then the task tokens once more.
    tokenizer = BartTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(TASK_TOKENS)})
    texts = oracle.facts["tokenization"]
    assert {text: tokenizer(text)["input_ids"] for text in texts} == texts
    settings, hubs = read(tmp_path / "preprocessor_config.json"), read(TINY / "preprocessor_config.json")
    assert {name for name in hubs if settings.get(name) != hubs[name]} == {
        *("auto_map", "_valid_processor_keys", "do_convert_rgb")
    }


@needs_oracle
@pytest.mark.parametrize("size", ["base", "large"])
def test_real_configs_are_recognised_and_written_again(size: str, tmp_path: Path) -> None:
    hub = ORACLE / f"configs/microsoft-florence-2-{size}.json"
    shutil.copyfile(hub, tmp_path / "config.json")
    assert is_original(tmp_path)
    mine = native_to_original_config(meta_model(size), vocab_size=51289)
    assert without_names(mine) == without_names(read(hub))


@needs_oracle
@pytest.mark.parametrize(
    ("name", "original"), [("promptgen-base-v2.0-hybrid", True), ("native-base-derived-by-transformers-5.23.0", False)]
)
def test_layouts_are_told_apart_by_config(name: str, original: bool, tmp_path: Path) -> None:
    shutil.copyfile(ORACLE / f"configs/{name}.json", tmp_path / "config.json")
    assert is_original(tmp_path) is original


# --- by round trip ----------------------------------------------------------------------------------------------------


def without_names(config: dict[str, Any]) -> dict[str, Any]:
    assert {name.rpartition("--")[2] for name in config["auto_map"].values()} == {
        *("configuration_florence2.Florence2Config", "modeling_florence2.Florence2ForConditionalGeneration")
    }
    return {name: value for name, value in config.items() if name not in ("auto_map", "torch_dtype")}


def test_a_round_trip_changes_no_bit(native: tuple[Any, Any], exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert is_original(exported)
    model, processor = load_original(exported)
    assert not model.training
    assert_same_weights(model, native[0])
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in native[0].named_parameters()]
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())
    assert model.config.to_dict() | {"dtype": None} == native[0].config.to_dict() | {"dtype": None}
    assert model.generation_config.to_dict() == native[0].generation_config.to_dict()
    assert processor.tokenizer.get_vocab() == native[1].tokenizer.get_vocab()
    assert processor.tokenizer.model_max_length == native[1].tokenizer.model_max_length
    image = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    for prompt in ("<CAPTION>", "<OD>", "<OCR_WITH_REGION>", "a red <loc_7>"):
        mine, theirs = (each(images=image, text=prompt, return_tensors="pt") for each in (processor, native[1]))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_converted_model_is_saved_and_loaded_by_plain_transformers(exported: Path, tmp_path: Path) -> None:
    model, processor = load_original(exported, dtype=torch.bfloat16, attn_implementation="eager")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not is_original(tmp_path)
    again = Florence2ForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_weights(again, model)
    assert again.lm_head.weight is again.model.language_model.shared.weight
    assert read(tmp_path / "config.json")["architectures"] == ["Florence2ForConditionalGeneration"]
    assert again.config.image_token_id == AutoProcessor.from_pretrained(tmp_path).image_token_id
    assert again.generation_config.num_beams == 3
    assert again.generation_config.suppress_tokens == [again.config.image_token_id]


def test_a_model_outlives_its_files(native: tuple[Any, Any], copy: Path) -> None:
    model, _ = load_original(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert_same_weights(model, native[0])


def test_an_image_token_with_a_row_of_its_own_is_cut(exported: Path, tmp_path: Path) -> None:
    # As florence-community/Florence-2-base: <mask> is kept, <image> comes behind the task tokens, then padding rows.
    model, processor = load_original(exported)
    backend = RustTokenizer.from_file(str(exported / "tokenizer.json"))
    backend.add_special_tokens(["<image>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        extra_special_tokens={"image_token": "<image>"},
    )
    own = build_processor(tokenizer, image_size=64, image_seq_length=processor.num_image_tokens)
    size = model.config.text_config.vocab_size
    model.resize_token_embeddings(pad_to_multiple_of=64, new_num_tokens=size + 1)
    model.config.image_token_id = own.image_token_id
    assert own.image_token_id == size < model.lm_head.weight.shape[0] - 1

    save_original(model, own, tmp_path)
    again, cut = load_original(tmp_path)
    assert again.config.text_config.vocab_size == again.lm_head.weight.shape[0] == size
    assert cut.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    image = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    labels = own.tokenizer("a red circle", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        with_row = model(**own(images=image, text="<CAPTION>", return_tensors="pt"), labels=labels).logits
        without = again(**cut(images=image, text="<CAPTION>", return_tensors="pt"), labels=labels).logits
    assert torch.allclose(with_row[..., :size], without, atol=1e-5)

    own.tokenizer.add_tokens(["<mine>"])
    with pytest.raises(UserError, match=r"tokens behind <image>"):
        save_original(model, own, tmp_path)


def test_gathered_weights_are_written_instead_of_the_models_own(native: tuple[Any, Any], tmp_path: Path) -> None:
    gathered = {name: tensor + 1 for name, tensor in native[0].state_dict().items()}
    save_original(*native, tmp_path, weights=gathered)
    state = load_original(tmp_path)[0].state_dict()
    assert all(torch.equal(state[name], gathered[name]) for name in gathered)


# --- the real sizes ---------------------------------------------------------------------------------------------------


def meta_model(size: str) -> Florence2ForConditionalGeneration:
    widths, d_model, layers, positions = {
        "base": ([128, 256, 512, 1024], 768, 6, 1024),
        "large": ([256, 512, 1024, 2048], 1024, 12, 4096),
    }[size]
    heads = [width // 32 for width in widths]
    sides = ("encoder", "decoder")
    text = {
        "model_type": "bart",
        **{f"{side}_{name}": n for side in sides for name, n in (("layers", layers), ("ffn_dim", 4 * d_model))},
        **{f"{side}_attention_heads": d_model // 64 for side in sides},
        **{"d_model": d_model, "max_position_embeddings": positions, "vocab_size": 51289},
        **{"attention_dropout": 0.1, "activation_dropout": 0.1},
    }
    vision = {"embed_dim": widths, "num_heads": heads, "num_groups": heads, "projection_dim": d_model}
    vision |= {"depths": [1, 1, 9, 1], "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2]}
    vision |= {"patch_padding": [3, 1, 1, 1], "patch_prenorm": [False, True, True, True]}
    config = Florence2Config(
        text_config=text, vision_config=vision, bos_token_id=0, pad_token_id=1, eos_token_id=2, image_token_id=50264
    )
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    model.generation_config = build_generation_config(50264)
    return model


def original_keys(layers: int) -> Iterator[str]:
    """Every key of modeling_florence2.py for depths 1, 1, 9, 1, but for final_logits_bias."""

    def affine(*names: str) -> Iterator[str]:
        for name in names:
            yield from (f"{name}.weight", f"{name}.bias")

    for stage, depth in enumerate((1, 1, 9, 1)):
        yield from affine(f"vision_tower.convs.{stage}.proj", f"vision_tower.convs.{stage}.norm")
        for block in range(depth):
            for kind, attention in (("spatial", "window"), ("channel", "channel")):
                prefix = f"vision_tower.blocks.{stage}.{block}.{kind}_block"
                yield from affine(f"{prefix}.conv1.fn.dw", f"{prefix}.conv2.fn.dw")
                yield from affine(f"{prefix}.{attention}_attn.norm", f"{prefix}.ffn.norm")
                yield from affine(f"{prefix}.{attention}_attn.fn.qkv", f"{prefix}.{attention}_attn.fn.proj")
                yield from affine(f"{prefix}.ffn.fn.net.fc1", f"{prefix}.ffn.fn.net.fc2")
    yield from ("image_projection", "visual_temporal_embed.pos_idx_to_embed", *affine("image_proj_norm"))
    yield from ("image_pos_embed.row_embeddings.weight", "image_pos_embed.column_embeddings.weight")
    yield from ("language_model.lm_head.weight", "language_model.model.shared.weight")
    for side in ("encoder", "decoder"):
        prefix = f"language_model.model.{side}"
        yield from (f"{prefix}.embed_tokens.weight", f"{prefix}.embed_positions.weight")
        yield from affine(f"{prefix}.layernorm_embedding")
        for layer in range(layers):
            for attention in ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",):
                name = f"{prefix}.layers.{layer}.{attention}"
                yield from affine(f"{name}_layer_norm", *(f"{name}.{part}_proj" for part in ("q", "k", "v", "out")))
            yield from affine(*(f"{prefix}.layers.{layer}.{name}" for name in ("fc1", "fc2", "final_layer_norm")))


@pytest.mark.parametrize(("size", "layers"), [("base", 6), ("large", 12)])
def test_every_key_and_every_parameter_of_the_real_sizes_is_accounted_for(size: str, layers: int) -> None:
    model = meta_model(size)
    names = [original_name(name) for name in model.state_dict()]
    assert len(names) == len(set(names))
    assert set(names) == set(original_keys(layers))
    assert set(names) >= {original_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    if size == "base":  # as many as others count in florence-community's, less its 39 rows of padding
        assert sum(parameter.numel() for parameter in model.parameters()) == 231_443_968 - 39 * 768


# --- files of every kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept", ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"]
)
def test_one_copy_of_the_embedding_is_enough(native: tuple[Any, Any], copy: Path, kept: str) -> None:
    tables = {"model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"} - {kept}
    edit_weights(copy, lambda state: [state.pop(f"language_model.{name}.weight") for name in tables])
    assert_same_weights(load_original(copy)[0], native[0])


@pytest.mark.parametrize("layout", ["original", "native"])
def test_weights_decide_where_the_config_does_not(native: tuple[Any, Any], copy: Path, layout: str) -> None:
    config = read(copy / "config.json")
    config["vision_config"]["embed_dim"] = config["vision_config"]["dim_embed"]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if layout == "native":
        save_file({name: t.clone() for name, t in native[0].state_dict().items()}, copy / "model.safetensors")
    assert is_original(copy) is (layout == "original")


@pytest.mark.parametrize("missing", ["dim_embed", "image_pos_embed"])
def test_one_mark_of_the_original_is_enough(copy: Path, missing: str) -> None:
    edit_json(copy, "config.json", lambda config: config["vision_config"].pop(missing))
    (copy / "model.safetensors").unlink()
    assert is_original(copy)


def test_text_config_has_the_last_word(copy: Path) -> None:
    edit_json(copy, "config.json", lambda config: config.update(bos_token_id=2, eos_token_id=1, pad_token_id=0))
    edit_json(copy, "config.json", lambda config: config["text_config"].update(num_beams=5, forced_bos_token_id=None))
    (copy / "tokenizer_config.json").unlink()
    model, processor = load_original(copy)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert model.generation_config.num_beams == 5
    assert model.generation_config.forced_bos_token_id is None
    assert processor.tokenizer.model_max_length == model.config.text_config.max_position_embeddings
    save_original(model, processor, copy)
    assert read(copy / "config.json")["text_config"]["num_beams"] == 5


def test_the_directorys_name_and_the_vision_models_type_do_not_matter(exported: Path, copy: Path) -> None:
    edit_json(copy, "config.json", lambda config: config["vision_config"].update(model_type=""))
    assert is_original(Path(shutil.move(copy, copy.with_name("Florence-2-base-native"))))


# --- damaged directories ----------------------------------------------------------------------------------------------


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def shift_ids(tokenizer: dict[str, Any]) -> None:
    """What adding <image> before the task tokens does to them."""
    for token in tokenizer["added_tokens"]:
        token["id"] += token["content"] in TASK_TOKENS
    first = min(token["id"] for token in tokenizer["added_tokens"] if token["content"] in TASK_TOKENS)
    filler = {"content": "<extra>", "id": first - 1, "special": True}
    tokenizer["added_tokens"].append(filler | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False))
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])


NORM = "vision_tower.convs.0.norm.weight"
FC1 = "language_model.model.decoder.layers.1.fc1.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a key removed": (lambda d: edit_weights(d, lambda s: s.pop(NORM)), f"missing: {NORM}"),
    "a key renamed": (
        lambda d: edit_weights(d, lambda s: s.update(other=s.pop(NORM))),
        f"missing: {NORM}; unexpected: other",
    ),
    "many keys removed": (
        lambda d: edit_weights(d, lambda s: [s.pop(name) for name in list(s) if ".decoder.layers." in name]),
        r"missing: .*and \d+ more",
    ),
    "no embedding": (
        lambda d: edit_weights(d, lambda s: [s.pop(n) for n in list(s) if re.search("shared|tokens|lm_head", n)]),
        "missing: language_model.model.shared.weight",
    ),
    "a wrong shape": (
        lambda d: edit_weights(d, lambda s: s.update({FC1: s[FC1][:-1].clone()})),
        rf"of another shape: {FC1} \(255, 128\) instead of \(256, 128\)",
    ),
    "a projection that is not transposed": (
        lambda d: edit_weights(d, lambda s: s.update(image_projection=s["image_projection"][:-3].clone())),
        "of another shape: image_projection",
    ),
    "two embeddings": (
        lambda d: edit_weights(d, lambda s: s["language_model.model.encoder.embed_tokens.weight"].add_(1)),
        "embed_tokens.weight differs from",
    ),
    "a logits bias": (
        lambda d: edit_weights(d, lambda s: s["language_model.final_logits_bias"].add_(1)),
        "final_logits_bias is not zero",
    ),
    "a truncated file": (truncate, "model.safetensors is damaged or incomplete"),
    "a pointer instead of the file": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n"),
        "model.safetensors is damaged or incomplete",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "a shard missing": (
        lambda d: (shard(d, ".safetensors").parent / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002.safetensors is missing",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "a config that is not JSON": (lambda d: (d / "config.json").write_text("{\n'a': 1}"), "cannot be read as JSON"),
    "a config that is a list": (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
    "a config without depths": (
        lambda d: edit_json(d, "config.json", lambda c: c["vision_config"].pop("depths")),
        "vision_config lacks 'depths'",
    ),
    "a config with words for sizes": (
        lambda d: edit_json(d, "config.json", lambda c: c["text_config"].update(d_model="wide")),
        "does not describe a Florence-2",
    ),
    "heads that do not divide the width": (
        lambda d: edit_json(d, "config.json", lambda c: c["text_config"].update(encoder_attention_heads=7)),
        "does not describe a Florence-2",
    ),
    "other positions": (
        lambda d: edit_json(d, "config.json", lambda c: c["vision_config"]["image_pos_embed"].update(type="sine")),
        "image_pos_embed.type is sine",
    ),
    "other temporal positions": (
        lambda d: edit_json(d, "config.json", lambda c: c["vision_config"].update(visual_temporal_embedding=None)),
        "visual_temporal_embedding.type is None",
    ),
    "other features": (
        lambda d: edit_json(d, "config.json", lambda c: c["vision_config"].update(image_feature_source=["last_frame"])),
        "image_feature_source is",
    ),
    "no preprocessor": (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    "an oblong preprocessor": (
        lambda d: edit_json(d, "preprocessor_config.json", lambda c: c["size"].update(width=32)),
        "size is",
    ),
    "other pixel statistics": (
        lambda d: edit_json(d, "preprocessor_config.json", lambda c: c.update(image_mean=[0.5, 0.5, 0.5])),
        "image_mean is",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing or not a tokenizer"),
    "shifted task tokens": (lambda d: edit_json(d, "tokenizer.json", shift_ids), "do not fit vocab_size"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(copy: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(copy)
    with pytest.raises(UserError, match=message) as raised:
        load_original(copy)
    assert "\n" not in str(raised.value)
    assert str(copy) in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("mlp_ratio", 3.0), ("qkv_bias", False), ("activation_function", "relu")])
def test_a_vision_tower_that_the_original_cannot_have_is_not_written(name: str, value: Any, tmp_path: Path) -> None:
    model, processor = build_model("tiny", ["a red circle"], seed=0)
    setattr(model.config.vision_config, name, value)
    with pytest.raises(UserError, match=f"knows only {name}"):
        save_original(model, processor, tmp_path / "new")
    assert not (tmp_path / "new").exists()
