"""Pairs of captions: what people could have written about drawn shapes, and what a model could have made of it."""

import random

from florence2ner.demo import draw_shape

_OTHERS = ("red", "green", "blue", "large", "small", "star", "circle", "corner", "in the", "a", "blurry", "It's")


def made_pairs(count: int = 200, seed: int = 5) -> tuple[list[str], list[list[str]]]:
    """Predictions, and one to three references for each: words are changed, left out, doubled or in another case."""
    rng = random.Random(seed)
    predictions, references = [], []
    for number in range(count):
        _, truth = draw_shape(rng)
        texts = [truth, *(_changed(truth, rng, 0.3) for _ in range(number % 3))]
        references.append(texts)
        predictions.append(_changed(truth, rng, rng.choice((0.0, 0.2, 0.5))))
    predictions[2:5] = "", "star", "a red star " * 12
    return predictions, references


def _changed(text: str, rng: random.Random, share: float) -> str:
    words = []
    for word in text.split():
        if rng.random() >= share:
            words.append(word)
        else:
            words += rng.choice(([], [word, word], [rng.choice(_OTHERS)], [word.upper() + ","]))
    return " ".join(words) + rng.choice(("", ".", " !"))
