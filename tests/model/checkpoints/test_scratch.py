"""New models from nothing: the same for the same seed, of the size that was asked for, and with Florence-2's words."""

from pathlib import Path

import pytest
import torch

from florence2ner.errors import UserError
from florence2ner.model.adapt import count_parameters
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.checkpoints.scratch import Preset, build_model, init_model
from florence2ner.model.tasks import TASK_TOKENS

CAPTIONS = ["a small red star in the top left corner", "two blue squares"]


def test_a_seed_gives_the_same_weights_and_another_gives_others() -> None:
    models = [build_model("tiny", CAPTIONS, seed=seed)[0] for seed in (1, 1, 2)]
    first, again, other = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, weight in first.items() if weight.ndim > 1]
    assert drawn
    assert not [name for name in drawn if torch.equal(first[name], other[name])]


def test_what_is_written_is_what_is_built_and_an_empty_folder_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    init_model(folder, preset="tiny", captions=CAPTIONS, seed=3)
    expected, processor = build_model("tiny", CAPTIONS, seed=3)
    model, loaded = load_model(folder)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_folder_that_holds_something_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match=f"{place} exists already: name a new folder"):
            init_model(place, preset="tiny", captions=CAPTIONS, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_every_task_token_is_one_word_of_the_vocabulary_with_a_row_of_its_own() -> None:
    model, processor = build_model("tiny", CAPTIONS, seed=0)
    tokenizer = processor.tokenizer
    ids = tokenizer(list(TASK_TOKENS), add_special_tokens=False).input_ids
    assert all(len(row) == 1 for row in ids)
    assert len({row[0] for row in ids}) == len(TASK_TOKENS)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == len(tokenizer) == 1 + max(tokenizer.get_vocab().values())
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") < rows


def test_captions_come_back_from_their_tokens_and_prompts_are_few() -> None:
    _, processor = build_model("tiny", CAPTIONS, seed=0)
    for caption in (*CAPTIONS, "ein grüner Stern, 星"):
        ids = processor.tokenizer(caption).input_ids
        assert (ids[0], ids[-1]) == (0, 2)
        assert processor.tokenizer.decode(ids[1:-1]) == caption
    words = ["What", "does", "the", "image", "describe?"]
    prompt = expand_prompt(processor, "<CAPTION>")
    assert (prompt == processor.image_token_id).sum() == 17, "4 x 4 places and their mean"
    assert len(prompt) - 17 <= len(words) + 4, "its words are not spelt in letters"


@pytest.mark.parametrize(("preset", "millions"), [("base", 231), ("large", 776)])
def test_the_real_sizes_are_microsofts(preset: Preset, millions: int) -> None:
    """0.23 and 0.77 billion, as the hub says; on no device, where they cost nothing."""
    with torch.device("meta"):
        model, processor = build_model(preset, CAPTIONS, seed=0)
    assert count_parameters(model).total // 10**6 == millions
    assert model.get_input_embeddings().weight.shape[0] == 51289
    assert processor.image_processor.size == {"height": 768, "width": 768}
    assert processor.image_processor.image_seq_length == 577


def test_generation_starts_as_the_originals() -> None:
    model, processor = build_model("tiny", CAPTIONS, seed=0)
    generation = model.generation_config
    assert (generation.num_beams, generation.no_repeat_ngram_size, generation.early_stopping) == (3, 3, True)
    assert (generation.forced_bos_token_id, generation.forced_eos_token_id) == (0, 2)
    assert generation.suppress_tokens == [processor.image_token_id]
