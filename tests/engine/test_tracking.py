"""Weights & Biases, TensorBoard and others: what is in their files, and what becomes of a run when they fail."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from florence2ner import UserError, train
from florence2ner.display import Display
from florence2ner.engine import tracking as tracking_module
from florence2ner.engine.runtime import make_accelerator
from florence2ner.engine.tracking import check_trackers, tracking
from tests.conftest import ROOT, ColdStart, MakeConfig, Start
from tests.engine import wandb_files
from tests.engine.test_guarded import Diary
from tests.support import figures, weights, write


def test_wandb_runs_offline_with_a_table_and_says_how_to_sync(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=1, log_with=("wandb", "tensorboard"), log_every=1)
    train(config)
    assert f"wandb sync {config.run_dir}/wandb/offline-run-*" in capsys.readouterr().err
    (run,) = (config.run_dir / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (table,) = (run / "files" / "media" / "table" / "eval").glob("*.json")
    assert json.loads(table.read_text())["columns"] == ["truth", "prediction", "image"]
    assert list(config.run_dir.rglob("events.out.tfevents.*"))
    # The resumed run goes on in the W&B run that it left.
    train(make_config(max_steps=2, log_with=("wandb",), resume="latest"))
    runs = list((config.run_dir / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rsplit("-", 1)[1] for run in runs}) == 1
    assert figures(config.run_dir, "train/loss")
    assert "WANDB_DATA_DIR" not in os.environ


def test_wandb_stages_its_tables_in_the_run_folder(
    make_config: MakeConfig, cold_start: ColdStart, tmp_path: Path
) -> None:
    """Its own place is in the home folder, which in containers may be read-only, or missing."""
    config = make_config(max_steps=1, log_with=("wandb",))
    (tmp_path / "home").write_text("no folder, so that nobody can write into it, not even root")
    home = {"HOME": str(tmp_path / "home"), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    run = cold_start("-m", "florence2ner", "train", "--config", write(config, tmp_path), **home)
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert "wandb failed" not in said
    assert " INFO " not in said, "wandb's own log"
    assert list(config.run_dir.glob("wandb/offline-run-*/files/media/table/eval/*.json"))
    assert (config.run_dir / "wandb" / "artifacts" / "staging").is_dir()


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_changes_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    plain = train(make_config(max_steps=3, run_name="plain")).checkpoint

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the service\nis down")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    config = make_config(max_steps=3, run_name="watched", log_with=("tensorboard",))
    watched = train(config).checkpoint
    said = capsys.readouterr().err
    assert said.count("the service is down") == said.count("tensorboard failed") == 1
    assert "warning: tensorboard failed, training goes on without what it missed: the service is down" in said
    assert list(figures(config.run_dir, "train/loss")) == [1, 2, 3]
    ours, theirs = weights(plain), weights(watched)
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.slow
def test_offline_files_of_wandb_hold_metrics_settings_and_captions_over_a_resume_that_goes_back(
    make_config: MakeConfig,
) -> None:
    common: dict[str, Any] = {"log_with": ("wandb",), "keep_states": True, "eval_before_training": True}
    config = make_config(**common, max_steps=4, save_steps=2, eval_steps=2)
    train(config)
    first = config.run_dir / "wandb" / "latest-run"
    assert wandb_files.history(_file(first)).keys() == {0, 1, 2, 3, 4}
    shutil.rmtree(config.run_dir / "step-4")
    again = make_config(**common, max_steps=5, save_steps=2, eval_steps=2, resume="latest")  # with other rates: cosine
    train(again)

    folders = sorted((config.run_dir / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_ctime)
    files = [_file(folder) for folder in folders]
    assert len(files) == 2
    assert len({wandb_files.run_id(file) for file in files}) == 1
    assert wandb_files.history(files[1]).keys() == {3, 4, 5}
    logged = wandb_files.history(files[0]) | wandb_files.history(files[1])
    tables = {step: values.pop("eval/captions") for step, values in logged.items() if "eval/captions" in values}
    expected: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines()):
        del line["time"]
        expected.setdefault(line.pop("step"), {}).update(line)
    assert logged == expected

    assert tables.keys() == {0, 2, 4, 5}
    for file, count in zip(files, (3, 2), strict=True):
        kept = wandb_files.artifacts(file)  # wandb keeps a table with images as an artifact
        assert len(kept) == count
        for names in kept:
            rows = json.loads(names["eval/captions.table.json"].read_text())["data"]
            assert rows
            for truth, _, image in rows:
                assert truth.startswith("a ")
                assert Image.open(names[image["path"]]).size == (image["width"], image["height"]) == (64, 64)
    for file, total in zip(files, (4, 5), strict=True):
        told = wandb_files.settings(file)
        assert told["learning_rate"] == 1e-3
        assert told["mixed_precision"] == "no", "what auto came to"
        assert (told["total_steps"], told["images_per_update"], told["processes"]) == (total, 8, 1)


def _file(folder: Path) -> Path:
    (file,) = folder.glob("*.wandb")
    return file


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_a_resume_that_goes_back(make_config: MakeConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    common: dict[str, Any] = {"log_with": ("tensorboard",), "keep_states": True, "eval_steps": None}
    config = make_config(**common, max_steps=4, save_steps=2)
    train(config)
    shutil.rmtree(config.run_dir / "step-4")
    train(make_config(**common, max_steps=5, save_steps=2, resume="latest"))
    events = EventAccumulator(str(config.run_dir / config.wandb_project)).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert shown == pytest.approx(figures(config.run_dir, "train/loss"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", r"log_with: there is no tracker 'wandbb'\. Did you mean wandb\? There are: .*mlflow.*, jsonl, none"),
        ("comet_ml", r"log_with comet_ml needs its package: pip install comet-ml"),
        ("swanlab", r"log_with swanlab needs its package: pip install swanlab"),
        ("aim", r'log_with aim needs its package: pip install "aim<4"'),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_in_a_line(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_module, "get_available_trackers", lambda: ["wandb"])
    with pytest.raises(UserError, match=f"^{message}$"):
        check_trackers(("wandb", name))
    check_trackers(("wandb", "jsonl"))
    check_trackers(("none",))


def test_a_tracker_that_a_program_registers_is_used_by_its_name(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Diary] = []

    class Registered(Diary):
        name = "registered"
        requires_logging_directory = True

        def __init__(self, project: str, folder: Path) -> None:
            super().__init__()
            assert (project, folder) == (config.wandb_project, config.run_dir)
            made.append(self)

    monkeypatch.setattr(accelerate.tracking, "LOGGER_TYPE_TO_CLASS", {})
    monkeypatch.setattr(tracking_module, "LOGGER_TYPE_TO_CLASS", accelerate.tracking.LOGGER_TYPE_TO_CLASS)
    accelerate.tracking.register_tracker_class(Registered)
    config = make_config(max_steps=2, log_with=("registered",))
    train(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    told = [({"step": step} | values) for method, (step, values) in made[0].notes[2:-1] if method == "log"]
    assert told == [{name: value for name, value in line.items() if name != "time"} for line in lines]
    assert [method for method, _ in made[0].notes] == ["start", "settings", *["log"] * len(lines), "finish"]


@pytest.mark.slow
def test_trackio_holds_the_metrics_and_a_resumed_run_goes_on_in_its_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read at the import
    pytest.importorskip("trackio", reason="needs the extra trackio")
    from trackio.sqlite_storage import SQLiteStorage

    config = make_config(max_steps=2, eval_steps=None, log_with=("trackio",))
    train(config)
    train(make_config(max_steps=4, eval_steps=None, log_with=("trackio",), resume="latest"))
    (run,) = SQLiteStorage.get_runs(config.wandb_project)
    assert run.startswith("run-")
    lines = SQLiteStorage.get_logs(config.wandb_project, run)
    assert {line["step"]: line["train/loss"] for line in lines} == figures(config.run_dir, "train/loss")


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True], ids=["silent from the start", "silent when it matters"])
def test_a_server_of_wandb_that_never_answers_costs_a_bounded_time(
    make_config: MakeConfig, cold_start: ColdStart, tmp_path: Path, answers: bool
) -> None:
    config = make_config(max_steps=2, log_with=("wandb",))
    with _server(answers) as port:
        online = {"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        run = cold_start("-m", "tests.programs.hasty", "train", "--config", write(config, tmp_path), **online, **home)
        _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert "Traceback" not in said
    assert list(figures(config.run_dir, "train/loss")) == [1, 2]
    assert said.count("Weights & Biases runs offline") + said.count("wandb failed, training goes on") == 1
    if "wandb failed" in said:  # a busy machine may not have begun anew, offline, within the limit
        return
    assert "upload later with: wandb sync" in said
    (folder,) = (config.run_dir / "wandb").glob("offline-run-*")
    losses = {step: values["train/loss"] for step, values in wandb_files.history(_file(folder)).items()}
    assert losses == figures(config.run_dir, "train/loss")


@contextmanager
def _server(answers: bool) -> Iterator[int]:
    """A server that accepts every connection, and answers at most a HEAD; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if not answers:
                over.wait()
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            over.wait()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_of_two_processes_one_logs(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(max_steps=2, gradient_accumulation_steps=1, log_with=("wandb", "tensorboard"))
    run = start("florence2ner", "train", "--config", write(config, tmp_path), processes=2).wait()
    assert run.returncode == 0, run.stderr
    assert len(list((config.run_dir / "wandb").glob("offline-run-*"))) == 1
    assert len(list((config.run_dir / config.wandb_project).glob("events.*"))) == 1
    assert list(figures(config.run_dir, "train/loss")) == [1, 2]


def test_metrics_that_cannot_be_written_are_told_once_and_go_on_where_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator = make_accelerator("no", seed=0)
    file = tmp_path / "metrics.jsonl"
    file.symlink_to("/dev/full")
    names: Any = {"log_with": ("jsonl",), "project": "p", "tracker_id": "t", "step": 0}
    with tracking(accelerator, Display(is_main=True), tmp_path, {}, **names):
        accelerator.log({"a": 1}, step=1)
        accelerator.log({"a": 2}, step=2)
        file.unlink()
        accelerator.log({"a": 3}, step=3)
    assert list(figures(tmp_path, "a")) == [3]
    said = capsys.readouterr().err
    assert said.count("warning: jsonl failed, training goes on without what it missed: can't write") == 1
