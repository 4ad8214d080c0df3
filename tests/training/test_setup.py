"""The parts of a run: in which order samples come, which captions are left out, and what a resumed optimizer has."""

import dataclasses
import math
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch

from florence2ner import UserError, train
from florence2ner.data.plan import build_order
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.data.split import Split
from florence2ner.model.build import load_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.training.run_folder import find_start
from florence2ner.training.setup import TrainData, build_data
from tests.conftest import MakeConfig
from tests.support import figures
from tests.training.test_run_folder import assert_same_bits


@pytest.fixture(scope="module")
def captioner(tiny_model: Path) -> Captioner:
    """Read only."""
    return load_captioner(tiny_model, device=torch.device("cpu"))


def make_samples(captions: list[str], name: str = "image") -> tuple[Sample, ...]:
    return tuple(
        Sample(ImageRef.at(Path(f"{name}-{number}.png")), "<CAPTION>", (caption,))
        for number, caption in enumerate(captions)
    )


def captions_of(count: int) -> list[str]:
    """Captions of many lengths, shuffled."""
    return [" ".join(["star"] * (1 + 7 * number % 11)) for number in range(count)]


def _tokens(captioner: Captioner, caption: str) -> int:
    return len(captioner.processor.tokenizer(caption).input_ids)


@pytest.fixture
def split() -> Split:
    """20 samples to train on, 3 held out."""
    return Split(make_samples(captions_of(20)), make_samples(["a", "b", "c"], "held-out"))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_update_takes_batch_times_accumulation_times_processes(
    make_config: MakeConfig, split: Split, processes: int
) -> None:
    config = make_config(train_batch_size=3, gradient_accumulation_steps=2, seed=11)
    order = build_order(config, split.train, processes=processes)
    assert order.global_batch == 6 * processes
    assert order.updates_per_epoch == math.ceil(20 / (6 * processes))
    for process in range(processes):
        window = order.window(0, process)
        assert [len(batch) for batch in window] == [3, 3]
    first = [draw.index for process in range(processes) for draw in chain(*order.window(0, process))]
    assert sorted(first) == sorted(order.order(0)[: 6 * processes])
    other = build_order(config.model_copy(update={"seed": 12}), split.train, processes=processes)
    assert order.order(0).tolist() != other.order(0).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, 9), ({"epochs": 1}, 3), ({"max_steps": 5}, 5), ({"epochs": 1, "max_steps": 50}, 50)]
)
def test_a_run_is_as_long_as_its_epochs_unless_max_steps_says_otherwise(
    make_config: MakeConfig, split: Split, captioner: Captioner, settings: dict[str, int], expected: int
) -> None:
    config = make_config(**{"epochs": 3} | settings)  # of 20 samples, 8 in an update
    assert build_data(config, split, captioner, processes=1).total_steps == expected


def test_captions_that_the_model_cannot_write_are_left_out(
    make_config: MakeConfig, captioner: Captioner, tmp_path: Path
) -> None:
    longest = captioner.longest_caption
    per_word = _tokens(captioner, "star star") - _tokens(captioner, "star")
    words = ["star"] * ((longest - _tokens(captioner, "a")) // per_word)
    fitting = " ".join(["a", *words])
    too_long = " ".join([fitting, "star"])
    assert _tokens(captioner, fitting) <= longest < _tokens(captioner, too_long)
    split = Split(make_samples(["a", too_long, fitting]), make_samples([too_long, "b"], "held-out"))
    data = build_data(make_config(), split, captioner, processes=1)
    assert data.note == f"2 captions are longer than the {longest} tokens that the model can write and are left out"
    assert [sample.caption for sample in data.split.train] == ["a", fitting]
    assert [sample.caption for sample in data.split.eval] == ["b"]
    assert sorted(data.order.order(0)) == [0, 1]

    for bad in (Split(make_samples([too_long]), ()), Split(make_samples(["a"]), make_samples([too_long]))):
        with pytest.raises(UserError, match=f"every caption is longer than the {longest} tokens"):
            build_data(make_config(), bad, captioner, processes=1)


def test_captions_of_like_length_come_together_where_that_is_wanted(
    make_config: MakeConfig, captioner: Captioner
) -> None:
    split = Split(make_samples(captions_of(64)), ())
    tokens = [_tokens(captioner, sample.caption) for sample in split.train]
    spreads = {}
    for grouped in (False, True):
        config = make_config(group_by_length=grouped, gradient_accumulation_steps=1)
        order = build_data(config, split, captioner, processes=1).order
        assert order.lengths == (tuple(tokens) if grouped else None)
        windows = [[draw.index for draw in chain(*order.window(update, 0))] for update in range(16)]
        assert sorted(chain(*windows)) == list(range(64))
        spreads[grouped] = sum(max(tokens[i] for i in w) - min(tokens[i] for i in w) for w in windows)
    assert spreads[True] < spreads[False] / 2


@pytest.mark.parametrize(("steps", "expected"), [(1, 8), (2, 16), (3, 20), (30, 20)])
def test_what_is_drawn_is_what_the_first_epoch_takes_and_what_is_held_out(
    make_config: MakeConfig, split: Split, captioner: Captioner, steps: int, expected: int
) -> None:
    data = build_data(make_config(max_steps=steps), split, captioner, processes=1)
    drawn = data.drawn()
    assert [*drawn[expected:]] == [*split.eval]
    assert len(set(drawn)) == len(drawn) == expected + 3
    first_epoch = [data.order.window(update, 0) for update in range(min(steps, 3))]
    assert drawn[:expected] == [split.train[draw.index] for window in first_epoch for batch in window for draw in batch]


def test_data_is_one_value_that_nothing_changes(make_config: MakeConfig, split: Split, captioner: Captioner) -> None:
    data: TrainData = build_data(make_config(), split, captioner, processes=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.total_steps = 1  # type: ignore[misc]


def test_a_resumed_run_has_the_rate_and_the_decay_of_the_command_and_the_moments_of_the_run(
    make_config: MakeConfig,
) -> None:
    plain = {"eval_steps": None, "save_steps": None, "keep_states": True}
    first = train(make_config(max_steps=2, learning_rate=1e-3, weight_decay=0.5, **plain)).checkpoint
    config = make_config(max_steps=4, learning_rate=5e-4, weight_decay=0.25, resume="latest", **plain)
    last = train(config).checkpoint

    def state(checkpoint: Path) -> dict[str, dict]:
        return torch.load(checkpoint / "state" / "optimizer.bin", weights_only=True)

    assert {group["weight_decay"] for group in state(first)["param_groups"]} == {0.0, 0.5}
    assert {group["weight_decay"] for group in state(last)["param_groups"]} == {0.0, 0.25}
    assert {group["initial_lr"] for group in state(last)["param_groups"]} == {5e-4}
    assert {int(moments["step"]) for moments in state(last)["state"].values()} == {4}, "they go on"
    expected = {}
    for step, total, peak in ((1, 2, 1e-3), (2, 2, 1e-3), (3, 4, 5e-4), (4, 4, 5e-4)):
        expected[step] = peak * 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
    assert figures(config.run_dir, "train/learning_rate") == pytest.approx(expected)


def test_several_roots_with_weights_and_repeats_train_and_resume_exactly(
    make_config: MakeConfig, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, numbers in {"data/3_few": range(3), "more": range(3, 11), "test": range(11, 13)}.items():
        (tmp_path / folder).mkdir(parents=True)
        for number in numbers:
            for suffix in (".png", ".txt"):
                shutil.copy(shapes / f"{number:04d}{suffix}", tmp_path / folder)
    roots = [tmp_path / "data", {"path": str(tmp_path / "more"), "weight": 0.5, "task_prompt": "<DETAILED_CAPTION>"}]
    settings = {"dataset_path": roots, "eval_path": tmp_path / "test", "kohya_repeats": True, "epochs": 3}
    settings |= {"train_batch_size": 2, "gradient_accumulation_steps": 1, "save_steps": 4, "save_total_limit": None}
    config = make_config(run_name="whole", keep_states=True, **settings)
    data = build_order(config, find_start(config).split.train, processes=1)
    assert data.epoch_size == 3 * 3 + 8 // 2
    whole = train(config).checkpoint
    said = capsys.readouterr().err
    assert "repeats in each epoch: 3 x 3 in 3_few" in said
    assert "11 images, of which an epoch takes 13, 2 held out; 21 updates of 2 images" in said
    assert figures(config.run_dir, "train/epoch")[21] == pytest.approx(3)
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-8"), **settings)).checkpoint
    assert_same_bits(whole, fork)
    for changed, message in (
        ({"kohya_repeats": False}, "the run has kohya_repeats True, this command False: it can't change on the way"),
        (
            {"dataset_path": [roots[0], tmp_path / "more"]},
            r"the run has weights \[1.0, 0.5\], this command \[1.0, 1.0\]",
        ),
    ):
        with pytest.raises(UserError, match=message):
            train(make_config(run_name="other", resume=str(whole.parent / "step-8"), **settings | changed))


def test_varied_captions_resume_exactly_and_change_what_is_learnt(
    make_config: MakeConfig, shapes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        shutil.copy(shapes / f"{number:04d}.png", data)
        (data / f"{number:04d}.txt").write_text("star, red, large, one, in the middle")
    settings = {"dataset_path": data, "epochs": 4, "eval_steps": None, "save_steps": 9, "save_total_limit": None}
    settings |= {"train_batch_size": 1, "gradient_accumulation_steps": 1}
    varied = settings | {"shuffle_tags": True, "keep_tags": 1, "tag_dropout": 0.3, "caption_dropout": 0.4}
    whole = train(make_config(run_name="whole", keep_states=True, **varied)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-9"), **varied)).checkpoint
    assert_same_bits(whole, fork)
    losses = figures(whole.parent, "train/loss")
    assert 8 < len(losses) < 22, "an update without a caption has no loss, and is none that went wrong"
    assert figures(whole.parent, "train/skipped_updates")[24] == 0
    assert figures(whole.parent, "train/epoch")[24] == 4
    plain = figures(train(make_config(run_name="plain", **settings)).checkpoint.parent, "train/loss")
    assert plain[min(losses)] != losses[min(losses)]


@pytest.mark.parametrize("too_long", ["truncate", "refuse"])
def test_captions_that_are_too_long_may_be_cut_or_refused(
    captioner: Captioner, make_config: MakeConfig, too_long: str
) -> None:
    config, long = make_config(too_long=too_long), "a red star " * captioner.longest_caption
    split = Split(make_samples(["a star", long]), make_samples([long, "a"], "held-out"))
    if too_long == "refuse":
        with pytest.raises(UserError, match=r"1 captions are longer than the .*image-1.png; shorten them"):
            build_data(config, split, captioner, processes=1)
        return
    data = build_data(config, split, captioner, processes=1)
    assert data.note is not None
    assert data.note.startswith("2 captions")
    assert data.note.endswith("and are cut")
    assert [len(side) for side in (data.split.train, data.split.eval)] == [2, 2]


def test_smoothed_labels_are_for_training_alone_and_resume_exactly(make_config: MakeConfig) -> None:
    settings = {"epochs": 1, "eval_before_training": True, "save_steps": 2, "save_total_limit": None}
    smoothed = settings | {"label_smoothing": 0.3, "keep_states": True}
    plain = train(make_config(run_name="plain", **settings))
    whole = train(make_config(run_name="whole", **smoothed))
    assert whole.history[0]["eval/loss"] == plain.history[0]["eval/loss"], "figures compare"
    assert abs(whole.history[1]["train/loss"] - plain.history[1]["train/loss"]) > 0.01
    fork = train(make_config(run_name="fork", resume=str(whole.run_dir / "step-2"), **smoothed))
    assert_same_bits(whole.checkpoint, fork.checkpoint)


def test_varied_images_are_encoded_each_time_and_resume_exactly(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"epochs": 2, "eval_before_training": True, "eval_steps": 3, "save_steps": 4, "save_total_limit": None}
    varied = settings | {"augment": True, "keep_states": True}
    whole = train(make_config(run_name="whole", **varied))
    assert "so there is no feature cache" in capsys.readouterr().err
    fork = train(make_config(run_name="fork", resume=str(whole.run_dir / "step-4"), dataloader_workers=1, **varied))
    assert_same_bits(whole.checkpoint, fork.checkpoint)
    plain = train(make_config(run_name="plain", feature_cache="off", **settings))
    first, other = (next(line for line in run.history if "train/loss" not in line) for run in (whole, plain))
    assert first["eval/loss"] == other["eval/loss"], "evaluation sees the images as they are"
    assert whole.figures["train/loss"] != plain.figures["train/loss"]
