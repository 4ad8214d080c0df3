"""What is read of a run: also while it writes, and after it was killed."""

import os
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from florence2ner.files import hold
from florence2ner.watching.reading import find_run, read_run
from tests.support import files_in
from tests.watching.support import STARTED, evaluate, make_run


def test_figures_are_read_with_the_best_of_each_evaluation(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=6))
    assert run.step == 6
    assert run.metrics.losses == [1 / step for step in range(1, 7)]
    assert run.metrics.last["eval/exact_match"] == 0.6
    assert run.metrics.best == {"eval/loss": (0.5, 2), "eval/exact_match": (0.6, 6)}
    assert run.metrics.evaluated == {"eval/loss": 6, "eval/exact_match": 6}
    assert run.metrics.seconds_per_step(STARTED) == 2.0
    assert run.metrics.seconds_per_step(STARTED + 11) is None, "one line alone tells no pace"
    assert (run.holder, run.is_held, run.captions) == (None, False, None)


@pytest.mark.parametrize("end", [b'{"step": 5, "time": 1', b'{"step": 5, "ti\n', b"[]\n", b"\x00\x00\xff\n", b"{}\n"])
def test_half_a_line_is_passed_over(tmp_path: Path, end: bytes) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(end)
    run = read_run(folder)
    assert (run.step, len(run.metrics.losses)) == (4, 4)


def test_losses_that_are_none_and_figures_of_others_do_no_harm(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time": 1.0, "train/loss": NaN, "eval/loss": NaN, "eval/new": 2, "note": "x"}\n')
    run = read_run(folder)
    assert run.step == 5
    assert run.metrics.best["eval/loss"] == (0.5, 2)
    assert run.metrics.last["eval/new"] == 2
    assert "eval/new" not in run.metrics.best


def test_who_holds_it_is_read_without_a_trace(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with hold(folder, "it"):
        before = files_in(tmp_path)
        run = read_run(folder)
        assert run.holder
        assert run.holder.alive
        assert run.holder.name.startswith(f"process {os.getpid()} on ")
        assert "\n" not in run.holder.name
        assert run.is_held
        assert run.is_starting, "what status.json says is of an earlier start"
        assert files_in(tmp_path) == before
    assert not read_run(folder).is_held


def test_the_newest_whole_evaluation_has_the_captions(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    evaluate(folder, 2, "a blue star")
    evaluate(folder, 10, "a red star")
    evaluate(folder, 12, "").write_text('{"step": 12, "capt')
    assert read_run(folder).captions == (10, [("a red\nstar", "a red star")] * 3)


def test_a_run_is_found_from_what_is_in_it_and_what_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "out" / "run")
    (run / "step-4").mkdir()
    (run / "latest").symlink_to("step-4")
    for path in (run, run / "step-4", run / "latest", run / "metrics.jsonl", tmp_path / "out"):
        assert find_run(path) == run
    monkeypatch.chdir(run)
    assert find_run(Path(".")) == run


def test_a_run_that_makes_its_folder_later_is_found_by_its_lock(tmp_path: Path) -> None:
    with hold(tmp_path / "new", "it"):
        assert find_run(tmp_path / "new") == tmp_path / "new"
        assert read_run(tmp_path / "new").is_starting
    with pytest.raises(UserError, match="new does not exist"):
        find_run(tmp_path / "new")


def test_what_is_no_run_is_refused_in_a_line_that_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    make_run(tmp_path / "out" / "one")
    make_run(tmp_path / "out" / "two")
    for name, message in (
        ("empty", "empty holds no run, but nothing: name the folder of one"),
        ("photos", "photos holds no run, but a.png: name the folder of one"),
        ("photos/a.png", "a.png is no run: name the folder of one"),
        ("out", "out holds 2 runs, name one of them: (one, two|two, one)$"),
        ("out/onr", r"onr does not exist\. Did you mean one\?"),
        ("nowhere/at/all", "all does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            find_run(tmp_path / name)
