"""Every example in README.md and docs/ runs as it is: Python and shell scripts are run, other commands planned."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from plans import PASSES, rows_of_passes
from plans import planned as planned_jobs
from users import importable

from manifold_bench.bench import COMMANDS, __main__
from manifold_bench.bench.arguments import Parser
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.evaluation import evaluate as evaluation
from manifold_bench.bench.metrics.summary import SUMMARY_COLUMNS
from manifold_bench.bench.planning import matrix
from manifold_bench.bench.planning.catalogue import descriptions
from manifold_bench.bench.planning.details import parameters
from manifold_bench.bench.planning.plan import Options, Plan
from manifold_bench.bench.planning.reading import parse_matrix, read_matrix
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.forecast import Forecast, Forecaster

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"))}
RESULTS = sorted((DOCS / "results").glob("*.md"))
QUICKLY_READ = {"photographs.md", "selective.md"}

MATRICES = {"attackbench", "full", "photographs", "quick", "selective", "smoke", "strong"}
"""Matrices that can be planned without files of the user's."""

LONG_TO_PLAN = {"attackbench", "full"}
"""Those whose plan takes most of a minute: it is tested with `-m slow`."""

OTHERS = ("apt", "cd", "git", "mkdocs", "mv", "pip", "pytest", "python", "ray", "rm", "ruff", "tox")
"""Programs of others, which stand in examples and are not run."""

ELSEWHERE = re.compile(r"DIR|HEAD|s3://|--engine|cuda")
"""In commands that need what is not here: data, machines, a GPU."""


class Block(NamedTuple):
    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is, where its first line names one."""
        named = re.match(r"# (\S+\.(?:py|toml))\n", self.text)
        return named[1] if named else None


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.S | re.M)
    return [Block(page, language, textwrap.dedent(inner)) for _, language, inner in found]


ALL = [block for page in PAGES for block in blocks(page)]


LONG = {("estimators.md", "python"), ("images.md", "sh"), ("new_data.md", "sh"), ("new_defense.md", "sh")}
"""Pages with blocks that run for half a minute or more on a slow machine: these are tested with `-m slow`."""


def pages_with(language: str) -> list[object]:
    pages = sorted({block.page for block in ALL if block.language == language and not block.file})
    return [pytest.param(page, marks=pytest.mark.slow) if (page, language) in LONG else page for page in pages]


def test_every_block_is_of_a_kind_that_is_tested():
    assert {block.language for block in ALL} <= {"", "python", "toml", "sh", "text"}


@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.language == "text"}))
def test_every_output_follows_what_prints_it(page):
    """Then the test that runs the block before it compares what is printed."""
    for before, block in pairwise(blocks(page)):
        assert block.language != "text" or before.language == "sh" or (page, before.language) == ("README.md", "python")


@pytest.mark.parametrize("page", [page for page in pages_with("python") if page != "README.md"])
def test_python_runs_from_top_to_bottom(page):
    names: dict[str, object] = {"__name__": page}
    for number, block in enumerate(blocks(page), 1):
        if block.language == "python" and not block.file:
            exec(compile(block.text, f"{page}, example {number}", "exec"), names)


def test_the_example_of_the_readme_prints_what_it_shows(capsys):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", page, re.S | re.M)
    assert example
    exec(compile(example[1], "README.md", "exec"), {"__name__": "readme"})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    shown = [line.split() for line in example[2].splitlines()]
    assert printed[0] == shown[0]
    robust = shown[0].index("robust")
    for mine, theirs in zip(printed[1:], shown[1:], strict=True):
        assert mine[:robust] == theirs[:robust]
        assert abs(float(mine[robust]) - float(theirs[robust])) < 7  # two of 32 inputs, for other processors


def test_the_attack_of_the_example_is_oblivious_on_the_classifier_alone(folder):
    found = import_module("my_attack").RaySearch
    assert found().knowledge == "white-box" and found(part="classifier").knowledge == "oblivious"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a user works, with every file that an example names."""
    for block in ALL:
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    (tmp_path / "my_file.py").write_text("net = lambda images: images.flatten(1)[:, :10]\n", encoding="utf-8")
    (tmp_path / "my_module.py").write_text("from my_attack import RaySearch as MyAttack\n", encoding="utf-8")
    (tmp_path / "mine.toml").write_text((tmp_path / "gate.toml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(tmp_path / "cache"))
    with importable(tmp_path):  # the next test has other files of these names
        yield tmp_path


@pytest.mark.parametrize("page", pages_with("sh"))
def test_shell_scripts_run_from_top_to_bottom(page, folder, capfd):
    """A line may say its exit code; the text block after it was printed, broken anywhere, with any text for …"""
    output, before = "", ""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.splitlines():
                command, _, code = line.partition("  # exit code ")
                got, printed = result(command), capfd.readouterr()
                assert got == int(code or 0), f"{line}\n{printed.out}\n{printed.err}"
                output += printed.out
        elif block.language == "text" and before == "sh":
            shown = (re.escape(" ".join(part.split())) for part in block.text.split("…"))
            assert re.search(".*?".join(shown), " ".join(output.split())), output
        before = block.language


def result(command: str) -> int:
    """The exit code; what only reads records runs in this process, since most of its time goes into imports."""
    if reader := re.fullmatch(r"manifold-bench (baseline|compare) (.*)", command):
        return int(import_module(f"manifold_bench.bench.{reader[1]}").main(shlex.split(reader[2])))
    return subprocess.run(command, shell=True, check=False).returncode


def commands() -> list[str]:
    """Every command of the blocks without a language, and of the text of the pages."""
    shown = (line for block in ALL if not block.language for line in block.text.splitlines())
    lines = [part for line in shown for part in line.partition("  #")[0].split(" && ")]
    for path in PAGES.values():
        lines += re.findall(r"`(manifold-bench \w[^`]*)`", path.read_text(encoding="utf-8"))
    return sorted({line.strip() for line in lines if re.match(r"\w+( |$)|manifold-bench", line.strip())})


def test_commands_are_known():
    """Blocks without a language hold commands."""
    assert not [line for line in commands() if line.split()[0] not in (*OTHERS, "manifold-bench")]


OWN = [line for line in commands() if line.startswith("manifold-bench ")]


class Parsed(BaseException):
    """The arguments were accepted."""


@pytest.mark.parametrize("command", OWN)
def test_arguments_of_commands_are_accepted(command, monkeypatch):
    def parse(self: Parser, arguments: list[str] | None = None) -> NoReturn:
        argparse.ArgumentParser.parse_args(self, arguments)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", parse)
    name, *arguments = shlex.split(re.sub(r" …|[\[\]]", "", command))[1:]
    if name in COMMANDS and not arguments and name != "list":
        return  # the text speaks of the command as such
    with pytest.raises(Parsed):
        __main__.main([name, *arguments])


def planned() -> list[object]:
    runs = [line for line in OWN if line.startswith("manifold-bench run --matrix") and not ELSEWHERE.search(line)]
    return [
        pytest.param(line, marks=pytest.mark.slow) if shlex.split(line)[3] in LONG_TO_PLAN else line
        for line in runs
        if shlex.split(line)[3] in {*MATRICES, "mine.toml"}
    ]


@pytest.mark.parametrize("command", planned())
def test_runs_are_planned(command, folder, monkeypatch):
    plans: list[Plan] = []
    monkeypatch.setattr(evaluation, "print_plan", lambda plan, *others: plans.append(plan))
    # It would take seconds of passes
    monkeypatch.setattr(Forecaster, "forecast", lambda *given: Forecast({}, 1.0, ()))
    arguments = shlex.split(command)[1:]
    assert __main__.main([*arguments, *([] if "--dry-run" in arguments else ["--dry-run"])]) == 0
    assert plans[0].jobs


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in planned() if re.search("quick|strong", str(line))])
def test_runs_are_run_on_few_images(command, folder):
    few = [] if "--n " in command else ["--n", "5"]
    assert subprocess.run([*shlex.split(command), *few, "--quiet"], check=False).returncode == 0


@pytest.fixture
def finished(folder):
    """The folders and the file of images that commands name which read them."""
    for name in ("quick", "mine"):
        shutil.copytree(ROOT / "bench" / "baselines" / "quick", folder / "results" / name)
    for name in ("results/smoke", "new"):
        shutil.copytree(ROOT / "results" / "baselines" / "smoke", folder / name)
    images = (Digits().test.images[Digits().chosen(8)] * 255).to(torch.uint8).numpy()
    np.savez(folder / "images.npz", images=images, meta=json.dumps({"dataset": "digits", "norm": "linf", "eps": 0.1}))


def reading() -> list[str]:
    commands = re.compile(r"manifold-bench (baseline|compare|judge|report) \S")
    return [line for line in OWN if commands.match(line) and not re.search(r"s3://|FOLDER|aa_standard", line)]


@pytest.mark.parametrize("command", reading())
def test_commands_that_read_a_run_or_images_are_run(command, finished):
    assert result(command) == 0


@pytest.mark.parametrize("block", [one for one in ALL if one.language == "toml"], ids=lambda one: one.page)
def test_toml_is_a_matrix_or_an_entry_point(block, folder):
    content = tomllib.loads(block.text)
    if "project" in content:
        assert all(":" in name for group in content["project"]["entry-points"].values() for name in group.values())
    else:
        whole = {"datasets": ["digits"], "defenses": ["undefended"]} | content
        assert parse_matrix(whole, block.page).attacks


def test_the_page_on_matrix_files_names_every_key():
    page = (DOCS / "matrix.md").read_text(encoding="utf-8")
    entries = (matrix.MatrixFile, matrix.DatasetEntry, matrix.DefenseEntry, matrix.AttackEntry, matrix.Claim)
    keys = {key for entry in entries for key in entry.model_fields}
    assert not [key for key in keys if f"`{key}`" not in page]


def test_a_docstring_of_a_class_says_what_it_is_before_it_explains_parameters():
    for path in (path for part in ("attacks", "bench", "defenses") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node) or ""
                assert not re.match(r"[a-z_]\w+(, \w+)*: |See ", text), f"{path.name}: {node.name}"


def test_figures_of_the_readme_are_on_the_pages_of_their_paper():
    """Whose tables another test compares with the committed records."""
    papers = {"GMVAE": ["ghosh2019"], "Defense-GAN": ["samangouei2018"], "MagNet": ["zoo", "selective"]}
    found = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What was found")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S.*?) \| .*? \| (.*) \|$", found.partition("Where these")[0], re.M)[1:]
    assert len(rows) == 5
    for defense, figures in rows:
        names = papers.get(re.split("[ ,]", defense)[0], ["ilyas2017"])
        page = "\n".join(PAGES[f"{name}.md"].read_text(encoding="utf-8") for name in names)
        for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"L∞ [\d. /]+|rejects 5 %|PGD-\d+", "", figures)):
            shown = figure if "." in figure or "," in figure else rf"{figure}(\.\d+)?"
            assert re.search(rf"(?<![\d.,]){shown}(?![\d])", page), (defense, figure)


def test_figures_of_the_readme_have_the_mark_of_their_page():
    """It is § where the attacks look too weak."""
    papers = {"GMVAE": "ghosh2019", "Defense-GAN": "samangouei2018", "Invert": "ilyas2017", "Enhanced": "ilyas2017"}
    found = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What was found")[2].partition("\n## ")[0]
    for defense, paper in papers.items():
        (cell,) = re.findall(rf"^\| {defense}[ ,].* \| (.*) \|$", found, re.M)
        shares, _, about = cell.partition(" %")
        sizes = re.findall(r"0\.[123]", about) or ["0.3"]
        for size, (figure, mark) in zip(sizes, re.findall(r"(\d[\d.]*)( §)?", shares), strict=True):
            worst = rf"L∞ ε = {size}: [a-z ]+ {figure}(?:\.?0+)? \[[^]]*\], n = \d+([ §()\d]*)"
            marks = {"§" in rest for rest in re.findall(worst, PAGES[f"{paper}.md"].read_text(encoding="utf-8"))}
            assert marks == {bool(mark)}, (defense, size)


def test_every_promise_names_tests_that_exist():
    page = PAGES["reliability.md"].read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    for row in rows:
        code = None
        for file, name in re.findall(r"`((?:[\w/]+\.py)?)(?:::(\w+))?`", row.rpartition(" | ")[2]):
            if file:
                code = (ROOT / file if "/" in file else ROOT / "tests" / "bench" / file).read_text(encoding="utf-8")
            assert code is not None and (not name or f"def {name}(" in code), (file, name)
    assert len(rows) > 50


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} <= set(listed)


def test_the_picture_of_the_readme_shows_the_committed_baseline(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    readme = import_module("readme")
    stored = Image.open(readme.PICTURE).text["Description"]
    assert stored == readme.figures(readme.pictured()), "run `python docs/readme.py`"
    assert stored.count(";") == 11, "four defenses at three sizes"


@pytest.mark.parametrize("kind", ["defenses", "attacks"])
def test_the_page_of_each_system_has_its_equation(kind):
    described = [one for one in descriptions(kind) if one.name not in ("art", "foolbox")]  # they run many systems
    pages = {one.name: find(kind, one.name).__doc__ for one in described}
    assert len(pages) >= 20
    assert not [name for name, page in pages.items() if not re.search(r"[=←∇‖≤−]|max_|f\(", page)]


def test_the_lists_of_the_readme_are_those_of_the_registry(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert import_module("readme").updated(page) == page, "run `python docs/readme.py`"
    assert len(page.splitlines()) <= 110


@pytest.mark.parametrize(
    "name",
    # the records of a page that is marked slow take a minute to read
    [path.name if path.name in QUICKLY_READ else pytest.param(path.name, marks=pytest.mark.slow) for path in RESULTS],
)
def test_tables_of_results_are_those_of_the_committed_records(monkeypatch, name):
    monkeypatch.syspath_prepend(DOCS)
    page = (DOCS / "results" / name).read_text(encoding="utf-8")
    assert import_module("tables").updated(page) == page, "run `python docs/tables.py`"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", PAGES[page].read_text(encoding="utf-8"), flags=re.S)
    made = {"attacks.md", "defenses.md", "commands.md", "records.md", "papers.md", "architecture.md"}
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("http") or (PAGES[page].parent / target).exists() or target in made, target


def test_generated_pages_show_the_texts_of_docstrings_as_they_are(monkeypatch):
    """No backslash or entity of the Markdown is left for readers, outside code."""
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(DOCS)
    markdown, hooks = import_module("markdown"), import_module("hooks")
    for name, text in hooks.generated().items():
        page = markdown.markdown(text, extensions=["tables", "pymdownx.superfences"])
        seen = re.sub(r"<(code|pre)\b.*?</\1>", "", page, flags=re.S)
        assert not re.search(r"\\|&amp;\w+;", seen), name
        assert name != "defenses/gmvae.md" or "float &gt; 0, &lt; 1" in seen


def test_passes_of_quick_on_the_page_of_benchmarks_are_those_of_its_baseline():
    jobs, store = planned_jobs(read_matrix("quick"), Options()), Store(ROOT / "bench" / "baselines" / "quick")
    rows = rows_of_passes(jobs, {job.title: store.read(store.path(job))[0] for job in jobs})
    page = PAGES["benchmarks.md"].read_text(encoding="utf-8")
    assert f"\n{len(jobs)} jobs. {PASSES}" in page
    assert all(f"| {' | '.join(row)} |" in page for row in rows)


def test_the_text_about_a_parameter_is_about_that_parameter_alone():
    """It is shown alone, in `manifold-bench list` and on the pages of systems."""
    for kind in ("attacks", "defenses", "measurements"):
        for one in descriptions(kind):
            for parameter in parameters(kind, find(kind, one.name)):
                about = f"{one.name}: {parameter.name}: {parameter.meaning}"
                assert len(parameter.meaning.split()) > 2, about
                assert not re.search(r"^see |^size and|[Oo]ther fields|\bsuch a\b", parameter.meaning), about


def test_every_column_of_a_summary_is_explained():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "python.md").read_text(encoding="utf-8"), re.M)
    assert set(SUMMARY_COLUMNS) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
