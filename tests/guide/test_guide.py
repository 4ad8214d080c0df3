"""The guide in the terminal: its topics in the order in which they are read, and each page."""

import pytest

from florence2ner.cli import main
from florence2ner.errors import UserError
from florence2ner.guide import read_page, topics
from tests.conftest import ROOT

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "florence2ner" / "guide").glob("*.md")}


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """`florence2ner guide ARGS`: its exit code."""
    monkeypatch.setattr("sys.argv", ["florence2ner", "guide", *args])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code is None or isinstance(end.value.code, int)
    return end.value.code or 0


def test_topics_are_all_the_pages_with_their_first_sentence() -> None:
    listed = topics()
    assert listed.keys() == PAGES.keys()
    for topic, sentence in listed.items():
        title, empty, first, *_ = PAGES[topic].splitlines()
        assert title.startswith("# ")
        assert not empty
        assert sentence == first
        assert sentence.endswith("."), topic


def test_topics_come_in_the_order_of_a_newcomer() -> None:
    names = list(topics())
    assert names[:5] == ["training", "inspect", "resume", "evaluation", "captioning"]
    assert names[-1] == "house"


def test_a_page_is_read_whole() -> None:
    assert {topic: read_page(topic) for topic in topics()} == PAGES


@pytest.mark.parametrize(
    ("topic", "meant"), [("trainin", " Did you mean training?"), ("resum", " Did you mean resume?"), ("zzzz", "")]
)
def test_a_topic_that_there_is_not_gets_one_line_with_the_nearest(topic: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        read_page(topic)
    assert str(error.value) == f"the guide has no topic {topic!r}.{meant} florence2ner guide lists them"


def test_no_topic_is_a_way_out_of_the_guides_folder() -> None:
    with pytest.raises(UserError, match="has no topic"):
        read_page("../../README")


def test_the_command_lists_the_topics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines] == list(topics().items())


@pytest.mark.parametrize("topic", ["resume", "Resume", "resume.md"])
def test_the_command_shows_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], topic: str
) -> None:
    assert run(monkeypatch, topic) == 0
    shown = capsys.readouterr().out
    assert "Resume, pre-emption and failures" in shown
    assert "# Resume" not in shown, "rendered, not as it is written"
    assert topics()["resume"] in " ".join(shown.split())


def test_the_command_refuses_an_unknown_topic_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "trainin") == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: the guide has no topic 'trainin'. Did you mean training?")
    assert printed.err.count("\n") == 1
