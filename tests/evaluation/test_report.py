"""`eval --report`: the page of a real evaluation, of one model and of two, and the same from several processes."""

from pathlib import Path

import pytest

from florence2ner import EvalConfig, UserError, evaluate
from florence2ner.evaluation.report import short_names
from tests.browser import chromium, watched_page
from tests.conftest import Start


def config_of(model: Path, data: Path, **changes: object) -> EvalConfig:
    quick = {"num_beams": 1, "max_new_tokens": 16, "batch_size": 12, "show": 0}
    return EvalConfig.model_validate({"model_name": str(model), "dataset_path": data} | quick | changes)


def test_the_page_shows_every_image_with_its_caption(
    trained_model: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "made" / "report.html"
    result = evaluate(config_of(trained_model, shapes, report=report, eval_metrics=["chrf"]))
    assert f"the report is in {report}" in capsys.readouterr().err
    with chromium() as browser, watched_page(browser) as watched:
        watched.page.goto(report.as_uri())
        page = watched.page
        assert page.locator("h1").inner_text() == "/".join(trained_model.parts[-2:])
        assert page.locator(".total").inner_text() == "24 images"
        assert "chrF" in page.locator(".card .score").first.inner_text(), "sorted by what was asked for"
        page.get_by_role("searchbox").fill("0007.png")
        (row,) = (row for row in result.rows if row.image == "0007.png")
        (shown,) = (" ".join(text.split()) for text in page.locator(".card dl").all_inner_texts())
        assert shown == " ".join(f"truth {row.references[0]} prediction {row.prediction}".split())
        assert page.locator(".card img").count() == 1
        page.get_by_text("Settings (").click()
        assert str(shapes) in page.locator(".facts").inner_text()
        assert not watched.errors


def test_two_models_have_a_page_side_by_side(
    trained_model: Path, tiny_model: Path, shapes: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    result = evaluate(config_of(trained_model, shapes, against=str(tiny_model), report=report))
    assert result.comparison
    with chromium() as browser, watched_page(browser) as watched:
        watched.page.goto(report.as_uri())
        assert watched.page.locator("h1").inner_text() == f"{trained_model.name} against tiny"
        assert watched.page.locator(".differences tbody tr").count() == len(result.comparison.differences)
        assert watched.page.locator(".card dt").all_inner_texts()[:3] == ["truth", "A", "B"]
        assert not watched.errors


def test_a_report_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"can't make the folder .*choose another --report"):
        evaluate(config_of(Path("nowhere"), shapes, report=tmp_path / "file" / "r.html"))
    with pytest.raises(ValueError, match=r"must end in \.html"):
        config_of(Path("nowhere"), shapes, report=tmp_path / "r.txt")


@pytest.mark.slow
def test_two_processes_write_one_page_of_all_images(
    trained_model: Path, shapes: Path, tmp_path: Path, start: Start
) -> None:
    report = tmp_path / "report.html"
    words = ("--model-name", trained_model, "--dataset-path", shapes, "--num-beams", 1, "--max-new-tokens", 8)
    start("florence2ner", "eval", *words, "--report", report, processes=2).wait()
    assert report.read_text().count('"picture":') == 24


def test_two_models_are_called_by_what_tells_them_apart() -> None:
    assert short_names("runs/a/step-1", "runs/a/step-2") == ("step-1", "step-2")
    assert short_names("runs/a/step-1", "runs/b/step-1") == ("a/step-1", "b/step-1")
    assert short_names("same", "same") == ("same", "same")
