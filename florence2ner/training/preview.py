"""The schedule command: the learning rate of a run that is planned, as a curve."""

import io
import shutil

from florence2ner.chart import as_picture, in_text
from florence2ner.config.commands import ScheduleConfig
from florence2ner.data.plan import build_order, count_updates
from florence2ner.display import Display
from florence2ner.files import check_writable, write_bytes
from florence2ner.training.length import check_warmup, settle_warmup
from florence2ner.training.run_folder import discover_dataset
from florence2ner.training.setup import schedule_of
from florence2ner.training.streaming import find_shards

_WIDTH, _HEIGHT = 100, 12  # of the curve in a terminal, in characters, at most


def draw_schedule(config: ScheduleConfig) -> list[float]:
    """Print the learning rate of a run as a curve, write the picture that was asked for; returns it for each update.

    The dataset is only read where its size decides the number of updates. Raises UserError where it can't be read, for
    a warmup that never ends and for a picture that can't be written.
    """
    display = Display(is_main=True)
    if config.png:
        check_writable(config.png.parent, "choose another --png")
    total = _updates(config, display)
    check_warmup(config, total)
    config, note = settle_warmup(config, total)
    schedule, peak = schedule_of(config, total), config.learning_rate
    rates = [peak * schedule(step) for step in range(total)]
    if note:
        display.say(note)
    images = config.micro_batch * config.gradient_accumulation_steps * config.processes
    highest, place = max((rate, -step) for step, rate in enumerate(rates))
    title = f"{total} updates of {images} images, {config.lr_schedule} after {config.warmup_steps} of warmup"
    width = min(_WIDTH, shutil.get_terminal_size().columns - 1)
    print(f"{title}; highest {highest:.3g} in update {1 - place}, {rates[-1]:.3g} in the last")
    print("\n".join(in_text(rates, width=width, height=_HEIGHT)))
    if config.png:
        file = io.BytesIO()
        as_picture(rates, title=title, top=f"{highest:.3g}").save(file, "PNG")
        write_bytes(config.png, file.getvalue())
        display.say(f"the picture is in {config.png}")
    return rates


def _updates(config: ScheduleConfig, display: Display) -> int:
    """How many updates the run makes."""
    shards = find_shards(config)
    if config.max_steps:
        return config.max_steps
    split, found = discover_dataset(config, shards)
    for line in found.report():
        display.say(line)
    return count_updates(config, build_order(config, split.train, processes=config.processes))
