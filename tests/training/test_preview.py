"""The learning rate of a run that is planned is that which the run has."""

from pathlib import Path

import pytest
from PIL import Image

from florence2ner import UserError, train
from florence2ner.config.commands import ScheduleConfig
from florence2ner.training.preview import draw_schedule
from tests.conftest import MakeConfig
from tests.support import figures


def test_the_curve_is_that_of_the_run(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(epochs=4, warmup_steps=3, lr_schedule="rex", min_learning_rate=1e-4, eval_steps=None)
    train(config)
    rates = figures(config.run_dir, "train/learning_rate")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "40")
    planned = ScheduleConfig(**config.model_dump(exclude_unset=True), png=tmp_path / "new" / "rate.PNG")
    assert draw_schedule(planned) == pytest.approx([*rates.values()])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == (
        f"{len(rates)} updates of 8 images, rex after 3 of warmup; highest 0.001 in update 4, "
        f"{[*rates.values()][-1]:.3g} in the last"
    )
    assert {len(line) for line in lines} == {39}
    assert Image.open(tmp_path / "new" / "rate.PNG").size == (1200, 500)


def test_with_max_steps_no_image_is_looked_for(tmp_path: Path) -> None:
    assert len(draw_schedule(ScheduleConfig(dataset_path=tmp_path, max_steps=7))) == 7
    shards = ScheduleConfig(dataset_path="pipe:cat nowhere.tar", max_steps=70, eval_steps=None, warmup_ratio=0.5)
    assert draw_schedule(shards).index(1e-5) == 35


def test_more_processes_make_fewer_updates(make_config: MakeConfig) -> None:
    updates = [
        len(draw_schedule(ScheduleConfig(**make_config(epochs=6).model_dump(exclude_unset=True), processes=number)))
        for number in (1, 2)
    ]
    assert updates == [18, 12]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 5, "warmup_steps": 5}, "warmup_steps 5 is not below the run's 5 updates"),
        ({}, "no image with a caption in"),
        ({"dataset_path": "https://example.org/{0..3}.tar", "eval_steps": None}, "set --max-steps"),
    ],
)
def test_what_has_no_curve_is_one_line(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_schedule(ScheduleConfig.model_validate({"dataset_path": tmp_path} | settings))
