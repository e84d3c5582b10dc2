"""The fork server: a process that has imported what calls need, runs nothing, and forks a template for each engine.

Imports take seconds, a fork takes milliseconds. So a program starts one server, which serves all of its engines.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NoReturn

import psutil

from manifold_bench.bench.planning.usercode import return_to, working_folder
from manifold_bench.bench.running.engines import template
from manifold_bench.bench.running.engines.processes import Method, await_message, end
from manifold_bench.bench.running.environment import is_command

_servers: dict[int, tuple[Connection, psutil.Process]] = {}
"""A connection to this process' server, and the server, by this process' id: a forked process needs one of its own."""

_lock = threading.Lock()

TRIES = 3
"""Number of servers that are tried before an engine gives up."""


def start_template(method: Method) -> tuple[Connection, psutil.Process]:
    """Start a template; return a connection to it and its process. method: how it starts the processes of calls."""
    mine, theirs = socket.socketpair()
    with theirs:
        process = _interpreter(template.__name__, theirs, method) if method == "spawn" else _forked(theirs)
    return Connection(mine.detach()), process


@contextmanager
def serving() -> Iterator[None]:
    """Let a copy of this process be the server of the code inside, if this is a command that has run nothing yet.

    In other programs the server is a new interpreter, since nobody knows what they have done, and stays for the next
    engine.
    """
    alone = sys.platform == "linux" and threading.active_count() == 1  # else a copy may lack what its locks wait for
    if not (is_command() and alone) or os.getpid() in _servers:
        yield
        return
    mine, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, a full one, or a closed one
            stream.flush()  # else the copy writes it again
    with theirs:
        pid = os.fork()
        if not pid:
            mine.close()
            _end_after(_serve_as_copy, theirs)
    _servers[os.getpid()] = Connection(mine.detach()), psutil.Process(pid)
    try:
        yield
    finally:
        _end_server()
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)  # nobody else may wait for it, as in a container without an init process


def _serve_as_copy(program: socket.socket) -> None:
    """Serve in a copy of the program's process, with the arguments, signals, input and session of a new interpreter."""
    os.setsid()
    sys.argv[:] = ["-c"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    main(str(program.fileno()))


def main(program: str) -> None:
    """Fork templates for the program at the other end of a socket, until it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # templates that end leave no zombies
    own = Connection(int(program))
    while True:
        try:
            surroundings, engine = own.recv(), recv_handle(own)
        except (EOFError, OSError):
            return
        pid = os.fork()
        if not pid:
            own.close()
            _end_after(_run_template, engine, *surroundings)
        os.close(engine)
        with suppress(OSError):
            own.send_bytes(b"%d" % pid)


def _run_template(
    engine: int, environment: dict[str, str], path: list[str], folder: str | None, cpus: set[int]
) -> None:
    """Run a template with the program's present environment, module path, working folder and CPUs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    os.sched_setaffinity(0, cpus)
    return_to(folder)
    template.main(str(engine), "fork")


def _end_after(function: Callable[..., None], *arguments: object) -> NoReturn:
    """Run a function in a process that was just forked, and end it without the exit handlers of its parent."""
    try:
        function(*arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _interpreter(module: str, program: socket.socket, *arguments: str) -> psutil.Popen:
    """Start the function `main` of a module in a new interpreter, connected with this process."""
    start = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main(*sys.argv[1:])"
    return psutil.Popen(
        [sys.executable, "-c", start, str(program.fileno()), *arguments],
        pass_fds=[program.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C at a terminal reaches the command alone
    )


def _forked(engine: socket.socket) -> psutil.Process:
    """Let the server fork a template for the engine that is connected with this socket; return its process."""
    surroundings = dict(os.environ), list(sys.path), working_folder(), os.sched_getaffinity(0)
    with _lock:
        for _ in range(TRIES):
            try:
                server, process = _server()
                server.send(surroundings)
                send_handle(server, engine.fileno(), None)
                await_message(server, process)
                return psutil.Process(int(server.recv_bytes()))
            except (EOFError, OSError, psutil.NoSuchProcess):  # the server was lost, or its template at once
                _end_server()
            except BaseException:  # such as an interrupt: an answer to this request would be taken for the next one's
                _end_server()
                raise
    raise ChildProcessError("the processes that run the jobs end as soon as they start")


def _server() -> tuple[Connection, psutil.Process]:
    """Return a connection to the server and its process; it starts at the first call."""
    if os.getpid() not in _servers:
        mine, theirs = socket.socketpair()
        with theirs:
            process = _interpreter(__name__, theirs)
        _servers[os.getpid()] = Connection(mine.detach()), process
    return _servers[os.getpid()]


def _end_server() -> None:
    """End the server, if there is one."""
    if known := _servers.pop(os.getpid(), None):
        connection, process = known
        connection.close()
        end(process, 0)
