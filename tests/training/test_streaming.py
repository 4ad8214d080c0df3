"""Training on tar shards: exact resume in the middle of them, what is held out, and what is refused."""

import json
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from florence2ner import EvalConfig, TrainConfig, UserError, evaluate, train
from florence2ner.config.options import ReadingOptions
from florence2ner.data.stream import Shard
from florence2ner.engine.run_files import list_checkpoints, load_train_state
from florence2ner.training.run_folder import find_start
from florence2ner.training.streaming import check_same_shards, find_shards, furthest
from tests.conftest import MakeConfig, Start
from tests.data.support import captioned, write_shard
from tests.support import history, write
from tests.training.test_run_folder import assert_same_bits

LENGTHS = (5, 9, 1, 6, 7, 3)  # of the shards, in samples


@pytest.fixture
def settings(dropout_model: Path, tmp_path: Path) -> dict[str, object]:
    """A run of eight updates with three micro-batches each, over shards that hold less than two epochs of that."""
    for number, length in enumerate(LENGTHS):
        names = (f"{number}-{image}" for image in range(length))
        write_shard(tmp_path / "shards" / f"{number}.tar", captioned(*names))
    write_shard(tmp_path / "held-out.tar", captioned("e0", "e1", "e2"))
    return {
        "model_name": str(dropout_model),
        "dataset_path": str(tmp_path / "shards/{0..5}.tar"),
        "eval_path": str(tmp_path / "held-out.tar"),
        "max_steps": 8,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_steps": 4,
        "log_every": 3,
        "freeze_vision": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 1)])
def test_a_run_killed_in_the_middle_of_its_shards_ends_with_the_same_bits(
    make_config: MakeConfig, settings: dict[str, object], start: Start, tmp_path: Path, processes: int, workers: int
) -> None:
    settings |= {"dataloader_workers": workers}
    whole, killed = (make_config(run_name=name, **settings) for name in ("whole", "killed"))
    train_it = ("florence2ner", "train", "--config", write(killed, tmp_path))
    first = start(*train_it, processes=processes)
    while not list_checkpoints(killed.run_dir):
        assert first.poll() is None, first.stderr
        time.sleep(0.005)
    first.signal(signal.SIGKILL)
    first.wait()
    state = load_train_state(list_checkpoints(killed.run_dir)[-1])
    assert state.step < 8, "it was killed on its way"
    assert any(0 < taken < sum(LENGTHS) for *_, taken in state.lanes)
    for config, flags in ((whole, ()), (killed, ("--resume", "latest"))):
        done = start("florence2ner", "train", "--config", write(config, tmp_path), *flags, processes=processes).wait()
        assert done.returncode == 0, done.stderr
    assert_same_bits(whole.run_dir / "step-8", killed.run_dir / "step-8")
    assert history(whole.run_dir) == history(killed.run_dir)
    assert load_train_state(whole.run_dir / "step-8").lanes == load_train_state(killed.run_dir / "step-8").lanes


def test_workers_make_no_difference_and_an_epoch_has_no_length(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    alone, helped = (
        train(make_config(run_name=f"with {workers}", dataloader_workers=workers, **settings)).checkpoint
        for workers in (0, 2)
    )
    assert_same_bits(alone, helped)
    lines = [json.loads(line) for line in (alone.parent / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in lines)
    assert any("eval/loss" in line for line in lines)
    assert not any("train/epoch" in line for line in lines)


def test_the_checkpoint_evaluates_on_shards_and_says_where_it_was_trained_on_them(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(make_config(**settings | {"max_steps": 2, "eval_steps": None})).checkpoint
    for path, samples, note in (
        (tmp_path / "held-out.tar", 3, ""),
        (tmp_path / "shards", sum(LENGTHS), f"note: {sum(LENGTHS)} of these {sum(LENGTHS)} images were trained on"),
    ):
        capsys.readouterr()
        result = evaluate(EvalConfig(model_name=str(checkpoint), dataset_path=path, max_new_tokens=2, num_beams=1))
        assert result.samples == samples
        printed = capsys.readouterr().err
        assert note in printed
        assert ("were trained on" in printed) == bool(note)


def test_what_is_passed_over_is_warned_of_once_and_counted_at_the_end(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = captioned("e0", "e1")
    write_shard(tmp_path / "shards" / "2.tar", {**held_out, "alone.jpg": held_out["e0.jpg"], "last.jpg": b"none"})
    torn = tmp_path / "shards" / "3.tar"
    torn.write_bytes(torn.read_bytes()[:3000])
    train(make_config(**settings))
    printed = capsys.readouterr().err
    for what, count in (
        ("images are copies of some that are evaluated on", 2),
        ("images have no caption", 2),
        ("shards can't be read to their end", 1),
    ):
        assert len(re.findall(rf"warning: {count} {what}.*; more of this kind is counted at the end", printed)) == 1
        assert len(re.findall(rf"of the shards, as far as they were read: {count} {what}", printed)) == 1
    assert re.search(
        r"as far as they were read: \d+ times a shard could not be read to its end once more: .*3\.tar", printed
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_a_sample_end_the_run_in_one_line(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path, workers: int
) -> None:
    for shard in (tmp_path / "shards").iterdir():
        write_shard(shard, {"a.txt": b"of no image"})
    message = (
        r"^no image with a caption that can be used in 6 shards; of the first: 1 keys have no image and are left out: "
        r"\S+0\.tar/a$"
    )
    with pytest.raises(UserError, match=message):
        train(make_config(dataloader_workers=workers, **settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "how long an epoch is: set --max-steps"),
        ({"eval_path": ()}, "nothing of tar shards is held out: name an --eval-path, or set --eval-steps none"),
        ({"group_by_length": True}, "group_by_length needs a list of all images, which tar shards don't give"),
        ({"kohya_repeats": True}, "kohya_repeats needs a list of all images"),
        ({"split_by_similarity": 3}, "split_by_similarity needs a list of all images"),
        ({"eval_path": (), "eval_split_count": 3}, "eval_split_count needs a list of all images"),
        ({"feature_cache": "disk", "freeze_vision": True}, "feature_cache disk is for images that come again soon"),
        ({"dataset_path": ["T/shards/0.tar", "T/photos"]}, "photos holds no tar shards, as the other roots do"),
        ({"dataset_path": "T/shards/{0..7}.tar"}, r"2 of 8 shards are missing: .*6\.tar, .*7\.tar; mend "),
        ({"eval_path": "T/nowhere.tar"}, r"1 of 1 shards are missing: .*nowhere\.tar"),
        ({"dataset_path": "T/photos", "layout": "shards"}, r"there is no \.tar file in .*photos"),
    ],
)
def test_what_does_not_fit_shards_is_one_line(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    (tmp_path / "photos").mkdir()
    placed = json.loads(json.dumps(dict(changes)).replace("T/", f"{tmp_path}/"))
    with pytest.raises(UserError, match=message) as error:
        find_start(make_config(**settings | placed))
    assert "\n" not in str(error.value)


def test_roots_are_read_each_in_its_own_way(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    boxes = {"path": str(tmp_path / "held-out.tar"), "task_prompt": "<OD>", "caption_extension": ".od", "weight": 3}
    config: TrainConfig = make_config(**settings | {"dataset_path": [folder, boxes], "eval_steps": None})
    shards = find_shards(config)
    assert [shard.path for shard in shards[:-1]] == [str(folder / f"{n}.tar") for n in range(6)]
    assert shards[-1].path == boxes["path"]
    assert [shard.options.task_prompt for shard in shards] == ["<CAPTION>"] * 6 + ["<OD>"]
    assert [shard.weight for shard in shards] == [1] * 6 + [3]
    assert config.run_dir.name == "run"
    assert find_shards(make_config()) == ()


def test_a_resumed_run_reads_the_same_shards_wherever_they_are(
    make_config: MakeConfig, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings |= {"eval_steps": None, "eval_path": ()}
    train(make_config(**settings | {"max_steps": 2}))
    resumed = settings | {"max_steps": 4, "resume": "latest"}
    for changes, message in (
        ({"dataset_path": str(tmp_path / "shards/{0..4}.tar")}, "reads 6 shards, this command 5: they can't change"),
        ({"dataset_path": str(tmp_path / "shards/{5..0}.tar")}, r"reads 0\.tar where this command has 5\.tar"),
        ({"dataset_path": str(tmp_path / "shards/0.tar")}, "reads 6 shards, this command 1"),
        ({"dataloader_workers": 3}, "4 lanes, 4 in each process, which 3 workers can't share evenly"),
    ):
        with pytest.raises(UserError, match=message):
            train(make_config(**resumed | changes))
    (tmp_path / "shards").rename(tmp_path / "moved")
    moved = {
        "dataset_path": str(tmp_path / "moved/{0..5}.tar"),
        "train_batch_size": 3,
        "gradient_accumulation_steps": 2,
    }
    assert train(make_config(**resumed | moved)).checkpoint.name == "step-4"
    assert "with another train_batch_size, images of shards are not in the order of" in capsys.readouterr().err


def test_shards_are_compared_by_their_place_in_the_folder_of_all() -> None:
    before = ["/a/x/0.tar", "/a/y/0.tar"]

    def shards(*paths: str) -> list[Shard]:
        return [Shard(path, ReadingOptions()) for path in paths]

    check_same_shards(before, shards("b/x/0.tar", "b/y/0.tar"))
    with pytest.raises(UserError):
        check_same_shards(before, shards("b/y/0.tar", "b/x/0.tar"))


def test_each_lane_is_where_the_process_that_reads_it_is() -> None:
    start, first, second = [0, 0, 0, 0, 0], [0, 1, 3, 1, 200], [1, 0, 9, 2, 1]
    assert furthest([[first, start, second], [start, second, first]]) == [first, second, second]
    assert furthest([[], []]) == []
