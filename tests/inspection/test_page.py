"""The page: in one piece, harmless whatever a dataset holds, small, and as a real browser shows it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from florence2ner.inspection import page
from tests.inspection.support import SIZE, inspected, make_clean, picture
from tests.inspection.test_faults import write

CHROMIUM = shutil.which("chromium")
SCRIPT = "<script>alert(1)</script>"


def page_of(root: Path, **settings: object) -> str:
    return page.build_page(inspected(root, **settings), max_pixels=10_000_000)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A dataset that tries to get into the page: by captions, names of files, bytes and pictures."""
    root = make_clean(tmp_path / "<b>data")
    (root / "0.txt").write_text(f"{SCRIPT} </s>")
    (root / "1.txt").write_bytes(b"<img src=x onerror=alert(2)> \xff")
    (root / "2.txt").unlink()
    (root / "2.png").rename(root / "\" onload='alert(3)'.png")
    (root / "</style><svg onload=alert(4)>.txt".replace("/", "\u2215")).write_text("lost")
    Image.new("RGB", SIZE, "red").save(root / "3.png")
    picture(1, (2000, 90)).save(root / "4.png")
    return root


class _Tags(HTMLParser):
    """Collects the names of all tags, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs


def test_nothing_of_the_dataset_becomes_markup_and_nothing_is_requested(hostile: Path) -> None:
    text = page_of(hostile, trigger_word="<i>")
    tags = _Tags()
    tags.feed(text)
    assert not tags.names & {"script", "svg", "iframe", "link", "b2", "i", "object", "a", "form"}
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    sources = [value for name, value in tags.attributes if name in ("src", "href")]
    assert sources
    assert all(value is not None and value.startswith("data:image/jpeg;base64,") for value in sources)
    assert "http" not in re.sub(r"data:[^\"]+", "", text).replace("http-equiv", "")
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "&lt;script&gt;" in page_of(hostile, trigger_word="ohwx")


def test_both_colour_schemes_and_phones_are_thought_of(hostile: Path) -> None:
    text = page_of(hostile)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_a_page_of_many_large_pictures_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clean(tmp_path)
    for number in range(70):
        Image.effect_noise((300, 300), 200).save(tmp_path / f"noise{number:03d}.jpg", quality=30)
        (tmp_path / f"noise{number:03d}.txt").touch()
    text = page_of(tmp_path)
    assert text.count("<img ") == 8
    assert len(text.encode()) < 1_000_000
    assert "and 10 more, which --json lists" in text
    monkeypatch.setattr(page, "_BUDGET", 100_000)
    assert 0 < page_of(tmp_path).count("<img ") < 8


def test_a_clean_folder_has_a_page_that_says_so(tmp_path: Path) -> None:
    text = page_of(make_clean(tmp_path))
    assert "Nothing was found that is wrong" in text
    assert "<img" not in text


def test_all_roots_are_named_and_what_is_wrong_with_boxes_is_shown(tmp_path: Path) -> None:
    boxes = write(tmp_path / "boxes", "coco", texts={3: [80, 16, 32, 32]})
    text = page.build_page(
        inspected(
            [str(make_clean(tmp_path / "photos", seed=30)), str(boxes)],
            eval_path=make_clean(tmp_path / "held", seed=60),
        ),
        max_pixels=10_000_000,
    )
    assert "<h1>photos, boxes</h1>" in text
    assert f"{tmp_path}/held (evaluated on)" in text
    assert '<p class="unchecked">boxes is read as boxes in COCO&#x27;s JSON</p>' in text
    frame = text[text.index("reach over the edges") :]
    assert re.search(r'<img alt="boxes/3.png".*annotation 3 of boxes/3.png', frame)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_the_page_and_runs_nothing_of_the_dataset(hostile: Path, tmp_path: Path) -> None:
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(page_of(hostile, trigger_word="ohwx"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --hide-scrollbars --window-size=500,900"
    browser = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*browser, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tags = _Tags()
    tags.feed(done.stdout)
    assert not tags.names & {"script", "svg"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in done.stdout
    assert done.stdout.count("<article") >= 6
    grounds = []
    for scheme in (0, 1):  # dark, light
        flags = [f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}"]
        subprocess.run([*browser, *flags, file.as_uri()], capture_output=True, timeout=120, check=True)
        with Image.open(shot) as image:
            shown = image.convert("RGB")
            assert len(shown.getcolors(1 << 20) or ()) > 50  # text, badges and pictures, no blank sheet
            grounds.append(sum(shown.getpixel((2, 2))))
    assert grounds[0] < 150 < 600 < grounds[1]
