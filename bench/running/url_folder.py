"""Run folders at fsspec URLs (s3://bucket/run, gs://…, sftp://…): commands work on a copy on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.folders import check_files
from manifold_bench.bench.records.log import LOG
from manifold_bench.defenses.errors import one_line


@contextmanager
def local_folder(given: str, place: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a run's folder on this machine, and a function that uploads its new files.

    given: a folder, which is used as it is, or an fsspec URL, whose files are copied to this machine; changed files are
    copied back at the end, or when the function is called. place: command-line argument, for messages.
    """
    if "://" not in given or given.startswith("file://"):
        if not (path := given.removeprefix("file://")):
            raise InputError(f"{place}: {given!r} names no folder; give the path of a run's folder")
        folder = Path(path)
        check_files(folder)
        yield folder, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="manifold-bench-") as place_here:
        folder = Path(place_here) / (given.rstrip("/").rpartition("/")[2] or "run")
        mirror = Mirror(given, folder, place)
        mirror.fetch()
        try:
            yield folder, partial(mirror.push, but=LOG)  # the log grows with every job
        finally:
            mirror.push()


def page_of(folder: str) -> str:
    """Return the path or URL of the report in a run's folder."""
    return f"{folder.rstrip('/')}/report.html"


class Mirror:
    """A copy of a folder at a URL on this machine; only this process writes to the URL."""

    def __init__(self, url: str, folder: Path, place: str) -> None:
        # late: a run in a folder of this machine needs none of it
        from fsspec.core import url_to_fs

        self.url, self.folder, self.place = url, folder, place
        self._known: dict[str, tuple[int, int]] = {}  # what is the same at both places, as it is here
        with self._explained():
            self._files, self._root = url_to_fs(url)

    def fetch(self) -> None:
        """Copy everything from the URL."""
        self.folder.mkdir()
        with self._explained():
            names = [path.removeprefix(self._root).lstrip("/") for path in self._files.find(self._root)]
            names = [name for name in names if not _hidden(name)]
            for name in names:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            if names:
                self._files.get([self._there(name) for name in names], [str(self.folder / name) for name in names])
        self._known = self._here()

    def push(self, but: str = "") -> None:
        """Copy new files to the URL, in the order of their times, and delete removed ones; but: file to leave out.

        A file gets its name when it is complete, so that a killed run leaves no partial files.
        """
        here = self._here()
        with self._explained():
            for name in sorted(here, key=lambda name: here[name]):
                if self._known.get(name) != here[name] and name != but:
                    folder, _, last = self._there(name).rpartition("/")
                    draft = f"{folder}/.{last}.tmp"
                    self._files.makedirs(folder, exist_ok=True)
                    self._files.put_file(str(self.folder / name), draft)
                    self._files.mv(draft, self._there(name))
                    self._known[name] = here[name]
            for name in self._known.keys() - here.keys():
                self._files.rm_file(self._there(name))
                del self._known[name]

    def _there(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _here(self) -> dict[str, tuple[int, int]]:
        """Return time and size of each file by name, without drafts."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if not _hidden(name) and path.is_file():
                state = path.stat()
                found[name] = state.st_ctime_ns, state.st_size
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn exceptions of any kind, which depend on the kind of URL, into InputErrors."""
        try:
            yield
        except Exception as error:
            raise InputError(f"{self.place}: {self.url} cannot be used ({one_line(error)})") from error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
