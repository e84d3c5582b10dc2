"""The page: one file that asks for nothing, says what the records say, and works in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import REJECT, cell, run, write_run

from manifold_bench.bench.planning.plan import Options, make_plan, matrix_json
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.html import page
from manifold_bench.bench.report.html.cells import IMAGE_BUDGET, Cells
from manifold_bench.bench.report.html.reproduce import command
from manifold_bench.bench.report.pictures import difference
from manifold_bench.bench.report.style import shade
from manifold_bench.bench.report.writing import write_report
from manifold_bench.bench.run import matrices, parser

LABELS = [0] * 10
GREY = np.full(64, 100, dtype=np.uint8)
IMAGES = {i: ((GREY + i).tobytes(), (GREY + 50 + i).tobytes(), None) for i in range(4)}
EVIL = "<script>alert(1)</script>"
CELLS = (
    cell(CLEAN, labels=LABELS, defense="undefended"),
    cell("fgsm", (0.1, 0.2), LABELS, adv=[1] * 3 + [0] * 7, defense="undefended", images=IMAGES),
    cell("pgd (b, c)", (0.1, 0.2), LABELS, adv=[1] * 8 + [0] * 2, defense="undefended"),
    cell("cw", (0.5, 1.0), LABELS, adv=[1] * 6 + [0] * 4, norm="l2", defense="undefended"),
    cell(CLEAN, labels=LABELS, clean=[0] * 9 + [REJECT], defense="gmvae"),
    cell("pgd (b, c)", (0.1, 0.2), LABELS, [0] * 9 + [REJECT], [1] + [REJECT] * 3 + [0] * 6, defense="gmvae",
         images=IMAGES),
    cell("cw", (0.5, 1.0), LABELS, norm="l2", defense="gmvae", status="failed", reason=f"{EVIL} & out of memory"),
    cell(CLEAN, labels=LABELS, dataset="mnist", defense=EVIL),
    cell("pgd (b, c)", (0.3,), LABELS, adv=[1] * 10, dataset="mnist", defense=EVIL, passes=(12.5, 0.25)),
    cell("noise", labels=[-1] * 4, adv=[1, REJECT, 2, REJECT], norm="fooling", defense="gmvae", images=IMAGES),
)  # fmt: skip
RUN = {
    "code": "abc+dirty", "python": "3.11", "packages": {"torch": "2"}, "finished": True, "wall_seconds": 1234.5,
    "machine": {"system": "Linux", "processor": "x86_64", "cores": 2}, "command": ["run.py", "--matrix", "smoke"],
    "started": "2026-01-02T03:04:05Z", "workers": 2, "device": "cpu", "seeds": [3], "draws": 1,
    "matrix": {"source": "bench/matrices/smoke.toml", "claims": [],
               "datasets": [{"name": "digits", "n": 10}, {"name": "mnist", "n": None}]},
}  # fmt: skip
FAMILIES = {"undefended": "none", "gmvae": "generative rejection"}
DIAGNOSIS = [
    {
        "dataset": "digits",
        "defense": "undefended",
        "result": "fail",
        "checks": [
            {"check": "a", "title": "more steps", "result": "fail", "evidence": "n = 10", "meaning": "attack longer"},
            {"check": "b", "title": "grey", "result": "not run", "evidence": "", "meaning": ""},
        ],
    }
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("html") / "a run", run(*CELLS), FAMILIES)
    (folder / "run.json").write_text(json.dumps(RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manifold_bench.bench.report.contents.diagnose", lambda results: {"defenses": DIAGNOSIS})
        write_report(Results.load(folder))
    return folder


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element's tag and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))


def test_nothing_is_outside_and_every_link_leads_somewhere(text):
    elements = Elements(text).all
    ids = Counter(attributes["id"] for _, attributes in elements if "id" in attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    links = [link for _, a in elements for link in (a.get("href"), a.get("src")) if link]
    assert {link[:5] for link in links if not link.startswith("#")} == {"data:"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\((?!#)[^)]*\)", text)) == set()


def test_what_fails_the_diagnosis_is_marked_in_the_matrix_too(text):
    heads = re.findall(r'<th scope="row">([^<]*)</th>', text.partition('id="matrix"')[2].partition("<section")[0])
    assert heads[0] == "gmvae" and re.fullmatch(r"undefended ¶\(\d+\)", heads[1])


def test_everything_has_a_name_and_tables_have_heads(text):
    elements = Elements(text).all
    for tag, attributes in elements:
        if attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or attributes["class"] == "drawing", attributes
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    tags = Counter(tag for tag, _ in elements)
    assert tags["table"] == tags["caption"]
    assert text.count('class="drawing"') == len(re.findall(r'class="drawing"[^>]*><title>[^<]+</title>', text)) > 0


def test_text_of_records_means_nothing_to_the_page(text):
    assert EVIL not in text
    assert "failed: &lt;script&gt;alert(1)&lt;/script&gt; &amp; out of memory" in text


def test_an_image_is_stored_once_however_often_it_is_shown(text):
    elements = Elements(text).all
    stored = [attributes["href"] for tag, attributes in elements if tag == "image" and attributes["id"].startswith("i")]
    used = [attributes["href"] for tag, attributes in elements if tag == "use" and attributes["href"].startswith("#i")]
    assert len(stored) == len(set(stored)) < len(used)
    # four originals and as many attacked ones; the difference is the same everywhere
    assert len(stored) == 9


def test_fewer_inputs_are_shown_where_images_would_take_too_much(folder):
    report = Report.of(Results.load(folder))
    shown = []
    for budget in (IMAGE_BUDGET, 700, 0):
        shown.append(len(Cells(report, budget).find("digits", "gmvae", "pgd (b, c)", "linf").inputs))
    assert shown == [4, 2, 1]


def test_the_leaderboard_is_the_worst_case_by_hand(folder):
    report = dataclasses.replace(Report.of(Results.load(folder)), diagnosis={"defenses": DIAGNOSIS})
    board = page.leaderboard(report)
    entries = {(e.dataset, e.defense, e.norm, e.eps): e for e in board.entries}
    assert len(entries) == len(board.entries) == 9
    assert board.header == ["robust", "strict", "clean accuracy", "clean rejection", "median distance", "n attacked",
                            "noise accepted"]  # fmt: skip
    entry = entries["digits", "gmvae", "linf", "0.2"]
    assert [value for _, value in entry.figures] == [0.8, 0.5, 0.9, 0.1, np.inf, 10, 0.5]
    assert entry.figures[0][0] == "80.0 [49.0, 94.3] §(2)"
    assert (entry.family, entry.diagnosis, entry.largest) == ("generative rejection", "not run", True)
    assert entry.strongest == "pgd (b, c): 80.0"
    entry = entries["digits", "undefended", "linf", "0.1"]
    assert (entry.figures[0][1], entry.strongest, entry.diagnosis) == (0.2, "pgd (b, c): 20.0", "fail")
    failed = entries["digits", "gmvae", "l2", "1"]
    assert failed.figures[0] == ("failed (1)", None) and failed.strongest == "–"
    assert entries["mnist", EVIL, "linf", "0.3"].family == "other"  # the index doesn't say


def test_without_run_json_the_page_says_so(tmp_path):
    write_report(Results.load(write_run(tmp_path, run(*CELLS[:2]))))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There is no run.json" in text and "manifold-bench run" not in text


def test_a_difference_by_hand():
    original, adversarial = np.array([[10, 10, 10]], dtype=np.uint8), np.array([[61, 10, 0]], dtype=np.uint8)
    image, largest = difference(original, adversarial)
    assert largest == 51 / 255
    assert image.tolist() == [[255, 128, 102]]
    assert difference(original, original)[1] == 0


# --- colours ---------------------------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb, by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return float(np.dot([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts],
                            (0.2126, 0.7152, 0.0722)))  # fmt: skip

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_from_its_ground():
    style = (Path(page.__file__).parent / "style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 2
    for theme in themes:
        for ink in ("ink", "soft", "link", "pass", "warn", "fail"):
            for ground in ("paper", "wash"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground, theme)
    assert min(contrast(*shade(share)) for share in np.linspace(0, 1, 101)) >= 4.5


# --- the command of a cell -------------------------------------------------------------------------------------------

MATRIX = """
datasets = [{ name = "digits", n = 6 }]
calibration = 5
seed = 7
defenses = ["undefended", { name = "undefended", label = "un (d, 'e')", width = 8 }, "pgd-training"]
[[attacks]]
name = "pgd"
eps = [0.1, 0.2]
[[attacks]]
name = "pgd"
label = "it's pgd (of $5, or so)"
steps = 7
eps = [0.1]
defenses = ["undefended", "un (d, 'e')"]
[[attacks]]
name = "pgd"
norm = "l2"
eps = [0.5]
[[attacks]]
name = "noise"
norm = "fooling"
"""


def planned(matrix: Any, n: int | None) -> dict[tuple[str, str, str, str], str]:
    """(data set, defense, attack, norm) → key of every job but the calibration's."""
    jobs = make_plan(matrix, Options(n=n)).jobs
    return {
        (job.dataset.name, job.defense.label, job.label, job.norm): job.key for job in jobs if job.split != "validation"
    }


def from_command(line: str) -> dict[tuple[str, str, str, str], str]:
    """What the line, given to a shell, would plan."""
    words = shlex.split(line)
    assert words[:2] == ["manifold-bench", "run"]
    given = parser().parse_args(words[2:])
    return planned(matrices(given)[0], given.n)


@pytest.mark.parametrize("n", [None, 4])
def test_the_command_of_a_cell_plans_that_cell_and_no_other(tmp_path, n):
    path = tmp_path / "my matrix.toml"
    path.write_text(MATRIX)
    matrix = dataclasses.replace(read_matrix(str(path)), seeds=(11,))
    told = {"matrix": json.loads(json.dumps(matrix_json(matrix, Options(n=n)))), "seeds": [11], "device": "cpu"}
    whole = planned(matrix, n)
    assert len(whole) == 14
    for key, identity in whole.items():
        dataset, defense, attack, norm = key
        line = command(told, dataset, defense, [attack], norm)
        clean = (dataset, defense, CLEAN, "none")
        assert from_command(line) == {clean: whole[clean], key: identity}, line
    both = command(told, "digits", "undefended", ["pgd", "it's pgd (of $5, or so)"], "linf")
    assert {key[2:] for key in from_command(both)} == {
        (CLEAN, "none"), ("pgd", "linf"), ("it's pgd (of $5, or so)", "linf"),
    }  # fmt: skip


def test_a_matrix_of_ours_goes_by_its_name(text):
    assert "--matrix smoke --dataset digits --defense undefended --attack &#39;pgd (b, c)&#39; --norm linf" in text


# --- in a browser ----------------------------------------------------------------------------------------------------


class Watched:
    """A page of the report, and what it complained of or asked for beside its own file."""

    def __init__(self, browser: Any, folder: Path, **context: Any) -> None:
        self.page = browser.new_page(**context)
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.url = (folder / "report.html").as_uri()
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(self.url)

    def _asked(self, url: str) -> None:
        if url.partition("#")[0] != self.url and not url.startswith("data:"):
            self.trouble.append(url)

    def board(self) -> list[list[str]]:
        """The texts of the leaderboard's visible rows."""
        return self.page.eval_on_selector_all(
            "#board tbody tr:not([hidden])", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser: install chromium (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'manifold-bench[test]'")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=executable, args=flags)
        yield started
        started.close()


@pytest.fixture
def watched(browser, folder) -> Iterator[Watched]:
    """On a desktop; afterwards nothing may have been complained of."""
    watched = Watched(browser, folder, viewport={"width": 1280, "height": 900})
    yield watched
    watched.page.close()
    assert watched.trouble == []


def test_the_leaderboard_sorts_and_says_how(watched):
    page = watched.page
    head = page.locator("#board thead th").nth(5)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    robust = [row[5].split()[0] for row in watched.board()]
    assert robust == ["80.0", "40.0", "20.0", "0.0", "failed"]  # what has no figure comes last, both ways
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [row[5].split()[0] for row in watched.board()] == ["0.0", "20.0", "40.0", "80.0", "failed"]
    page.locator("#board thead th").first.get_by_role("button").click()
    assert page.locator("#board [aria-sort]").count() == 1
    assert [row[0] for row in watched.board()] == sorted([row[0] for row in watched.board()], key=str.lower)


def test_the_leaderboard_filters(watched):
    page = watched.page
    assert [row[3:5] for row in watched.board()] == [["L2", "1"]] * 2 + [["L∞", "0.2"]] * 2 + [["L∞", "0.3"]]
    page.get_by_label("family", exact=True).select_option("none")
    assert {row[0] for row in watched.board()} == {"undefended"}
    assert page.locator(".filters output").inner_text() == "2 rows"
    page.get_by_label("strength", exact=True).select_option("linf 0.1")  # a strength of a norm shows that norm
    assert page.get_by_label("norm", exact=True).input_value() == "linf"
    assert [row[:5] for row in watched.board()] == [["undefended", "digits", "none", "L∞", "0.1"]]
    page.get_by_label("norm", exact=True).select_option("l2")
    assert page.get_by_label("strength", exact=True).input_value() == ""
    assert [row[3:5] for row in watched.board()] == [["L2", "1"]]
    page.get_by_label("norm", exact=True).select_option("")
    page.get_by_label("family", exact=True).select_option("")
    page.get_by_label("data set", exact=True).select_option("mnist")
    assert [row[0] for row in watched.board()] == [EVIL]


def test_a_field_of_the_matrix_opens_by_keyboard_and_gives_the_focus_back(watched):
    page = watched.page
    link = page.locator("#matrix .heat a", has_text="80.0").first
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    dialog.wait_for(state="visible")
    shown = dialog.inner_text()
    for expected in ("digits: gmvae × pgd (b, c), L∞", "80.0", "--attack 'pgd (b, c)' --norm linf --n 10 --seed 3",
                     "accepted and wrong", "says 1 ✗", "rejected", "± 0.2"):  # fmt: skip
        assert expected in shown
    assert dialog.locator("h4").is_visible() and dialog.locator("h4").bounding_box()["y"] >= 0
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert link.evaluate("link => link === document.activeElement")
    assert page.locator(".cells > article").count() == page.locator("article").count() > 10
    assert "#" not in page.url


def test_a_link_to_a_cell_opens_it(browser, folder, watched):
    target = watched.page.locator("#matrix .heat a").first.get_attribute("href")
    watched.page.goto("about:blank")
    watched.page.goto(watched.url + target)
    assert watched.page.locator(f"dialog article{target}").is_visible()
    watched.page.get_by_role("button", name="Close").click()
    assert not watched.page.locator("dialog").is_visible()


def test_it_prints_with_all_details_on_white(browser, folder):
    watched = Watched(browser, folder, color_scheme="dark")
    page = watched.page
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    articles = page.locator(".cells > article")
    assert all(articles.nth(i).is_visible() for i in range(articles.count()))
    assert not page.locator("nav").is_visible() and not page.locator(".filters").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('#board tbody th')).position") == "static"
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
    page.close()
    assert watched.trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_only_the_boxes_scroll_and_the_first_column_stays(browser, folder, scheme):
    watched = Watched(browser, folder, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator("#leaderboard .box")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    before = page.locator("#board tbody tr:not([hidden]) th").first.bounding_box()
    box.evaluate("box => box.scrollLeft = 200")
    assert page.locator("#board tbody tr:not([hidden]) th").first.bounding_box()["x"] == before["x"]
    page.close()
    assert watched.trouble == []


def test_without_scripts_everything_is_there(browser, folder):
    watched = Watched(browser, folder, java_script_enabled=False)
    assert watched.page.locator(".cells > article").first.is_visible()
    assert watched.page.locator("#board tbody tr").count() == 9
    watched.page.close()


def test_worst_cases_and_clean_passes_have_details_too(folder, text):
    assert f"× {WORST_CASE}, L∞</h4>" in text and f"× {CLEAN}</h4>" in text
