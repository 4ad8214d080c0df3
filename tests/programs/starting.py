"""Warm starts: commands in processes of their own, without the many seconds that importing torch takes each time.

A server (`python -m tests.programs.starting`) imports once what the commands need and forks a child for each start. The
child becomes `python -m MODULE ARGS`: pid, process group, folder, environment and streams are its own, and it ends as
any interpreter does. Only what libraries read while they are imported (HF_HUB_OFFLINE and the like) is the server's.
"""

import atexit
import ctypes
import gc
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "FLORENCE2NER_STARTS"  # environment variable: the path of the server's socket
IMPORTS = (
    *("florence2ner.cli", "florence2ner.demo", "timm.optim", "transformers.models.bart.modeling_bart"),
    *("sacrebleu.metrics.bleu", "rouge_score.rouge_scorer", "wandb", "torch.distributed.fsdp"),
)
CLONE_NEWNET = 0x40000000  # from sched.h; Python 3.12 has it as os.CLONE_NEWNET


class Running:
    """One process, or those that a launcher starts together. They are killed when this is closed or forgotten."""

    def __init__(self, requests: list[dict[str, Any]], folder: Path) -> None:
        self._codes: list[int | None] = [None] * len(requests)
        self._streams = [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(len(requests))]
        self._connections = []
        for request, (out, err) in zip(requests, self._streams, strict=True):
            out.touch()
            err.touch()
            client = socket.socket(socket.AF_UNIX)
            client.connect(os.environ[ADDRESS])
            self._connections.append(Connection(client.detach()))
            self._connections[-1].send(request | {"streams": (os.devnull, str(out), str(err))})
        self.pids: list[int] = [connection.recv() for connection in self._connections]

    def poll(self, timeout: float = 0) -> int | None:
        """None while any process runs, then the first exit code that is not 0, or 0. It is negative after a kill."""
        until = time.monotonic() + timeout
        for rank, connection in enumerate(self._connections):
            if self._codes[rank] is None and connection.poll(max(0, until - time.monotonic())):
                self._codes[rank] = connection.recv()
        return None if None in self._codes else next(filter(None, self._codes), 0)

    def wait(self, timeout: float = 240) -> Self:
        """Return when all processes have ended."""
        assert self.poll(timeout) is not None, f"still running after {timeout} s: {self.stderr}"
        return self

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to all processes, or to those of `ranks`, and to what they started, as a terminal does."""
        for rank in ranks or range(len(self.pids)):
            os.killpg(self.pids[rank], number)

    def code(self, rank: int) -> int | None:
        """The exit code of a process once all have ended."""
        return self._codes[rank]

    def stderr_of(self, rank: int) -> str:
        return self._streams[rank][1].read_text()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    returncode = property(poll)
    stdout = property(lambda self: "".join(out.read_text() for out, _ in self._streams))
    stderr = property(lambda self: "".join(err.read_text() for _, err in self._streams))


def start(
    args: list[str], *, cwd: Path, env: Mapping[str, str], processes: int = 1, network: str = "", folder: Path
) -> Running:
    """Start `python -m ARGS` in `cwd`; several processes as `accelerate launch --multi_gpu` would. Output in `folder`.

    `network` names the network namespace to be in, if not this one.
    """
    request = {"args": args, "cwd": str(cwd), "network": network}
    port = free_port()
    worlds = [launched(rank, processes, port) if processes > 1 else {} for rank in range(processes)]
    environments = [{**os.environ, "OMP_NUM_THREADS": "1", **world, **env} for world in worlds]
    return Running([request | {"env": environment} for environment in environments], folder)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launched(rank: int, processes: int, port: int, *, address: str = "127.0.0.1", machines: int = 1) -> dict[str, str]:
    """What `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu` sets, but that process 0 keeps the store."""
    here = processes // machines
    values = {
        **{"RANK": rank, "LOCAL_RANK": rank % here, "GROUP_RANK": rank // here, "ROLE_RANK": rank},
        **{"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": here, "GROUP_WORLD_SIZE": machines},
        **{"ROLE_WORLD_SIZE": processes, "ROLE_NAME": "default", "MASTER_ADDR": address, "MASTER_PORT": port},
        **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0},
        **{"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
    }
    return {name: str(value) for name, value in values.items()}


@contextmanager
def warm_starts() -> Iterator[None]:
    """Offer warm starts to this process and to those it starts, until the `with` or the process ends."""
    with TemporaryDirectory() as folder:
        os.environ[ADDRESS] = f"{folder}/starts"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.environ[ADDRESS])
            listener.listen()
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.programs.starting", str(listener.fileno())],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,  # it ends when this does
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is not for the server
            )
        yield
        server.communicate()


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each request, until stdin ends. Returns a request, in the child that is to become what it says."""
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))  # clear attendants away
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection = Connection(listener.accept()[0].detach())
        for module in IMPORTS:  # at the first request: not every test run has one
            import_module(module)
        gc.freeze()  # pages that children needn't copy, nor look for garbage in at their end, which takes two seconds
        if _complains_of_leaks():
            atexit.register(gc.unfreeze)
        threads = Path("/proc/self/task")
        assert not threads.exists() or len(list(threads.iterdir())) == 1, "only a process of one thread can be forked"
        if os.fork() == 0:
            listener.close()
            return _attend(connection)
        connection.close()
    sys.exit()


def _complains_of_leaks() -> bool:
    """Whether triton prints what is left of its objects at the end of an interpreter: from 3.9 on nanobind does so."""
    module = sys.modules.get("triton._C.libtriton.ir")
    return any(type(value).__name__.startswith("nb_") for value in vars(module).values()) if module else False


def _attend(connection: Connection) -> dict[str, Any]:
    """Fork the child, tell its pid and then how it ended. Kill it when nobody listens any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request: dict[str, Any] = connection.recv()
    pid = os.fork()
    os.setpgid(pid, pid or os.getpid())  # both do it: neither may go on in a child without a group of its own
    if pid == 0:
        connection.close()
        return request
    with suppress(OSError):
        connection.send(pid)
        if connection in select.select([connection, os.pidfd_open(pid)], [], [])[0]:
            os.killpg(pid, signal.SIGKILL)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    if request["network"]:
        with open(f"/run/netns/{request['network']}") as network:
            assert ctypes.CDLL(None).setns(network.fileno(), CLONE_NEWNET) == 0
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for descriptor, path in enumerate(request["streams"]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    module, *sys.argv[1:] = request["args"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
