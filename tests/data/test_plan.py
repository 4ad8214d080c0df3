"""What settings make of a dataset: the rule of its split, how long epochs and runs are, and which images they use."""

from pathlib import Path

import pytest

from florence2ner import TrainConfig
from florence2ner.data.plan import build_order, count_updates, describe, drawn, split_rule
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.data.split import Split

SETTINGS = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 3}


def samples(weights: list[float], *, images: int = 100) -> list[Sample]:
    return [
        Sample(ImageRef.at(Path(f"{number % images}.png")), "<CAPTION>", ("a caption",), weight)
        for number, weight in enumerate(weights)
    ]


def test_the_rule_has_the_settings_of_the_split(tmp_path: Path) -> None:
    config = TrainConfig(dataset_path=tmp_path, eval_split_count=7, seed=3, split_by_similarity=2)
    rule = split_rule(config)
    assert rule is not None
    assert (rule.seed, rule.ratio, rule.count, rule.lists, rule.similarity) == (3, 0.1, 7, None, 2)
    assert split_rule(config.model_copy(update={"eval_steps": None})) is None
    (tmp_path / "split.json").write_text('{"train": ["a.png"], "eval": ["b.png"]}')
    rule = split_rule(TrainConfig(dataset_path=tmp_path, split=tmp_path / "split.json"))
    assert rule is not None
    assert rule.lists is not None
    assert rule.lists.eval == {"b.png"}


@pytest.mark.parametrize(
    ("weights", "changes", "updates"),
    [([1.0] * 10, {}, 9), ([3.0] * 10, {}, 24), ([0.5] * 10, {}, 6), ([1.0] * 10, {"max_steps": 5}, 5)],
)
def test_updates_count_what_an_epoch_takes(
    tmp_path: Path, weights: list[float], changes: dict[str, int], updates: int
) -> None:
    config = TrainConfig(dataset_path=tmp_path, **SETTINGS | changes)  # type: ignore[arg-type]
    order = build_order(config, samples(weights), processes=1)
    assert order.epoch_size == sum(weights)
    assert count_updates(config, order) == updates


def test_only_what_a_short_run_takes_is_drawn(tmp_path: Path) -> None:
    config = TrainConfig(dataset_path=tmp_path, **SETTINGS)  # type: ignore[arg-type]
    split = Split(tuple(samples([1.0] * 10)), tuple(samples([1.0] * 3)))
    order = build_order(config, split.train, processes=1)
    taken = [split.train[index] for index in order.order(0)[:4]]
    assert drawn(split, order, 1) == [*taken, *split.eval]
    assert len(drawn(split, order, 9)) == 13


@pytest.mark.parametrize(
    ("weights", "images", "words"),
    [
        ([1.0] * 4, 4, "4 images"),
        ([1.0] * 4, 2, "4 captions of 2 images"),
        ([2.0] * 4, 2, "4 captions of 2 images, of which an epoch takes 8"),
    ],
)
def test_what_is_trained_on_is_described(tmp_path: Path, weights: list[float], images: int, words: str) -> None:
    given = samples(weights, images=images)
    assert describe(given, build_order(TrainConfig(dataset_path=tmp_path), given, processes=1)) == words
