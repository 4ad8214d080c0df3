"""The config of Microsoft's layout: to it and back nothing is lost, and what one side can't say is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Florence2ForConditionalGeneration

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.original_config import native_to_original_config, original_to_native_config
from tests.model.checkpoints.support import read

HERE = Path("some-model")


@pytest.fixture
def model(native: tuple[Florence2ForConditionalGeneration, Any]) -> Florence2ForConditionalGeneration:
    """A model whose config may be changed."""
    return copy.deepcopy(native[0])


@pytest.fixture
def original(model: Florence2ForConditionalGeneration) -> dict[str, Any]:
    """Its config in Microsoft's layout."""
    return native_to_original_config(model, vocab_size=model.config.text_config.vocab_size)


def test_a_config_comes_back_as_it_was(model: Florence2ForConditionalGeneration, original: dict[str, Any]) -> None:
    vision, text = model.config.vision_config, model.config.text_config
    back = original_to_native_config(original, HERE)
    fields = {"dtype", "architectures", "transformers_version", "_name_or_path"}
    for before, after in ((vision, back.vision_config), (text, back.text_config)):
        one, other = before.to_dict(), after.to_dict()
        differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - fields
        assert not differing
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(back, name) == getattr(text, name)


def test_other_values_than_the_defaults_come_back_too(model: Florence2ForConditionalGeneration) -> None:
    text, vision = model.config.text_config, model.config.vision_config
    text.dropout, text.encoder_layerdrop, text.scale_embedding, text.init_std = 0.37, 0.11, True, 0.5
    vision.drop_path_rate, vision.window_size, vision.max_position_embeddings = 0.23, 7, 33
    vision.max_temporal_embeddings = 44
    back = original_to_native_config(native_to_original_config(model, vocab_size=text.vocab_size), HERE)
    for name in ("dropout", "encoder_layerdrop", "scale_embedding", "init_std"):
        assert getattr(back.text_config, name) == getattr(text, name), name
    for name in ("drop_path_rate", "window_size", "max_position_embeddings", "max_temporal_embeddings"):
        assert getattr(back.vision_config, name) == getattr(vision, name), name


def test_the_vocabulary_is_as_large_as_the_rows_that_are_kept(model: Florence2ForConditionalGeneration) -> None:
    size = model.config.text_config.vocab_size - 5
    written = native_to_original_config(model, vocab_size=size)
    assert written["vocab_size"] == written["text_config"]["vocab_size"] == size
    assert original_to_native_config(written, HERE).text_config.vocab_size == size


def test_generation_settings_are_the_models_and_where_it_has_none_the_originals(
    model: Florence2ForConditionalGeneration,
) -> None:
    model.generation_config.num_beams, model.generation_config.no_repeat_ngram_size = 5, None
    text = native_to_original_config(model, vocab_size=100)["text_config"]
    assert (text["num_beams"], text["no_repeat_ngram_size"], text["forced_bos_token_id"]) == (5, 3, 0)


@pytest.mark.parametrize(
    ("name", "value"), [("in_channels", 4), ("mlp_ratio", 2.0), ("qkv_bias", False), ("activation_function", "relu")]
)
def test_a_tower_that_microsofts_code_cannot_express_is_refused(
    model: Florence2ForConditionalGeneration, name: str, value: object
) -> None:
    known = getattr(model.config.vision_config, name)
    setattr(model.config.vision_config, name, value)
    with pytest.raises(UserError) as error:
        native_to_original_config(model, vocab_size=100)
    assert str(error.value) == f"Microsoft's code knows only {name} = {known}; the model has {value}."


def test_more_tokens_than_rows_are_refused(model: Florence2ForConditionalGeneration) -> None:
    rows = model.config.text_config.vocab_size
    with pytest.raises(UserError, match=f"The tokenizer has {rows + 1} tokens, but the model only {rows}"):
        native_to_original_config(model, vocab_size=rows + 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda c: c["vision_config"]["image_pos_embed"].update(type="sine"),
            "vision_config.image_pos_embed.type is sine; only learned_abs_2d can be converted.",
        ),
        (
            lambda c: c["vision_config"].update(visual_temporal_embedding="COSINE"),
            "vision_config.visual_temporal_embedding.type is None; only COSINE can be converted.",
        ),
        (
            lambda c: c["vision_config"].update(image_feature_source=["last_frame"]),
            "vision_config.image_feature_source is ['last_frame']; only ['spatial_avg_pool', 'temporal_avg_pool']",
        ),
        (lambda c: c.pop("vision_config"), "vision_config.image_pos_embed.type is None; only learned_abs_2d"),
        (lambda c: c["vision_config"].pop("dim_embed"), "vision_config lacks 'dim_embed'; copy config.json from"),
        (
            lambda c: c["vision_config"]["image_pos_embed"].pop("max_pos_embeddings"),
            "vision_config lacks 'max_pos_embeddings'; copy config.json from the model's source.",
        ),
        (lambda c: c["text_config"].update(d_model="wide"), " does not describe a Florence-2: "),
    ],
)
def test_what_the_native_classes_cannot_do_is_refused_in_one_line(
    original: dict[str, Any], damage: Callable[[Any], object], message: str
) -> None:
    damage(original)
    with pytest.raises(UserError) as error:
        original_to_native_config(original, HERE)
    assert str(error.value).startswith(f"{HERE / 'config.json'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_written_of_the_text_has_the_originals_default(original: dict[str, Any]) -> None:
    del original["text_config"]["vocab_size"], original["text_config"]["activation_function"]
    original["text_config"]["model_type"] = "florence2_language"  # as fine-tunes say
    text = original_to_native_config(original, HERE).text_config
    assert (text.vocab_size, text.activation_function, text.model_type) == (51289, "gelu", "bart")


def test_the_config_is_what_stands_beside_exported_weights(
    native: tuple[Florence2ForConditionalGeneration, Any], exported: Path
) -> None:
    model, processor = native
    expected = native_to_original_config(model, vocab_size=len(processor.tokenizer))
    assert read(exported / "config.json") == json.loads(json.dumps(expected))
