"""Pushing to the hub, against a stand-in on this machine that speaks as much of its language as an upload needs."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from florence2ner import UserError
from florence2ner.engine import hub
from tests.conftest import ColdStart, MakeConfig
from tests.support import write


class StandIn(ThreadingHTTPServer):
    """A hub with one user. `failures`: how often each path answers 503 before it works."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, object]] = []
        self.failures = Counter[str]()
        self.rights = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        last = self.path.rstrip("/").split("/")
        if self.server.failures[self.path] > 0:
            self.server.failures[self.path] -= 1
            self.answer(503, {"error": "overloaded"})
        elif not self.server.rights or self.headers.get("Authorization") != "Bearer hf_secret":
            self.answer(403, {"error": "you may not write here"})
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(sent))
            self.answer(200, {"url": f"{self.server.address}/somebody/mine", "name": "mine", "id": "somebody/mine"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "preupload" in last:
            names = [file["path"] for file in json.loads(sent)["files"]]
            regular = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer(200, {"files": regular})
        elif "commit" in last:
            for line in sent.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.server.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            commit = f"{self.server.address}/somebody/mine/commit/abc"
            self.answer(200, {"success": True, "commitOid": "abc", "commitUrl": commit, "hookOutput": ""})
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.answer(200, {"id": "somebody/mine", "sha": "abc", "siblings": [], "private": True})

    def answer(self, status: int, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "state").mkdir(parents=True)
    for name in ("config.json", "README.md", "state/optimizer.bin", ".hidden"):
        (folder / name).write_text(f"{name} here")
    return folder


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> StandIn:
    """The library talks to the stand-in, and waits no longer than it must."""
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.address)
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", stand_in.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(hub, "_WAITS", (0.01, 0.02))
    return stand_in


@pytest.mark.parametrize("public", [False, True])
def test_a_model_arrives_without_its_training_state(online: StandIn, model: Path, public: bool) -> None:
    assert hub.push(model, "somebody/mine", public=public) == f"{online.address}/somebody/mine"
    assert online.files == {name: (model / name).read_bytes() for name in ("config.json", "README.md")}
    assert online.made == [
        {"organization": "somebody", "name": "mine", "visibility": "public" if public else "private"}
    ]


def test_what_fails_is_tried_again(online: StandIn, model: Path) -> None:
    online.failures["/api/models/somebody/mine/commit/main"] = 1
    said: list[str] = []
    hub.push(model, "somebody/mine", say=said.append)
    assert online.files
    assert len(said) <= 1, "the library may have tried again itself"
    online.files.clear()
    online.failures["/api/repos/create"] = 10**6
    with pytest.raises(UserError, match=r"model could not be pushed to somebody/mine \(.*503.*\): try again later"):
        hub.push(model, "somebody/mine", say=said.append)
    assert any("it is tried again in 0 seconds" in line for line in said)
    assert not online.files


def test_without_the_right_to_write_it_is_not_tried_again(online: StandIn, model: Path) -> None:
    online.rights = False
    with pytest.raises(UserError, match="log in with `hf auth login`, or set HF_TOKEN"):
        hub.push(model, "somebody/mine", say=pytest.fail)


def test_a_hub_that_nobody_answers_for_is_one_line(online: StandIn, model: Path) -> None:
    online.shutdown()
    online.server_close()
    with pytest.raises(UserError, match="could not be pushed to somebody/mine"):
        hub.push(model, "somebody/mine", say=lambda _: None)


def test_what_is_no_model_and_an_offline_machine_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="holds no model: name a checkpoint, or the folder of a run"):
        hub.push(tmp_path, "somebody/mine")
    with pytest.raises(UserError, match=r"some/body/mine can't be the name of a repository: give one such as"):
        hub.push(model, "some/body/mine")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.push(model, "somebody/mine")
    assert "HF_HUB_OFFLINE is set" in (hub.doubt_about_upload() or "")


@pytest.mark.slow
def test_a_run_pushes_its_best_checkpoint_and_does_not_fail_with_the_hub(
    make_config: MakeConfig, cold_start: ColdStart, stand_in: StandIn, tmp_path: Path
) -> None:
    config = make_config(max_steps=2, eval_steps=1, save_steps=1, push_to_hub="somebody/mine")
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": stand_in.address, "HF_TOKEN": "hf_wrong"}
    first = cold_start("-m", "florence2ner", "train", "--config", write(config, tmp_path), **settings)
    _, said = first.communicate()
    assert first.returncode == 0, said
    assert "warning: " in said
    assert f"push it later: florence2ner push {config.run_dir} somebody/mine" in said
    assert "hf_wrong" not in said
    assert not stand_in.files
    settings["HF_TOKEN"] = "hf_secret"
    later = cold_start("-m", "florence2ner", "push", config.run_dir, "somebody/mine", **settings)
    _, said = later.communicate()
    assert f"pushed to {stand_in.address}/somebody/mine" in said
    best = (config.run_dir / "best").resolve()
    assert stand_in.files["README.md"] == (best / "README.md").read_bytes()
    assert stand_in.files["model.safetensors"] == (best / "model.safetensors").read_bytes()
    assert not [name for name in stand_in.files if name.startswith("state")]
