"""What users import."""

import importlib

import pytest


@pytest.mark.parametrize("package", ["bpt", "burst", "reports"])
def test_every_public_name_is_there_and_sorted(package):
    module = importlib.import_module(package)
    constants = sorted(name for name in module.__all__ if name.isupper())
    classes = sorted(name for name in module.__all__ if name[0].isupper() and not name.isupper())
    functions = sorted(name for name in module.__all__ if name[0].islower())
    assert module.__all__ == constants + classes + functions
    assert all(hasattr(module, name) for name in module.__all__)


def test_packages_import_one_way_only():
    import ast
    from pathlib import Path

    order = ["burst", "bpt", "reports", "cli"]
    root = Path(__file__).parents[2]
    for place, package in enumerate(order):
        for file in (root / package).rglob("*.py"):
            if file == root / package / "__main__.py":
                continue  # `python -m burst` is the command
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                for name in names:
                    imported = name.split(".")[0]
                    assert imported not in order[place + 1 :], f"{file} imports {name}"
