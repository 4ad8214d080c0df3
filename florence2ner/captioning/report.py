"""Hands what all processes have captioned over to the report of the run."""

from accelerate.utils import gather_object

from florence2ner.config.commands import CaptionConfig
from florence2ner.display import Display
from florence2ner.engine import launcher
from florence2ner.errors import UserError
from florence2ner.files import as_utf8, write_text
from florence2ner.report.captions import Gallery, captions_page


def write_report(config: CaptionConfig, collected: Gallery | None, display: Display) -> None:
    """Write the page of `config.report` from what each process has collected; does nothing where none is wanted.

    Every process must call this. A page that can't be written is warned of: the captions are on the disk.
    """
    if config.report is None or collected is None:
        return
    parts = gather_object([(collected.seen, collected.shown)])
    if not launcher.is_main():
        return
    gallery = Gallery()
    for seen, shown in parts:
        gallery.merge(seen, shown)
    title = ", ".join([*(as_utf8(path.name) or str(path) for path in config.paths), *config.shards])
    try:
        page = captions_page(
            gallery, title=title, settings=config.model_dump(mode="json"), max_pixels=config.max_pixels
        )
        write_text(config.report, page)
    except UserError as error:
        display.warn(str(error))
        return
    display.say(f"the report is in {config.report}")
