"""The command line: one line for bad input, and help at once."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2ner import TrainConfig
from florence2ner.cli import main
from tests.conftest import ColdStart, Start
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


def test_help_answers_at_once(cold_start: ColdStart) -> None:
    def seconds(*args: str) -> tuple[float, str]:
        """Processor time of `python ARGS`, since other tests run beside this one; and what it printed."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = cold_start(*args)
        output, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output

    shown = [seconds("-m", "florence2ner", "--help") for _ in range(3)]
    assert all(name in shown[0][1] for name in ("train", "eval", "caption", "init-model", "demo"))
    # Twice what its libraries take, mostly for making the flags. With torch it would be twenty times that.
    yardstick = [seconds("-c", "import pydantic, rich.markdown, typer, yaml") for _ in range(3)]
    assert min(shown)[0] < 4 * min(yardstick)[0]

    _, errors = cold_start("-X", "importtime", "-m", "florence2ner", "--help").communicate(timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert {"typer", "florence2ner.config.commands"} <= imported
    assert not imported & {"torch", "transformers", "accelerate", "numpy", "PIL"}


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


def test_train_help_shows_every_setting(command: Start) -> None:
    shown = command("train", "--help").stdout
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in shown, name
    assert "--no-freeze-vision" in shown


@pytest.mark.parametrize("name", ["train", "eval", "caption", "init-model", "convert", "demo", "guide"])
def test_help_shows_types_as_a_person_writes_them(command: Start, name: str) -> None:
    shown = command(name, "--help", COLUMNS="300").stdout
    types = set(re.findall(r"<[^ ]*>", shown)) - {"<CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>."}
    assert all(re.fullmatch(r"<([\w/-]+(\|[\w/-]+)*|list\[str\])>", type_) for type_ in types), types
    assert not re.search("Annotated|function|object at|Validator", shown)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tra", {"train"}),
        ("train --resu", {"--resume"}),
        ("train --feature-cache-d", {"--feature-cache-dir", "--feature-cache-dtype"}),
        ("eval --mixed-precision f", {"fp16"}),
    ],
)
def test_the_shell_completes_what_was_begun(
    cold_start: ColdStart, tmp_path: Path, words: str, completed: set[str]
) -> None:
    """In the shell itself, with what `--install-completion` wrote for it."""
    programs = Path(sys.executable).parent
    env = os.environ | {"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    quiet: Any = {"env": env, "capture_output": True, "text": True, "timeout": 60}
    # Typer asks which shell has started it.
    install = subprocess.run(["bash", "-c", "florence2ner --install-completion; exit $?"], **quiet)
    assert "completion installed" in install.stdout, install.stderr
    (script,) = (tmp_path / ".bash_completions").iterdir()
    line = ["florence2ner", *words.split()]
    press_tab = (
        f"source {script}; COMP_WORDS=({' '.join(line)}); COMP_CWORD={len(line) - 1}; "
        "_florence2ner_completion florence2ner; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", press_tab], **quiet)
    assert set(done.stdout.split()) == completed, done.stderr


OWN_LINES = {
    "train": (
        r"the dataset is read as images with caption files beside them",
        r"encoding \d+ of \d+ images, once for all",
        r"Weights & Biases runs offline \(.*\); upload later with: wandb sync .*",
        r"training [\d,]+ of [\d,]+ parameters .*",
        r"step \d: eval loss [\d.]+, perplexity [\d.]+",
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
