"""The demo: draw a captioned dataset, make a tiny Florence-2, train it, evaluate it and caption new images."""

import json
import math
import random
import time
from pathlib import Path

from PIL import Image, ImageDraw

from florence2ner.captioning.caption import caption
from florence2ner.config.commands import CaptionConfig, EvalConfig, TrainConfig
from florence2ner.config.options import check_page
from florence2ner.data.formats import sidecar_of
from florence2ner.data.layouts.pairs import read_captions
from florence2ner.errors import UserError
from florence2ner.evaluation.evaluate import evaluate
from florence2ner.files import check_writable
from florence2ner.model.checkpoints.scratch import init_model
from florence2ner.training.train import train

SIDE = 64  # pixels
SIZES = {"small": 9, "large": 15}  # radius in pixels
COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f4fd8",
    "yellow": "#f2d31b",
    "black": "#111111",
}
FORMS = {"triangle": 3, "square": 4, "star": 10, "circle": 0}  # number of corners
PLACES = {  # x and y of the centre, from 0 (left, top) to 1
    "in the top left corner": (0, 0),
    "in the top right corner": (1, 0),
    "in the bottom left corner": (0, 1),
    "in the bottom right corner": (1, 1),
    "in the middle": (0.5, 0.5),
}
TRAIN_IMAGES, EVAL_IMAGES, SHOWN = 1024, 128, 12
GOOD_ENOUGH = 0.7  # share of captions of held-out images that must be exactly right


def demo(directory: Path, report: Path | None = None) -> None:
    """Run the demo in a new folder `directory`, which stays for the user to look at.

    `report`: the file for the page of its evaluation; None: report.html in that folder.

    Raises UserError when the folder exists, when the report can't be written, and when fewer than 70% of the held-out
    images get exactly their caption.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already: delete it or name another folder")
    if report:
        _check_report(report)
    start = time.perf_counter()
    photos, unseen, model = directory / "photos", directory / "unseen", directory / "tiny-model"
    draw_dataset(photos / "train", TRAIN_IMAGES, seed=1)
    draw_dataset(photos / "eval", EVAL_IMAGES, seed=2)
    draw_dataset(unseen, SHOWN, seed=3, captions=False)
    init_model(model, preset="tiny", captions=read_captions(photos / "train"), seed=42)

    checkpoint = train(
        TrainConfig(
            model_name=str(model),
            dataset_path=photos,
            output_dir=directory / "checkpoints",
            run_name="demo",
            epochs=10,
            learning_rate=1e-3,
            train_batch_size=32,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            freeze_vision=False,
            weight_decay=0.01,
            warmup_steps=20,
            eval_batch_size=64,
            eval_steps=160,
            save_steps=160,
            max_new_tokens=32,
            log_every=10,
            log_with=("jsonl",),
        )
    ).checkpoint
    results, report = directory / "results.json", report or directory / "report.html"
    generation = {"model_name": str(checkpoint), "max_new_tokens": 32, "batch_size": 64}
    result = evaluate(EvalConfig(dataset_path=photos / "eval", output=results, report=report, show=0, **generation))
    caption(CaptionConfig(paths=(unseen,), **generation))

    truth = json.loads((unseen / "truth.json").read_text(encoding="utf-8"))
    for name, expected in truth.items():
        written = sidecar_of(unseen / name).read_text(encoding="utf-8").strip()
        print(
            f"{name}  {'right' if written == expected else 'WRONG'}\n  truth       {expected}\n  prediction  {written}"
        )
    print(
        f"{result.exact_match:.0%} of {EVAL_IMAGES} captions of unseen images are exactly right; "
        f"{time.perf_counter() - start:.0f} s. Look around in {directory}, at {report} first"
    )
    if result.exact_match is None or result.exact_match < GOOD_ENOUGH:
        raise UserError(f"the demo should get at least {GOOD_ENOUGH:.0%} of them right")


def _check_report(report: Path) -> None:
    """Raise UserError where the page can't be written."""
    try:
        check_page(report)
    except ValueError as error:
        raise UserError(f"--report {report}: {error}") from None
    check_writable(report.parent, "choose another --report")


def draw_dataset(directory: Path, count: int, *, seed: int, captions: bool = True) -> None:
    """Draw `count` pictures of one shape each, with a .txt for each caption; without `captions`, one truth.json."""
    directory.mkdir(parents=True)
    rng = random.Random(seed)
    truth = {}
    for number in range(count):
        picture, text = draw_shape(rng)
        path = directory / f"{number:04d}.png"
        picture.save(path)
        truth[path.name] = text
        if captions:
            sidecar_of(path).write_text(text + "\n", encoding="utf-8")
    if not captions:
        (directory / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")


def draw_shape(rng: random.Random) -> tuple[Image.Image, str]:
    """A random picture of one shape, and its caption, such as "a small red star in the top left corner"."""
    size, colour, form, place = (rng.choice(list(options)) for options in (SIZES, COLOURS, FORMS, PLACES))
    radius = SIZES[size]
    grey = rng.randint(190, 255)
    picture = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
    span = SIDE - 2 * radius - 2
    x, y = (radius + 1 + share * span + rng.uniform(-1, 1) for share in PLACES[place])
    draw = ImageDraw.Draw(picture)
    if corners := FORMS[form]:
        draw.polygon(_corners(x, y, radius, corners), fill=COLOURS[colour])
    else:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    return picture, f"a {size} {colour} {form} {place}"


def _corners(x: float, y: float, radius: float, corners: int) -> list[tuple[float, float]]:
    """Corners of a regular polygon. With ten, every second one lies closer to the centre: a five-pointed star."""
    turn = math.pi / 4 if corners == 4 else math.pi / 2  # a square rests on a side, the others point upwards
    points = []
    for corner in range(corners):
        reach = radius * (0.45 if corners == 10 and corner % 2 else 1)
        angle = 2 * math.pi * corner / corners - turn
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return points
