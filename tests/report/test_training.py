"""The page of a training run: curves that are read by keyboard, and captions that one can step through."""

import json
import math
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from florence2ner.report.thumbnails import thumbnails
from florence2ner.report.training import Captions, training_page
from tests.report.support import HOSTILE, SCREENS, images_of, opened, row

LINES = [
    {"step": 0, "time": 0.0, "eval/loss": 2.5, "eval/cider": 0.1, "eval/exact_match": 0.0},
    *(
        {
            "step": step,
            "time": 1.0,
            "train/loss": 2.0 / step if step != 7 else math.nan,
            "train/learning_rate": 1e-3 / step,
            "train/learning_rate_vision": 1e-4,
            "train/gradient_norm": 0.5 if step != 8 else math.inf,
            "train/images_per_second": 10.0 + step,
        }
        for step in range(1, 21)
    ),
    {"step": 10, "time": 0.0, "eval/loss": 0.5, "eval/cider": 3.25, "eval/exact_match": 0.25},
    {"step": 20, "time": 0.0, "eval/loss": 0.75, "eval/cider": 3.0, "eval/exact_match": 0.5},
]
NAMES = ["a.png", HOSTILE[1]]


def page_of(folder: Path, **changes: object) -> str:
    texts = {0: None, 10: "a blue star", 20: "a red star"}
    evaluations = [
        Captions(step, [row(name, f"a red star {HOSTILE[0]}", text and f"{text} {HOSTILE[0]}") for name in NAMES])
        for step, text in texts.items()
    ]
    rows = evaluations[0].rows
    pictures = thumbnails([*images_of(folder / "images", rows).values()])
    given: dict[str, object] = {
        "title": HOSTILE[2],
        "lead": ["CIDEr-D 0.1 → 3.0"],
        "facts": {"update": "20 of 20"},
        "lines": LINES,
        "evaluations": evaluations,
        "followed": [(row.name, text or "") for row, text in zip(rows, pictures, strict=True)],
        "settings": {"run_name": HOSTILE[0]},
    }
    return training_page(**given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("screen", SCREENS, ids=["light, wide", "dark, phone"])
def test_the_curves_are_drawn_and_read_by_keyboard(browser: Browser, tmp_path: Path, screen: dict[str, object]) -> None:
    with opened(browser, tmp_path / "page.html", page_of(tmp_path), **screen) as watched:
        page = watched.page
        titles = page.locator("figcaption b").all_inner_texts()
        assert titles == ["Loss", "CIDEr-D", "exact match", "Learning rate", "Gradient norm", "Speed"]
        assert page.locator(".chart").first.locator("path").count() == 3, "raw, smoothed, held out"
        assert page.locator(".chart").nth(3).locator("path").count() == 2, "two rates"
        numbers = page.locator(".plot path").evaluate_all("paths => paths.map(p => p.getAttribute('d'))")
        assert all(path and "NaN" not in path for path in numbers)
        readout = page.locator(".readout")
        assert readout.nth(0).inner_text() == "best 0.5 at step 10"
        assert readout.nth(1).inner_text() == "best 3.25 at step 10"
        assert readout.nth(2).inner_text() == "best 50.0% at step 20"
        page.locator(".plot").first.focus()
        page.keyboard.press("End")
        assert readout.nth(0).inner_text().startswith("step 20 · training ")
        assert readout.nth(0).inner_text().endswith("held out 0.75")
        assert readout.nth(1).inner_text() == "step 20 · 3", "all follow"
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert readout.nth(0).inner_text() == "step 1 · training 2"
        page.get_by_label("log scale").first.check()
        assert page.locator(".chart").first.locator("path").count() == 3
        page.get_by_label("smoothing").fill("0")
        page.locator(".plot").first.focus()
        page.keyboard.press("End")
        assert "training 0.1 " in readout.nth(0).inner_text()
        page.get_by_text("The numbers as a table").click()
        expect(page.locator(".scroll tbody tr")).to_have_count(21)
        assert "3.25" in page.locator(".scroll tbody tr").nth(10).inner_text()


@pytest.mark.parametrize("screen", SCREENS, ids=["light, wide", "dark, phone"])
def test_captions_are_stepped_through(browser: Browser, tmp_path: Path, screen: dict[str, object]) -> None:
    with opened(browser, tmp_path / "page.html", page_of(tmp_path), **screen) as watched:
        page = watched.page
        cards = page.locator(".card")
        assert cards.count() == 2
        assert not cards.first.locator("mark").count(), "the last one is right"
        page.get_by_label("Evaluation").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".steps .total").inner_text() == "after step 10 (2 of 3)"
        assert cards.first.locator("mark").all_inner_texts() == ["red", "blue"]
        page.get_by_role("button", name="Earlier").click()
        assert "base model" in page.locator(".steps .total").inner_text()
        assert "nothing" in cards.first.inner_text()
        cards.first.get_by_text("all 3").click()
        expect(cards.first.locator("ol")).to_contain_text("a blue star")


def test_a_run_without_figures_or_captions_has_a_page_too(browser: Browser, tmp_path: Path) -> None:
    text = page_of(tmp_path, lines=[], evaluations=[], followed=[], lead=[])
    with opened(browser, tmp_path / "page.html", text, **SCREENS[0]) as watched:
        assert not watched.page.locator(".chart").count()
        assert watched.page.get_by_text("Settings (1)").count() == 1


def test_a_long_run_has_curves_of_few_points(tmp_path: Path) -> None:
    lines = [{"step": step, "time": 0.0, "train/loss": 1.0} for step in range(1, 100_001)]
    assert len(page_of(tmp_path, lines=lines)) < 150_000


def test_of_many_evaluations_the_first_the_last_and_some_between_are_shown(tmp_path: Path) -> None:
    many = [Captions(step, [row("a.png", "a red star", f"star {step}")]) for step in range(1000)]
    text = page_of(tmp_path, evaluations=many, followed=[(("a.png", "<CAPTION>"), "")])
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    (steps,) = (block["steps"] for block in json.loads(data)["blocks"] if block["block"] == "timeline")
    assert len(steps) <= 61
    assert (steps[0], steps[-1]) == (0, 999)
