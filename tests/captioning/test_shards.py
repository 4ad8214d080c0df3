"""Shards in, shards or JSON Lines out: every image once, and a shard that was begun is gone on with."""

import json
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from tests.conftest import Caption
from tests.data.support import write_shard


@pytest.fixture
def shards(tmp_path: Path, shapes: Path) -> str:
    for number in range(2):
        pictures = {f"{n}.png": (shapes / f"{n:04d}.png").read_bytes() for n in range(3 * number, 3 * number + 3)}
        write_shard(tmp_path / "in" / f"{number}.tar", pictures)
    return str(tmp_path / "in" / "{0..1}.tar")


def rows(folder: Path) -> dict[str, str]:
    read = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    assert len({row["path"] for row in read}) == len(read)
    return {row["path"]: row["caption"] for row in read}


def test_each_shard_gets_its_captions_and_goes_on_where_it_was_left(run: Caption, shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(paths=(shards,), output_dir=out)
    assert (first.done, first.kept, first.failed) == (6, 0, 0)
    written = rows(out)
    assert list(written) == [f"{n // 3}/{n}.png" for n in range(6)]
    assert run(paths=(shards,), output_dir=out).done == 0
    lines = (out / "1.jsonl").read_text().splitlines(keepends=True)
    (out / "1.jsonl").unlink()
    (out / "1.unfinished.jsonl").write_text(lines[0] + lines[1][:20])  # as a kill leaves it
    again = run(paths=(shards,), output_dir=out)
    assert (again.done, again.kept) == (2, 1)
    assert rows(out) == written
    assert {path.name for path in out.iterdir()} == {"0.jsonl", "1.jsonl"}


def test_a_shard_that_ends_half_way_is_used_and_told(
    run: Caption, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "in" / "1.tar"
    torn.write_bytes(torn.read_bytes()[:-8000])
    summary = run(paths=(str(tmp_path / "in"),), output_dir=tmp_path / "out")
    assert summary.failed == 1
    assert "it can't be read to its end; what could be is in" in capsys.readouterr().err
    assert (tmp_path / "out" / "0.jsonl").exists()
    assert not (tmp_path / "out" / "1.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a file for each shard: give --output-dir"),
        ({"output_dir": "out", "existing": "append"}, "--existing append is not for tar shards"),
        ({"output_dir": "out", "watch": True}, "--watch is not for tar shards"),
    ],
)
def test_what_is_not_for_shards_is_refused(run: Caption, shards: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(paths=(shards,), **settings)
