"""`make versions`: the versions of torch and the rest that the package is known to run with.

Each set has an environment of its own, installs the package as a user would, types a first day's
commands outside the checkout, and runs the tests of the kernels, of what knows other libraries'
models, and of detection, which is built on torchvision's parts. `nox -l` lists the sets,
`nox -s oldest` runs one of them, and `nox -s oldest -- tests` other tests with it.

To add a set of versions, add a line to VERSIONS and to `.github/workflows/ci.yml`, and its row to
the table in README.md.
"""

import tempfile
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

nox.options.default_venv_backend = "venv"  # with pip, so that a machine's pip settings apply
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml(Path(__file__).with_name("pyproject.toml"))["project"]
FIRST_DAY = Path(__file__).with_name("tools") / "versions" / "first_day.py"
EXTRAS = ("pretrain", "detection", "hf", "open-clip", "peft")
KERNELS = "tests/burst/kernels"
OTHERS = (*("tests/burst/adapters", "tests/burst/loading"), "tests/bpt/detection")
# What others plan to change is an error in our own environment; Python hides it from users.
LENIENT = [f"-Wignore::{name}" for name in ("DeprecationWarning", "FutureWarning")]


def lower_bounds(project: dict[str, Any]) -> list[str]:
    """What pyproject.toml asks users to have, each at exactly the version that it begins with."""
    pinned = []
    extras = project["optional-dependencies"]
    optional = [line for name in EXTRAS for line in extras[name]]
    for line in project["dependencies"] + optional:
        requirement = Requirement(line)
        (least,) = (one.version for one in requirement.specifier if one.operator == ">=")
        requirement.specifier = SpecifierSet(f"=={least}")
        pinned.append(str(requirement))
    return pinned


# What pip is asked for beside the package; it finds the torchvision and the Triton of each torch.
VERSIONS = {
    "oldest": lower_bounds(PROJECT),
    "torch-2.11": ["torch==2.11.*", "timm==1.0.25", "numpy==2.4.*"],
    "torch-2.14": ["torch==2.14.1"],
    "newest": [],
}


def works(session: nox.Session, versions: list[str]) -> None:
    session.install("--upgrade", "--upgrade-strategy=eager", ".[test]", *versions)
    session.run("python", "-m", "pip", "check")
    one_thread = {"OMP_NUM_THREADS": "1"}  # a process a core, as `make test`
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", str(FIRST_DAY), folder, env=one_thread)
    pytest = ("python", "-m", "pytest", *LENIENT)
    most = ("-m", "not versions", "--numprocesses=auto", "--dist=worksteal")
    session.run(*pytest, *most, *(session.posargs or [KERNELS, *OTHERS]), env=one_thread)
    session.run(*pytest, "-m", "versions", KERNELS)  # spreads its compiling itself


for name, versions in VERSIONS.items():
    # Python too is the oldest: the newest has no wheels of these versions.
    python = PROJECT["requires-python"].removeprefix(">=") if name == "oldest" else None

    @nox.session(name=name, python=python)
    def _(session: nox.Session, versions: list[str] = versions) -> None:
        works(session, versions)
