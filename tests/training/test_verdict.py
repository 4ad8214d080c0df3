"""At its end a run says whether it has made the model better; a metric that can't say so is refused before it."""

import json
import re

import pytest

from florence2ner import UserError, train
from florence2ner.evaluation.compare import compare
from florence2ner.evaluation.record import read_rows
from tests.conftest import MakeConfig
from tests.support import figures


def test_a_run_ends_with_its_first_and_best_evaluation(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(eval_before_training=True, eval_captions=3, max_steps=4, eval_steps=2, save_steps=2)
    result = train(config)
    said = capsys.readouterr().err
    best = int(result.best.name.removeprefix("step-"))
    found = re.search(
        rf"from update 0 to {best}, on 2 held-out images, too few for intervals:\n  (loss .*)\n  (exact match .*)\n",
        said,
    )
    assert found, said
    assert result.comparison is not None
    loss = result.comparison.of("eval/loss")
    assert found[1] == str(loss)
    logged = figures(config.run_dir, "eval/loss")
    assert (loss.before, loss.after) == pytest.approx((logged[0], logged[best]))
    rows = [read_rows(config.run_dir, step) for step in (0, best)]
    assert compare(*rows, config.eval_metrics).of("eval/loss") == loss
    kept = json.loads((config.run_dir / "evaluations" / f"step-{best:08d}.json").read_text())
    assert kept["step"] == best
    assert kept["figures"]["eval/loss"] == logged[best]
    assert figures(config.run_dir, "eval/cider").keys() == logged.keys()


def test_a_run_that_is_resumed_compares_with_what_it_began_from(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"eval_before_training": True, "eval_steps": 2, "save_steps": 2, "epochs": 3}
    config = make_config(max_steps=2, **settings)
    first = train(config).comparison
    later = config.run_dir / "evaluations" / "step-00000099.json"
    later.write_text("left by a run that was killed")
    capsys.readouterr()
    second = train(make_config(max_steps=4, resume="latest", **settings)).comparison
    assert not later.exists()
    assert first is not None
    assert second is not None
    assert second.before == first.before
    assert second.after != first.after
    assert "from update 0 to 4, on 2 held-out images, too few for intervals:" in capsys.readouterr().err


def test_a_record_that_somebody_spoilt_is_a_warning(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"eval_before_training": True, "eval_steps": 2, "save_steps": 2}
    config = make_config(max_steps=2, **settings)
    train(config)
    (config.run_dir / "evaluations" / "step-00000000.json").write_text('{"captions": 3}')
    result = train(make_config(max_steps=4, resume="latest", **settings))
    assert result.comparison is None
    assert "warning: the first evaluation can't be compared with that of update " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best": "eval/map"}, r"metric_for_best eval/map \(mAP\) applies to none of the held-out images"),
        ({"metric_for_best": "eval/cer"}, "metric_for_best eval/cer .* applies to none of the held-out images"),
    ],
)
def test_a_metric_that_decides_nothing_is_refused_before_anything_is_written(
    make_config: MakeConfig, settings: dict[str, str], message: str
) -> None:
    config = make_config(**settings)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not config.run_dir.exists()


def test_a_metric_of_captions_needs_captions(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="metric_for_best eval/cider is about captions: set eval_captions"):
        make_config(metric_for_best="cider", eval_captions=0)
    assert make_config(metric_for_best="cider").metric_for_best == "eval/cider"
    assert make_config(eval_metrics=("cider", "eval/chrf")).eval_metrics == ("eval/cider", "eval/chrf")


def test_the_best_is_chosen_by_the_metric_that_was_asked_for(make_config: MakeConfig) -> None:
    config = make_config(
        metric_for_best="eval/chrf", eval_metrics=("eval/bleu4",), max_steps=4, eval_steps=2, save_steps=2
    )
    result = train(config)
    logged = figures(config.run_dir, "eval/chrf")
    assert "eval/cider" not in result.figures
    best = max(logged, key=lambda step: (logged[step], -step))
    assert result.best == config.run_dir / f"step-{best}"
