"""A metadata.jsonl that Hugging Face datasets would not see. The table is what datasets 5.2 was seen to do."""

from pathlib import Path

import pytest

from florence2ner.outputs.imagefolder import unseen_metadata
from tests.conftest import Caption


@pytest.mark.parametrize(
    ("images", "splits"),
    [
        (["train/a.png", "train/b.png", "eval/c.png"], ["eval", "train"]),
        (["x/train/a.png", "x/eval/b.png"], ["x/eval", "x/train"]),
        (["my-train/a.png"], ["my-train"]),
        (["holiday_val/a.png", "b.png"], ["holiday_val"]),
        (["day test/deep/a.png"], ["day test"]),
        (["2017.test/dev/a.png"], ["2017.test"]),
        (["photos/a.png", "b.png"], []),
        (["constrained/a.png", "trained/b.png"], []),
        (["Train/a.png"], []),
        (["../train/a.png"], []),
    ],
    ids=str,
)
def test_a_file_above_folders_of_splits_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], splits: list[str]
) -> None:
    folder = tmp_path / "train"  # what lies above the file doesn't matter
    folder.mkdir()
    monkeypatch.chdir(folder)
    for path, paths in (("metadata.jsonl", images), (folder / "metadata.jsonl", [folder / name for name in images])):
        said = unseen_metadata(Path(path), map(Path, paths))
        if not splits:
            assert said is None
            continue
        named = [str(Path(path).parent / split) for split in splits]
        assert said == (
            f"Hugging Face datasets won't see {path}, as it takes folders below it for splits ({', '.join(named)}): "
            f"write one for each, such as caption {named[0]} --output {named[0]}/metadata.jsonl"
        )


def test_caption_says_so_and_is_silent_about_a_file_in_the_split(
    run: Caption, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "sub").rename(images / "train")
    run(output=images / "metadata.jsonl")
    said = f"warning: Hugging Face datasets won't see {images}/metadata.jsonl, as it takes folders below it for splits"
    assert said in capsys.readouterr().err
    run(paths=(images / "train",), output=images / "train" / "metadata.jsonl")
    run(output=images / "captions.jsonl")
    assert "won't see" not in capsys.readouterr().err
