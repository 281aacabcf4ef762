"""The HTML page of a large session: its size, how long it takes to write and to open, and how it scrolls.

    python -m benchmarks.html_report [--connections 100000] [--peer 10000] [--keep FILE] [--chromium /usr/bin/chromium]
    python -m benchmarks.html_report --recording FOLDER

Synthesises a recording (as `benchmarks.analysis` does), joins and reports it, gives every 200th connection a finding
(the synthetic server has no fault of its own), writes the page, and opens it in headless Chromium by playwright. The
same for the peer's number of connections, whose page shows all of them, each in a process of its own; prints both and
their ratios. Of a recording (say of nginx under `wrk -t1 -c50 -d5 -H 'Connection: close'`) only what writing takes.

Opening is from the navigation's start to the first frame after the table answers (`data-ready`); a click on its first
row then opens that connection. Scrolling is 120 jumps through the whole table, a frame each.

Last figures (2 CPUs, both busy with other work, load 4): 10 000 connections 5.9 MB, open in 714 ms, frame p50 26 ms;
100 000 connections 1.0 MB, open in 412 ms, frame p50 18 ms: size 0.16x, opening 0.58x. The larger page is the smaller
one: of 100 000 it shows about a thousand.

Writing, in seconds of processor time (load 6 to 9, which doubles all of them), timelines told one by one and, now,
hundreds together; the pages are the same to the byte:

    10 000 connections                               21.3 → 2.5, with 54 MiB more than the report
    20 000 connections (10 000 of them told)         19.0 → 3.2, with 39 MiB
    nginx, 8 602 connections, 23 items each          20.4 → 3.0, with 65 MiB
    a capture alone, 6 000 connections                4.0 → 0.6
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.analysis import synthesise
from sockscope.analysis.build import build_session
from sockscope.model.findings import Confidence, Evidence, Finding, Severity, Source
from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.reports.html import write_html

FAULTY_EVERY = 200
EVENTS_EACH = 12
JUMPS = 120

SCROLL = """async (jumps) => {
  const grid = document.getElementById('grid');
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  await frame();
  for (let step = 0; step <= jumps; step++) {
    const began = performance.now();
    grid.scrollTop = grid.scrollHeight * step / jumps;
    await frame();
    await frame();
    times.push((performance.now() - began) / 2);
  }
  return times.sort((a, b) => a - b);
}"""

OPENED = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now();
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What writing took."""

    size_bytes: int
    took_s: float
    """Of processor time: what else the machine does is not asked."""
    added_mib: int
    """Peak memory above what the report itself holds."""


def report_of(connections: int) -> Report:
    """A joined session's report, with one finding."""
    seed, events, packets, sockets, info = synthesise(EVENTS_EACH * connections, connections)
    session = build_session(info=info, seed=seed, events=events, packets=packets, sockets=sockets)
    report = make_report(session)
    faulty = tuple(row.connection.id for row in report.connections[::FAULTY_EVERY])
    first = report.connections[faulty[0]].connection
    finding = Finding(
        rule="close-wait-leak",
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN,
        title=f"{len(faulty):,} connections in CLOSE_WAIT: told of the end, never closed",
        tgid=1000,
        comm="server",
        fd=10,
        connections=faulty,
        count=len(faulty),
        worst=faulty[0],
        explanation="Every 200th connection, so that the page has something to find.",
        remedy="None needed: the server is made up.",
        evidence=(Evidence(source=Source.SYSCALL, time_ns=first.last_ns, text="server[1000] recvfrom(10) = 0"),),
    )
    index = len(report.findings)
    marked = frozenset(faulty)
    rows = tuple(
        replace(row, finding_indexes=(*row.finding_indexes, index)) if row.connection.id in marked else row
        for row in report.connections
    )
    return replace(report, findings=(*report.findings, finding), connections=rows)


def write(report: Report, path: Path) -> Written:
    """Write the page; the peak is this process's, so call it once in one."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()
    began = time.process_time()
    write_html(report, path)
    took_s = time.process_time() - began
    return Written(size_bytes=path.stat().st_size, took_s=took_s, added_mib=(_peak_kib() - before) // 1024)


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def browse(path: Path, chromium: str) -> tuple[float, list[float]]:
    """Milliseconds until the page answers, and of each frame while scrolling, sorted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], headless=True)
        opened = []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            opened.append(float(page.evaluate(OPENED)))
            page.locator("#grid-body .grid-row").first.click()
            page.locator("#detail-title").wait_for()
            page.keyboard.press("Escape")
            frames = [float(ms) for ms in page.evaluate(SCROLL, JUMPS)]
            page.close()
        browser.close()
    return sorted(opened)[1], frames


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--connections", type=int, default=100_000)
    options.add_argument("--peer", type=int, default=10_000)
    options.add_argument("--keep", type=Path)
    options.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    options.add_argument("--recording", type=Path, help="write the page of this one, and say what that takes")
    options.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one is not None:
        written = write(report_of(given.connections), given.one)
        print(written.size_bytes, written.took_s, written.added_mib)
        return
    if given.recording is not None:
        report = make_report(load_session(given.recording))
        with tempfile.TemporaryDirectory() as folder:
            print(f"{len(report.connections):,} connections:", write(report, Path(folder) / "page.html"))
        return
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (given.peer, given.connections):
            path = Path(folder) / f"{count}.html"
            command = [sys.executable, "-m", "benchmarks.html_report", "--connections", str(count), "--one", str(path)]
            size, took, added = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            opened_ms, frames = browse(path, given.chromium)
            figures.append((int(size), float(took), opened_ms, frames[len(frames) // 2]))
            print(
                f"{count:,} connections: {int(size) / 1e6:.1f} MB, written in {float(took):.1f} s of processor time"
                f" with {added} MiB more than the report; open in {opened_ms:.0f} ms;"
                f" frame p50 {frames[len(frames) // 2]:.1f} ms, max {frames[-1]:.1f} ms"
            )
            if given.keep and count == given.connections:
                shutil.copyfile(path, given.keep)
    names = ("size", "writing", "opening", "frame")
    print(", ".join(f"{name} {large / small:.2f}×" for name, small, large in zip(names, *figures, strict=True)))


if __name__ == "__main__":
    main()
