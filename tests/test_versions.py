"""The sets of versions of `make versions`: what they pin, and that CI runs them all."""

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def noxfile():
    pytest.importorskip("nox", reason="nox is not installed")
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_oldest_versions_are_the_lower_bounds(noxfile):
    project = {
        "dependencies": ["numpy>=2.0", "triton>=3.5; sys_platform == 'linux'", "x[a]>=1,<2"],
        "optional-dependencies": {
            "pretrain": ["kornia>=0.7"],
            "detection": ["coco>=2.0.8"],
            "hf": ["transformers>=4.56"],
            "open-clip": ["clip>=3.0"],
            "peft": ["peft>=0.18"],
            "test": ["other>=1"],
        },
    }
    assert noxfile.lower_bounds(project) == [
        "numpy==2.0",
        'triton==3.5; sys_platform == "linux"',
        "x[a]==1",
        "kornia==0.7",
        "coco==2.0.8",
        "transformers==4.56",
        "clip==3.0",
        "peft==0.18",
    ]


def test_ci_runs_every_set_of_versions(noxfile):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [job["session"] for job in jobs] == list(noxfile.VERSIONS)
