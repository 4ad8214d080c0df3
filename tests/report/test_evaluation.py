"""The page of an evaluation, and of two: as a reader uses it, in a real browser, on both themes and sizes of screen."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from florence2ner.data.samples import ImageRef
from florence2ner.evaluation.compare import compare
from florence2ner.evaluation.result import Evaluation, summarise
from florence2ner.report import evaluation as module
from florence2ner.report.evaluation import badness, comparison_page, evaluation_page
from tests.report.support import HOSTILE, SCREENS, ground_of, images_of, opened, row, rows_of

on_screens = pytest.mark.parametrize("screen", SCREENS, ids=["light, wide", "dark, phone"])


def evaluated(count: int = 60) -> Evaluation:
    return summarise(rows_of(count), (), samples=count)


def page_of(folder: Path, result: Evaluation, **changes: object) -> str:
    given: dict[str, object] = {
        "title": HOSTILE[0],
        "figures": result.figures,
        "intervals": result.intervals(),
        "rows": result.rows,
        "images": images_of(folder / "images", result.rows),
        "settings": {"dataset_path": HOSTILE[1], "num_beams": 3},
    }
    return evaluation_page(**given | changes)  # type: ignore[arg-type]


def comparison_of(folder: Path, count: int = 60) -> str:
    after = rows_of(count)
    before = [
        row(one.image, one.references, "a small red circle" if at % 2 else one.prediction)
        for at, one in enumerate(after)
    ]
    found = compare(before, after)
    return comparison_page(
        titles=(HOSTILE[0], "mine"),
        differences=found.differences,
        before=found.before,
        after=found.after,
        images=images_of(folder / "images", after),
        settings={},
    )


def names(page: Page) -> list[str]:
    return page.locator(".card .name span:first-child").all_inner_texts()


@on_screens
def test_scores_and_captions_are_shown_and_hostile_texts_are_text(
    browser: Browser, tmp_path: Path, screen: dict[str, object]
) -> None:
    result = evaluated()
    with opened(browser, tmp_path / "page.html", page_of(tmp_path, result), **screen) as watched:
        page = watched.page
        assert (ground_of(watched) > 600) == (screen["color_scheme"] == "light")
        table = page.locator(".scores").inner_text()
        assert f"{result.figures['eval/exact_match']:.1%}" in table
        assert all(label in table for label in ("loss", "CIDEr-D", "ROUGE-L", "BLEU-4", "length ratio"))
        low, high = result.intervals()["eval/cider"]
        assert f"{low:.3f} \N{EN DASH} {high:.3f}" in table
        page.get_by_role("searchbox").fill("script alert(1)")
        (shown,) = page.locator(".card").all_inner_texts()
        assert "a red <script>alert(1)</script> star" in " ".join(shown.split())
        assert page.locator(".card mark").all_inner_texts() == ["red", "blue"]


@on_screens
def test_captions_are_filtered_sorted_and_enlarged_by_keyboard(
    browser: Browser, tmp_path: Path, screen: dict[str, object]
) -> None:
    result = evaluated()
    text = page_of(tmp_path, result)
    with opened(browser, tmp_path / "page.html", text, **screen) as watched:
        page = watched.page
        scores = {Path(row.image).name: row.scores["eval/cider"] for row in result.rows}
        worst = names(page)
        assert [scores[name] for name in worst] == sorted(scores.values())[: len(worst)], "worst first"

        def reach(role: str, name: str, most: int = 30) -> None:
            """Go on with Tab until the control has the focus."""
            wanted = page.get_by_role(role, name=name).first  # type: ignore[arg-type]
            for _ in range(most):
                page.keyboard.press("Tab")
                if wanted.evaluate("element => element === document.activeElement"):
                    return
            raise AssertionError(f"{name} is not reached")

        reach("searchbox", "Search")
        page.keyboard.type("SQUARE red")
        assert all("square" in card for card in page.locator(".card").all_inner_texts())
        assert page.locator(".total").inner_text() == "12 of 60 images"
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        reach("combobox", "sort by")
        page.keyboard.type("loss")
        assert "loss" in page.locator(".card .score").first.inner_text()
        reach("combobox", "order")
        page.keyboard.type("best")
        reach("button", "loop")
        page.keyboard.press("Space")
        assert page.locator(".total").inner_text() == "9 of 60 images"
        assert page.locator(".card .flag").count() == 9
        reach("button", "Enlarge")
        first, second = names(page)[:2]
        page.keyboard.press("Enter")
        heading = page.locator("dialog h3")
        assert heading.inner_text() == first
        page.keyboard.press("ArrowRight")
        assert heading.inner_text() == second
        assert "CIDEr-D" in page.locator("dialog .all").inner_text()
        page.keyboard.press("Escape")
        assert not page.locator("dialog[open]").count()


def test_a_bar_of_the_histogram_shows_only_its_images(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "page.html", page_of(tmp_path, evaluated()), **SCREENS[0]) as watched:
        page = watched.page
        page.get_by_label("sort by").select_option("eval/exact_match")
        bars = page.locator(".bin")
        assert [bar.get_attribute("aria-label") for bar in bars.all()] == ["0.0%: 15 images", "100.0%: 45 images"]
        bars.first.click()
        assert page.locator(".total").inner_text() == "15 of 60 images"
        page.get_by_role("button", name="only 0.0%").click()
        assert page.locator(".total").inner_text() == "60 images"


def test_captions_come_as_one_scrolls(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path / "page.html", page_of(tmp_path, evaluated()), **SCREENS[0]) as watched:
        page = watched.page
        assert page.locator(".card").count() == 30
        page.locator(".card").last.scroll_into_view_if_needed()
        expect(page.locator(".card")).to_have_count(60)
        assert page.locator(".more").is_hidden()


@on_screens
def test_two_models_stand_side_by_side(browser: Browser, tmp_path: Path, screen: dict[str, object]) -> None:
    with opened(browser, tmp_path / "page.html", comparison_of(tmp_path), **screen) as watched:
        page = watched.page
        assert page.locator(".lead").inner_text().startswith("B is better: CIDEr-D ")
        assert page.locator("h1").inner_text() == f"mine against {HOSTILE[0]}"
        table = page.locator(".differences")
        assert "B is better" in table.inner_text()
        assert "23 wins · 37 ties · 0 losses" in table.locator("tr", has_text="exact match").inner_text()
        first = page.locator(".card").first
        assert first.locator("dt").all_inner_texts() == ["truth", "A", "B"]
        assert first.locator(".score.better").count() == 1
        page.get_by_role("combobox", name="order", exact=True).select_option("worst")
        page.get_by_role("searchbox").fill("0000")
        assert page.locator(".card").count() == 1


def test_captions_without_a_prediction_count_in_the_figures_alone(browser: Browser, tmp_path: Path) -> None:
    result = summarise([row("a.png", "x", None), row("b.png", "y", None)], (), samples=2)
    with opened(browser, tmp_path / "page.html", page_of(tmp_path, result), **SCREENS[0]) as watched:
        assert watched.page.locator(".scores tbody tr").count() == 2
        assert not watched.page.locator(".card").count()


def test_a_metric_without_an_interval_has_no_verdict() -> None:
    assert badness("eval/cider", 1.0) < badness("eval/cider", 0.5)
    assert badness("eval/loss", 1.0) > badness("eval/loss", 0.5)
    assert badness("eval/length_ratio", 1.1) < badness("eval/length_ratio", 0.5)


def test_of_too_many_the_worst_are_shown_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PICTURES", 5)
    text = page_of(tmp_path, evaluated(20))
    assert "The 5 worst of 20 captions by CIDEr-D are shown." in text
    assert text.count('"picture":') == 5
    assert "on which the two differ most" in comparison_of(tmp_path, 20)


@pytest.mark.slow
def test_five_thousand_images_stay_below_100_mb_and_are_filtered_at_once(browser: Browser, tmp_path: Path) -> None:
    """Of noise, which no JPEG makes small: as photographs, each has its own picture."""
    rows = [row(f"{at:05d}.png", f"a red star number {at}", f"a blue star number {at}") for at in range(5000)]
    result = summarise(rows, ("eval/exact_match", "eval/rouge_l"), samples=5000)
    images = {}
    for number in range(20):
        Image.effect_noise((640, 480), 120).save(tmp_path / f"{number}.jpg")
    for at, one in enumerate(rows):
        images[one.image] = ImageRef(one.image, tmp_path / f"{at % 20}.jpg")
    text = page_of(tmp_path, result, images=images)
    assert 20_000_000 < len(text.encode()) < 100_000_000
    with opened(browser, tmp_path / "page.html", text, **SCREENS[0]) as watched:
        page = watched.page
        page.get_by_role("searchbox").fill("04999")
        assert page.locator(".card").count() == 1
        picture = page.locator(".card img")
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 100
        took = page.evaluate(
            """() => {
                const search = document.querySelector("input[type=search]");
                const start = performance.now();
                search.value = "star 12";
                search.dispatchEvent(new Event("input"));
                return performance.now() - start;
            }"""
        )
        assert took < 2000
        assert page.locator(".total").inner_text().endswith("of 5,000 images")
