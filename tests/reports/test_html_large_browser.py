"""The page of 100,000 connections as a person meets it, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sockscope.reports.html import write_html
from tests.reports.example import example_report
from tests.reports.large_example import WORST, large_report
from tests.reports.test_html_browser import Seen, shown_ids, until, watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

TITLE = "document.getElementById('detail-title').textContent"


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.html"
    write_html(large_report(), path)
    return path


@pytest.fixture
def page(chromium: Browser, large_file: Path) -> Iterator[Page]:
    seen = Seen()
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    watch(page, seen)
    page.goto(large_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    page.close()
    assert seen.troubles == []


def total(page: Page) -> int:
    return int(page.evaluate("document.querySelector('#groups tfoot .chosen').textContent.replace(',', '')"))


def test_totals_say_what_is_shown_and_what_is_summed(page: Page) -> None:
    shown = total(page)
    assert (
        page.locator("#connections .lead").inner_text().startswith(f"100,000 connections: {shown:,} shown one by one")
    )
    assert page.locator("#shown").inner_text() == (
        f"All {shown:,} shown; {100_000 - shown:,} others are only summed above, and not searched"
    )
    counts = page.locator("#groups tbody .count").all_inner_texts()
    assert sum(int(count.replace(",", "")) for count in counts) == 100_000
    assert page.locator("#search").get_attribute("placeholder") == (
        f"Search the {shown:,} shown: address, process, state, path …"
    )
    assert "CLOSE_WAIT" in page.locator("#states").inner_text()
    assert "of 2,502" in page.locator("#states .chip", has_text="CLOSE_WAIT").inner_text()


def test_a_group_filters_the_table_to_what_is_shown_of_it(page: Page) -> None:
    every = total(page)
    button = page.locator("#groups [data-group]").last
    count = button.inner_text()
    button.click()
    assert page.locator("#shown").inner_text().startswith(f"{count} of {every:,} shown")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert page.locator("#shown").inner_text().startswith(f"All {every:,} shown")


def test_the_findings_worst_connection_opens_with_its_story_and_its_wire(page: Page) -> None:
    page.locator("#finding-0 .chip").first.click()
    until(page, f"{TITLE}.startsWith('#{WORST} ')")
    assert page.locator("#detail-wire").inner_text() == "On the wire: 3 retransmissions (1 RTO); round trip 41 ms"
    assert page.locator("#lanes .event").count() > 20
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")
    page.keyboard.press("/")
    page.keyboard.type("retransmissions")
    assert shown_ids(page) == [WORST]


def test_a_findings_filter_says_how_many_are_here(page: Page) -> None:
    page.locator("#finding-0 .chip-filter").click()
    text = page.locator("#finding-0 .chip-filter").inner_text()
    here = text.split(" of ")[0]
    assert text == f"{here} of 2,500 in the table"
    assert page.locator("#shown").inner_text().startswith(f"{here} of ")


def test_an_address_of_a_connection_that_is_not_here_says_so(page: Page) -> None:
    here = page.evaluate("JSON.parse(document.getElementById('data').textContent).connections.id")
    absent = min(set(range(100_000)) - set(here))
    page.evaluate(f"location.hash = '#c{absent}'")
    until(page, f"{TITLE} === '#{absent}'")
    text = page.locator("#absent").inner_text()
    assert f"100,000 connections one by one, and #{absent} is not among them" in text
    assert f"--connection {absent}" in text
    assert page.locator("#story").is_hidden()
    page.keyboard.press("Escape")
    page.locator("#finding-0 .chip").first.click()
    until(page, f"{TITLE}.startsWith('#{WORST} ')")
    assert page.locator("#absent").is_hidden()


def test_findings_and_sums_need_no_script(chromium: Browser, large_file: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large_file.as_uri())
    assert page.locator(".card").count() == 3
    assert page.locator("#groups tfoot").inner_text().startswith("100,000\t")
    context.close()


@pytest.mark.parametrize("width", [390, 800, 1400, 2200])
def test_the_groups_fit_any_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_paper_shows_every_column_that_matters(page: Page) -> None:
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#grid-body .c-summary").first.is_visible()
    assert page.locator("#grid-body .c-held").first.is_visible()
    assert page.evaluate("document.getElementById('groups').getBoundingClientRect().right <= innerWidth")


def test_many_findings_have_a_list_of_contents(chromium: Browser, tmp_path: Path) -> None:
    report = example_report()
    path = tmp_path / "many.html"
    write_html(replace(report, findings=report.findings * 4), path)
    page = chromium.new_page()
    page.goto(path.as_uri())
    assert page.locator(".contents li").count() == page.locator(".card").count() == 12
    page.locator(".contents a").nth(9).click()
    assert page.evaluate("location.hash") == "#finding-9"
    assert page.locator("#finding-9").is_visible()
    page.close()
