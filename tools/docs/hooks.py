"""What mkdocs.yml adds to mkdocs: pages made from the program, and checks that it lacks.

With --strict a warning is an error.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for what is installed may be another checkout

from tools.docs import names, repository  # noqa: E402
from tools.docs.commands import command_page  # noqa: E402
from tools.docs.notebooks import notebook_page, read_notebook  # noqa: E402

REFERENCE = "reference/"
_CODE = re.compile(  # code that names something, but where it is a link or a block already
    r"<a\b.*?</a>|<pre\b.*?</pre>|<h\d.*?</h\d>|<code>(?P<name>[A-Za-z_][\w.]*)(?:\([^<]*\))?</code>",
    re.DOTALL,
)
log = get_plugin_logger("attention-burstiness")
public = names.all_public_names()
pages_of: dict[str, str] = {}  # "package.name" -> where the reference lists it, as a URL


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the two commands, and files outside docs/ that pages link to."""
    from cli import bpt, burst

    for program, app in {"burst": burst.app, "bpt": bpt.app}.items():
        path = f"{REFERENCE}commands/{program}.md"
        files.append(File.generated(config, path, content=command_page(app)))
    _add_notebooks(files, config)
    wanted = [file.src_uri for file in files.documentation_pages()] + list(_nav_paths(config.nav))
    for path in repository.carried_files(wanted):
        place = repository.in_site(path)
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    _check_reference(files)
    return files


def _add_notebooks(files: Files, config: MkDocsConfig) -> None:
    """A page beside each notebook, which stays as a file to download."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        path = Path(str(file.abs_src_path))
        page, pictures = notebook_page(read_notebook(path), path.stem)
        files.append(
            File.generated(config, repository.notebook_in_site(file.src_uri), content=page)
        )
        for name, content in pictures.items():
            place = str(Path(file.src_uri).parent / name)
            files.append(File.generated(config, place, content=content))


def _nav_paths(nav: Any) -> Iterator[str]:
    """Every path that a navigation names."""
    if isinstance(nav, str):
        yield nav
    elif nav:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from _nav_paths(one)


def _check_reference(files: Files) -> None:
    """Warn of public names that no page lists, and remember where the others are."""
    reference = {
        file.src_uri: file.content_string
        for file in files.documentation_pages()
        if file.src_uri.startswith(REFERENCE)
    }
    for complaint in names.complaints(public, reference):
        log.warning(complaint)
    for path, text in reference.items():
        url = files.src_uris[path].url
        for name in names.listed_names(text):
            package, *_, last = name.split(".")
            pages_of[f"{package}.{last}"] = f"{url}#{name}"


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links out of docs/ become links within the site; what explains a name is found first."""
    markdown = repository.relink(markdown, page.file.src_uri)
    if page.file.src_uri.startswith(repository.PLACE):
        page.meta["search"] = {"boost": 0.5}
    if page.file.src_uri.startswith(REFERENCE):
        page.meta["search"] = {"boost": 2}
        markdown = names.resolve_shadowed(markdown, public)
    return markdown


def on_page_content(html: str, *, page: Page, **_: Any) -> str:
    """A public name in code, such as `burst.survey`, becomes a link to the reference.

    In the reference also without its package, where it cannot be another word.
    """
    path = page.file.src_uri
    package = path.removeprefix(REFERENCE).split("/")[0] if path.startswith(REFERENCE) else None

    def link(found: re.Match[str]) -> str:
        meant = names.meanings(found["name"], package) if found["name"] else []
        place = next((pages_of[name] for name in meant if name in pages_of), None)
        if place is None:
            return found[0]
        return f'<a href="{get_relative_url(place, page.url)}">{found[0]}</a>'

    return _CODE.sub(link, html)


def on_template_context(
    context: dict[str, Any], *, template_name: str, config: MkDocsConfig
) -> Any:
    """The page of a wrong address finds its style from the folder too, where no host is named."""
    if template_name == "404.html" and not config.site_url:
        context["base_url"] = "."
    return context
