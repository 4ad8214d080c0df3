"""The other commands: a look at a run; those that make, convert and upload a model; the demo and the guide."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from florence2ner.cli.app import app
from florence2ner.display import Display
from florence2ner.process import importing


@app.command("status")
def _status(
    run: Annotated[Path, typer.Argument(help="The folder of a run, such as checkpoints/mine, or what is in it.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Say where a training run stands: step, loss, ETA, evaluations, last captions, whether it still works."""
    from florence2ner.watching.status import status

    status(run, watch=watch)


@app.command("init-model")
def _init_model(
    directory: Annotated[Path, typer.Argument(help="New folder for the model.")],
    dataset_path: Annotated[Path, typer.Option(help="Folder with captions to make the vocabulary from.")],
    preset: Annotated[
        Literal["tiny", "base", "large"],
        typer.Option(help="tiny learns small pictures on a CPU; base and large have the real sizes."),
    ] = "tiny",
    caption_extension: Annotated[
        list[str] | None, typer.Option(help="Extension of the caption files.", metavar="<str>", show_default=".txt")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 42,
) -> None:
    """Make a new Florence-2 with random weights and a vocabulary of its own."""
    from florence2ner.data.formats import CAPTION_EXTENSION, LeftOut
    from florence2ner.data.layouts.pairs import read_captions
    from florence2ner.model.checkpoints.scratch import init_model

    display, left_out = Display(is_main=True), LeftOut()
    captions = read_captions(dataset_path, extensions=caption_extension or (CAPTION_EXTENSION,), left_out=left_out)
    for line in left_out.report():
        display.warn(line)
    init_model(directory, preset=preset, captions=captions, seed=seed)
    display.say(f"done: {directory}")


@app.command("convert")
def _convert(
    source: Annotated[str, typer.Argument(help="Model directory or hub id, in either layout.")],
    destination: Annotated[Path, typer.Argument(help="New folder for the converted model.")],
    layout: Annotated[
        Literal["native", "original"],
        typer.Option(help="native: for transformers' own class. original: for tools that use Microsoft's code."),
    ],
    dtype: Annotated[
        Literal["keep", "fp32", "fp16", "bf16"], typer.Option(help="Type of the weights; keep: as they are.")
    ] = "keep",
) -> None:
    """Convert a Florence-2 between Microsoft's original layout and the native one, and check the result."""
    from florence2ner.engine.run_files import find_model
    from florence2ner.model.checkpoints.loading import convert

    convert(find_model(source), destination, layout=layout, dtype=dtype)
    Display(is_main=True).say(f"done: {destination}")


@app.command("push")
def _push(
    directory: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run: its best checkpoint.")],
    repo: Annotated[str, typer.Argument(help="Repository, such as somebody/my-florence-2; made where it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository for everybody to see.")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub, without the training state."""
    from florence2ner.engine.hub import push

    display = Display(is_main=True)
    display.say(f"pushed to {push(directory, repo, public=public, say=display.say)}")


@app.command("demo")
def _demo(
    directory: Annotated[Path, typer.Argument(help="Folder for the pictures, the model and its captions.")] = Path(
        "florence2ner-demo"
    ),
    report: Annotated[
        Path | None, typer.Option(help="File for the page of its evaluation. none: report.html in the folder.")
    ] = None,
) -> None:
    """Watch a tiny Florence-2 learn to caption drawn shapes, in a minute or two on a CPU."""
    with importing():
        from florence2ner.demo import demo
    demo(directory, report)


@app.command("guide")
def _guide(
    topic: Annotated[str | None, typer.Argument(help="A topic; without one, the topics are listed.")] = None,
) -> None:
    """Read the guide: training, resume, captioning, several GPUs, settings and more."""
    from rich.console import Console
    from rich.markdown import Markdown

    from florence2ner.guide import read_page, topics

    console = Console(emoji=False)
    if topic is None:
        width = max(map(len, topics()))
        for name, sentence in topics().items():
            console.print(f"{name:{width}}  {sentence}", highlight=False, markup=False, soft_wrap=True)
        return
    console.print(Markdown(read_page(topic.lower().removesuffix(".md"))))
