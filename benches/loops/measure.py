#!/usr/bin/env python3
"""What the learning loops are for, measured with the command itself.

    measure.py target   seconds and steps to 98 % on MNIST: the recipe beside constant learning rates, the same net otherwise
    measure.py rates    the recipe's budget at a grid of peak rates, beside the rate that `twoclocks lr` suggests
    measure.py sweep    the full grid, then sweeps in a share of its seconds: both with runs side by side, data shared, no telemetry
    measure.py fresh    the settings that `sweep` found, trained anew with other seeds: how far apart they are
    measure.py time     how near `--time` lands, with the rate at the end of its schedule, beside as many steps without a clock

Each line is a JSON object; the last one of each measurement is its summary. Give --command PATH for a binary that is not
target/release/twoclocks.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def say(**row):
    print(json.dumps(row), flush=True)


class Command:
    def __init__(self, path, folder):
        self.path, self.folder = path, Path(folder)

    def lines(self, *arguments, ok=(0,)):
        done = subprocess.run([self.path, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode not in ok:
            sys.exit(f"{arguments}: {done.stderr}")
        return done.stdout

    def config(self, recipe, name, schedule=None, rate=None, betas=None, **train):
        """The recipe's configuration with another schedule, rate and betas, and other bounds."""
        text = self.lines("train", "--print-config", recipe)
        if schedule:
            text = re.sub(r"\[schedule\]\n(?:(?!\[).*\n)*", f"[schedule]\n{schedule}\n\n", text)
        if rate:
            text = re.sub(r"(?m)^rate = .*$", f"rate = {rate!r}", text)
        if betas:
            text = re.sub(r"(?m)^betas = .*$", f"betas = {betas}", text)
        text = re.sub(r"(?m)^(steps|epochs|seconds|review_share|review_steps|target_acc) = .*\n", "", text)
        head, tail = text.split("[train]\n")
        path = self.folder / f"{name}.toml"
        path.write_text(head + "[train]\n" + "".join(f"{k} = {v}\n" for k, v in train.items()) + tail)
        return path

    def train(self, *arguments):
        began = time.perf_counter()
        out = self.lines("train", *arguments, "--json", "--quiet", "--out", self.folder / "runs", ok=(0, 1))
        wall = time.perf_counter() - began
        rows = [json.loads(line) for line in out.splitlines()]
        return [row for row in rows if row["event"] == "epoch"], rows[-1], wall


def target(command, options):
    """When runs have 98 %: the recipe's schedule beside constant rates, the same net and data otherwise.

    All runs go to their planned end and are reviewed as often as each other, which is no part of their seconds. `first` is the
    median over the seeds of the first review at 98 %: of a long run with a noisy accuracy, the luckiest of many. `mean` is
    the first review from which on the mean accuracy of the seeds is there.
    """
    ways = {f"recipe, {steps} steps": (None, None, None, dict(steps=steps)) for steps in options.steps}
    for betas in ["[0.8, 0.95]", "[0.9, 0.999]"]:
        for rate in options.rates or [5e-4, 1e-3, 2e-3]:
            ways[f"constant {rate:g} {betas}"] = ('kind = "constant"', rate, betas, dict(epochs=3))
    curves = {way: [] for way in ways}
    for seed in range(options.seeds):
        for way, (schedule, rate, betas, bounds) in ways.items():
            reviews = dict(review_steps=options.review_steps, review_share=1e9) if options.review_steps else {}
            config = command.config("mnist", "target", schedule, rate, betas, **bounds, **reviews)
            epochs, done, _ = command.train(config, "--seed", seed)
            curves[way].append([(row["step"], row["seconds"], row["test_acc"]) for row in epochs])
            say(way=way, seed=seed, seconds=done["seconds_training"], step=done["step"], test_acc=done["test_acc"])
    for way, runs in curves.items():
        never = (None, float("inf"), None)
        first = [next((row for row in run if row[2] >= 0.98), never) for run in runs]
        median = [statistics.median(row[i] if row[i] is not None else float("inf") for row in first) for i in (0, 1)]
        step, second = (value if value < float("inf") else None for value in median)
        accuracy = [statistics.mean(run[i][2] for run in runs) for i in range(len(runs[0]))]
        below = [i for i, mean in enumerate(accuracy) if mean < 0.98]
        there = below[-1] + 1 if below else 0
        mean = {}
        if there < len(accuracy):
            mean = dict(mean_step=runs[0][there][0], mean_seconds=statistics.median(run[there][1] for run in runs))
        say(summary=way, first_step=step, first_seconds=second, missed=sum(row[0] is None for row in first), **mean,
            test_acc=accuracy[-1])


def rates(command, options):
    out = command.lines("lr", options.recipe, "--json", "--out", command.folder / "lr.html")
    suggested = json.loads(out.splitlines()[-1])
    say(suggested=suggested)
    grid = options.rates or [3e-4, 6e-4, 1.2e-3, 2.5e-3, 5e-3, 1e-2, 2e-2]
    found = {}
    for rate in [*grid, suggested["maximum"]]:
        runs = []
        for seed in range(options.seeds):
            epochs, done, _ = command.train(options.recipe, "--lr", rate, "--seed", seed)
            runs.append((epochs[-1]["test_loss"], epochs[-1]["train_loss"], 1 - done["test_acc"]))
        loss, train, error = map(statistics.mean, zip(*runs))
        found[rate] = (loss, error)
        say(rate=rate, test_loss=loss, train_loss=train, test_error=error, seeds=options.seeds)
    loss, error = found[suggested["maximum"]]
    best = [min(value[i] for value in found.values()) for i in (0, 1)]
    say(summary="suggested beside the best", loss_ratio=loss / best[0], error_ratio=error / best[1])


# Settings that are varied: 24 of the digits, 36 of MNIST.
GRIDS = {
    "digits": {"optimizer.rate": "{ log = [5e-4, 3e-2], count = 8 }", "train.batch": "[32, 64, 128]"},
    "mnist": {"optimizer.rate": "{ log = [2.5e-4, 1.6e-2], count = 6 }", "train.batch": "[64, 128, 256]",
              "train.label_smoothing": "[0.0, 0.1]"},
}


def swept(command, file, head, set, vary, **sweep):
    """The events of a sweep, its folder, and its seconds by the clock of whoever waits."""
    table = lambda rows: "".join(f"{key} = {value}\n" for key, value in rows.items())
    quoted = lambda rows: {f'"{key}"': value for key, value in rows.items()}
    file.write_text(f"{head}\n[set]\n{table(quoted(set))}[vary]\n{table(quoted(vary))}[sweep]\n{table(sweep)}")
    began = time.perf_counter()
    out = command.lines("sweep", file, "--json", "--quiet", "--out", file.parent / "sweeps", ok=(0, 1, 2))
    wall = time.perf_counter() - began
    rows = [json.loads(line) for line in out.splitlines()]
    return rows, (Path(rows[0]["sweep"]) if rows else None), wall


def sweeps(command, options):
    """Leaves the settings that were found in a folder, for `fresh`."""
    folder = Path(options.found)
    folder.mkdir(parents=True, exist_ok=True)
    fixed = {"clocks.telemetry": "false"}
    if options.epochs:
        fixed |= {"train.epochs": options.epochs, "train.steps": 10**9}
    head = f'recipe = "{options.recipe}"'
    seconds = options.grid_seconds
    for repeat in range(options.first, options.first + options.seeds):
        ways = ([("grid", dict(keep=1, time='"300s"'))] if not options.grid_seconds else []) + [
            (f"sweep {number}", dict(keep=f'"{options.keep}"')) for number in range(options.sweeps)]
        for number, (way, sweep) in enumerate(ways):
            is_grid = way == "grid"
            if not is_grid:
                sweep["time"] = f'"{options.share * seconds}s"'
            base = {**fixed, "seed": 100 * repeat + (0 if is_grid else 10 * number)}
            sweep["seeds"] = options.runs
            rows, at, wall = swept(command, folder / "sweep.toml", head, base, GRIDS[options.recipe], **sweep)
            if not rows:
                say(way=way, seed=base["seed"], refused=sweep["time"])
                continue
            if is_grid:
                # Without its loading and its trials, which its long time makes long.
                seconds = rows[-1]["seconds"] - rows[0]["seconds"]
            best = next(row for row in rows if row["event"] == "result")
            name = f"{options.recipe}-{repeat}-{way.replace(' ', '-')}"
            (folder / f"{name}.toml").write_text((at / "best.toml").read_text())
            (folder / f"{name}.json").write_text(json.dumps(dict(setting=best["setting"])))
            rungs = [[len(row["points"]), row["seeds"], round(row["share"], 4)] for row in rows if row["event"] == "rung"]
            trained = [row for row in rows if row["event"] == "trained"]
            say(way=way, seed=base["seed"], seconds=seconds if is_grid else wall, of_grid=None if is_grid else wall / seconds,
                began=rows[0]["seconds"], reason=rows[-1]["reason"], workers=rows[0]["workers"], rungs=rungs, best=best["setting"],
                test_acc=best["test_acc"], share=best["share"],
                fixed=statistics.mean(row["seconds_worker"] - row["seconds_training"] for row in trained))


def fresh(command, options):
    """The settings that were found, each trained with the same new seeds."""
    folder, known = Path(options.found), {}
    found = {path.stem: json.loads(path.read_text())["setting"] for path in sorted(folder.glob(f"{options.recipe}-*.json"))}
    for name, setting in found.items():
        if setting not in known:
            # A rate that is varied by its only value.
            rate = re.search(r"(?m)^rate = (.*)$", (folder / f"{name}.toml").read_text())[1]
            rows, _, _ = swept(command, folder / "fresh.toml", f'config = "{name}.toml"', {"seed": 100000},
                               {"optimizer.rate": f"[{rate}]"}, keep=1, time='"3000s"', seeds=options.seeds)
            known[setting] = [row["test_acc"] for row in sorted((row for row in rows if row["event"] == "trained"),
                                                                key=lambda row: row["seed"])]
            say(setting=setting, mean=statistics.mean(known[setting]), deviation=statistics.stdev(known[setting]),
                seeds=options.seeds)
    differences = []
    for name, setting in found.items():
        if "-sweep" in name:
            grid = found[name[: name.index("-sweep")] + "-grid"]
            by_seed = [a - b for a, b in zip(known[setting], known[grid])]
            error = statistics.stdev(by_seed) / len(by_seed) ** 0.5
            differences.append(statistics.mean(by_seed))
            say(sweep=name, best=setting, of_grid=grid, difference=differences[-1], standard_error=error)
    if not differences:
        sys.exit(f"{folder}: no sweep and its grid")
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    say(summary="sweep less grid", difference=statistics.mean(differences), standard_error_over_sweeps=error,
        sweeps=len(differences))


def time_budgets(command, options):
    for recipe in options.recipes:
        for seconds in options.times:
            epochs, done, wall = command.train(recipe, "--time", f"{seconds}s")
            config = command.lines("train", "--print-config", recipe)
            peak = float(re.search(r"(?m)^rate = (.*)$", config)[1])
            row = dict(recipe=recipe, seconds=seconds, wall=wall, off=wall / seconds - 1, total=done["seconds_total"],
                       training=done["seconds_training"], steps=done["step"], test_acc=done["test_acc"],
                       test_loss=epochs[-1]["test_loss"], last_rate=epochs[-1]["lr"] / peak)
            if options.beside:
                epochs, same, _ = command.train(recipe, "--steps", done["step"])
                row |= dict(as_many_steps_acc=same["test_acc"], as_many_steps_loss=epochs[-1]["test_loss"])
            say(**row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["target", "rates", "sweep", "fresh", "time"])
    parser.add_argument("--command", default="target/release/twoclocks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--review-steps", type=int, default=25, help="of `target`")
    parser.add_argument("--steps", type=int, nargs="+", default=[390, 469], help="of the recipe, of `target`")
    parser.add_argument("--recipe", default="mnist", help="of `rates`, `sweep` and `fresh`")
    parser.add_argument("--found", help="folder in which `sweep` leaves what `fresh` reads")
    parser.add_argument("--first", type=int, default=0, help="number of the first grid of `sweep`; --seeds is how many")
    parser.add_argument("--sweeps", type=int, default=1, help="sweeps for each grid, each with other seeds")
    parser.add_argument("--share", type=float, default=0.2, help="of the grid's seconds, for a sweep")
    parser.add_argument("--grid-seconds", type=float, help="of `sweep`: no grid, but this in its place")
    parser.add_argument("--keep", default="1/3", help="of `sweep`")
    parser.add_argument("--runs", type=int, default=1, help="seeds of a setting in `sweep`")
    parser.add_argument("--epochs", type=int, help="of a run in `sweep`, in place of the recipe's")
    parser.add_argument("--recipes", nargs="+", default=["digits", "mnist"], help="of `time`")
    parser.add_argument("--times", type=float, nargs="+", default=[0.5, 2, 5, 20])
    parser.add_argument("--beside", action="store_true", help="train as many steps without a clock, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = Command(options.command, folder)
        {"target": target, "rates": rates, "sweep": sweeps, "fresh": fresh, "time": time_budgets}[options.what](command, options)


if __name__ == "__main__":
    main()
