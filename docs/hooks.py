"""Pages of the site that are made when it is built: from the registry, the commands' help, and files of the root."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from manifold_bench.bench import COMMANDS
from manifold_bench.bench.list import knowledge, name_in_matrix
from manifold_bench.bench.planning.catalogue import Description, descriptions, papers
from manifold_bench.bench.planning.details import explanation, parameters
from manifold_bench.bench.planning.registry import find
from manifold_bench.bench.text import norm_text
from manifold_bench.defenses.identity import Kind

ROOT = Path(__file__).parent.parent
COPIED = {"README": "index", "ARCHITECTURE": "architecture", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog"}
"""Files of the root that are pages of the site, too, by their names there."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those in docs/."""
    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    return files


def generated() -> dict[str, str]:
    """The text of every generated page by its name."""
    pages = {f"{page}.md": copied(name) for name, page in COPIED.items()}
    for kind in ("attacks", "defenses"):
        pages[f"{kind}.md"] = f"# {kind.capitalize()}\n\n{INTRODUCTIONS[kind]}\n\n{table(kind, f'{kind}/')}"
        pages |= {f"{kind}/{one.name}.md": system(kind, one) for one in descriptions(kind)}
    pages["commands.md"] = commands()
    pages["records.md"] = records()
    pages["papers.md"] = "# Papers\n\n" + "\n\n".join(map(bibtex, papers()))
    return pages


INTRODUCTIONS = {
    "attacks": """\
In a matrix file an attack is named as here; `manifold-bench list NAME` explains it on the screen.

- White box: the attacker differentiates the defense. With `part = "classifier"` most of these attacks know nothing of
  it and attack the classifier behind it (oblivious).
- Score: the attacker sees the outputs of the defense.
- Decision: the attacker sees its answers alone.""",
    "defenses": """\
In a matrix file a defense is named as here; `manifold-bench list NAME` explains it on the screen.""",
}


def copied(name: str) -> str:
    """A Markdown file of the root, with its links as they are from the site's pages."""
    text = (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for other, page in COPIED.items():
        text = text.replace(f"]({other}.md", f"]({page}.md")
    return text.replace("](CITATION.cff)", "](papers.md)")


def table(kind: Kind, folder: str) -> str:
    """All systems of a kind as a Markdown table; folder: where their pages are."""
    heads = (
        ["name", "knowledge", "norms", "what it does", "paper"]
        if kind == "attacks"
        else ["name", "kind", "what it does", "paper"]
    )
    rows = []
    for one in descriptions(kind):
        about = [knowledge(one), norms(one)] if kind == "attacks" else [str(one.values.get("family", ""))]
        rows.append([f"[`{name_in_matrix(one)}`]({folder}{one.name}.md)", *about, plain(one.summary), cited(one)])
    return markdown_table(heads, rows)


def norms(one: Description) -> str:
    given = one.values.get("norms", ...)
    return "any" if given is ... else " ".join(map(norm_text, given))


def cited(one: Description) -> str:
    paper = papers().get(one.paper)
    return f"[{paper}]({paper.url})" if paper else plain(one.paper)


def system(kind: Kind, one: Description) -> str:
    """The page of one attack or defense."""
    cls = find(kind, one.name)
    facts = {"Name in a matrix file": f"`{name_in_matrix(one)}`"}
    if kind == "attacks":
        facts |= {"Knowledge": knowledge(one), "Norms": norms(one)}
    else:
        rejects = one.values.get("rejects")
        facts["Kind"] = plain(str(one.values.get("family", "")))
        facts["Rejects inputs"] = "by its settings" if rejects is ... else "yes" if rejects else "no"
        facts["Randomized"] = "yes" if cls.randomized else "no"
    facts["Implementation"] = f"`{cls.__module__}.{cls.__qualname__}` ({one.package})"
    if one.paper:
        facts["Paper"] = cited(one)
    lines = [f"# `{name_in_matrix(one)}`", plain(one.summary), *map(plain, explanation(kind, cls))]
    lines.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    keys = [
        [f"`{key.name}`", plain(key.allowed), f"`{key.default}`" if key.default else "", plain(key.meaning)]
        for key in parameters(kind, cls)
    ]
    if keys:
        lines += ["## Parameters", markdown_table(["key", "values", "default", "meaning"], keys)]
    if one.paper in papers():
        lines += ["## Paper", bibtex(one.paper)]
    return "\n\n".join(lines)


def bibtex(key: str) -> str:
    """A paper with its entry for LaTeX."""
    paper = papers()[key]
    return f"**{paper}**: [{plain(paper.title)}]({paper.url})\n\n```bibtex\n{paper.bibtex}\n```"


def commands() -> str:
    """The help of every command."""
    lines = ["# Command line"]
    os.environ["COLUMNS"] = "84"
    for name, purpose in COMMANDS.items():
        module = import_module(f"manifold_bench.bench.{'report.__main__' if name == 'report' else name}")
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            module.main(["--help"])
        lines += [f"## manifold-bench {name}", f"{purpose[0].upper()}{purpose[1:]}.", f"```text\n{shown.getvalue()}```"]
    return "\n\n".join(lines)


def records() -> str:
    """The columns of the records, as the schema's source explains them."""
    source = (ROOT / "bench" / "records" / "schema.py").read_text(encoding="utf-8")
    return "\n\n".join(["# Records", RECORDS, *columns_of("DTYPES", source), *columns_of("ANSWERS", source)])


def columns_of(name: str, source: str) -> list[str]:
    """The docstring of a dict of columns in the schema's source, and the table of these columns."""
    block = source[source.index(f"{name}:") :]
    columns = re.findall(r'^    "(\w+)": "(\w+)",((?:\s*# .*\n)*)', block[: block.index("\n}\n") + 1], re.M)
    rows = [[f"`{column}`", kind, plain(" ".join(re.findall(r"# (.*)", comment)))] for column, kind, comment in columns]
    after = block[block.index('\n}\n"""') + 6 :]
    return [plain_paragraphs(after[: after.index('"""')]), markdown_table(["column", "type", "meaning"], rows)]


RECORDS = """\
A run keeps its records in `records/` of its folder, one Parquet file for each job. `mb.load(folder).records` reads all
of them as one pandas table. Every [figure](figures.md) follows from these columns."""


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), ["---"] * len(list(heads)), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """A text as Markdown that shows it as it is, but for code in backticks."""
    parts = text.split("`")
    parts[::2] = (re.sub(r"([\\*_\[\]#])", r"\\\1", escape(part, quote=False)) for part in parts[::2])
    return "`".join(parts)


def plain_paragraphs(text: str) -> str:
    return "\n\n".join(plain(" ".join(one.split())) for one in text.strip().split("\n\n"))


class PlainDocstrings(griffe.Extension):
    """Docstrings are plain text: `z*` is no emphasis and `[N,C,H,W]` no link."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n\n".join(paragraphs(obj.docstring.value))


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; those about parameters begin a new one at each."""
    for one in re.split(r"\n\n|\n(?=[\w*]+(?:, [\w*]+)*: )", text):
        if one.lstrip().startswith((">>>", "```")):
            yield one
        else:
            yield plain(" ".join(one.split()))
