"""A process that has imported what the commands import, and forks a child for each one: that saves seconds of a start.

A child has the arguments, the environment, the folder and the streams of the command, as a new interpreter would, and
runs none of the code that another command ran. How a command starts for the first time is a matter of the tests that
start a process of their own.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import tempfile
import threading
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

IMPORTED = (
    "manifold_bench.bench.run",
    "manifold_bench.bench.evaluation.judging",
    "manifold_bench.bench.train",
    "manifold_bench.bench.compare",
    "manifold_bench.bench.running.job",
    "matplotlib.backends.backend_svg",
    "sklearn.datasets",
    "scipy.stats",
    "statsmodels.stats.proportion",
    "statsmodels.stats.contingency_tables",
    "pandas.io.parquet",
    "pyarrow.parquet",
)


class Server:
    """The process that forks. It ends when this one does."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("MANIFOLD_BENCH_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**env, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._lock = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        self._connection.close()
        self._process.wait()

    def run(
        self, arguments: list[str], env: dict[str, str], cwd: Path | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of `python -m manifold_bench.bench` with captured streams."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            streams = [str(Path(folder) / name) for name in ("out", "err")]
            self._connection.send((arguments, env, str(cwd or Path.cwd()), streams))
            if not self._connection.poll(timeout):
                self._process.kill()
                server.cache_clear()
                raise subprocess.TimeoutExpired(arguments, timeout)
            said = [Path(stream).read_text(encoding="utf-8") for stream in streams]
            return subprocess.CompletedProcess(arguments, self._connection.recv(), *said)


@cache
def server() -> Server:
    """The one of this process, which starts at the first command."""
    return Server()


def become(arguments: list[str], env: dict[str, str], cwd: str, streams: list[str], installed: list[str]) -> None:
    """Turn this process into that command, and end with it. installed: where Python finds what is installed."""
    for number, stream in enumerate(streams, start=1):
        with Path(stream).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    command = importlib.import_module("manifold_bench.bench.__main__")
    sys.argv[:] = [str(command.__file__), *arguments]
    code: object = 1
    try:
        code = command.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def serve(connection: Connection) -> None:
    """Fork commands, one after the other, until the other end of the connection is closed."""
    installed = sys.path[1:]
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        pid = os.fork()
        if not pid:
            connection.close()
            become(*request, installed)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
