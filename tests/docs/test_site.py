"""The site builds strictly, what is wrong stops it, and it is read from its folder alone."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
pytest.importorskip("material", reason="mkdocs-material is not installed")

ROOT = Path(__file__).parents[2]
PAGES = "reference/index.html", "reference/burst/surveys.html", "reference/commands/bpt.html"
MISTAKES = {
    "index.md": "# Start\n\n[gone](gone.md), [no such place](other.md#nowhere), "
    "[no such file](../NOTHING.md), [by name][burst.nothing]",
    "other.md": "# Other",
    "forgotten.md": "# Forgotten",
    "reference/index.md": "# Reference\n\n::: burst.NonFinite\n\n::: burst.lock\n",
}
NAV = ["index.md", "other.md", "missing.md", "reference/index.md"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what reads docstrings and Markdown
def test_what_is_wrong_with_a_site_stops_the_build(tmp_path, caplog, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    monkeypatch.chdir(ROOT)
    for path, text in MISTAKES.items():
        (tmp_path / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / path).write_text(text)
    folders = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")}
    config = load_config(str(ROOT / "mkdocs.yml"), **folders, nav=NAV, strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(config)
    said = "\n".join(re.sub(r"\s+", " ", record.getMessage()) for record in caplog.records)
    for expected in (
        "'gone.md'",
        "'other.md#nowhere'",
        "NOTHING.md",
        "burst.nothing'",
        "forgotten.md",
        "missing.md",
        "no page of the reference lists burst.survey",
        "lists burst.lock, which is not public",
    ):
        assert expected in said, expected
    assert "lists burst.NonFinite" not in said


@pytest.mark.slow
def test_the_site_builds_strictly_and_is_read_from_its_folder(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert 'id="burst.survey"' in (site / PAGES[1]).read_text()
    for page in (site / "reference").rglob("*.html"):
        for told in re.findall("Returns:</span>.*?</ul>", page.read_text(), re.DOTALL):
            assert told.count("<li") == 1, page  # a result of several lines is not taken apart
    _read_from_its_folder(site)


def _read_from_its_folder(site):
    """No error, no other host, nothing wider than the screen; names and options are found."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from tools.docs.look import CHROMIUM, SCHEMES, WIDTHS, open_page, search

    if CHROMIUM is None:
        pytest.skip("the site was built; no chromium on this machine to read it with")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in (*PAGES, "404.html"):
            for width, scheme in zip(WIDTHS, SCHEMES, strict=True):
                page = open_page(browser, site / path, width=width, scheme=scheme)
                assert page.complaints == []
                if path == PAGES[0]:
                    assert search(page, "SurveyOptions")[0] == "Surveys"
                    assert "bpt" in search(page, "--num-prompts")
                    assert page.complaints == []
                page.close()
        browser.close()
