"""Two real machines, as far as the network goes: two network namespaces joined by a veth pair. Needs root and iproute2.

They share a file system, as the README asks of machines that train together.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import TrainConfig
from florence2ner.engine.checkpoint import list_checkpoints
from tests.conftest import ROOT

MakeConfig = Callable[..., TrainConfig]
MACHINES = ("f2n-a", "f2n-b")
TIMEOUT = 40  # seconds that a machine waits for the other
pytestmark = pytest.mark.slow


def ip(*args: str) -> bool:
    return subprocess.run(["ip", *args], capture_output=True).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    """Namespaces f2n-a (10.77.0.1) and f2n-b (10.77.0.2) with a cable between them."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two machines in network namespaces need root and iproute2")
    for machine in MACHINES:
        ip("netns", "del", machine)
    if not all(ip("netns", "add", machine) for machine in MACHINES):
        pytest.skip("network namespaces are not allowed here")
    assert ip("link", "add", "f2n-veth-a", "type", "veth", "peer", "name", "f2n-veth-b")
    for number, machine in enumerate(MACHINES, start=1):
        cable = machine.replace("f2n-", "f2n-veth-")
        assert ip("link", "set", cable, "netns", machine)
        assert ip("-n", machine, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
        assert ip("-n", machine, "link", "set", cable, "up")
        assert ip("-n", machine, "link", "set", "lo", "up")
    yield
    for machine in MACHINES:
        ip("netns", "del", machine)


def start(config: Path, *flags: str) -> list["subprocess.Popen[str]"]:
    """Start the run on both machines, as two people at two keyboards would."""
    running = []
    for rank, machine in enumerate(MACHINES):
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": machine.replace("f2n-", "f2n-veth-"),
        }
        nodes = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        meet = ["--main_process_ip", "10.77.0.1", "--main_process_port", "29500"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *nodes, *meet]
        train = ["-m", "florence2ner", "train", "--config", str(config), *flags]
        command = ["ip", "netns", "exec", machine, *launch, *train]
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return running


def finish(running: list["subprocess.Popen[str]"]) -> None:
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors


def test_two_machines_agree_survive_a_kill_and_resume_exactly(make_config: MakeConfig, tmp_path: Path) -> None:
    configs = {}
    for name in ("whole", "killed"):
        config = make_config(
            run_name=name,
            train_batch_size=2,
            gradient_accumulation_steps=2,
            epochs=4,
            save_steps=2,
            eval_steps=6,
            process_timeout=TIMEOUT,
        )
        configs[name] = config
        (tmp_path / f"{name}.yaml").write_text(config.to_yaml())
    finish(start(tmp_path / "whole.yaml"))  # every save compares the weights of all processes
    whole = list_checkpoints(configs["whole"].run_dir)[-1]
    assert len(list((whole / "state").glob("random_states_*"))) == 2

    first, second = start(tmp_path / "killed.yaml")
    while not (configs["killed"].run_dir / "step-2").exists():
        assert first.poll() is None
        time.sleep(0.001)
    for pid in subprocess.run(["ip", "netns", "pids", MACHINES[1]], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = first.communicate(timeout=TIMEOUT + 60)
    assert time.monotonic() - killed_at < TIMEOUT
    assert first.returncode != 0
    assert "error: lost contact with another process" in errors, errors
    assert "-m florence2ner train --config" in errors
    second.communicate()

    finish(start(tmp_path / "killed.yaml", "--resume", "latest"))
    resumed = list_checkpoints(configs["killed"].run_dir)[-1]
    assert resumed.name == whole.name
    one, other = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [line.get("train/loss") for line in map(json.loads, (run.parent / "metrics.jsonl").read_text().splitlines())]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]
