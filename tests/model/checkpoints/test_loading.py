"""Checkpoints in and out as a user handles them: the convert command, training from either layout, the hub, damage."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2ner import CaptionConfig, EvalConfig, UserError, caption, evaluate, load_model, train
from florence2ner.cli import main
from florence2ner.demo import draw_dataset
from florence2ner.model.build import build_captioner
from florence2ner.model.checkpoints import loading
from florence2ner.model.checkpoints.adapters import save_adapter
from florence2ner.model.checkpoints.files import read_json
from florence2ner.model.checkpoints.loading import convert, load_empty, load_processor, save_model
from florence2ner.model.lora import Lora, add_lora
from tests.conftest import ColdStart, MakeConfig, Start


def test_native_to_original_to_native_is_bit_identical(command: Start, tiny_model: Path, tmp_path: Path) -> None:
    done = command("convert", tiny_model, "o", "--layout", "original")
    assert done.returncode == 0, done.stderr
    convert(str(tmp_path / "o"), tmp_path / "n", layout="native")
    config = read_json(tmp_path / "o" / "config.json")
    assert config["vision_config"]["model_type"] == "davit"
    assert {"image_projection", "language_model.lm_head.weight"} <= load_file(
        tmp_path / "o" / "model.safetensors"
    ).keys()
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "n" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in tmp_path.iterdir()} == {"o", "n"}


def test_a_destination_that_exists_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"exists already"):
        convert(str(tiny_model), tmp_path, layout="original")


def test_training_exports_the_original_layout_and_all_three_commands_read_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first = train(make_config(max_steps=1, eval_steps=None, export_layout="original")).checkpoint
    assert (first / "preprocessor_config.json").exists()
    assert "dim_embed" in read_json(first / "config.json")["vision_config"]
    native = tmp_path / "native"
    convert(str(first), native, layout="native")
    settings = {"num_beams": 1, "max_new_tokens": 3, "batch_size": 8}
    shapes = make_config().roots[0].path
    losses = [evaluate(EvalConfig(model_name=str(m), dataset_path=shapes, **settings)).loss for m in (first, native)]
    assert losses[0] == losses[1]
    draw_dataset(tmp_path / "imgs", 2, seed=3, captions=False)
    assert caption(CaptionConfig(paths=(tmp_path / "imgs",), model_name=str(first), **settings)).done == 2
    train(make_config(max_steps=1, eval_steps=None, model_name=str(first), run_name="next"))


def test_a_self_check_that_fails_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_with_a_fault(model, processor, directory, *, weights=None):  # type: ignore[no-untyped-def]
        wrong = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wrong["model.multi_modal_projector.image_proj_norm.bias"][0] += 1
        honest(model, processor, directory, weights=wrong)

    honest = loading.save_original
    monkeypatch.setattr(loading, "save_original", save_with_a_fault)
    with pytest.raises(UserError, match=r"differs from the model by .* in the logits"):
        convert(str(tiny_model), tmp_path / "out", layout="original")
    assert not list(tmp_path.iterdir())


def test_the_check_compiles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    model, processor = load_model(tiny_model)
    captioner = build_captioner(model, processor, device=torch.device("cpu"), compiled=True)
    torch._dynamo.utils.counters.clear()
    save_model(captioner.model, processor, tmp_path / "saved")
    assert not torch._dynamo.utils.counters["frames"]


def test_the_check_leaves_frozen_parts_in_evaluation_mode(tiny_model: Path, tmp_path: Path) -> None:
    model, processor = load_model(tiny_model)
    model.train()
    model.model.vision_tower.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    save_model(model, processor, tmp_path / "m")
    assert {name: module.training for name, module in model.named_modules()} == modes


def remove(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.multi_modal_projector.image_projection.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def rename(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.projector"] = tensors.pop("model.multi_modal_projector.image_projection.weight")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def reshape(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.multi_modal_projector.image_projection.weight"] = torch.zeros(3, 3)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def truncate(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def strip(model: Path) -> None:
    (model / "model.safetensors").unlink()


def mangle(model: Path) -> None:
    (model / "config.json").write_text("{")


def forget(model: Path) -> None:
    (model / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [remove, rename, reshape, truncate, strip, mangle, forget])
def test_a_damaged_native_directory_is_one_line(
    tiny_model: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    monkeypatch.setattr(
        "sys.argv", ["florence2ner", "convert", str(model), str(tmp_path / "out"), "--layout", "original"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert str(model) in error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub of our own on 127.0.0.1 with three repositories, and the list of files that were asked of it."""
    safe, pickled = tmp_path / "repositories" / "florence", tmp_path / "repositories" / "pickled"
    safe.parent.mkdir()
    convert(str(tiny_model), safe, layout="original")
    (safe / "modeling_florence2.py").write_text("raise SystemExit('remote code was run')")
    (safe / "README.md").write_text("# not needed")
    shutil.copytree(safe, pickled)
    torch.save(load_file(safe / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    model, processor = load_model(tiny_model)
    lora = Lora(rank=2, alpha=2, dropout=0.0, targets="all", dora=False, rslora=False)
    add_lora(model, lora, base="some/florence", seed=1)
    save_adapter(model, processor, safe.parent / "adapter", layout="native")
    asked: list[str] = []
    commit = "0" * 39 + "1"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            match self.path.partition("?")[0].split("/")[1:]:
                case ["api", "models", "some", name, "revision", "main"]:
                    files = [{"rfilename": path.name} for path in sorted((safe.parent / name).iterdir())]
                    body = json.dumps({"id": f"some/{name}", "sha": commit, "siblings": files}).encode()
                case ["api", "models", "some", name, "tree", *_]:
                    names = sorted(path.name for path in (safe.parent / name).iterdir())
                    body = json.dumps(
                        [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in names]
                    ).encode()
                case ["some", name, "resolve", _, file]:
                    body = (safe.parent / name / file).read_bytes()
                    asked.append(f"{name}/{file}")
                case _:
                    self.send_error(404)
                    return
            self.send_response(200)
            for header, value in (("X-Repo-Commit", commit), ("ETag", f'"{len(body)}"'), ("Content-Length", len(body))):
                self.send_header(header, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_hub_id_downloads_what_is_needed_and_never_code(
    hub: tuple[str, list[str]], cold_start: ColdStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, asked = hub
    cache = tmp_path / "cache"
    home = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    code = (
        "from pathlib import Path; from florence2ner.model.checkpoints.loading import convert; "
        "[convert(f'some/{name}', Path(name), layout='native') for name in ('florence', 'pickled', 'adapter')]"
    )
    run = cold_start("-c", code, **home)
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    for name in ("florence", "pickled", "adapter"):
        assert load_model(tmp_path / name)[0].config.model_type == "florence2"
    assert not {name for name in asked if name.endswith((".py", ".md"))}
    assert {name for name in asked if name.endswith((".safetensors", ".bin"))} == {
        "florence/model.safetensors",
        "pickled/pytorch_model.bin",
        "adapter/adapter_model.safetensors",
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))  # read from the environment at import
    convert("some/florence", tmp_path / "again", layout="native")  # what was downloaded serves without a network


@pytest.mark.parametrize("layout", ["native", "original"])
def test_the_processor_alone_is_that_of_the_model_and_needs_no_weights(
    tiny_model: Path, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "model"
    model, processor = load_model(tiny_model)
    save_model(model, processor, folder, layout=layout)  # type: ignore[arg-type]
    (folder / "model.safetensors").unlink()
    alone, config = load_processor(folder)
    assert config.text_config.max_position_embeddings == model.config.text_config.max_position_embeddings
    assert alone.image_processor.image_seq_length == processor.image_processor.image_seq_length
    text = "a small red star </s> <loc_5>"
    assert alone.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    empty, _ = load_empty(folder)
    assert all(weight.is_meta for weight in empty.parameters())
    expected = {name: weight.shape for name, weight in load_model(tiny_model)[0].named_parameters()}
    if layout == "original":  # without the rows that no token has
        expected["model.language_model.shared.weight"] = torch.Size((len(alone.tokenizer), 128))
    assert {name: weight.shape for name, weight in empty.named_parameters()} == expected
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer|not a whole Florence-2"):
        load_processor(folder)
