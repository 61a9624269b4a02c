"""What a user types on a first day, in an empty folder: every command must end well.

    python tools/versions/first_day.py FOLDER

runs the commands beside the Python that runs this file. `make versions` does so in every
environment of `noxfile.py`; they are about the least that says that an environment works.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COMMANDS = Path(sys.executable).parent  # not resolved: an environment's Python is often a link
NAMED = ("torch", "torchvision", "triton", "timm", "numpy", "scipy", "pandas", "matplotlib")
FEW = ("--num-images", "8")
TRAINING = (
    *("bpt", "train", "digits", "--method", "bpt-fwhiten", "--whitening", "W.pt"),
    *("--num-prompts", "8", "--train-fraction", "0.2", "--epochs", "2", "--out", "run"),
)
INTERRUPTED = 128 + signal.SIGINT


def main(folder: Path) -> None:
    print("  ".join(f"{name} {version(name)}" for name in NAMED), flush=True)
    os.chdir(folder)
    os.environ["BPT_CACHE"] = str(Path("cache").absolute())

    typed("burst", "--version")
    typed("burst", "models")
    typed("burst", "histogram", *FEW, "--blocks", "0,11", "--per-head", "--out", "survey")
    left("survey", "statistics.csv", "histograms.npz", "survey.npz", "run.json", "depth_qkx.pdf")
    typed("burst", "whiten", *FEW, "--out", "W.pt")
    left(".", "W.pt", "W.png")
    typed("burst", "report", *FEW, "--out", "backbones")
    left("backbones", "index.html", "statistics.csv", "laws.pdf")

    interrupted_after_an_epoch(*TRAINING)
    typed(*TRAINING, "--resume")
    left("run", "result.json", "prompt.safetensors")
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2], lines
    typed("bpt", "evaluate", "run")
    typed("bpt", "report", "run", "--out", "runs")
    left("runs", "index.html", "runs.csv", "curves.pdf")


def typed(command: str, *arguments: str) -> None:
    """Run a command; its failure ends this program."""
    print("$", command, *arguments, flush=True)
    subprocess.run([COMMANDS / command, *arguments], check=True)


def interrupted_after_an_epoch(command: str, *arguments: str) -> None:
    """Run a training, type Ctrl-C after its first epoch, and see how it ends."""
    print("$", command, *arguments, " and Ctrl-C", flush=True)
    with subprocess.Popen(
        [COMMANDS / command, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            print(line, end="", flush=True)
            if line.startswith("epoch 1/"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == INTERRUPTED, f"{command} ended with {process.returncode}"


def left(folder: str, *names: str) -> None:
    """A command has left these files, and none of them is empty."""
    for name in names:
        assert Path(folder, name).stat().st_size, f"{folder}/{name} is empty"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
