"""Differences between any trainings on one test split, paired by seed and image, of all pairs.

    python benchmarks/paired.py 'vpt=out/methods/vits112-last4-decay/runs/vpt/*-seed?' \
        'linear=out/methods/vits112-linear-decay/runs/linear/lr0.000625-wd0.05-seed?'

A search compares with vpt and linear alone, and within itself. Here every pair is compared over the
seeds that both have, and p-values are corrected for all pairs that were named (Holm). FOLDERS match
one run of a seed.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

import bpt
from bpt.search.paired import holm, right_answers


def runs_of(pattern: str) -> dict[int, Path]:
    """Seed -> the run folder that came to its test."""
    found: dict[int, Path] = {}
    for folder in sorted(Path(pattern).parent.glob(Path(pattern).name)):
        if (folder / "result.json").exists():
            first = found.setdefault(bpt.open_run(folder).recipe.seed, folder)
            if first != folder:
                raise SystemExit(f"{first} and {folder} are of one seed: match one rate and decay")
    if not found:
        raise SystemExit(f"no finished run in {pattern}")
    return found


def parse(words: Sequence[str] | None = None) -> dict[str, str]:
    """Name -> what its run folders match."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDERS", help="quote what has a *")
    asked: dict[str, str] = {}
    for group in parser.parse_args(words).groups:
        name, _, pattern = group.partition("=")
        if not name or not pattern:
            parser.error(f"give NAME=FOLDERS, not {group!r}")
        if name in asked:
            parser.error(f"{name} is given twice; give each group a name of its own")
        asked[name] = pattern
    return asked


def main() -> None:
    groups = {name: runs_of(pattern) for name, pattern in parse().items()}
    print("| | test, by seed | mean |\n|---|---|---|")
    for name, runs in groups.items():
        right = 100 * right_answers(runs.values()).mean(axis=1)
        print(f"| {name} | {', '.join(f'{one:.1f}' for one in right)} | {np.mean(right):.1f} |")
    pairs = []
    for second, first in combinations(groups, 2):
        seeds = sorted(groups[first].keys() & groups[second].keys())
        if seeds:
            both = (right_answers(groups[one][seed] for seed in seeds) for one in (first, second))
            pairs.append((first, second, bpt.paired_difference(*both)))
    print("\n| difference | seeds | points, 95 % interval | p, Holm |\n|---|---|---|---|")
    adjusted = holm([one.p_value for _, _, one in pairs])
    for (first, second, one), p in zip(pairs, adjusted, strict=True):
        interval = f"{one.difference:+.1f} ({one.low:+.1f} to {one.high:+.1f})"
        print(f"| {first} - {second} | {one.seeds} | {interval} | {p:.2g} |")


if __name__ == "__main__":
    main()
