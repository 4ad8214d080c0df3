"""How long a run is, its warmup, and the advice to those who have few images."""

import re
import shlex
from pathlib import Path

import pytest

from florence2ner import TrainConfig, UserError, train
from florence2ner.config.base import load_config
from florence2ner.data.order import ShuffledOrder
from florence2ner.data.plan import count_updates
from florence2ner.data.split import Split
from florence2ner.demo import draw_dataset
from florence2ner.engine.run_files import TrainState
from florence2ner.training.length import advise, check_warmup, settle_warmup
from florence2ner.training.run_folder import Start
from tests.conftest import MakeConfig
from tests.conftest import Start as StartCommand
from tests.support import figures

ROOT = Path(__file__).resolve().parents[2]
NEW = Start(model_name="model", checkpoint=None, state=TrainState(), split=Split((), ()))


def order_of(config: TrainConfig, images: int, processes: int = 1) -> ShuffledOrder:
    batch, accumulation = config.train_batch_size, config.gradient_accumulation_steps
    return ShuffledOrder(range(images), batch, accumulation, processes, config.seed)


@pytest.mark.parametrize(
    ("given", "total", "warmup", "said"),
    [
        ({}, 2, 0, "warmup_steps is 0, a tenth of the run's 2 updates, instead of 50"),
        ({}, 204, 20, "warmup_steps is 20, a tenth of the run's 204 updates, instead of 50"),
        ({}, 500, 50, None),
        ({}, 9999, 50, None),
        ({"warmup_steps": 150}, 204, 150, None),
        ({"warmup_steps": 0}, 2, 0, None),
        ({"warmup_ratio": 0.2}, 204, 40, None),
        ({"warmup_ratio": 0.9}, 1, 0, None),
    ],
)
def test_a_warmup_that_nobody_asked_for_is_cut_to_a_tenth(
    tmp_path: Path, given: dict[str, float], total: int, warmup: int, said: str | None
) -> None:
    config, note = settle_warmup(TrainConfig(dataset_path=tmp_path, **given), total)  # type: ignore[arg-type]
    assert (config.warmup_steps, config.warmup_ratio) == (warmup, None)
    assert note is None if said is None else said in (note or "")


@pytest.mark.parametrize(("warmup", "total"), [(2, 2), (50, 2), (300, 204)])
def test_a_warmup_that_was_asked_for_and_never_ends_is_refused(tmp_path: Path, warmup: int, total: int) -> None:
    config = TrainConfig(dataset_path=tmp_path, warmup_steps=warmup)
    with pytest.raises(UserError, match=rf"warmup_steps {warmup} is not below the run's {total} updates; lower"):
        check_warmup(config, total)
    check_warmup(config, warmup + 1)
    check_warmup(TrainConfig(dataset_path=tmp_path), 2)


def test_a_resumed_run_keeps_the_warmup_that_it_has(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**changes: object) -> TrainConfig:
        given = make_config(epochs=10, eval_steps=None)
        return TrainConfig(**given.model_dump(exclude={"warmup_steps"}) | changes)

    train(run(max_steps=30))
    assert "warmup_steps is 3, a tenth of the run's 30 updates" in capsys.readouterr().err
    config = load_config(TrainConfig, {"max_steps": 31, "resume": "latest"}, run().run_dir / "config.yaml")
    assert config.warmup_steps == 3
    train(config)
    train(run(max_steps=50, warmup_ratio=0.5, resume="latest"))
    assert "warmup_steps" not in capsys.readouterr().err
    assert load_config(TrainConfig, {}, run().run_dir / "config.yaml").warmup_steps == 3


@pytest.mark.parametrize("images", [1, 3, 19, 20, 45, 256, 900, 5000])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_advice_keeps_what_it_says(tmp_path: Path, images: int, processes: int) -> None:
    config = TrainConfig(dataset_path=tmp_path)
    order = order_of(config, images, processes)
    advice = advise(config, NEW, order, count_updates(config, order))
    assert advice is not None
    flags = dict(re.findall(r"--([a-z-]+) ([0-9.e-]+)", advice))
    better = load_config(
        TrainConfig, {name.replace("-", "_"): value for name, value in flags.items()} | {"dataset_path": tmp_path}
    )
    order = order_of(better, images, processes)
    updates = count_updates(better, order)
    assert updates == int(advice.rsplit(" ", 1)[1]) >= 400
    assert order.global_batch <= max(processes, images / 10)
    assert better.train_batch_size <= config.train_batch_size, "a larger one may not fit"
    assert advise(better, NEW, order, updates) is None


def test_who_knows_better_is_not_advised(tmp_path: Path) -> None:
    long = TrainConfig(dataset_path=tmp_path, epochs=400)
    assert advise(long, NEW, order_of(long, 45), 400) is None
    short = TrainConfig(dataset_path=tmp_path, max_steps=3)
    assert advise(short, NEW, order_of(short, 45), 3) is None
    rate = TrainConfig(dataset_path=tmp_path, learning_rate=1e-6)
    assert "--learning-rate" not in (advise(rate, NEW, order_of(rate, 45), 2) or "")


@pytest.mark.slow
def test_the_first_command_of_the_readme_teaches_fifty_drawings_with_the_flags_that_it_names(
    start: StartCommand, tmp_path: Path
) -> None:
    """But for the name of the model, as there is no hub, and for shorter captions, as a new model knows no end."""
    draw_dataset(tmp_path / "photos", 50, seed=8)
    made = start("florence2ner", "init-model", "tiny", "--dataset-path", "photos").wait()
    assert made.returncode == 0, made.stderr
    readme = (ROOT / "README.md").read_text()
    command = shlex.split(re.search(r"^florence2ner train .*$", readme, re.MULTILINE)[0])  # type: ignore[index]
    assert command == ["florence2ner", "train", "--dataset-path", "./photos", "--run-name", "mine"]
    here = ["--model-name", "tiny", "--max-new-tokens", "12", "--feature-cache-dir", "features"]

    first = start(*command, *here).wait()
    assert first.returncode == 0, first.stderr
    (advice,) = re.findall(
        r"this run makes only 2 updates, .* for 45 images try (--.*), which makes (\d+)", first.stderr
    )
    assert advice[0] in readme
    again = [*command[:-1], "again"]
    second = start(*again, *here, *advice[0].split()).wait()
    assert second.returncode == 0, second.stderr
    assert f"45 images, 5 held out; {advice[1]} updates of 4 images" in second.stderr
    losses = figures(tmp_path / "checkpoints" / "again", "eval/loss")
    assert losses[int(advice[1])] < losses[0] / 2, losses
