"""A report's page as people use it: in a browser, as a file, in a frame, on a phone; the trajectories of one question."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.report.page import Made, write_page
from tasks.report.summaries import cell_reports
from tests.tasks.test_reporting import SPECIFICATION, five

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MADE = Made(
    "2026-11-27", "c0ffee", "v1", ("d1",), ("cpu",), "make ablation", (("curves", "http://127.0.0.1:1/#/curves"),)
)


def told(arm: str, question: str, answer: str, step: int = 2) -> dict[str, Any]:
    """A trajectory of one call and an answer."""
    common = {"belief_before": -1.0, "belief_after": -0.5, "advantage": 0.1}
    call = {"text": f"call of {answer}", "action": "search", "content": "x", "observation": "y", "gain": 0.5, **common}
    end = {
        "text": f"<answer> {answer}",
        "action": "answer",
        "content": answer,
        "observation": None,
        "gain": None,
        **common,
    }
    return {
        "cell": "", "question_id": question, "question": f"question {question} ?", "answers": ["a"], "turns": [call, end],
        "status": "answered", "scores": {"f1": 1.0}, "arm": arm, "seed": 0, "split": "train", "step": step,
        "trace": "http://127.0.0.1:1/#/trace",
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = {"outcome_only": {"reward": "outcome_only"}, "igpo": {}}
    specification = {**SPECIFICATION, "arms": arms}
    rows = [told("igpo", "q1", f"rollout {n}") for n in range(4)]
    rows += [told("outcome_only", "q1", "of the baseline"), told("igpo", "q2", "another")]
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, "s-1", "The answer.", specification, cell_reports(specification, {"": five()}, [""]), MADE, rows)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    opened, errors = browser.new_page(viewport={"width": 1300, "height": 900}), []
    opened.set_default_timeout(5_000)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert errors == []


def shown(page: Any, pane: str) -> str:
    return str(page.locator(f"#{pane} pre").all_inner_texts())


def test_each_rollout_of_a_question_can_stand_beside_another(page: Any) -> None:
    """Those of one arm, seed and step have one description, and are told apart by their number."""
    assert page.evaluate("scrollY") == 0  # the list scrolls to its entry, not the page to the list
    options = page.locator("#beside option").all_inner_texts()
    assert options[0] == "nothing" and len({*options}) == len(options) == 5
    assert "outcome_only" in options[1]  # another arm first
    seen = set()
    for n in range(1, 5):
        page.select_option("#beside select", index=n)
        seen.add(shown(page, "other"))
    assert len(seen) == 4 and shown(page, "one") not in seen
    page.select_option("#beside select", index=0)
    assert page.locator("#other pre").count() == 0


@pytest.mark.parametrize("how", ["click", "keys"])
def test_the_address_is_that_of_what_is_shown(page: Any, browser: Any, how: str) -> None:
    if how == "click":
        page.locator("#list div").nth(5).click()
    else:
        page.locator("#list").focus()
        for _ in range(9):  # the end is the end
            page.keyboard.press("ArrowDown")
    assert "another" in shown(page, "one")
    copy = browser.new_page()
    copy.goto(page.url)
    assert shown(copy, "one") == shown(page, "one")
    copy.close()


@pytest.mark.parametrize("place", ["#at=-3", "#at=x", "#at=99", "#arm=nobody&at=1", "#at=1.5"])
def test_an_odd_address_opens_what_there_is(browser: Any, report: Path, place: str) -> None:
    opened, errors = browser.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(report.as_uri() + place)
    assert opened.locator("#list").inner_text() and errors == []
    opened.close()


def test_in_a_frame_links_are_addresses_to_copy(browser: Any, report: Path, tmp_path: Path) -> None:
    """MLflow's frame has no origin: a link in it would open MLflow within itself."""
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe sandbox="allow-scripts" width=900 height=900 src="{report.as_uri()}"></iframe>')
    opened = browser.new_page()
    opened.goto(outer.as_uri())
    inside = opened.frames[1]
    inside.wait_for_selector("#one pre")
    assert inside.locator("a").count() == 0
    assert "curves: http://127.0.0.1:1/#/curves" in inside.locator("body").inner_text()
    assert "trace: http://127.0.0.1:1/#/trace" in inside.locator("#one").inner_text()
    opened.close()


@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_is_no_wider_than_its_window(browser: Any, report: Path, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.goto(report.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def test_the_result_is_not_cut_on_a_screen(page: Any) -> None:
    wide = page.evaluate("[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth > box.clientWidth)")
    assert len(wide) > 5 and not any(wide) and page.locator(".wide").count() == 0


def test_a_phone_shows_the_verdict_and_that_there_is_more(browser: Any, report: Path) -> None:
    """Figures keep their size, in which their text can be read."""
    opened = browser.new_page(viewport={"width": 390, "height": 900})
    opened.goto(report.as_uri())
    opened.wait_for_selector(".wide table.scores")
    verdict = opened.locator("table.scores tr:last-child td").nth(4).bounding_box()
    assert verdict["x"] + verdict["width"] <= 390
    hint = opened.evaluate("getComputedStyle(document.querySelector('.wide'), '::before').content")
    assert "scroll sideways" in hint
    drawn, room = opened.evaluate(
        "(() => { const svg = document.querySelector('figure svg'); return [svg.clientWidth, svg.parentElement.clientWidth] })()"
    )
    assert drawn == 1152 and room < 390  # 12 inches of 96 pixels
    opened.close()


def test_a_turn_with_the_answer_looks_as_any_turn(page: Any) -> None:
    sizes = page.evaluate("[...document.querySelectorAll('#one .turn')].map((turn) => getComputedStyle(turn).fontSize)")
    assert len(sizes) == 2 and len({*sizes}) == 1
    widths = page.evaluate("[...document.querySelectorAll('#one .turn')].map((turn) => turn.offsetWidth)")
    assert len({*widths}) == 1
