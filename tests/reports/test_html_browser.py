"""The page as a person meets it, in headless Chromium. Figures are printed, behaviour is asserted."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sockscope.model.report import Lane, TimelineTable
from sockscope.reports.html import write_html
from tests.reports.example import MARKUP, SCRIPT, example_report
from tests.reports.kernel_example import heard_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

pytestmark = pytest.mark.browser

CONNECTIONS = 10_000


@dataclass(slots=True, kw_only=True)
class Seen:
    """What must not happen while the page is open."""

    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def until(page: Page, expression: str) -> None:
    """Wait until it is true. (Playwright's own wait polls by eval, which the page's policy rightly refuses.)"""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never true: {expression}")


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(example_report(CONNECTIONS), path)
    print(f"\n{CONNECTIONS:,} connections: {path.stat().st_size / 1e6:.1f} MB")
    return path


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def page(chromium: Browser, report_file: Path, seen: Seen) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    watch(page, seen)
    page.goto(report_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    context.close()
    assert seen.troubles == []
    assert seen.requests == [report_file.as_uri()]


def watch(page: Page, seen: Seen) -> None:
    def dialog(opened: Dialog) -> None:
        seen.troubles.append(f"dialog: {opened.message}")
        opened.dismiss()

    page.on("console", lambda message: seen.troubles.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.troubles.append(f"error: {error}"))
    page.on("dialog", dialog)
    page.on("request", lambda request: seen.requests.append(request.url.partition("#")[0]))


def shown_ids(page: Page) -> list[int]:
    """Connections whose rows are in the DOM, in order."""
    texts = page.locator("#grid-body .c-id").all_inner_texts()
    return [int(text) for text in texts]


def window_of(page: Page) -> tuple[float, float]:
    """The seconds that the timeline shows."""
    start, end = page.locator("#window").inner_text().removesuffix(" s").replace("−", "-").split(" to ")
    return float(start), float(end)


def open_first(page: Page) -> None:
    """Open connection 0 by its row, and wait until it is drawn."""
    page.locator("#row-0").click()
    page.locator("#lanes .event").first.wait_for()


def settle(page: Page) -> None:
    """Until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_page_opens_with_few_rows_in_the_dom(page: Page) -> None:
    opened_ms = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    print(f"\nopen: {opened_ms:.0f} ms to domComplete, {CONNECTIONS:,} connections")
    assert page.locator("#shown").inner_text() == "All 10,000 shown"
    assert page.locator("#grid").get_attribute("aria-rowcount") == "10001"
    assert 10 < page.locator("#grid-body .grid-row").count() < 80
    assert page.locator(".card").count() == 3


def test_scrolling_brings_every_row_and_keeps_the_dom_small(page: Page) -> None:
    took_ms = page.evaluate(
        """async () => {
          const grid = document.getElementById('grid');
          const began = performance.now();
          for (let step = 0; step <= 60; step++) {
            grid.scrollTop = grid.scrollHeight * step / 60;
            await new Promise(requestAnimationFrame);
          }
          return performance.now() - began;
        }"""
    )
    print(f"\nscroll: {took_ms:.0f} ms for 60 jumps through {CONNECTIONS:,} rows")
    settle(page)
    assert shown_ids(page)[-1] == CONNECTIONS - 1
    assert page.locator("#grid-body .grid-row").count() < 80


def test_search_filters_by_every_word(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("close_wait python3[813]")
    assert page.locator("#shown").inner_text() == "14 of 10,000 shown"
    page.keyboard.type(" no-such-thing")
    assert page.get_by_text("No connection matches.").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#shown").inner_text() == "All 10,000 shown"


def test_filters_by_state_and_by_finding(page: Page) -> None:
    page.locator("#states .chip", has_text="CLOSE_WAIT").click()
    assert page.locator("#shown").inner_text() == "42 of 10,000 shown"
    page.locator("#by-finding").select_option(label="unaccepted-connection (2)")
    assert page.locator("#shown").inner_text() == "2 of 10,000 shown"
    page.locator("#states .chip", has_text="CLOSE_WAIT").click()
    page.locator("#finding-0 .chip-filter").click()
    assert page.locator("#shown").inner_text() == "40 of 10,000 shown"


def test_sort_both_ways_and_says_so(page: Page) -> None:
    page.get_by_role("button", name="written", exact=True).click()
    assert shown_ids(page)[:2] == [9999, 9998]
    header = page.locator("#grid-head .c-written")
    assert header.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="written", exact=True).click()
    assert shown_ids(page)[:2] == [40, 41]
    assert header.get_attribute("aria-sort") == "ascending"


def test_keyboard_moves_opens_steps_and_closes(page: Page) -> None:
    for key in ("j", "j", "j", "k", "Enter"):
        page.keyboard.press(key)
    detail = page.locator("#detail")
    detail.wait_for()
    assert page.locator("#detail-title").inner_text().startswith("#1 127.0.0.1:18135 ← 127.0.1.1:40001")
    before = page.locator("#events tr[aria-selected=true]").get_attribute("data-event")
    page.keyboard.press("j")
    after = page.locator("#events tr[aria-selected=true]").get_attribute("data-event")
    assert before is not None
    assert after == str(int(before) + 1)
    page.keyboard.press("]")
    until(page, "document.getElementById('detail-title').textContent.startsWith('#2 ')")
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_a_dialog_that_closes_leaves_the_search_its_keys(page: Page) -> None:
    open_first(page)
    # In one task, as fast fingers do it: the dialog's close event comes after the search has the focus.
    page.evaluate("document.getElementById('detail').close(); document.getElementById('search').focus()")
    settle(page)
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("close_wait python3[813]")
    assert page.locator("#shown").inner_text() == "14 of 10,000 shown"
    page.keyboard.press("Escape")
    open_first(page)
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'grid'")


def test_row_opens_a_timeline_with_lanes_and_the_evidence_chosen(page: Page) -> None:
    open_first(page)
    lanes = page.locator("#lanes")
    names = lanes.locator(".lane-name title").all_text_contents()
    assert names == ["wire", "kernel state", "python3[813]", "python3[812]"]
    assert lanes.locator(".event").count() == page.locator("#events tr").count()
    assert lanes.locator(".evidence").count() == 3
    assert page.locator("#event h3").inner_text() == "recvfrom"
    assert "primary evidence" in page.locator("#event").inner_text()
    assert page.locator("#event dt").all_inner_texts() == ["sockfd", "buf", "len", "flags", "result"]
    lanes.locator(".event.failed .mark").click()
    assert "EPIPE (Broken pipe)" in page.locator("#event").inner_text()
    assert "the peer is gone" in page.locator("#event").inner_text()


def test_timeline_zooms_and_moves_by_keyboard_wheel_and_drag(page: Page) -> None:
    open_first(page)
    settle(page)
    whole = window_of(page)
    page.keyboard.press("+")
    page.keyboard.press("+")
    settle(page)
    near = window_of(page)
    assert near[1] - near[0] < whole[1] - whole[0]
    page.keyboard.press("Shift+ArrowLeft")
    settle(page)
    assert window_of(page)[0] < near[0]
    page.keyboard.press("-")
    page.keyboard.press("0")
    settle(page)
    assert window_of(page) == whole
    box = page.locator("#lanes").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 600, box["y"] + 15)
    page.mouse.wheel(0, -400)
    settle(page)
    until(page, "document.getElementById('window').textContent !== ''")
    zoomed = window_of(page)
    assert zoomed != whole
    page.mouse.down()
    page.mouse.move(box["x"] + 700, box["y"] + 15, steps=4)
    page.mouse.up()
    settle(page)
    assert window_of(page)[0] < zoomed[0]


def test_threads_of_a_process_have_lines_of_their_own(chromium: Browser, tmp_path: Path) -> None:
    report = example_report()
    first = report.timelines(3)
    mixed = [
        replace(item, actor=f"python3[813/{814 + index % 2}]" if index % 3 else "python3[813]")
        if item.lane is Lane.SYSCALL
        else item
        for index, item in enumerate(first)
    ]
    path = tmp_path / "threads.html"
    write_html(replace(report, timeline_tables=lambda ids, limits: (TimelineTable.of_items(mixed) for _ in ids)), path)
    page = chromium.new_page()
    page.goto(path.as_uri() + "#c3")
    page.locator("#lanes .event").first.wait_for()
    lines = [text for text in page.locator("#lanes > svg > .label").all_text_contents() if "thread" in text]
    assert sorted(lines) == ["main thread", "thread 814", "thread 815"]
    page.close()


def test_timeline_in_true_time_too(page: Page) -> None:
    open_first(page)
    squeezed = page.locator("#lanes .tick-name").all_text_contents()
    page.locator("#squeeze").click()
    settle(page)
    assert page.locator("#squeeze").get_attribute("aria-pressed") == "false"
    assert page.locator("#lanes .tick-name").all_text_contents() != squeezed


def test_the_address_opens_a_connection_and_chips_too(page: Page) -> None:
    page.evaluate("location.hash = '#c9999'")
    until(page, "document.getElementById('detail-title').textContent.startsWith('#9999 ')")
    page.locator("#close").click()
    page.locator("#finding-1 .chip").first.click()
    until(page, "document.getElementById('detail-title').textContent.startsWith('#40 ')")


def test_hostile_strings_are_text(page: Page) -> None:
    assert page.locator("#finding-2 h3").inner_text().startswith(f"{SCRIPT} wakes")
    assert MARKUP in page.locator("#finding-0").inner_text()
    open_first(page)
    assert SCRIPT in page.locator("#events").inner_text()
    assert page.locator("script").count() == 2
    page.locator("#detail b, #detail i, #detail script").wait_for(state="detached")


def test_policy_stops_a_script_that_got_in(page: Page, seen: Seen) -> None:
    page.evaluate(
        """() => {
          const added = document.createElement('script');
          added.textContent = 'window.pwned = 1';
          document.body.append(added);
        }"""
    )
    assert page.evaluate("window.pwned === undefined")
    assert len(seen.troubles) == 1
    assert "Content Security Policy" in seen.troubles.pop()


@pytest.mark.parametrize("width", [390, 800, 1400, 2200])
def test_page_fits_any_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    open_first(page)
    settle(page)
    assert page.evaluate(
        "(() => { const d = document.getElementById('detail'); return d.scrollWidth <= d.clientWidth; })()"
    )


def test_print_shows_rows_beyond_the_window(page: Page) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#grid-body .grid-row").count() == 500
    assert page.get_by_text("and 9,500 more").count() == 1
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#grid-body .grid-row").count() < 80


@pytest.mark.parametrize("opened", [False, True], ids=["page", "timeline"])
def test_dark_and_light_both_show_something(chromium: Browser, page: Page, opened: bool, tmp_path: Path) -> None:
    if opened:
        open_first(page)
    means = {}
    folder = Path(os.environ.get("SOCKSCOPE_SCREENSHOTS", tmp_path))
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        settle(page)
        shot = page.screenshot(path=folder / f"{'timeline' if opened else 'page'}-{theme}.png")
        levels = grey_levels(chromium, shot)
        means[theme] = sum(levels) / len(levels)
        assert len(set(levels)) > 20
    assert means["light"] > 100 > means["dark"]


def test_theme_button_turns_the_page_over(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) != light
    page.keyboard.press("t")
    assert page.evaluate(background) == light


def grey_levels(chromium: Browser, png: bytes) -> list[int]:
    """The brightness of a picture's every 31st pixel, 0 to 255, as a page of its own decodes it."""
    page = chromium.new_page()
    levels = page.evaluate(
        """async (text) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const picture = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
          const canvas = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
          canvas.drawImage(picture, 0, 0);
          const { data } = canvas.getImageData(0, 0, picture.width, picture.height);
          const levels = [];
          for (let at = 0; at < data.length; at += 4 * 31) {
            levels.push(Math.round((data[at] + data[at + 1] + data[at + 2]) / 3));
          }
          return levels;
        }""",
        base64.b64encode(png).decode(),
    )
    page.close()
    return [int(level) for level in levels]


@pytest.mark.parametrize("width", [1000, 1300, 1700])
def test_columns_stand_in_line_whatever_a_row_holds(chromium: Browser, tmp_path: Path, width: int) -> None:
    report = example_report()
    first = report.connections[0]
    held = replace(first.connection, owners=[(812, fd) for fd in range(20)])
    path = tmp_path / "wide.html"
    write_html(replace(report, connections=(replace(first, connection=held), *report.connections[1:])), path)
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    lefts = page.evaluate(
        """[...document.querySelectorAll('.grid-row')]
            .map(row => [...row.children].map(cell => cell.getBoundingClientRect().left))"""
    )
    assert len(lefts) > 5
    assert all(row == lefts[0] for row in lefts)
    # All of it is in view without scrolling sideways.
    assert page.evaluate("(grid => grid.scrollWidth - grid.clientWidth)(document.getElementById('grid'))") <= 1
    page.close()


def test_the_state_bar_is_exact_where_the_kernel_told_it(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(heard_report(), path)
    seen = Seen()
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    watch(page, seen)
    page.goto(path.as_uri() + "#c0")
    page.wait_for_selector("html[data-ready=yes]")
    page.wait_for_selector("#lanes svg .state")
    bars = page.eval_on_selector_all(
        "#lanes .state", "bars => bars.map((b) => [b.getAttribute('class'), b.querySelector('.edge') !== null])"
    )
    assert [("exact" in kinds, edge) for kinds, edge in bars] == [(True, True)] * 3
    assert [kinds.split("state-")[1].split()[0] for kinds, _ in bars] == ["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT"]
    ends = page.eval_on_selector_all(
        "#lanes .state rect.mark", "r => r.map((b) => [b.x.baseVal.value, b.x.baseVal.value + b.width.baseVal.value])"
    )
    # Each state begins where the one before ends, and the last goes on to the end.
    assert ends[0][1] <= ends[1][0] + 4
    assert abs(ends[1][1] - ends[2][0]) < 1
    assert ends[2][1] > ends[2][0] + 200
    marks = page.eval_on_selector_all("#lanes .happened", "marks => marks.map((m) => m.getAttribute('aria-label'))")
    assert [("sent again" in mark, "RST came in" in mark) for mark in marks] == [(True, False), (False, True)]
    # A mark cuts no bar in two, and can be chosen like any event.
    page.eval_on_selector("#lanes .happened:last-of-type", "m => m.dispatchEvent(new Event('click', {bubbles: true}))")
    assert "the peer cut the connection off" in page.inner_text("#event")
    told = page.inner_text("#events")
    assert "kernel: ESTABLISHED → CLOSE_WAIT" in told
    assert "the peer's FIN arrived" in told
    page.close()
    assert seen.troubles == []
