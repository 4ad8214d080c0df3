"""The caption command: plans what is to be done, without torch, and has `worker.py` do it."""

from collections.abc import Sequence
from contextlib import nullcontext

from florence2ner.captioning.plan import (
    CaptionPlan,
    CaptionSummary,
    ShardPlan,
    check_places,
    hold_places,
    hold_shards,
    make_plan,
    plan_shards,
    shards_in_paths,
    text_style,
)
from florence2ner.captioning.watch import Watch
from florence2ner.config.commands import CaptionConfig
from florence2ner.data.formats import LeftOut, discover_images
from florence2ner.display import Display
from florence2ner.engine import launcher
from florence2ner.model.tasks import doubt_about
from florence2ner.outputs.imagefolder import unseen_metadata
from florence2ner.outputs.records import METADATA
from florence2ner.process import importing

_SHOWN = 10  # images named by --dry-run


def caption(config: CaptionConfig) -> CaptionSummary:
    """Caption the images in `config.paths` and below its folders; by default, images with captions are skipped.

    The processes share the images out among themselves; every process must call this, and each gets the whole summary.
    An image that can't be read is named, counted and skipped. Raises UserError when there is no image, when two images
    would share a caption file and when captions can't be written, and Interrupted after SIGINT or SIGTERM; captions
    that were finished by then are on the disk.
    """
    text_style(config)  # raises for a bad template, before any work
    display = Display(is_main=launcher.is_main())
    for prompt in config.task_prompt:
        if launcher.is_main() and (doubt := doubt_about(prompt)):
            display.warn(doubt)
    if shards := shards_in_paths(config):
        return _caption_shards(config, shards, display)
    if not launcher.is_main():
        return _carry_out(config, None, None, display)
    left_out = LeftOut()
    images = discover_images(config.paths, left_out)
    for line in left_out.report():
        display.warn(line)
    if config.output and config.output.name == METADATA and (warning := unseen_metadata(config.output, images)):
        display.warn(warning)
    check_places(config)
    watch = Watch(config, images) if config.watch else None
    with nullcontext() if config.dry_run else hold_places(config, images):
        plan = make_plan(config, images)
        if config.dry_run:
            _show(plan, display)
        elif not plan.todo and not config.watch:
            display.say(f"nothing to do: all {plan.kept} images have captions (--existing overwrite replaces them)")
            plan.output.finish()  # an earlier run may have been killed after its last caption, but before this
        return _carry_out(config, plan, watch, display)


def _carry_out(
    config: CaptionConfig, plan: CaptionPlan | None, watch: Watch | None, display: Display
) -> CaptionSummary:
    """Carry out the main process's plan, without torch where nothing is to be done and nobody waits to be told so."""
    if launcher.processes() == 1 and plan is not None and (config.dry_run or not (plan.todo or config.watch)):
        return CaptionSummary(done=0, kept=plan.kept, failed=0)
    with importing():
        from florence2ner.captioning.worker import run  # imports torch, which takes seconds

    return run(config, plan, watch, display)


def _caption_shards(config: CaptionConfig, texts: Sequence[str], display: Display) -> CaptionSummary:
    """Caption the tar shards that `texts` mean, or say what would be done."""
    plan = None
    with nullcontext() if config.dry_run or not launcher.is_main() else hold_shards(config):
        if launcher.is_main():
            plan = plan_shards(config, texts)
            _show_shards(plan, display, dry_run=config.dry_run)
            if not config.dry_run:
                plan.sweep()
            if not config.dry_run and not plan.todo:
                plan.finish()  # an earlier run may have been killed after its last shard, but before this
        if config.dry_run or (launcher.processes() == 1 and plan is not None and not plan.todo):
            return CaptionSummary(done=0, kept=0, failed=0)
        with importing():
            from florence2ner.captioning.shards import run_shards  # imports torch, which takes seconds

        return run_shards(config, plan, display)


def _show_shards(plan: ShardPlan, display: Display, *, dry_run: bool) -> None:
    """Print how many shards have their captions, and with `dry_run` what would be done with the others."""
    captioned = len(plan.finished) + len(plan.joined)
    total = captioned + len(plan.todo)
    if not plan.todo:
        display.say(f"nothing to do: all {total} shards have captions (--existing overwrite replaces them)")
    elif captioned:
        display.say(f"{captioned} of {total} shards have their captions already")
    if dry_run and plan.todo:
        display.say(f"{len(plan.todo)} shards would be captioned")
        for place in plan.todo[:_SHOWN]:
            display.say(f"  {place.shard} -> {plan.output or place.finished}")
        if len(plan.todo) > _SHOWN:
            display.say(f"  and {len(plan.todo) - _SHOWN} more")


def _show(plan: CaptionPlan, display: Display) -> None:
    """Print what `--dry-run` prints."""
    display.say(f"{len(plan.todo)} images would be captioned, {plan.kept} have captions already")
    for image, _ in plan.todo[:_SHOWN]:
        display.say(f"  {image} -> {plan.output.place_of(image)}")
    if len(plan.todo) > _SHOWN:
        display.say(f"  and {len(plan.todo) - _SHOWN} more")
