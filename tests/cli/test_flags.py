"""Every setting is a flag, with a type as a person writes it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from florence2ner import TrainConfig
from tests.conftest import ColdStart, Start


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
