"""report.html of a run: renewed at each evaluation, whole after a resume, and never what ends a run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from florence2ner import train
from florence2ner.training.callbacks import Callback
from florence2ner.training.report import REPORT_FILE, RunReport
from tests.browser import chromium, watched_page
from tests.conftest import MakeConfig


def blocks_of(report: Path) -> dict[str, Any]:
    (data,) = re.findall(r'id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    return {block["block"]: block for block in json.loads(data)["blocks"]}


class _Watching(Callback):
    """Notes how many evaluations the page knows when the next one is over."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.seen: list[list[int]] = []

    def on_evaluation(self, step: int, result: object) -> None:
        self.seen.append(blocks_of(self.report)["timeline"]["steps"])


def test_the_page_is_renewed_at_each_evaluation_and_says_at_the_end_whether_it_got_better(
    make_config: MakeConfig,
) -> None:
    settings = {"epochs": 3, "eval_steps": 2, "save_steps": 2, "eval_before_training": True, "log_every": 1}
    config = make_config(**settings, eval_split_count=8, eval_captions=2)
    report = config.run_dir / REPORT_FILE
    watching = _Watching(report)
    result = train(config, callbacks=[watching])
    assert watching.seen == [[0], [0, 2], [0, 2, 4], [0, 2, 4, 6]]
    with chromium() as browser, watched_page(browser) as watched:
        watched.page.goto(report.as_uri())
        page = watched.page
        assert result.comparison
        difference = result.comparison.of("eval/loss")
        assert page.locator(".lead").first.inner_text() == f"{difference}: better".replace("->", "→")
        assert page.locator(".tiles li").first.inner_text().split() == ["6", "of", "6", "update"]
        titles = page.locator("figcaption b").all_inner_texts()
        assert {"Loss", "Learning rate", "Gradient norm", "Speed", "CIDEr-D", "exact match"} <= {*titles}
        assert page.locator(".card img").count() == 2, "the images that captions are written for"
        assert not watched.errors


def test_a_resumed_run_goes_on_with_the_whole_page(make_config: MakeConfig) -> None:
    settings = {"epochs": 2, "eval_steps": 1, "save_steps": 3, "lr_schedule": "constant"}
    whole = make_config(**settings, run_name="whole")
    train(whole)
    train(make_config(**settings, run_name="cut", max_steps=3))
    cut = make_config(**settings, run_name="cut", resume="latest")
    train(cut)
    found = [blocks_of(config.run_dir / REPORT_FILE) for config in (whole, cut)]
    assert found[0]["timeline"]["steps"] == found[1]["timeline"]["steps"] == [1, 2, 3, 4, 5, 6]
    losses = [blocks["charts"]["charts"][0]["series"] for blocks in found]
    assert losses[0] == losses[1]


def test_a_run_without_metrics_file_or_held_out_images_has_a_page(make_config: MakeConfig) -> None:
    silent = make_config(log_with=("none",), eval_steps=2, run_name="silent")
    train(silent)
    (loss, *_) = blocks_of(silent.run_dir / REPORT_FILE)["charts"]["charts"]
    assert [series["label"] for series in loss["series"]] == ["held out"]
    blind = make_config(eval_steps=None, run_name="blind")
    train(blind)
    assert {*blocks_of(blind.run_dir / REPORT_FILE)} == {"charts", "facts"}


def test_a_page_that_cannot_be_written_is_warned_of_once_and_ends_nothing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(eval_steps=1)
    (config.run_dir / REPORT_FILE / "in the way").mkdir(parents=True)
    assert train(config).checkpoint.name == "step-3"
    assert capsys.readouterr().err.count("the report could not be written, training goes on: can't write") == 1


def test_other_processes_than_the_main_one_write_nothing() -> None:
    elsewhere = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False))
    RunReport(elsewhere, None, 1, ()).renew()  # type: ignore[arg-type]  # would fail if it looked at anything else
