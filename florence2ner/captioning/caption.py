"""Folder in, captions out: what is to be done, decided before torch is imported; `worker.py` does it."""

from pathlib import Path

from florence2ner.captioning.plan import CaptionPlan, CaptionSummary, make_plan, text_style
from florence2ner.config.commands import CaptionConfig
from florence2ner.data.formats import discover_images
from florence2ner.display import Display, name_some
from florence2ner.engine import launcher
from florence2ner.errors import did_you_mean
from florence2ner.model.tasks import TASKS

_SHOWN = 10  # images named by --dry-run


def caption(config: CaptionConfig) -> CaptionSummary:
    """Caption the images named and those below the folders named; what has captions already is kept by default.

    Each process takes what no other has taken. An image that can't be read is named, counted and skipped. Raises
    UserError when there is no image, when two images would share a caption file and when nothing can be written, and
    Interrupted after SIGINT or SIGTERM; what was finished by then is on the disk.
    """
    text_style(config)  # a mistake in a template shows before anything else
    plan = None
    display = Display(is_main=launcher.is_main())
    if launcher.is_main():
        for prompt in config.task_prompt:
            if prompt not in TASKS:
                display.say(f"note: {prompt} is not one of Florence-2's own tasks.{did_you_mean(prompt, TASKS)}")
        unreadable: list[Path] = []
        images = discover_images(config.paths, unreadable)
        if unreadable:
            display.warn(f"{len(unreadable)} folders can't be read and are left out: {name_some(unreadable)}")
        plan = make_plan(config, images)
        if config.dry_run:
            _show(plan, display)
        elif not plan.todo and not config.watch:
            display.say(f"nothing to do: all {plan.kept} images have captions (--existing overwrite replaces them)")
            plan.output.finish()  # a run may have been killed before it did
    if launcher.processes() == 1 and plan is not None and (config.dry_run or not (plan.todo or config.watch)):
        return CaptionSummary(done=0, kept=plan.kept, failed=0)
    from florence2ner.captioning.worker import run  # torch takes seconds, and was not needed until here

    return run(config, plan, display)


def _show(plan: CaptionPlan, display: Display) -> None:
    """What `--dry-run` prints."""
    display.say(f"{len(plan.todo)} images would be captioned, {plan.kept} have captions already")
    for image, _ in plan.todo[:_SHOWN]:
        display.say(f"  {image} -> {plan.output.place_of(image)}")
    if len(plan.todo) > _SHOWN:
        display.say(f"  and {len(plan.todo) - _SHOWN} more")
