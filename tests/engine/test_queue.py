"""Two processes that take their work from one queue."""

import json
from pathlib import Path

from tests.conftest import Start
from tests.support import many


def test_two_processes_share_the_work(
    start: Start, images: Path, trained_model: Path, shapes: Path, tmp_path: Path
) -> None:
    many(images, shapes, 27)
    (images / "bad.png").write_text("no image")
    flags = ("--model-name", trained_model, "--batch-size", 3, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    output = tmp_path / "captions.jsonl"
    result = start("florence2ner", "caption", images, *flags, "--output", output, processes=2).wait()
    assert result.returncode == 3, result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(
        path.name for path in images.rglob("*.png") if path.name != "bad.png"
    )
    assert result.stderr.count("32 captioned, 0 kept, 1 failed") == 1, "one summary for the whole"
