"""A signal is a request to stop at a good place."""

import signal
import time
from pathlib import Path

import pytest

from florence2ner.engine.run_files import list_checkpoints
from tests.conftest import MakeConfig, Start


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_its_code(
    make_config: MakeConfig, tmp_path: Path, number: signal.Signals, start: Start
) -> None:
    config = make_config(
        epochs=10_000, eval_steps=None, save_steps=None, output_dir=tmp_path / "runs", dataloader_workers=1
    )
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    run = start("florence2ner", "train", "--config", file)
    while not (config.run_dir / "metrics.jsonl").exists():
        assert run.poll() is None, run.stderr
        time.sleep(0.01)
    run.signal(number)  # to the decoding process too, as a terminal does
    assert run.wait().returncode == 128 + number
    last = run.stderr.strip().splitlines()[-1]
    (checkpoint,) = list_checkpoints(config.run_dir)
    assert last.startswith(f"error: stopped by signal {int(number)} after update ")
    resume = f"resume with: florence2ner train --config {config.run_dir}/config.yaml --resume latest"
    assert last.endswith(f"saved in {checkpoint}; {resume}")
    assert "Traceback" not in run.stderr
