"""The roots of a dataset: how they are given, what each is read with, and what they are called."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.base import load_config
from florence2ner.config.commands import EvalConfig, TrainConfig
from florence2ner.config.roots import absolute_roots
from florence2ner.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photos", "photos/sub", "drawings", "old/photos", "held out"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def load(folder: Path, yaml: str = "", **flags: Any) -> TrainConfig:
    file = folder / "run.yaml"
    file.write_text(yaml)
    return load_config(TrainConfig, flags, file)


def test_one_root_has_no_name_and_reads_as_the_settings_say(folder: Path) -> None:
    for config in (load(folder, dataset_path=[str(folder / "photos")]), TrainConfig(dataset_path=folder / "photos")):
        (root,) = config.roots
        assert (root.path, root.weight, root.name) == (folder / "photos", 1.0, "")
        assert config.run_dir.name == "photos"


def test_several_roots_have_names_and_settings_of_their_own(folder: Path) -> None:
    yaml = f"""
task_prompt: <MORE>
caption_extension: .caption
dataset_path:
- {folder}/drawings
- path: {folder}/photos
  weight: 0.5
  task_prompt: <CAPTION>
- path: {folder}/old/photos
  layout: table
  caption_column: text
  caption_extension: [.txt, .tags]
"""
    config = load(folder, yaml)
    read = [(root.name, root.weight, root.options.task_prompt, root.options.layout) for root in config.roots]
    parent = folder.name
    assert read == [
        (f"{parent}/drawings", 1.0, "<MORE>", "auto"),
        (f"{parent}/photos", 0.5, "<CAPTION>", "auto"),
        ("old/photos", 1.0, "<MORE>", "table"),
    ]
    assert [root.options.caption_extension for root in config.roots] == [
        (".caption",),
        (".caption",),
        (".txt", ".tags"),
    ]
    assert config.run_dir.name == "drawings+photos"
    assert load(folder, config.to_yaml()) == config, "what is not set in a root follows the other settings still"
    flags = {"dataset_path": [f"{folder}/drawings", f"{folder}/photos"]}
    assert [root.name for root in load(folder, yaml, **flags).roots] == ["drawings", "photos"], "flags win"


def test_an_eval_root_is_told_apart_too(folder: Path) -> None:
    config = load(folder, dataset_path=[str(folder / "photos")], eval_path=[str(folder / "held out")])
    assert [root.name for root in (*config.roots, *config.eval_roots)] == ["photos", "held out"]


def test_a_folder_may_be_read_in_two_ways(folder: Path) -> None:
    roots = [
        {"path": folder / "photos"},
        {"path": folder / "photos", "caption_extension": ".od", "task_prompt": "<OD>"},
    ]
    config = EvalConfig(dataset_path=roots)
    assert [(root.name, root.options.task_prompt) for root in config.roots] == [("", "<CAPTION>"), ("", "<OD>")]


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        ("[]", "dataset_path: .*at least 1 item"),
        ("[{path: F/photos, weigth: 2}]", r"dataset_path: unknown key 'weigth'\. Did you mean weight\?"),
        ("{path: F/photos, weight: 0}", "dataset_path: weight should be greater than 0, not 0"),
        ("{weight: 2}", "dataset_path: path is missing"),
        ("[F/photos, F/nowhere]", "dataset_path: F/nowhere does not exist; name the folder"),
        ("[F/photos, F/photos]", "photos is given twice; to take its images more often, set a weight"),
        ("[F/photos, {path: F/photos, weight: 3}]", "photos is given twice"),
        ("[F/photos/sub, F/photos]", "F/photos and F/photos/sub are one in the other: name the outer one alone"),
        ("{path: F/photos, layout: tabel}", "dataset_path: layout should be .*, not 'tabel'"),
        ("7", "dataset_path: "),
    ],
)
def test_mistakes_get_one_line(folder: Path, roots: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("F/", f"{folder}/")) as error:
        load(folder, f"dataset_path: {roots.replace('F/', f'{folder}/')}")
    assert "\n" not in str(error.value)


def test_what_is_held_out_is_said_once(folder: Path) -> None:
    for other in ({"eval_split_count": 3}, {"split": "split.json"}):
        with pytest.raises(UserError, match=f"eval_path and {next(iter(other))} both say what is evaluated on"):
            load(folder, dataset_path=[str(folder / "photos")], eval_path=[str(folder / "held out")], **other)
    with pytest.raises(UserError, match="are one in the other"):
        load(folder, dataset_path=[str(folder / "photos")], eval_path=[str(folder / "photos" / "sub")])


def test_an_id_of_the_hub_is_read_as_such_only_where_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    config = load(folder, dataset_path=["somebody/drawings"], layout="huggingface")
    assert [root.path for root in config.roots] == [Path("somebody/drawings")]
    assert absolute_roots(config.dataset_path) == config.dataset_path
    assert config.run_dir.name == "drawings"
    with pytest.raises(UserError, match="phots/sub names no folder; for a dataset on the hub add --layout huggingface"):
        load(folder, dataset_path=["phots/sub"])
    for name in ("phots", "/phots/sub", "../phots"):
        with pytest.raises(UserError, match=r"phots.* does not exist; name the folder"):
            load(folder, dataset_path=[name], layout="huggingface")


def test_shards_are_text_that_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    texts = ["https://h/{00..99}.tar", "pipe:aws s3 cp s3://b/x.tar -", "more/{0..9}.tar", "photos"]
    config = load(folder, dataset_path=texts)
    assert [root.shards for root in config.roots] == [*texts[:3], ""]
    assert [str(root) for root in config.roots] == texts
    assert [root.options.layout for root in config.roots] == ["shards"] * 3 + ["auto"]
    absolute = absolute_roots(config.dataset_path)
    assert [root.path for root in absolute] == [*texts[:2], f"{folder}/more/{{0..9}}.tar", folder / "photos"]
    again = load(folder, config.model_copy(update={"dataset_path": absolute}).to_yaml())
    assert again.dataset_path == absolute
    with pytest.raises(UserError, match=r"a\.tar means tar shards, which have no layout coco: leave that out"):
        load(folder, dataset_path=["a.tar"], layout="coco")
    with pytest.raises(UserError, match=r"a\.tar is given twice"):
        load(folder, dataset_path=["a.tar", "./a.tar"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cats/a.tar", "a"),
        ("cats/a.tar.gz", "a"),
        ("cats/{00..99}.tar", "cats"),
        ("https://h/cats/{00..99}.tar", "shards"),
        ("pipe:cat a.tar", "shards"),
    ],
)
def test_a_run_on_shards_is_named_after_them(folder: Path, text: str, name: str) -> None:
    assert load(folder, dataset_path=[text]).run_dir.name == name
