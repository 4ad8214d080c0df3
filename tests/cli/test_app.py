"""One line for bad input, and nothing but our own lines; how commands end."""

import json
import re
import signal
from pathlib import Path

import pytest
from PIL import Image

from florence2ner.cli import main
from tests.conftest import ColdStart
from tests.programs.starting import free_port, launched
from tests.support import many


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--learnin-rate", "1"], "--learning-rate"),
        (["train"], "dataset_path is missing: give --dataset-path"),
        (["train", "--dataset-path", "nowhere"], "nowhere does not exist"),
        (["train", "--dataset-path", "nowhere", "--epochs", "two"], "--epochs"),
        (["train", "--config", "nowhere.yaml"], "can't read the config file nowhere.yaml"),
        (["caption"], "paths is missing: give PATHS"),
        (["caption", "nowhere"], "there is no file or folder nowhere"),
        (["caption", "--existing", "destroy", "."], "'destroy' is not one of 'skip', 'overwrite'"),
        (["eval", "--dataset-path", "."], "no image with a caption"),
        (["caption", "."], "no image in"),
        (["init-model", "m", "--dataset-path", "."], "no caption"),
        (["train", "--dataset-path", "DATA"], "no image with a caption in"),
        (
            ["caption", "DATA", "--model-name", "nowhere/at-all"],
            "can't find the model nowhere/at-all: give a local dir",
        ),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    data = tmp_path.parent / f"{tmp_path.name}-data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(data / "alone.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["florence2ner", *(str(data) if arg == "DATA" else arg for arg in args)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["typer.core", "pydantic", "numpy", "torch.types", "transformers.utils"])
def test_ctrl_c_in_the_first_second_is_one_line(cold_start: ColdStart, images: Path, module: str) -> None:
    """In the midst of the imports, just after that of this module."""
    run = cold_start("-X", "importtime", "-m", "florence2ner", "caption", images, "--model-name", "nowhere/at-all")
    assert run.stderr
    while (line := run.stderr.readline()).rpartition("|")[2].strip() != module:
        assert line, "it was not imported"
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert [line for line in errors.splitlines() if not line.startswith("import time:")] == ["interrupted"]
    assert run.returncode == 130
    assert not list(images.rglob("*.txt"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reader_that_goes_away_ends_all_processes_without_a_word(
    cold_start: ColdStart, images: Path, shapes: Path, trained_model: Path, processes: int
) -> None:
    many(images, shapes, 200)
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    port = free_port()
    worlds = [launched(rank, processes, port) if processes > 1 else {} for rank in range(processes)]
    command = ("-m", "florence2ner", "caption", images, *flags, "--output", "-")
    runs = [cold_start(*command, OMP_NUM_THREADS="1", **world) for world in worlds]
    assert runs[0].stdout
    assert json.loads(runs[0].stdout.readline())["caption"]
    runs[0].stdout.close()
    for run in runs:
        assert run.wait(timeout=120) == 141
        assert run.stderr
        assert run.stderr.read() == ""


OWN_LINES = {
    "train": (
        r"the dataset is read as images with caption files beside them",
        r"encoding \d+ of \d+ images, once for all",
        r"Weights & Biases runs offline \(.*\); upload later with: wandb sync .*",
        r"training [\d,]+ of [\d,]+ parameters .*",
        r"step \d: eval loss [\d.]+, perplexity [\d.]+, exact match [\d.]+%, CIDEr-D [\d.]+",
        r"from update 0 to 2, on \d held-out images, too few for intervals:",
        r"  (loss|exact match|CIDEr-D) .* -> .*, .*",
        r"  truth      .*",
        r"  prediction .*",
        r"done: .*step-2",
    ),
    "eval": (
        r"the dataset is read as images with caption files beside them",
        r"evaluating checkpoints/run/step-2",
        r"note: \d+ of these \d+ images were trained on; .*",
    ),
    "caption": (
        r"captioning with checkpoints/run/step-2",
        r"\d+ captioned, 0 kept, 0 failed \(.* images/s\)",
        r"\d+ captions look wrong even after a second try:",
        r"  .*png: [a-z_, ]+",
        r"  and \d+ more",
    ),
}


@pytest.mark.slow
def test_nothing_but_our_own_lines_reaches_the_user(cold_start: ColdStart, shapes: Path, tiny_model: Path) -> None:
    """As a user starts them, with trackers that talk; a warning of what is to be removed would end the command."""
    quick = ("--max-new-tokens", 4, "--num-beams", 1)
    run = (
        "--run-name",
        "run",
        "--train-batch-size",
        4,
        "--gradient-accumulation-steps",
        2,
        "--max-steps",
        2,
        "--warmup-steps",
        0,
    )
    layout = ("--export-layout", "original")
    logs = ("--log-with", "wandb", "--log-with", "tensorboard", "--feature-cache-dir", "features")
    model = ("--model-name", "checkpoints/run")
    commands = {
        "train": (
            "--dataset-path",
            shapes,
            "--model-name",
            tiny_model,
            "--run-name",
            "run",
            *run,
            *logs,
            *layout,
            *quick,
        ),
        "eval": ("--dataset-path", shapes, *model, *quick),
        "caption": (shapes, *model, *quick, "--output-dir", "captions"),
    }
    for name, flags in commands.items():
        started = cold_start("-m", "florence2ner", name, *flags, before=("env", "-u", "WANDB_SILENT"))
        _, errors = started.communicate(timeout=240)
        assert started.returncode == 0, errors
        for line in errors.splitlines():
            assert any(re.fullmatch(pattern, line) for pattern in OWN_LINES[name]), f"{name}: {line}"
        assert errors
