"""What is published: nothing of the packages is left out, and nothing else comes along."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from tools.dist import COMMANDS, differences

ROOT = Path(__file__).parents[2]
PACKAGES = ("burst", "bpt", "cli", "reports")


def files(package):
    everything = (path for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in everything if path.suffix != ".pyc"}


@pytest.fixture
def wheel_files(monkeypatch):
    """What setuptools would put into a wheel, from pyproject.toml alone: git is not asked."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    from setuptools.dist import Distribution

    monkeypatch.chdir(ROOT)
    distribution = Distribution({"version": "0", "script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    modules = {path for _, _, path in build.find_all_modules()}
    data = {f"{folder}/{name}" for _, folder, _, names in build.data_files for name in names}
    return {Path(path).as_posix() for path in modules | data}


def test_the_wheel_holds_every_file_of_the_packages(wheel_files):
    assert wheel_files == set().union(*map(files, PACKAGES))


def test_an_sdist_holds_what_git_tracks():
    written = ["PKG-INFO", "setup.cfg", "a.egg-info/SOURCES.txt"]
    assert differences(["burst/x.py", *written], ["burst/x.py"]) == []
    assert differences(["x.py", "demo-out/a.png"], ["x.py", "tests/test_x.py"]) == [
        "demo-out/a.png is not tracked",
        "tests/test_x.py is missing",
    ]


def test_without_a_tag_the_version_is_that_of_a_release_to_come():
    newest = re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert Version(project["tool"]["setuptools_scm"]["fallback_version"]) >= Version(
        f"{newest}.dev0"
    )
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == newest


def test_what_is_published_was_tried_before():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    dist, publish = workflow["jobs"]["dist"], workflow["jobs"]["publish"]
    assert any(step.get("run", "").endswith(" dist") for step in dist["steps"])
    assert publish["needs"] == "dist"
    assert publish["permissions"] == {"id-token": "write"}
    assert [one.split()[1] for one in COMMANDS] == ["histogram", "map", "train", "report"]
