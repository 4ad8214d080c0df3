"""The commands whose flags are settings."""

import os
import shutil
from pathlib import Path

import pytest

from florence2ner.cli import main
from tests.conftest import Start


def test_captions_in_other_files_serve_every_command(command: Start, shapes: Path, tmp_path: Path) -> None:
    """As kohya's own captions, and with a pipe among them."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for path in data.glob("*.txt"):
        path.rename(path.with_suffix(".caption"))
    os.mkfifo(data / "pipe.caption")
    wanted = "--caption-extension", ".caption"
    made = command("init-model", "tiny", "--dataset-path", data)
    assert made.returncode == 2
    assert "; 24 captions are in .caption files: --caption-extension .caption reads them" in made.stderr
    made = command("init-model", "tiny", "--dataset-path", data, *wanted)
    assert made.returncode == 0, made.stderr
    assert f"warning: 1 pipes, sockets or devices have the name of a file and are left out: {data}/pipe" in made.stderr
    quick = "--max-new-tokens", 2, "--num-beams", 1, "--dataset-path", data, *wanted
    run = "--run-name", "run", "--max-steps", 1, "--warmup-steps", 0, "--log-with", "none", "--feature-cache", "off"
    trained = command("train", "--model-name", "tiny", *run, *quick)
    assert trained.returncode == 0, trained.stderr
    assert "on 22 images, 2 held out" in trained.stderr
    again = command("train", "--config", "checkpoints/run/config.yaml", "--max-steps", 2, "--resume", "latest")
    assert again.returncode == 0, again.stderr
    measured = command("eval", "--model-name", "checkpoints/run/latest", *quick)
    assert measured.returncode == 0, measured.stderr
    assert "(24 images," in measured.stdout


def test_the_optimizers_are_listed_without_a_dataset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["florence2ner", "train", "--list-optimizers"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    printed = capsys.readouterr()
    assert not printed.err
    names = [line.split(maxsplit=1)[0] for line in printed.out.splitlines()]
    assert {"adamw", "muon", "cadamw", "optimi_adamw", "came", "bnb_adamw8bit", "schedulefree_adamw"} <= {*names}
