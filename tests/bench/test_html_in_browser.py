"""The page in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import EVIL, write_page


class Watched:
    """A page of the report, with its errors and its requests for other files."""

    def __init__(self, browser: Any, folder: Path, **context: Any) -> None:
        self.page = browser.new_page(**context)
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.url = (folder / "report.html").as_uri()
        self.page.on("request", lambda request: self._record(request.url))
        self.page.goto(self.url)

    def _record(self, url: str) -> None:
        if url.partition("#")[0] != self.url and not url.startswith("data:"):
            self.trouble.append(url)

    def board(self) -> list[list[str]]:
        """The texts of the leaderboard's visible rows."""
        return self.page.eval_on_selector_all(
            "#board tbody tr:not([hidden])", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("html") / "a run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser: install chromium (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'manifold-bench[test]'")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
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
    column = 1 + page.locator("#board thead th").all_inner_texts().index("rank")
    head = page.locator("#board thead th").nth(column)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    robust = [row[column].split()[0] for row in watched.board()]
    assert robust == ["80.0", "40.0", "20.0", "0.0", "failed"]  # what has no figure comes last, both ways
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [row[column].split()[0] for row in watched.board()] == ["0.0", "20.0", "40.0", "80.0", "failed"]
    page.locator("#board thead th").nth(column - 1).get_by_role("button").click()  # ranks: the best one first
    assert [row[column - 1] for row in watched.board()] == ["1", "1", "1", "2", "–"]
    page.locator("#board thead th").first.get_by_role("button").click()
    assert page.locator("#board [aria-sort]").count() == 1
    assert [row[0] for row in watched.board()] == sorted([row[0] for row in watched.board()], key=str.lower)


def test_the_leaderboard_filters(watched):
    page = watched.page
    assert [row[3:5] for row in watched.board()] == [["L∞", "0.2"]] * 2 + [["L2", "1"]] * 2 + [["L∞", "0.3"]]
    page.get_by_label("family", exact=True).select_option("none")
    assert {row[0] for row in watched.board()} == {"undefended"}
    assert page.locator(".filters output").inner_text() == "2 rows"
    page.get_by_label("strength", exact=True).select_option("linf 0.1")  # a strength of a norm shows that norm
    assert page.get_by_label("norm", exact=True).input_value() == "linf"
    assert [row[:5] for row in watched.board()] == [["undefended", "digits", "none", "L∞", "0.1"]]
    assert page.locator(".filters output").inner_text() == "1 row"
    page.get_by_label("norm", exact=True).select_option("l2")
    assert page.get_by_label("strength", exact=True).input_value() == ""
    assert [row[3:5] for row in watched.board()] == [["L2", "1"]]
    page.get_by_label("norm", exact=True).select_option("")
    page.get_by_label("family", exact=True).select_option("")
    page.get_by_label("data set", exact=True).select_option("mnist")
    assert [row[0] for row in watched.board()] == [EVIL]


def test_only_the_notes_of_visible_rows_are_shown(watched):
    notes = watched.page.locator("#leaderboard .notes li")
    found = []
    for family in ("", "none"):
        watched.page.get_by_label("family", exact=True).select_option(family)
        shown = [str(note.get_attribute("value")) for note in notes.all() if note.is_visible()]
        assert shown == sorted({number for row in watched.board() for number in re.findall(r"\((\d+)\)", row[6])})
        found.append(shown)
    assert found == [["1", "2"], []]


def test_a_field_of_the_matrix_opens_by_keyboard_and_gives_the_focus_back(watched):
    page = watched.page
    link = page.locator("#matrix .heat a", has_text=re.compile(r"^80\.0$")).first
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    dialog.wait_for(state="visible")
    shown = dialog.inner_text()
    for expected in (
        "digits: gmvae × pgd (b, c), L∞",
        "80.0",
        "--attack 'pgd (b, c)' --norm linf --n 10 --seed 3",
        "accepted and wrong",
        "says 1 ✗",
        "rejected",
        "± 0.2",
    ):
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
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    folded = page.locator("details > :last-child").all()
    assert folded and all(one.is_visible() for one in folded)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
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
    assert all(svg.bounding_box()["width"] <= 390 for svg in page.locator("svg.drawing").all())
    box = page.locator("#leaderboard .box")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    before = page.locator("#board tbody tr:not([hidden]) th").first.bounding_box()
    box.evaluate("box => box.scrollLeft = 200")
    assert page.locator("#board tbody tr:not([hidden]) th").first.bounding_box()["x"] == before["x"]
    page.close()
    assert watched.trouble == []


def test_checks_that_ran_are_within_the_width_of_a_phone_and_the_others_take_a_line(browser, folder):
    page = Watched(browser, folder, viewport={"width": 390, "height": 800}).page
    page.locator("#diagnosis details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    boxes = page.locator(".box:has(.checks)").evaluate_all("all => all.map(b => b.scrollWidth - b.clientWidth)")
    assert boxes == [0]
    assert page.locator(".checks tbody tr").count() == 1
    assert "Not run: grey." in page.locator("#diagnosis").inner_text()
    page.close()


def test_on_a_phone_the_worst_case_is_in_view(browser, folder):
    page = Watched(browser, folder, viewport={"width": 390, "height": 800}).page
    for place in page.locator(".heat tbody td:nth-child(2)").all():
        assert place.bounding_box()["x"] + place.bounding_box()["width"] <= 390
    heads = page.locator(".heat thead th:nth-child(2)").all_inner_texts()
    assert all(head.startswith("worst-case") for head in heads) and heads
    page.close()


def test_a_command_is_copied(browser, folder):
    watched = Watched(
        browser, folder, viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    command = watched.page.locator("header .command")
    command.get_by_role("button").click()
    command.get_by_role("button", name="Copied").wait_for()
    assert watched.page.evaluate("navigator.clipboard.readText()") == command.locator("code").inner_text()
    watched.page.close()
    assert watched.trouble == []


def test_without_scripts_everything_is_there(browser, folder):
    watched = Watched(browser, folder, java_script_enabled=False)
    assert watched.page.locator(".cells > article").first.is_visible()
    assert watched.page.locator("#board tbody tr").count() == 9
    watched.page.close()
