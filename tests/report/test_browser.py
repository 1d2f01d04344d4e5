"""The page in a real browser: our own style and script run, nothing else does."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from lesion.report import write_report
from tests.report.report_runs import MakeRun
from tests.report.zero_modes_runs import make_all, rewritten

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    *("--virtual-time-budget=2000", "--dump-dom"),
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
HOSTILE = "<script>document.title='injected'</script><img src=x onerror=\"document.title='injected'\">"


def browse(page: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the browser said to the console."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", page.as_uri()]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return answer.stdout, [line for line in answer.stderr.splitlines() if "CONSOLE" in line]


def test_only_our_own_style_and_script_run(make_run: MakeRun) -> None:
    page = write_report(make_run(name=HOSTILE, domains=(HOSTILE, "b")))
    document, console = browse(page)
    assert console == []
    assert "<title>injected" not in document
    assert document.count('<button type="button">') == 15 + 16  # our script made the heads sortable
    assert document.count('type="search"') == 2


def test_the_policy_blocks_what_is_put_into_the_page_afterwards(make_run: MakeRun) -> None:
    page = write_report(make_run())
    bad = "<p style=\"color:red\">x</p><script>document.title='injected'</script></main>"
    page.write_text(page.read_text().replace("</main>", bad))
    document, console = browse(page)
    assert "<title>injected" not in document
    assert sum("Content Security Policy" in line for line in console) == 2


def test_heat_maps_and_images_are_shown_under_the_policy(tmp_path: Path) -> None:
    """Images are data of the page itself; the browser has nothing to say, and each of them has its size."""
    run = make_all(tmp_path / "runs")["diff"]
    page = write_report(run)
    assert page.read_text().count("data:image/png;base64,") >= 12
    document, console = browse(page)
    assert console == []
    assert document.count("<image ") >= 12
    blocked = tmp_path / "blocked.html"
    blocked.write_text(page.read_text().replace("img-src data:", "img-src &#39;none&#39;"))
    assert any("Content Security Policy" in line for line in browse(blocked)[1])  # so that silence means shown
    copy = rewritten(run, tmp_path / "copy", tuned={"name": HOSTILE, "fingerprint": "ab"})
    document, console = browse(write_report(copy))
    assert console == []
    assert "<title>injected" not in document
