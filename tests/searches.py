"""A search as `bpt search` leaves it, made up by hand: no model is trained."""

import json
import math
from dataclasses import replace

import numpy as np

from bpt import Recipe

RATES, DECAYS, EPOCHS, SEEDS = (0.003, 0.01, 0.03, 0.1), (0.0, 0.005), 12, (0, 1, 2)
BEST = {"linear": 46.7, "vpt": 51.6, "bpt-fwhiten": 52.9}


def search_record(*, complete=True, kind="split"):
    """The content of search.json: three methods, eight trials each, three seeds."""
    base = Recipe(dataset="digits", method="linear", epochs=EPOCHS)
    return {
        "kind": "bpt search 1",
        "dataset": "digits",
        "model": "mae_tiny",
        "base": base.to_dict(),
        "validation": {"kind": kind, "images": 1000, "folds": 5 if kind == "cross" else None},
        "test_images": 597,
        "trials_each": len(RATES) * len(DECAYS),
        "seeds": list(SEEDS),
        "options": {"halving": True},
        "complete": complete,
        "methods": [_method(name, best) for name, best in BEST.items()],
        "differences": [
            _difference("vpt", "linear", 1.9, 0.1, 3.7, 0.08),  # alone, but not among three
            _difference("bpt-fwhiten", "linear", 6.2, 4.4, 8.1, 1e-4),
            _difference("bpt-fwhiten", "vpt", 1.3, -0.4, 3.1, 0.14),
        ],
        "sentences": ["bpt-fwhiten and vpt are level: 1.3 points (-0.4 to 3.1) over 3 seeds."],
    }


def _difference(method, against, difference, low, high, adjusted_p):
    values = {"difference": difference, "low": low, "high": high, "adjusted_p": adjusted_p}
    return {"method": method, "against": against, **values, "seeds": 3, "images": 597}


def _method(name, best):
    trials = []
    for decay in DECAYS:
        for rate in RATES:
            score = best - 3 * abs(math.log10(rate / 0.01)) ** 2 - 100 * decay
            stopped = rate == 0.1
            trials.append(
                {
                    "lr": rate,
                    "weight_decay": decay,
                    "epochs": 4 if stopped else EPOCHS,
                    "of_epochs": EPOCHS,
                    "score": None if name == "vpt" and rate == 0.1 and decay else score,
                    "standard_error": 1.6,
                    "folder": f"trials/{name}-{rate:g}-{decay:g}",
                }
            )
    tests = [best - 0.4 + 0.3 * seed for seed in SEEDS]
    prompted = name != "linear"
    return {
        "method": name,
        "placement": "shallow" if prompted else None,
        "prompt_parameters": 19_200 * prompted,
        "trained_parameters": 1_930 + 19_200 * prompted,
        "trials": trials,
        "chosen": {"lr": 0.01, "weight_decay": 0.0, "score": best},
        "inside": name != "bpt-fwhiten",
        "edges": ["lr"] if name == "bpt-fwhiten" else [],
        "runs": [
            {
                "seed": seed,
                "val_accuracy": best,
                "test_accuracy": tests[seed],
                "best_epoch": EPOCHS,
                "folder": f"runs/{name}/seed_{seed}",
            }
            for seed in SEEDS
        ],
        "test": {
            "mean": float(np.mean(tests)),
            "std": float(np.std(tests, ddof=1)),
            "values": tests,
        },
    }


def curve(name, seed):
    """Validation accuracy of each epoch: linear rises on and on, the others are flat in the end."""
    epochs = np.arange(1, EPOCHS + 1)
    noise = 0.3 * np.random.default_rng(seed).standard_normal(EPOCHS)
    if name == "linear":
        return 30 + 1.4 * epochs + 0.1 * noise
    return BEST[name] - 20 * np.exp(-epochs / 1.5) + noise


def write_search(folder, **changes):
    """The folder of such a search, with as much of its runs as a page reads."""
    record = search_record(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.json").write_text(json.dumps(record))
    base = Recipe.from_dict(record["base"])
    for entry in record["methods"]:
        for run in entry["runs"]:
            place = folder / run["folder"]
            place.mkdir(parents=True)
            recipe = replace(base, method=entry["method"], seed=run["seed"], lr=None)
            config = {
                "kind": "bpt run 1",
                "recipe": recipe.to_dict(),
                "dataset": {"classes": [str(digit) for digit in range(10)]},
                "backbone": {"weights_sha256": None},
            }
            (place / "config.json").write_text(json.dumps(config))
            lines = [
                {"epoch": epoch, "val_accuracy": value, "test_accuracy": None}
                for epoch, value in enumerate(curve(entry["method"], run["seed"]), 1)
            ]
            (place / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return record
