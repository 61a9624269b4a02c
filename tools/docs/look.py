"""Open pages of the built site from its folder, as a reader without a server does.

`python -m tools.docs.look site FOLDER` goes through every page, on a desk and on a telephone, light
and dark; it writes a picture of each into FOLDER, and ends with 1 if something is amiss.
"""

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = 1280, 390
SCHEMES = "light", "dark"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def open_page(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Any:
    """A page of playwright's; what goes wrong while it is open is in its `complaints`.

    Args:
        browser: playwright's.
        path: a page of the built site.
        width: in CSS pixels.
        scheme: "light" or "dark", what the reader's system prefers.
    """
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.complaints = []

    def say(what: str) -> None:
        page.complaints.append(f"{path.name} at {width}, {scheme}: {what}")

    def look_at(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            say(f"asks {request.url}")

    page.on("console", lambda message: message.type == "error" and say(message.text))
    page.on("pageerror", lambda error: say(str(error)))
    page.on("request", look_at)
    page.on("requestfailed", lambda request: say(f"cannot read {request.url}"))
    page.goto(path.resolve().as_uri())
    page.wait_for_load_state("load")
    if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
        say(f"is {wide} pixels wide")
    return page


def search(page: Any, text: str) -> list[str]:
    """Titles of what the search of an open page finds, best first."""
    box = page.locator(".md-search__input")
    if not box.is_visible():
        page.locator("label[for=__search]").last.click()
    found = page.locator(".md-search-result__item")
    box.fill("")
    box.press("Backspace")  # it listens to keys
    found.first.wait_for(state="detached")
    box.fill(text[:-1])  # without a key, so that nothing of a part of the text is found
    box.press(text[-1])
    found.first.wait_for(timeout=10_000)
    return [one.split("\n")[0] for one in found.all_inner_texts()]


def look(browser: Any, site: Path, out: Path) -> Iterator[str]:
    """What is amiss with any page of a site; pictures of all of them go into a folder."""
    settings = list(itertools.product(WIDTHS, SCHEMES))
    for path in sorted(site.rglob("*.html")):
        for width, scheme in settings:
            page = open_page(browser, path, width=width, scheme=scheme)
            name = "-".join(path.relative_to(site).with_suffix("").parts)
            page.screenshot(path=out / f"{name}-{width}-{scheme}.png")
            yield from page.complaints
            page.close()


def main(site: str, out: str) -> int:
    """Look, print what is amiss, and say how it went."""
    from playwright.sync_api import sync_playwright

    Path(out).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        amiss = list(look(browser, Path(site), Path(out)))
        browser.close()
    print("\n".join(amiss) or "nothing is amiss")
    return int(bool(amiss))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
