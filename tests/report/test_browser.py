"""The page in a real browser: our own style and script run, nothing else does."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from lesion.report import write_report
from tests.report.report_runs import MakeRun

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
