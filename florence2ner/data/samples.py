"""What there is to train on: the samples of a folder, and which of them are held out for evaluation."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One image, the task asked of it, and the answer (None where it is to be generated)."""

    image: Path
    task_prompt: str
    caption: str | None = None
