"""The command: how it starts and ends, what it refuses in one line, and that a kill loses nothing."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from florence2ner.cli import main
from florence2ner.config.options import ReadingOptions
from florence2ner.data.accepted import JOURNAL
from florence2ner.data.layouts.choice import choose_layout
from tests.conftest import Start
from tests.programs.starting import free_port
from tests.review.support import Opened, Reviewing
from tests.support import without_roots_powers


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_ends_in_one_line(start: Start, photos: Path, number: signal.Signals, code: int) -> None:
    reviewing = Reviewing(start, photos).enter()
    reviewing.edit("0.png", "new")
    reviewing.running.signal(number)
    reviewing.running.wait(30)
    assert reviewing.running.returncode == code
    (line,) = reviewing.running.stderr.splitlines()
    assert line.endswith("every change is on the disk")
    assert not list(photos.glob("*.in-use"))
    assert {path.name for path in photos.iterdir() if path.name.startswith(".")} == {JOURNAL}


Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Start the command, which must end by itself, and return the one line that it says."""

    def refuse(*args: object) -> str:
        monkeypatch.setattr("sys.argv", ["florence2ner", "review", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 2
        assert not said.out
        assert said.err.count("\n") == 1, said.err
        return said.err

    return refuse


def test_what_it_cannot_do_is_said_in_one_line(refuse: Refuse, photos: Path, tmp_path: Path) -> None:
    table, empty, damaged = tmp_path / "table", tmp_path / "empty", tmp_path / "damaged"
    table.mkdir()
    empty.mkdir()
    shutil.copy(photos / "0.png", table)
    (table / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a"}) + "\n")
    shutil.copytree(photos, damaged)
    (damaged / JOURNAL).write_text("x\n")
    (tmp_path / "nothing.json").write_text("{}")
    assert "nowhere does not exist" in refuse(tmp_path / "nowhere")
    assert "directory is missing: give DIRECTORY" in refuse()
    assert f"there is no image in {empty}" in refuse(empty)
    assert "is read as a table of images and captions, and review is for images with" in refuse(table)
    assert f"{JOURNAL} is damaged in line 1" in refuse(damaged)
    assert "there is no file nowhere.json" in refuse(photos, "--findings", "nowhere.json")
    assert "doesn't hold findings" in refuse(photos, "--findings", tmp_path / "nothing.json")
    assert "is for images" in refuse(photos, "--caption-extension", ".png")
    assert "can't serve at 203.0.113.1: " in refuse(photos, "--host", "203.0.113.1")
    assert not list(photos.glob(".*"))


def test_a_folder_and_a_port_have_one_review_at_a_time(refuse: Refuse, start: Start, photos: Path) -> None:
    other = shutil.copytree(photos, photos.with_name("other"))
    port = free_port()
    first = Reviewing(start, photos, "--port", port).enter()
    assert f"the folder {photos} is in use by process {first.running.pids[0]} on " in refuse(photos)
    assert f"can't serve at 127.0.0.1 port {port}: Address already in use; choose another --port" in refuse(
        other, "--port", port
    )
    assert first.get("/api/state")["undo"] is None


def test_a_folder_that_is_read_only_is_refused_in_one_line(photos: Path) -> None:
    os.chmod(photos, 0o500)
    done = without_roots_powers("-m", "florence2ner", "review", photos)
    os.chmod(photos, 0o700)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: can't write to {photos} (Permission denied): review writes captions")
    assert done.stderr.count("\n") == 1


def test_a_kill_between_two_edits_loses_nothing(start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos).enter()
    reviewing.edit("0.png", "first")
    reviewing.edit("1.png", "second", accept=True)
    reviewing.running.signal(signal.SIGKILL)
    reviewing.running.wait()
    assert (photos / "0.txt").read_text() == "first\n"
    again = Reviewing(start, photos).enter()
    assert again.running.stderr == ""
    assert again.item("1.png")["accepted"]
    again.edit("2.png", "third")
    for name, text in (
        ("2", "a red thing, number 2\n"),
        ("1", "a red thing, number 1\n"),
        ("0", "a red thing, number 0\n"),
    ):
        again.post("/api/undo")
        assert (photos / f"{name}.txt").read_text() == text
    assert again.get("/api/state")["undo"] is None
    for _ in range(3):
        again.post("/api/redo")
    assert [texts(photos)[f"{n}.txt"] for n in range(3)] == ["first\n", "second\n", "third\n"]
    assert again.item("1.png")["accepted"]


def test_a_replacement_in_many_captions_is_undone_after_a_restart(start: Start, photos: Path) -> None:
    before = texts(photos)
    reviewing = Reviewing(start, photos).enter()
    assert reviewing.replace("red", "blue")["message"] == "6 captions changed"
    assert all("blue" in text for text in texts(photos).values())
    reviewing.running.signal(signal.SIGINT)
    reviewing.running.wait()
    again = Reviewing(start, photos).enter()
    assert again.post("/api/undo")["message"].startswith("undone: replace “red” with “blue” in 6 captions")
    assert texts(photos) == before


@pytest.mark.slow
def test_a_kill_in_the_midst_of_many_files_is_made_good(start: Start, photos: Path) -> None:
    """Whatever the moment: after the next start all files are changed, or none, and undo gives all of them back."""
    for number in range(6, 1500):
        os.link(photos / "0.png", photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"a red thing, number {number}\n")
    before = texts(photos)
    for reached in (6, 700, 1400):
        reviewing = Reviewing(start, photos).enter()
        items = reviewing.get(f"/api/view/{reviewing.get('/api/view')['view']}/items")
        wish = {"do": "replace", "find": "red", "replace": "blue"}
        digest = reviewing.post("/api/preview", items=items, wish=wish)["digest"]
        pid = os.fork()
        if pid == 0:  # asks, and is not there any more when the answer would come
            try:
                reviewing.send("/api/change", {"items": items, "wish": wish, "digest": digest})
            finally:
                os._exit(0)
        end = time.monotonic() + 60
        while "blue" not in (photos / f"{reached}.txt").read_text():
            assert time.monotonic() < end
        reviewing.running.signal(signal.SIGKILL)
        reviewing.running.wait()
        os.waitpid(pid, 0)
        changed = sum("blue" in text for text in texts(photos).values())
        assert changed
        again = Reviewing(start, photos).enter()
        if changed < 1500:
            assert f"interrupted and is completed now: {1500 - changed} files" in again.running.stderr
        assert all("blue" in text for text in texts(photos).values())
        again.post("/api/undo")
        assert texts(photos) == before
        again.running.signal(signal.SIGINT)
        again.running.wait()


@pytest.mark.slow
def test_a_hundred_thousand_images_open_at_once_and_stay_small(start: Start, photos: Path) -> None:
    """The first page comes before the captions are read; all of them and a bulk change take bounded memory."""
    count = 100_000
    for folder in (photos / f"{number:02d}" for number in range(100)):
        folder.mkdir()
        for ending in (".png", ".txt"):
            first = shutil.copy(photos / f"0{ending}", folder / f"0000{ending}")
            for number in range(1, count // 100):
                os.link(first, folder / f"{number:04d}{ending}")
    begin = time.monotonic()
    reviewing = Reviewing(start, photos).enter()
    view = reviewing.get("/api/view")
    rows = reviewing.get(f"/api/view/{view['view']}/rows?start={count - 50}&count=100")
    assert view["total"] == count + 6
    assert len(rows) == 56
    assert reviewing.send("/api/picture/0/small").status == 200
    assert time.monotonic() - begin < 30
    end = time.monotonic() + 240
    while (state := reviewing.get("/api/state"))["read"] < state["files"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert reviewing.get("/api/view?words=number+0")["total"] == count + 1
    assert reviewing.post("/api/accept", items=[5])["message"] == "accepted"
    items = reviewing.get(f"/api/view/{view['view']}/items")
    assert reviewing.post("/api/accept", items=items)["message"] == f"{count + 5} captions accepted"
    status = Path(f"/proc/{reviewing.running.pids[0]}/status").read_text()
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    assert peak < 1_500_000  # kilobytes, of which the imports of the tests' server are most


def test_the_journal_is_no_part_of_a_dataset(photos: Path) -> None:
    opened = Opened(photos)
    opened.edit("0.png", "new", accept=True)
    assert choose_layout(photos, ReadingOptions()) == "files"
