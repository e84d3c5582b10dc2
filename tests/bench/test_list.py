"""`manifold-bench list` says what each registered system is, from the source of truth in its class."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from importlib.metadata import EntryPoint

import pytest

from manifold_bench.bench.list import (
    KINDS,
    comment,
    everything,
    explained,
    facts,
    is_adapter,
    main,
    name_in_matrix,
    purpose,
)
from manifold_bench.bench.planning.catalogue import describe, descriptions, papers
from manifold_bench.bench.planning.details import entry_text, parameters
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.registry import find
from manifold_bench.defenses.identity import registered

SYSTEMS = [(kind, name) for kind in KINDS for name in registered(kind)]


@pytest.mark.parametrize(("kind", "name"), SYSTEMS)
def test_a_system_says_in_one_sentence_what_it_is(kind, name):
    one = describe(registered(kind)[name])
    assert one.summary.endswith(".") and 20 < len(one.summary) < 110
    assert not re.search(r"\. [A-Z]", one.summary)
    assert one.paper in ("", *papers()), "an unknown key"


@pytest.mark.parametrize(("kind", "name"), SYSTEMS)
def test_what_is_read_from_source_is_what_the_class_declares(kind, name):
    one, cls = describe(registered(kind)[name]), find(kind, name)
    assert one.paper == vars(cls).get("paper", "")
    for attribute in ("norms", "family", "randomized", "shape", "num_classes", "version", "library"):
        read = one.values.get(attribute, ...)
        assert read is ... or read == getattr(cls, attribute)
    if kind == "attacks" and not cls.open_parameters:
        assert one.values["knowledge"] == cls().knowledge
        assert one.values.get("norms") in (cls.norms, ...)


def test_the_list_fits_80_columns_and_names_every_system():
    lines = list(everything())
    assert max(map(len, lines)) <= 80
    heads = {line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("    ")}
    assert heads >= {name_in_matrix(one) for kind in KINDS for one in descriptions(kind)}


@pytest.mark.parametrize(("kind", "name"), SYSTEMS)
def test_one_name_is_explained_with_every_parameter(kind, name):
    shown = list(explained(name))
    for one in parameters(kind, find(kind, name)):
        assert any(line.startswith(f"  {one.name}: ") for line in shown)


@pytest.mark.parametrize("kind", ["defenses", "attacks", "measurements"])
def test_docstrings_explain_the_parameters(kind):
    silent = [
        (name, one.name) for name in registered(kind) for one in parameters(kind, find(kind, name)) if not one.meaning
    ]
    assert not silent


def test_parameters_are_those_that_a_matrix_file_may_set():
    assert {one.name for one in parameters("attacks", find("attacks", "pgd"))} == {
        field.name for field in dataclasses.fields(find("attacks", "pgd"))
    }
    steps = {one.name: one for one in parameters("attacks", find("attacks", "pgd"))}["steps"]
    assert (steps.allowed, steps.default) == ("int ≥ 1", "40")


def test_a_table_is_explained_with_the_keys_and_defaults_of_each_of_its_forms():
    found = {one.name: one for one in parameters("defenses", find("defenses", "inc"))}
    forms = [dict(pair.split(" = ") for pair in text.split(", ")) for text in found["solver"].keys]
    assert [form["method"] for form in forms] == ['"momentum"', '"adam"', '"l-bfgs"']
    assert all(form["steps"].isdecimal() for form in forms) and forms[2]["pairs"] == "10"
    assert (found["solver"].allowed, found["solver"].default) == ("table", '{ method = "momentum" }')
    paper = {one.name: one for one in parameters("defenses", find("defenses", "defense-gan"))}["solver"].default
    assert "steps = 200" in paper and "starts = 10" in paper


@pytest.mark.parametrize("name", ["pgdd", "pgd:LinfPGD", "nothing:LinfPGD"])
def test_an_unknown_name_is_refused(name, capsys):
    assert main([name]) == 2
    assert name in capsys.readouterr().err


ADAPTERS = [(kind, one.name) for kind in KINDS for one in descriptions(kind) if is_adapter(one)]


def test_an_adapter_is_explained_for_every_kind_of_class_that_it_runs():
    assert len(ADAPTERS) >= 3
    assert list(explained("foolbox:ClassName")) == list(explained("foolbox"))
    heads = [line.split() for line in explained("art") if line.startswith("art:ClassName ")]
    assert [head[1].strip(";") for head in heads] == ["defense", "attack"]


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("art:JpegCompression", "defense", "quality: int; default 50"),
        ("art:ProjectedGradientDescentPyTorch", "attack", "max_iter: int; default 100"),
        ("foolbox:LinfPGD", "attack", "steps: int; default 40"),
    ],
)
def test_a_class_of_a_library_is_explained_with_its_arguments(name, kind, default):
    """Only the adapter that has the class explains it, and its example names that class."""
    shown = list(explained(name))
    heads = [line.split() for line in shown if re.match(r"\S+:\w+ ", line)]
    assert [(head[0], head[1].strip(";")) for head in heads] == [(name, kind)]
    assert f"  {default}" in shown and f'`{{ name = "{name}", ' in " ".join(shown)
    assert "eps_step" not in default and not any(line.startswith(("  estimator:", "  eps:")) for line in shown)


@pytest.mark.parametrize("name", ["art:JpegCompresion", "foolbox:Nope"])
def test_a_class_that_a_library_lacks_is_refused(name, capsys):
    assert main([name]) == 2
    assert name.partition(":")[2] in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "name"), ADAPTERS)
def test_arguments_of_a_library_are_written_directly_in_the_entry(kind, name):
    cls = find(kind, name)
    assert not {"attack", "parameters"} & {one.name for one in parameters(kind, cls)}
    text = entry_text(kind, cls, name)
    (table,) = re.findall(r"`(\{[^`]*\})` in a matrix file", text)
    assert "written directly" in text
    whole = {"datasets": ["digits"], "defenses": ["undefended"], "attacks": [{"name": "pgd", "eps": 0.1}]}
    entry = tomllib.loads(f"entry = {table}")["entry"]
    if kind == "attacks":
        (choice,) = parse_matrix(whole | {kind: [entry]}, "example").attacks
        assert choice.attack.parameters == {key: entry[key] for key in entry if key not in ("name", "eps")} != {}
    else:
        (defense,) = parse_matrix(whole | {kind: [entry]}, "example").defenses
        assert defense.parameters == {key: value for key, value in entry.items() if key != "name"} != {}


def test_papers_are_cited_as_in_a_text():
    assert str(papers()["croce2020apgd"]) == "Croce & Hein 2020"
    assert str(papers()["madry2018"]) == "Madry et al. 2018"
    assert all(one.url.startswith("http") and one.title and len(one.year) == 4 for one in papers().values())


SOURCES = {
    "bare": "class Bare:\n    pass\n",
    "broken": "class Broken(\n",
    "heir": "from theirs_bare import Bare as B\nclass Heir(B):\n    '''One sentence.'''\n    paper = 'Doe 2030'\n",
    "itself": "class Itself(Itself):\n    rejects = True\n",
    "missing": None,
}


@pytest.mark.parametrize("name", SOURCES)
def test_plugins_that_say_little_are_listed(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for module, source in SOURCES.items():
        if source is not None:
            (tmp_path / f"theirs_{module}.py").write_text(source, encoding="utf-8")
    one = describe(EntryPoint(name, f"theirs_{name}:{name.capitalize()}", "manifold_bench.defenses"))
    shown = " ".join(facts("defenses", one))
    assert ("Doe 2030" in shown) == (name == "heir") and ("rejects" in shown) == (name == "itself")
    assert one.summary == ("One sentence." if name == "heir" else "")


def test_a_matrix_is_listed_with_the_first_sentence_of_its_comment(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("# What Doe et al. 2030 claim, and\n# more. Needs data.\nseed = 1\n# Else. No.\n", encoding="utf-8")
    assert purpose(file) == "What Doe et al. 2030 claim, and more."
    file.write_text("seed = 1\n", encoding="utf-8")
    assert purpose(file) == ""


def test_a_matrix_is_explained_with_its_comment_and_what_it_crosses(tmp_path):
    shown = list(explained("strong"))
    assert max(map(len, shown[:-1])) <= 80 and shown[-1].endswith("strong.toml")
    text = " ".join(" ".join(shown).split())
    assert "my_file.py:net The two defenses of this file show" in text, "the whole comment"
    assert "data sets: mnist5k defenses: undefended; pgd-training attacks: autoattack; pgd-restarts;" in text
    assert "attacks: all that are registered" in " ".join(explained("full"))
    file = tmp_path / "mine.toml"
    file.write_text("# What is\n# this?\n#\n# A run:\n#     run it\n# Fast.\nseed = 1\n", encoding="utf-8")
    assert comment(file) == ["What is this?", "", "A run:", "    run it", "Fast."]
