"""The console script: `manifold-bench run | judge | report | compare | baseline | train | list`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from manifold_bench.bench import COMMANDS
from manifold_bench.bench.planning.process_exit import ProcessExit, exit_as_error
from manifold_bench.bench.running.environment import begin_command
from manifold_bench.bench.text import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HELP = "`manifold-bench COMMAND --help` explains a command."
"""Last line of the usage."""

USAGE = "usage: manifold-bench COMMAND [ARGUMENTS]\n\n" + "\n".join(
    [*(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items()), "", HELP]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with the remaining arguments; `manifold-bench COMMAND --help` explains them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = given[0] if given else "", given[1:]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        error = f"error: {printable(repr(name))} is no command; there are {', '.join(COMMANDS)}"
        print(error if name else USAGE, file=sys.stderr)
        return 2
    try:
        here = str(Path.cwd())
    except OSError as error:
        print(f"error: the working folder is gone ({error.strerror}); change to another one", file=sys.stderr)
        return 2
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # for the user's own systems, named as module:Class
    module = "report.__main__" if name == "report" else name  # report is the only command that is a folder
    command = importlib.import_module(f"manifold_bench.bench.{module}")
    if arguments is None:
        begin_command()
        end_with(lambda: command.main(rest))
    return int(command.main(rest))


class _Output(FileIO):
    """A file descriptor to write to; what is written to a pipe without a reader is dropped."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def _outlasting_its_reader(stream: TextIO) -> TextIO:
    """Return a stream to the same file that ignores a closed pipe; a stream that is closed itself stays as it is."""
    if not isinstance(stream, TextIOWrapper):
        return stream
    output = _Output(stream.fileno(), "w", closefd=False)
    output.name = stream.name
    lines = stream.line_buffering
    return TextIOWrapper(BufferedWriter(output), stream.encoding, "backslashreplace", line_buffering=lines)


def end_with(command: Callable[[], int]) -> NoReturn:
    """Run a command, and end this process with its exit code.

    It ends at once, without waiting for threads and exit handlers of a user's module, which may never end or may change
    the exit code. Characters that a terminal or file cannot take are written as escapes. What nobody reads, as in
    `compare … | head`, is dropped, so that the exit code says the same as without the pipe.
    """
    sys.stdout, sys.stderr = (_outlasting_its_reader(stream) for stream in (sys.stdout, sys.stderr))
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]  # None if closed
    try:
        with exit_as_error():  # a user's object may call os._exit wherever it is shown, copied or deleted
            code = command()
    except (Exception, ProcessExit):
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in streams:
        try:
            stream.flush()
        except OSError as error:  # a full disk
            code = code or 1
            with suppress(OSError):
                print(f"error: {stream.name}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
