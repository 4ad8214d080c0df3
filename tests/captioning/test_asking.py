"""Asking: once, or once more where an answer looks wrong; and in evaluations just as in captioning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner import CaptionConfig, EvalConfig, caption, evaluate
from florence2ner.captioning.asking import Asker
from florence2ner.config.options import GenerationOptions
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import Generated, generate, second_try
from florence2ner.model.inputs import Embeddings
from tests.model.support import IMAGES, LIMIT, prompts

NAMES = [f"{number}.png" for number in range(IMAGES)]


@pytest.fixture
def encoded(captioner: Captioner) -> Iterator[list[int]]:
    """How many images the language model read, each time that texts were generated."""
    batches: list[int] = []
    encoder = captioner.model.model.language_model.encoder
    handle = encoder.register_forward_hook(lambda module, args, output: batches.append(len(output[0])))
    yield batches
    handle.remove()


def ask(captioner: Captioner, embedded: Embeddings, *, batch_size: int = IMAGES, **settings: Any) -> list[Generated]:
    def fail(message: str) -> None:
        raise AssertionError(message)

    asker = Asker(captioner, GenerationOptions(**settings), seed=0, batch_size=batch_size, notify=fail)
    return asker.ask(embedded, prompts(captioner.processor, padded=False)[0], None, names=NAMES)


def test_without_retry_everything_is_asked_once(captioner: Captioner, embedded: Embeddings, encoded: list[int]) -> None:
    texts = ask(captioner, embedded, num_beams=1, max_new_tokens=4, retry=False)
    assert encoded == [IMAGES]
    assert all(text.flags() for text in texts)


def test_with_retry_all_that_is_cut_off_is_asked_again_in_batches(
    captioner: Captioner, embedded: Embeddings, encoded: list[int]
) -> None:
    ask(captioner, embedded, num_beams=1, max_new_tokens=4, batch_size=4)
    assert encoded == [IMAGES, 4, 2]


def test_only_the_flagged_are_asked_again_and_the_others_keep_their_answer(
    captioner: Captioner, embedded: Embeddings, encoded: list[int]
) -> None:
    options = GenerationOptions(num_beams=1, max_new_tokens=LIMIT)
    ids, _ = prompts(captioner.processor, padded=False)
    first = generate(captioner, embedded, ids, None, options)
    flagged = [row for row, text in enumerate(first) if text.flags()]
    assert 0 < len(flagged) < IMAGES
    chosen = Embeddings(embedded.values[flagged])
    second = generate(captioner, chosen, ids[flagged], None, second_try(options))
    expected = list(first)
    for row, text in zip(flagged, second, strict=True):
        if len(text.flags()) < len(first[row].flags()):
            expected[row] = text
    encoded.clear()
    assert ask(captioner, embedded, **options.model_dump()) == expected
    assert encoded == [IMAGES, len(flagged)]


def test_what_looks_right_is_not_asked_again(captioner: Captioner, embedded: Embeddings, encoded: list[int]) -> None:
    settings = {"num_beams": 1, "max_new_tokens": LIMIT}
    right = [row for row, text in enumerate(ask(captioner, embedded, retry=False, **settings)) if not text.flags()]
    encoded.clear()
    ids, mask = prompts(captioner.processor, padded=False)
    asker = Asker(captioner, GenerationOptions(**settings), seed=0, batch_size=IMAGES, notify=print)
    texts = asker.ask(Embeddings(embedded.values[right]), ids[right], mask[right], names=[NAMES[row] for row in right])
    assert not any(text.flags() for text in texts)
    assert encoded == [len(right)]


@pytest.mark.parametrize("padded", [False, True])
def test_a_second_try_reads_images_and_prompts_of_the_rows_that_it_is_about(
    captioner: Captioner, embedded: Embeddings, padded: bool
) -> None:
    ids, mask = prompts(captioner.processor, padded=padded)
    options = GenerationOptions(num_beams=1, max_new_tokens=LIMIT)
    first = generate(captioner, embedded, ids, mask, options)
    flagged = [row for row, text in enumerate(first) if text.flags()]
    assert flagged not in ([], [*range(len(flagged))]), "not just the first rows"
    read: list[dict[str, Tensor]] = []
    encoder = captioner.model.model.language_model.encoder
    handle = encoder.register_forward_hook(lambda module, args, given, output: read.append(given), with_kwargs=True)
    Asker(captioner, options, seed=0, batch_size=IMAGES, notify=print).ask(embedded, ids, mask, names=NAMES)
    handle.remove()
    _, again = read
    expected = captioner.merge(Embeddings(embedded.values[flagged]), ids[flagged])
    assert torch.equal(again["inputs_embeds"], expected)
    assert torch.equal(again["attention_mask"], mask[flagged])


def both(model: Path, data: Path, folder: Path, **settings: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The captions of an evaluation, and those that captioning writes, by image."""
    common = {"model_name": str(model), "batch_size": 4, "max_new_tokens": 16} | settings
    evaluated = evaluate(EvalConfig(dataset_path=data, show=0, **common)).captions
    summary = caption(CaptionConfig(paths=(data,), output_dir=folder, **common))
    assert summary.done == len(evaluated)
    written = {path.with_suffix(".png").name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return {row.image: row.prediction + "\n" for row in evaluated}, written


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """Seven images with captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(7):
        for end in ("png", "txt"):
            (folder / f"{number:04}.{end}").symlink_to(shapes / f"{number:04}.{end}")
    return folder


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": -1.0},
        {"no_repeat_ngram_size": 2},
        {"bad_words": ("red", "small")},
        {"max_new_tokens": 5},
        {"num_beams": 1, "temperature": 1.5},
        {"num_beams": 2, "temperature": 1.5, "seed": 7},
    ],
    ids=str,
)
def test_an_evaluation_measures_the_captions_that_captioning_writes(
    trained_model: Path, data: Path, tmp_path: Path, settings: dict[str, Any], retry: bool
) -> None:
    evaluated, written = both(trained_model, data, tmp_path / "out", retry=retry, **settings)
    assert len(written) == 7
    assert evaluated == written


def test_so_it_does_where_the_model_writes_nonsense(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Weights that have learnt nothing write places (<loc_7>) into captions, which are no text."""
    evaluated, written = both(tiny_model, data, tmp_path / "out", num_beams=1, retry=False)
    assert evaluated == written
