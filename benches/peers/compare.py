"""twoclocks and its peers in turn (A B A B ...) on one machine: whole training steps, MNIST to 98 %, single kernels.

    python3 benches/peers/compare.py                 # steps: every net, every peer
    python3 benches/peers/compare.py steps --work mlp --peers pytorch jax --rounds 7 --output steps.json
    python3 benches/peers/compare.py mnist --data FOLDER
    python3 benches/peers/compare.py kernels --threads 1

Makes what it needs first (environment.py). The table goes to standard error, one JSON object to standard output or --output.
Each run is a process of its own, on the same processors as all others; a round is one run of every side. A side's figure is the median over the rounds of its
medians; a ratio is the best peer's figure over ours (above 1: ours is faster), its range that of the ratios of single rounds.
Machines drift: ratios of one run are claims, milliseconds are not.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import environment
from environment import PEERS, TARGET, Missing, say

NETS = ["mlp64", "mlp", "mlp2048"]
STEP_PEERS = ["pytorch", "jax", "candle", "burn", "fastnn", "tinygrad"]
# Relative difference of `loss_200` from the median of the f32 sides. Summation orders differ: PyTorch in f32 is 2e-4 from
# itself in f64 on `mlp`, and the f32 peers lie up to 6e-4 apart. bf16 keeps 8 bits of each operand.
LOSS_TOLERANCE = {"f32": 2e-3, "bf16": 1e-2}
# A peer whose steps take so many times as long as the fastest peer's runs in the first round only.
SLOW = 10.0
# Rounds of one side that differ by more than this say that the machine was not quiet.
QUIET_SPREAD = 0.3


def rows_of(command, limit, processors):
    """Runs `command` on these processors: the JSON objects that it prints, or a sentence that says why there are none."""
    command = [str(word) for word in command]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    try:
        # A session of its own, to end PyTorch's compiling processes too when time is up.
        pin = functools.partial(os.sched_setaffinity, 0, processors)
        run = subprocess.Popen(command, **settings, start_new_session=True, preexec_fn=pin)
    except OSError as error:
        return f"{command[0]}: {error}"
    try:
        output, errors = run.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"not done after {limit:.0f} s"
        raise
    if run.returncode != 0:
        last = [line for line in errors.splitlines() if line.strip()][-1:]
        ended = f"status {run.returncode}" if run.returncode > 0 else f"ended by {signal.Signals(-run.returncode).name}"
        return f"{ended}: {' '.join(last)[-300:]}"
    try:
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    except ValueError as error:
        return f"its output is not JSON: {error}"


def spread(values):
    """(largest - smallest) / median: 0.1 means that rounds differ by a tenth."""
    return (max(values) - min(values)) / statistics.median(values)


def table(head, cells):
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    for line in [head, *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def machine(options):
    model, flags = environment.cpu()
    return {
        "cpu": model,
        "processors": len(os.sched_getaffinity(0)),
        "used": options.processors,
        "isa": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg()[0],
    }


def ratio(peer, ours):
    """Of two lists of a figure in rounds."""
    rounds = [b / a for a, b in zip(ours, peer)]
    return {"ratio": statistics.median(peer) / statistics.median(ours), "least": min(rounds), "most": max(rounds)}


def ratio_text(value):
    return f"{value['ratio']:.2f} ({value['least']:.2f} to {value['most']:.2f})"


# --- steps


def step_sides(options):
    """(peer, mode, precision) -> command without --work, --problem, --threads, --seconds; or why there is none."""
    sides = {("twoclocks", "step", p): [options.ours, "bench", "step", "--json", "--precision", p] for p in ("f32", "bf16")}
    scripts = {"pytorch": ("pytorch.py", ["eager", "compile", "whole"], ["f32", "bf16"])}
    scripts["jax"] = ("jax_step.py", ["jitted", "scanned"], ["f32", "bf16"])
    scripts["tinygrad"] = ("tinygrad_step.py", ["jitted"], ["f32"])
    for peer in options.peers:
        if peer in scripts:
            script, modes, precisions = scripts[peer]
            try:
                python, why = environment.python(peer, options.pythons, options.pip_arguments), None
            except Missing as missing:
                why = str(missing)
            for mode in modes:
                for precision in precisions:
                    command = why or [python, PEERS / script, "--mode", mode, "--precision", precision]
                    sides[peer, mode, precision] = command
            continue
        modes = ["default"]
        if peer in environment.WITH_AVX512 and "avx512f" in environment.cpu()[1]:
            modes.append("avx512")
        for mode in modes:
            try:
                sides[peer, mode, "f32"] = [environment.rust_peer(peer, mode, options.build)]
            except Missing as missing:
                sides[peer, mode, "f32"] = str(missing)
    return sides


def step_row(command, side, work, problem, options):
    """One run of one side: its row, or why there is none."""
    if isinstance(command, str):
        return command
    words = ["--work", work, "--problem", problem, "--threads", options.threads, "--seconds", options.seconds]
    if side[0] != "twoclocks":
        # Ends by itself before it is ended.
        words += ["--limit", options.limit / 2]
    rows = rows_of([*command, *words], options.limit, options.processors)
    if isinstance(rows, str):
        return rows
    if len(rows) != 1:
        return f"{len(rows)} rows instead of 1"
    wanted = {"work": work, "device": "cpu", "precision": side[2], "threads": options.threads}
    for key, value in wanted.items():
        if rows[0].get(key) != value:
            return f"{key} is {rows[0].get(key)!r}, not {value!r}"
    return rows[0]


def steps_of(work, sides, problem, options, failures):
    """Rows of all sides, round by round; and of those that failed, why."""
    runs = {side: [] for side in sides}
    failed, slow = {}, set()
    for number in range(options.rounds):
        for side, command in sides.items():
            if side in failed or side in slow:
                continue
            row = step_row(command, side, work, problem, options)
            name = f"{work} {' '.join(side)}"
            if isinstance(row, str):
                failed[side] = row
                say(f"{name}: {row}")
                # A refusal is an answer: our bf16 on a machine without it, say. A peer too slow to be waited for also.
                ours = side[0] == "twoclocks"
                if not (side[2] == "bf16" if ours else "not done after" in row):
                    failures.append(f"{name}: {row}")
                continue
            runs[side].append(row)
            loss = "not taken" if row["loss_200"] is None else f"{row['loss_200']:.5f}"
            say(f"{name} round {number + 1}: {row['median_ms']:.4g} ms, loss {loss}")
        if number == 0:
            # The 5 % quantile: a moment in which the machine was not quiet must not keep a fast peer out.
            times = {side: rows[0]["p05_ms"] for side, rows in runs.items() if rows and side[0] != "twoclocks"}
            slow = {side for side, time in times.items() if time > SLOW * min(times.values())}
            if slow and options.rounds > 1:
                say(f"{work}: not run again, as slower than {SLOW:.0f} times the fastest peer: {', '.join(map(' '.join, slow))}")
    return {side: rows for side, rows in runs.items() if side not in failed}, failed


def wrong_losses(runs):
    """A sentence for each run whose loss is not that of the f32 sides. A side too slow for all 200 steps is compared after
    its last whole pass over the batches."""
    plain = [row for side, rows in runs.items() if side[2] == "f32" for row in rows]
    found = []
    for side, rows in runs.items():
        for row in rows:
            loss, others = row["loss_200"], [other["loss_200"] for other in plain if other["loss_200"] is not None]
            if loss is None:
                passes = len(row["pass_losses"])
                loss = row["pass_losses"][-1]
                longer = [other.get("pass_losses", []) for other in plain if other is not row]
                others = [losses[passes - 1] for losses in longer if len(losses) >= passes]
            reference = statistics.median(others) if others else float("nan")
            # Not `>`: a loss that is NaN must fail.
            if not abs(loss - reference) <= LOSS_TOLERANCE[side[2]] * reference:
                found.append(f"{' '.join(side)}: loss {loss:.6f}, the others {reference:.6f}")
    return found


def summary_of(work, runs):
    """The best peer beside ours: any precision, and f32 alone."""
    medians = {side: [row["median_ms"] for row in rows] for side, rows in runs.items()}
    lower = {side: [row["p05_ms"] for row in rows] for side, rows in runs.items()}
    found = []
    for kind, precisions in (("best", ("f32", "bf16")), ("f32", ("f32",))):
        ours = [side for side in runs if side[0] == "twoclocks" and side[2] in precisions]
        peers = [side for side in runs if side[0] != "twoclocks" and side[2] in precisions]
        if not ours or not peers:
            continue
        row = {"work": work, "kind": kind}
        for key, figures in (("median", medians), ("p05", lower)):
            best = [min(group, key=lambda side: statistics.median(figures[side])) for group in (ours, peers)]
            row[key] = ratio(figures[best[1]], figures[best[0]]) | {"ours": best[0], "peer": best[1]}
        found.append(row)
    return found


def steps(options):
    failures = []
    sides = step_sides(options)
    python = environment.python("problem", options.pythons, options.pip_arguments)
    problems = environment.problems(python, options.work)
    result = {"event": "compare", "what": "steps", "machine": machine(options), "threads": options.threads}
    result |= {"rounds": options.rounds, "seconds": options.seconds, "rows": [], "summary": []}
    for work in options.work:
        # The first round compiles, the others find PyTorch's compiled code: both waits are reported.
        shutil.rmtree(TARGET / "compiled", ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(TARGET / "compiled")
        runs, failed = steps_of(work, sides, problems[work], options, failures)
        failures += [f"{work} {wrong}" for wrong in wrong_losses(runs)]
        for side, rows in runs.items():
            medians = [row["median_ms"] for row in rows]
            first = [row["first_step_ms"] for row in rows]
            # None: too slow for 200 steps.
            losses = [row["loss_200"] for row in rows if row["loss_200"] is not None]
            result["rows"].append(
                {
                    "work": work,
                    "side": side,
                    "version": rows[0].get("version"),
                    "median_ms": statistics.median(medians),
                    "spread": spread(medians),
                    "p05_ms": min(row["p05_ms"] for row in rows),
                    "rounds_ms": medians,
                    "first_step_ms": first[0],
                    "later_first_step_ms": statistics.median(first[1:] or first),
                    "loss_200": statistics.median(losses) if losses else None,
                    "pass_losses": rows[0].get("pass_losses"),
                    "quiet": spread(medians) <= QUIET_SPREAD,
                }
            )
        result["rows"] += [{"work": work, "side": side, "failed": why} for side, why in failed.items()]
        result["summary"] += summary_of(work, runs)
    result["load_after"] = os.getloadavg()[0]
    result["failures"] = failures
    step_tables(result)
    return result


def step_tables(result):
    head = ["net", "side", "mode", "precision", "median ms", "rounds", "spread", "5 % ms", "first step ms", "later", "loss"]
    cells = []
    # Those that failed come last.
    order = lambda row: (NETS.index(row["work"]), row.get("median_ms", float("inf")))  # noqa: E731
    for row in sorted(result["rows"], key=order):
        if "failed" in row:
            cells.append([row["work"], *row["side"], "failed", *[""] * 5, row["failed"]])
            continue
        loss = f"{row['loss_200']:.5f}" if row["loss_200"] is not None else f"in {len(row['pass_losses'])} passes"
        cells.append(
            [row["work"], *row["side"], f"{row['median_ms']:.4g}", str(len(row["rounds_ms"])), f"{row['spread']:.0%}"]
            + [f"{row['p05_ms']:.4g}", f"{row['first_step_ms']:.0f}", f"{row['later_first_step_ms']:.0f}", loss]
        )
    table(head, cells)
    say("")
    cells = []
    for row in result["summary"]:
        for key in ("median", "p05"):
            found = row[key]
            names = [" ".join(found[side]) for side in ("ours", "peer")]
            cells.append([row["work"], row["kind"], key, *names, ratio_text(found)])
    table(["net", "kind", "by", "ours", "best peer", "peer / ours"], cells)
    loud = [row for row in result["rows"] if not row.get("quiet", True)]
    if loud:
        say(f"not quiet: rounds of {len(loud)} sides differ by more than {QUIET_SPREAD:.0%}: no claim")


# --- MNIST


def mnist(options):
    """Seeds 0, 1, ... of ours and of each recipe of PyTorch's, in turn."""
    python = environment.python("pytorch", options.pythons, options.pip_arguments)
    common = ["--data", options.data, "--threads", options.threads]
    failures, runs = [], {("twoclocks", p): [] for p in options.ours_precisions}
    runs |= {("pytorch", recipe): [] for recipe in options.recipes}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.rounds):
            for side in runs:
                if side[0] == "twoclocks":
                    command = [options.ours, "train", "mnist", "--target-acc", "0.98", "--json", "--quiet", "--out", folder]
                    command += ["--precision", side[1]]
                else:
                    command = [python, PEERS / "mnist.py", "--recipe", side[1]]
                began = time.perf_counter()
                rows = rows_of([*command, *common, "--seed", seed], options.limit, options.processors)
                process = time.perf_counter() - began
                done = [row for row in rows if row.get("event") == "done"] if not isinstance(rows, str) else []
                name = f"{' '.join(side)} seed {seed}"
                if len(done) != 1:
                    failures.append(f"{name}: {rows if isinstance(rows, str) else 'no result'}")
                    continue
                row = {"seed": seed, "training": done[0]["seconds_training"], "process": process}
                runs[side].append(row | {"test_acc": done[0]["test_acc"], "epochs": done[0]["epochs"]})
                say(f"{name}: {row['training']:.3f} s of training, {process:.3f} of process, {done[0]['test_acc']:.2%}")
    result = {"event": "compare", "what": "mnist", "machine": machine(options), "threads": options.threads, "rows": []}
    for side, rows in runs.items():
        # A recipe counts when its median seed reaches the target: then so do three seeds of five.
        median = {key: statistics.median(row[key] for row in rows) for key in ("training", "process", "test_acc")} if rows else None
        missed = sum(row["test_acc"] < 0.98 for row in rows)
        result["rows"].append({"side": side, "median": median, "missed": missed, "seeds": rows})
    found = [row for row in result["rows"] if row["median"]]
    cells = [
        [*row["side"], f"{row['median']['training']:.3f}", f"{row['median']['process']:.3f}"]
        + [f"{row['median']['test_acc']:.2%}", f"{row['missed']} of {len(row['seeds'])}"]
        for row in found
    ]
    table(["side", "recipe", "training s", "process s", "accuracy", "missed 98 %"], cells)
    counted = [row for row in found if row["median"]["test_acc"] >= 0.98]
    for key in ("training", "process"):
        best = {}
        for name in ("twoclocks", "pytorch"):
            rows = [row for row in counted if row["side"][0] == name]
            best[name] = min(rows, key=lambda row: row["median"][key]) if rows else None
        if None in best.values():
            failures.append(f"no ratio of {key}: one side did not reach 98 %")
            continue
        value = best["pytorch"]["median"][key] / best["twoclocks"]["median"][key]
        sides = [best[name]["side"] for name in best]
        result[key] = {"ratio": value, "ours": sides[0], "peer": sides[1]}
        say(f"{key}: {' '.join(sides[1])} takes {value:.1f} times as long as {' '.join(sides[0])}")
    return result | {"failures": failures}


# --- kernels


def kernels(options):
    """Rows of PyTorch's kernels beside those of `twoclocks bench` that have the same name and precision."""
    import kernels as peer

    python = environment.python("pytorch", options.pythons, options.pip_arguments)
    common = ["--threads", options.threads, "--seconds", options.seconds]
    bench = [options.ours, "bench"]
    # Rows compare bf16 with bf16 in memory, as PyTorch has it; packed weights, which a training step has, stand beside.
    ours = [[*bench, "gemm", *peer.GEMM, "--precision", p, "--operands", o] for p in ("f32", "bf16") for o in (p, "packed")]
    ours += [[*bench, "ce", *peer.CE], [*bench, "adamw", *peer.ADAMW]]
    ours += [[*bench, what, *peer.ROWS] for what in ("norm", "softmax")]
    failures, figures, about = [], {}, {}
    for number in range(options.rounds):
        for command in [*([*words, "--json"] for words in ours), [python, PEERS / "kernels.py"]]:
            rows = rows_of([*command, *common], options.limit * 3, options.processors)
            if isinstance(rows, str):
                name = " ".join(map(str, command[1:3]))
                say(f"{name} {'in bf16' if 'bf16' in command else ''}: {rows}")
                if "bf16" not in command:
                    failures.append(f"{name}: {rows}")
                continue
            for row in rows:
                if row["event"] == "about":
                    about = row
                    continue
                mode = "packed" if row.get("operands") == "packed" else row.get("mode", "")
                sides = figures.setdefault((row["work"], row["precision"]), {})
                sides.setdefault((row.get("peer", "twoclocks"), mode), []).append(row)
        say(f"round {number + 1} of {options.rounds}")
    rows, cells = [], []
    for (work, precision), sides in figures.items():
        times = {side: [row["median_ms"] for row in found] for side, found in sides.items()}
        row = {"work": work, "precision": precision, "sides": []}
        for side, found in sides.items():
            row["sides"].append({"side": side, "rounds_ms": times[side], "library": found[0].get("library")})
        mine = sides.get(("twoclocks", ""), [])
        peers = sorted((side for side in sides if side[0] != "twoclocks"), key=lambda side: statistics.median(times[side]))
        # Of what the kernel is bound by, in the same runs: products by arithmetic, passes over tensors by memory.
        share = "share_of_peak" if work.startswith("gemm") else "share_of_update"
        text = ""
        if mine and all(found.get(share) is not None for found in mine):
            row[share] = statistics.median(found[share] for found in mine)
            row["bound_per_s"] = statistics.median(
                found["peak_flops_per_s" if work.startswith("gemm") else "update_bytes_per_s"] for found in mine
            )
            unit = "GFLOP/s" if work.startswith("gemm") else "GB/s"
            text = f"{row[share]:.0%} of {row['bound_per_s'] / 1e9:.4g} {unit}"
        packed = times.get(("twoclocks", "packed"))
        packed = f"{statistics.median(packed):.4g}" if packed else ""
        mine_text = f"{statistics.median(times['twoclocks', '']):.4g}" if mine else "not there"
        for place, side in enumerate(peers or [None]):
            name = side and sides[side][0].get("library") or side and side[1] or ""
            value = ratio(times[side], times["twoclocks", ""]) if side and len(mine) == len(times[side]) else None
            if value and place == 0:
                row |= value | {"peer": side}
            cells.append([work, precision, mine_text, packed, text, f"{statistics.median(times[side]):.4g}" if side else "not there"])
            cells[-1] += [name, ratio_text(value) if value else ""]
        rows.append(row)
    table(["work", "precision", "ours ms", "packed ms", "ours is", "PyTorch ms", "mode", "PyTorch / ours"], cells)
    result = {"event": "compare", "what": "kernels", "machine": machine(options), "threads": options.threads, "pytorch": about}
    return result | {"rounds": options.rounds, "seconds": options.seconds, "rows": rows, "failures": failures}


def main():
    # Programs that allocate in every step keep their memory, and PyTorch takes huge pages, as ours does.
    os.environ |= {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    parser = argparse.ArgumentParser(description="Time twoclocks and its peers in turn.")
    parser.add_argument("what", nargs="?", choices=["steps", "mnist", "kernels"], default="steps")
    parser.add_argument("--work", nargs="+", choices=NETS, default=NETS, help="nets of `steps`")
    parser.add_argument("--peers", nargs="+", choices=STEP_PEERS, default=STEP_PEERS, help="peers of `steps`")
    parser.add_argument("--data", type=pathlib.Path, help="of `mnist`: the folder of the four IDX files")
    recipes = ["plain", "tuned", "ours"]
    parser.add_argument("--recipes", nargs="+", default=recipes, choices=recipes, help="PyTorch's for `mnist`")
    parser.add_argument("--ours-precisions", nargs="+", default=["auto"], choices=["auto", "f32", "bf16"], help="ours for `mnist`")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side; seeds of `mnist`")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed seconds of each run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit",
        type=float,
        default=240.0,
        help="seconds after which a run is given up; a peer of `steps` begins no step after half of them",
    )
    parser.add_argument("--output", type=pathlib.Path, help="file of the JSON instead of standard output")
    parser.add_argument("--ours", type=pathlib.Path, help="the twoclocks command (default: build it)")
    parser.add_argument("--no-build", dest="build", action="store_false", help="take programs as they are built")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="[PEER=]PATH",
        help="an interpreter that has the packages, for one peer or all (default: make target/peers/venv)",
    )
    parser.add_argument("--pip-arguments", default="", help="further arguments of `pip install`, in one string")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1 or not options.seconds > 0:
        parser.error("--rounds, --threads and --seconds must be positive")
    if options.what == "mnist" and options.data is None:
        parser.error("mnist needs --data")
    options.pythons = {}
    for word in options.python:
        peer, separator, path = word.rpartition("=")
        if separator and peer not in environment.PACKAGES:
            parser.error(f"--python {word}: {peer} is not one of {', '.join(environment.PACKAGES)}")
        options.pythons[peer] = path
    TARGET.mkdir(parents=True, exist_ok=True)
    options.processors = environment.processors(options.threads)
    try:
        options.ours = environment.ours(options.ours, options.build)
        result = {"steps": steps, "mnist": mnist, "kernels": kernels}[options.what](options)
    except Missing as missing:
        sys.exit(f"cannot compare: {missing}")
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    else:
        print(text)
    for failure in result["failures"]:
        say(f"FAILED {failure}")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
