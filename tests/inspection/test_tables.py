"""The terminal: what is printed can do it no harm, and says the worst first."""

import io
from pathlib import Path

from florence2ner.inspection.tables import print_inspection, verdict
from tests.inspection.support import inspected, make_clean


def printed(root: Path) -> str:
    stream = io.StringIO()
    print_inspection(inspected(root), stream)
    return stream.getvalue()


def test_names_with_markup_and_control_characters_are_shown_as_they_are(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "[red]x\x1b[2J.txt").write_text("lost")
    (tmp_path / "1.txt").write_text("[bold]</s>\x1b]0;owned\x07")
    text = printed(tmp_path)
    assert r"[red]x\x1b[2J.txt" in text
    assert "\x1b" not in text
    assert text.index("hurts") < text.index("note")


def test_a_clean_folder_says_so(tmp_path: Path) -> None:
    text = printed(make_clean(tmp_path))
    assert "nothing found that is wrong" in text
    assert "Shorter side in pixels" in text
    assert text.rstrip().endswith("training would start")


def test_the_verdict_counts_the_kinds_of_fault(tmp_path: Path) -> None:
    make_clean(tmp_path)
    (tmp_path / "1.txt").unlink()
    assert verdict(inspected(tmp_path)) == "training would start; 1 kind of fault hurts it"
    (tmp_path / "2.txt").write_text("")
    assert verdict(inspected(tmp_path)) == "training would start; 2 kinds of fault hurt it"
