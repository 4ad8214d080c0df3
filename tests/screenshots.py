"""Makes the pictures of the README and the guide: `make screenshots`, or `python -m tests.screenshots [FOLDER]`.

A tiny model is trained on drawn shapes in FOLDER, where a run of before is used again, and its reports are looked at in
a browser, as the terminal is.
"""

import os
import subprocess
import sys
from html import escape
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Page
from rich.console import Console
from rich.text import Text

from florence2ner import TrainConfig, train
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.demo import draw_dataset
from florence2ner.model.checkpoints.scratch import init_model
from tests.browser import chromium
from tests.review.screenshot import take as take_review

PICTURES = Path(__file__).resolve().parents[1] / "florence2ner" / "guide" / "pictures"
LARGEST = 300_000  # bytes of a picture
RUN = "shapes"
_WIDTH = 96  # of the terminal, in characters
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; padding: 24px; width: fit-content; background: #e9e6df; }
pre { margin: 0; padding: 18px 22px; border-radius: 10px; background: #16191d; color: #e8e6e1;
  font: 14px/1.18 "DejaVu Sans Mono", ui-monospace, monospace; box-shadow: 0 6px 24px rgb(0 0 0 / 25%); }
b { color: #86d3a4; font-weight: 400; }
</style><pre>"""


def take_all(folder: Path) -> None:
    """Make all pictures, from a run in `folder`."""
    PICTURES.mkdir(exist_ok=True)
    train_shapes(folder)
    model, data = f"checkpoints/{RUN}", ("--dataset-path", "photos", "--num-beams", "1", "--max-new-tokens", "32")
    steps = sorted(folder.glob(f"{model}/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    told = florence2ner(folder, "eval", "--model-name", model, *data, "--show", "4", "--report", "eval.html")
    against = ("--model-name", f"{model}/{steps[-1].name}", "--against", f"{model}/{steps[0].name}")
    florence2ner(folder, "eval", *against, *data, "--show", "0", "--report", "compared.html")
    with chromium() as browser:
        report = folder / model / "report.html"
        shoot(browser, report, "report-training.png", dark=False, height=1010)
        shoot(browser, folder / "eval.html", "report-captions.png", dark=True, height=820, look_at="Captions")
        shoot(browser, folder / "compared.html", "report-compared.png", dark=False, height=900)
        terminal = folder / "terminal.html"
        command = f"florence2ner eval --model-name {model} --dataset-path photos --show 4"
        terminal.write_text(f"{_TERMINAL}<b>$</b> {escape(command)}\n{as_html(told)}</pre>", encoding="utf-8")
        shoot(browser, terminal, "terminal.png", dark=False, height=400, whole=True)
    take_review(PICTURES / "review.png")
    shrink(PICTURES / "review.png")


def train_shapes(folder: Path) -> None:
    """Train the tiny model, unless there is one in the folder."""
    if (folder / "checkpoints" / RUN / "best").exists():
        return
    draw_dataset(folder / "photos" / "train", 768, seed=1)
    draw_dataset(folder / "photos" / "eval", 64, seed=2)
    init_model(folder / "tiny", preset="tiny", captions=read_captions(folder / "photos" / "train"), seed=42)
    train(
        TrainConfig(
            model_name=str(folder / "tiny"),
            dataset_path=folder / "photos",
            output_dir=folder / "checkpoints",
            run_name=RUN,
            max_steps=200,
            epochs=99,
            learning_rate=1e-3,
            train_batch_size=32,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            freeze_vision=False,
            warmup_steps=20,
            eval_batch_size=64,
            eval_steps=40,
            save_steps=40,
            save_total_limit=5,
            max_new_tokens=32,
            num_beams=1,
            log_every=4,
            log_with=("jsonl",),
        )
    )


def florence2ner(folder: Path, *words: str) -> str:
    """What a command prints on standard output, with its colours."""
    environment = os.environ | {"COLUMNS": str(_WIDTH), "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "florence2ner", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout


def as_html(printed: str) -> str:
    """Text with colours of a terminal, as HTML."""
    console = Console(record=True, file=StringIO(), width=_WIDTH, force_terminal=True)
    console.print(Text.from_ansi(printed.rstrip()))
    return console.export_html(code_format="{code}", inline_styles=True)


def shoot(
    browser: Browser, file: Path, name: str, *, dark: bool, height: int, look_at: str = "", whole: bool = False
) -> None:
    """Take a picture of a page, from the heading `look_at` on, or from its top."""
    scheme = "dark" if dark else "light"
    screen = {"width": 1280, "height": height}
    context = browser.new_context(color_scheme=scheme, viewport=screen, device_scale_factor=1.5)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(file.as_uri())
    if look_at:
        go_to(page, look_at)
    target = PICTURES / name
    if whole:
        page.locator("body").screenshot(path=target)
    else:
        page.screenshot(path=target)
    context.close()
    shrink(target)


def go_to(page: Page, heading: str) -> None:
    """Scroll to a heading, with a little room above."""
    page.get_by_role("heading", name=heading, exact=True).evaluate(
        "element => window.scrollTo(0, element.getBoundingClientRect().top + window.scrollY - 24)"
    )
    page.locator(".card img").first.evaluate("image => image.decode()")


def shrink(path: Path) -> None:
    """Write a picture with as many colours as `LARGEST` leaves room for."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for colours in (256, 128, 64, 32):
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {LARGEST}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_all(Path(sys.argv[1]).resolve())
    else:
        with TemporaryDirectory() as made:
            take_all(Path(made))
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture.stat().st_size:>8} bytes  {picture}")
