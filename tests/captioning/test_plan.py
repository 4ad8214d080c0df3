"""What is to be captioned, decided without a model: tasks that go together, and mistakes that are one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from tests.conftest import ROOT, Caption
from tests.support import plan


def test_planning_needs_no_torch() -> None:
    code = "import sys, florence2ner.model.answers, florence2ner.outputs.style; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_boxes_do_not_replace_what_is_to_be_extended(tmp_path: Path, existing: str) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=f"--existing {existing} extends text, but the answers to <OD> are JSON"):
        plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OD>"))
    assert plan(tmp_path, existing=existing, task_prompt=("<CAPTION>", "<OCR>")).todo


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"template": "{captoin}"}, "caption"),
        ({"task_prompt": "<CAPTION_TO_PHRASE_GROUNDING>"}, "--text"),
        ({"text": "a dog"}, "--text"),
        ({"task_prompt": ("<OD>", "<OD>")}, "twice"),
    ],
)
def test_mistakes_are_one_line_each(run: Caption, flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**flags)
