"""Does whitening, or a bilinear prompt, gain? All methods with one budget, on one dataset.

    python benchmarks/methods.py --data critters25.zip --out out/methods

For each method every learning rate of the same grid is tried with the first seed, the best one
on the validation split is taken, and the other seeds are trained with it. Every training is a run
folder of `bpt train`; interrupted, the same command goes on where it stopped. Writes
methods-MODEL.csv (a line a run), methods-MODEL.md (mean and spread over seeds) and methods.png
(validation accuracy over the epochs).
"""

import argparse
import json
import shutil
import statistics
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pandas as pd
import torch

from bpt.recipe import Recipe
from bpt.train import train

CASES = (
    ("linear", "shallow"),
    ("vpt", "last:4"),
    ("bpt-bilinear", "last:4"),
    ("vpt", "shallow"),
    ("bpt-bilinear", "shallow"),
    ("bpt-fwhiten", "shallow"),
    ("spt", "shallow"),
    ("bpt-twhiten", "shallow"),
)


def subset(archive: Path, folder: Path, sizes: dict[str, int]) -> Path:
    """The first so many images of each class and split, by name, unpacked."""
    if folder.exists():
        return folder
    made = folder.with_name(folder.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    with zipfile.ZipFile(archive) as source:
        groups = defaultdict(list)
        for name in sorted(source.namelist()):
            parts = PurePosixPath(name).parts
            if len(parts) >= 3 and not name.endswith("/"):
                groups[parts[-3:-1]].append(name)
        for (split, label), names in groups.items():
            for name in names[: sizes[split]]:
                target = made / split / label / PurePosixPath(name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read(name))
    return made.rename(folder)


def run_one(case: tuple[str, str], lr: float, seed: int, options: argparse.Namespace) -> dict:
    """One training, or its result if it is done; a line of the table."""
    method, placement = case
    recipe = Recipe(
        dataset="folder",
        data=str(options.images),
        model=options.model,
        method=method,
        placement=placement,
        num_prompts=options.num_prompts,
        rank=options.rank,
        epochs=options.epochs * (options.linear_factor if method == "linear" else 1),
        batch_size=options.batch_size,
        lr=lr,
        seed=seed,
        weight_decay=options.weight_decay,
        head_weight_decay=options.head_weight_decay,
        precision=options.precision,
    )
    name = f"{options.model}-{method}-{placement.replace(':', '')}-lr{lr:g}-seed{seed}"
    result = train(recipe, options.out / "runs" / name, resume=True)
    line = {"model": options.model, "method": method, "placement": placement}
    line |= {"prompt_parameters": result["parameters"]["prompts"], "lr": lr, "seed": seed}
    for key in ("val_accuracy", "test_accuracy", "best_epoch", "seconds"):
        line[key] = result[key]
    print(json.dumps(line), flush=True)
    return line | {"run": name}


def run_all(options: argparse.Namespace) -> None:
    """First every learning rate with the first seed; then seed by seed with the best of each."""
    lines: dict[tuple[str, str], list[dict]] = {case: [] for case in options.cases}
    best: dict[tuple[str, str], float] = {}
    for number, seed in enumerate(options.seeds):
        for case in options.cases:
            rates = [best[case]] if number else options.lrs
            lines[case] += [run_one(case, lr, seed, options) for lr in rates]
            if not number:
                best[case] = max(lines[case], key=lambda line: line["val_accuracy"])["lr"]
            save(lines, best, options)


def save(lines: dict, best: dict, options: argparse.Namespace) -> None:
    """The table so far, as CSV, Markdown and figure."""
    table = pd.DataFrame([line for case in lines.values() for line in case])
    keys = zip(table.method, table.placement, strict=True)
    table["chosen"] = [best[key] == lr for key, lr in zip(keys, table.lr, strict=True)]
    table.to_csv(options.out / f"methods-{options.model}.csv", index=False)
    text = summary(table)
    (options.out / f"methods-{options.model}.md").write_text(text)
    print(text, flush=True)
    figure(table, options.out)


def summary(table: pd.DataFrame) -> str:
    """Markdown: of the chosen learning rate, mean and spread over seeds."""
    rows = [
        "| backbone | method | placement | prompt parameters | lr | val | test | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, method, placement), part in table[table.chosen].groupby(
        ["model", "method", "placement"], sort=False
    ):
        cells = []
        for name in ("val_accuracy", "test_accuracy"):
            values = part[name].tolist()
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        count, lr = part.prompt_parameters.iloc[0], part.lr.iloc[0]
        where = placement if method != "linear" else ""
        rows.append(
            f"| {model} | {method} | {where} | {count:,} | {lr:g} | {cells[0]} | {cells[1]} "
            f"| {len(part)} |"
        )
    return "\n".join(rows) + "\n"


def figure(table: pd.DataFrame, out: Path) -> None:
    """Validation accuracy over epochs, of the chosen runs, averaged over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    frames = []
    for line in table[table.chosen & (table.method != "linear")].to_dict("records"):
        lines = (out / "runs" / line["run"] / "metrics.jsonl").read_text().splitlines()
        frame = pd.DataFrame([json.loads(text) for text in lines])
        frames.append(frame.assign(method=line["method"], placement=line["placement"]))
    if not frames:
        return
    sns.set_theme(style="whitegrid", palette="colorblind", context="paper")
    grid = sns.relplot(
        pd.concat(frames, ignore_index=True),
        x="epoch",
        y="val_accuracy",
        hue="method",
        col="placement",
        kind="line",
        marker="o",
        errorbar="sd",
        height=3.2,
        aspect=1.2,
    )
    grid.set_axis_labels("epoch", "validation accuracy (%)")
    grid.savefig(out / "methods.png", dpi=160)
    plt.close(grid.figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="zip with train/, val/ and test/")
    parser.add_argument("--out", type=Path, default=Path("out/methods"))
    parser.add_argument("--model", default="mae_tiny")
    parser.add_argument("--cases", default=",".join(f"{m}/{p}" for m, p in CASES))
    parser.add_argument("--lrs", default="0.005,0.02,0.08")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--linear-factor", type=int, default=10, help="a probe's epochs cost nothing"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--weight-decay", type=float, default=5e-3)
    parser.add_argument("--head-weight-decay", type=float, default=0.05)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--per-class", default="40,10,40", help="images of train, val, test")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    options.cases = [tuple(case.split("/")) for case in options.cases.split(",")]
    options.lrs = [float(lr) for lr in options.lrs.split(",")]
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = dict(zip(("train", "val", "test"), map(int, options.per_class.split(",")), strict=True))
    name = f"images-{options.per_class.replace(',', '-')}"
    options.images = subset(options.data, options.out / name, sizes)
    run_all(options)


if __name__ == "__main__":
    main()
