"""`make dist`: build what is published, check it, and use it as someone who has only the wheel.

    python -m tools.dist

leaves an sdist and a wheel in `dist`. The wheel is installed into a fresh environment in a
temporary folder, and a first day's commands are typed there in an empty one. `DIST_VENV_ARGS` is
passed to `python -m venv`: with `--system-site-packages` what the base Python has is not installed
again. pip's own variables apply too, such as PIP_EXTRA_INDEX_URL for the CPU build of torch.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "burst histogram --num-images 8 --out survey",
    "burst map photo.jpg --out map",
    "bpt train digits --epochs 1 --num-prompts 8 --train-fraction 0.2 --out run",
    "bpt report run --out report",
)
LEFT = (
    *("survey/statistics.csv", "survey/depth_qkx.pdf", "map/index.html"),
    *("run/result.json", "run/prompt.safetensors", "report/index.html"),
)


def main() -> None:
    os.environ.pop("PYTHONPATH", None)  # the checkout's packages are not what is tried
    sdist, wheel = built(ROOT / "dist")
    typed(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    typed(sys.executable, "-m", "check_wheel_contents", wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory(prefix="dist-") as folder:
        environment = installed(wheel, Path(folder) / "environment")
        (empty := Path(folder) / "empty").mkdir()
        use(environment, empty, version=wheel.name.split("-")[1])
    print(f"good: {sdist.name} and {wheel.name} in {sdist.parent}")


def built(folder: Path) -> tuple[Path, Path]:
    """An sdist, and the wheel that is made from it, in a folder that is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    typed(sys.executable, "-m", "build", "--outdir", folder, ROOT, quiet=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """It holds what git tracks, so that the tests run from it, and nothing else."""
    with tarfile.open(sdist) as archive:
        names = [one.name.partition("/")[2] for one in archive if one.isfile()]
    git = ("git", "-C", str(ROOT), "ls-files", "-z")
    tracked = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    if wrong := differences(names, tracked.split("\0")[:-1]):
        raise SystemExit(f"{sdist.name}: " + "; ".join(wrong))


def differences(names: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """What an sdist of these names holds too much or too little, beside what setuptools writes."""
    own = {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    expected = set(tracked)
    more = [f"{name} is not tracked" for name in sorted(own - expected)]
    return more + [f"{name} is missing" for name in sorted(expected - own)]


def installed(wheel: Path, environment: Path) -> Path:
    """A fresh environment with the wheel and what it needs; its folder."""
    more = shlex.split(os.environ.get("DIST_VENV_ARGS", ""))
    typed(sys.executable, "-m", "venv", *more, environment)
    pip = (environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    typed(*pip, "install", "--quiet", wheel)
    typed(*pip, "check")
    return environment


def use(environment: Path, empty: Path, *, version: str) -> None:
    """Type a first day's commands in an empty folder, where no checkout is to be found."""
    python = environment / "bin" / "python"
    os.environ["BPT_CACHE"] = str(empty / "cache")
    shutil.copy(sample_photo(python), empty / "photo.jpg")
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        typed(environment / "bin" / name, *arguments, cwd=empty)
    said = typed(python, "-m", "burst", "--version", cwd=empty, quiet=True)
    if said != f"burst {version}\n":
        raise SystemExit(f"`burst --version` of the wheel {version} says {said!r}")
    if missing := [name for name in LEFT if not (empty / name).is_file()]:
        raise SystemExit(f"the commands left no {', '.join(missing)}")


def sample_photo(python: Path) -> Path:
    """A photograph that scikit-learn ships, of the environment that this Python is of."""
    asked = "from sklearn.datasets import images; print(images.__path__[0])"
    return Path(typed(python, "-c", asked, quiet=True).strip()) / "china.jpg"


def typed(*command: object, cwd: Path = ROOT, quiet: bool = False) -> str:
    """Run a command and say how long it took; its output if quiet. Its failure ends this one."""
    words = [str(word) for word in command]
    print("$", shlex.join([Path(words[0]).name, *words[1:]]), flush=True)
    began = time.monotonic()
    output = subprocess.PIPE if quiet else None
    result = subprocess.run(words, check=False, cwd=cwd, text=True, stdout=output)
    if result.returncode:
        print(result.stdout or "", end="")
        raise SystemExit(f"{Path(words[0]).name} ended with {result.returncode}")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return result.stdout or ""


if __name__ == "__main__":
    main()
