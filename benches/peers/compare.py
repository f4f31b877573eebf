"""twoclocks and PyTorch in turn (A B A B ...) on one machine: medians, ratios and their spread.

    cargo build --release
    python benches/peers/compare.py --ours target/release/twoclocks --work mlp64 mlp mlp2048 --mode eager whole

A is `OURS bench step --work W --threads T --seconds S --json [OURS_ARGS]`, B is pytorch.py beside this program, each in a
process of its own. The table goes to standard error; with --json, one object per (net, mode) goes to standard output.
The ratio is PyTorch's median over ours within one round (above 1: ours is faster); the table gives the median of the rounds'
ratios and their range. Machines drift, so only these ratios are claims; the milliseconds are not.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

PEER = pathlib.Path(__file__).resolve().parent / "pytorch.py"
# What must be the same on both sides for a ratio to mean anything.
SAME = ["work", "device", "precision", "threads", "batch"]
# Rounds of one side that differ by more than this say that the machine was not quiet.
QUIET_SPREAD = 0.3


def bench_row(command, work):
    """Runs `command` and returns its one `bench` line for `work`."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error}")
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    rows = [row for row in rows if row.get("event") == "bench" and row.get("work") == work]
    if len(rows) != 1:
        raise SystemExit(f"{shlex.join(command)}: {len(rows)} bench lines for {work}, 1 expected")
    if not rows[0]["median_ms"] > 0:
        raise SystemExit(f"{shlex.join(command)}: median_ms is {rows[0]['median_ms']}")
    return rows[0]


def spread(values):
    """(largest - smallest) / median: 0.1 means that rounds differ by a tenth."""
    return (max(values) - min(values)) / statistics.median(values)


def compare(work, mode, options):
    common = ["--work", work, "--threads", str(options.threads), "--seconds", str(options.seconds), "--json"]
    ours_command = [str(options.ours), "bench", "step", *common, *shlex.split(options.ours_args)]
    peer_command = [options.python, str(PEER), *common, "--mode", mode, "--precision", options.precision]
    ours, peer = [], []
    for number in range(options.rounds):
        ours.append(bench_row(ours_command, work))
        peer.append(bench_row(peer_command, work))
        for key in SAME:
            a, b = ours[-1].get(key), peer[-1].get(key)
            if a != b:
                raise SystemExit(f"{work}: {key} is {a!r} on our side and {b!r} on PyTorch's")
        line = f"{work} {mode} round {number + 1}: ours {ours[-1]['median_ms']:.3f} ms, PyTorch {peer[-1]['median_ms']:.3f} ms"
        print(line, file=sys.stderr)
    ours_ms = [row["median_ms"] for row in ours]
    peer_ms = [row["median_ms"] for row in peer]
    ratios = [b / a for a, b in zip(ours_ms, peer_ms)]
    return {
        "event": "compare",
        "work": work,
        "precision": options.precision,
        "threads": options.threads,
        "batch": ours[0]["batch"],
        "peer": "pytorch",
        "version": peer[0]["version"],
        "mode": mode,
        "ours_isa": ours[0].get("isa"),
        "peer_isa": peer[0]["isa"],
        "rounds": options.rounds,
        "seconds": options.seconds,
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "ours_median_ms": statistics.median(ours_ms),
        "ours_spread": spread(ours_ms),
        "peer_median_ms": statistics.median(peer_ms),
        "peer_spread": spread(peer_ms),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "quiet": max(spread(ours_ms), spread(peer_ms)) <= QUIET_SPREAD,
    }


def table(rows):
    head = ["work", "peer mode", "precision", "ours ms", "spread", "PyTorch ms", "spread", "ratio", "range"]
    cells = [
        [
            row["work"],
            row["mode"],
            row["precision"],
            f"{row['ours_median_ms']:.3f}",
            f"{row['ours_spread']:.0%}",
            f"{row['peer_median_ms']:.3f}",
            f"{row['peer_spread']:.0%}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}",
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    for line in [head, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip(), file=sys.stderr)
    for row in rows:
        if not row["quiet"]:
            line = f"{row['work']} {row['mode']}: rounds of one side differ by more than {QUIET_SPREAD:.0%}: no claim"
            print(line, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description="Time twoclocks and PyTorch in turn.")
    parser.add_argument("--ours", type=pathlib.Path, required=True, help="the twoclocks binary, built with --release")
    parser.add_argument("--ours-args", default="", help="further arguments of `bench step`, in one string")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch (default: this one)")
    parser.add_argument("--work", nargs="+", default=["mlp64", "mlp", "mlp2048"])
    parser.add_argument("--mode", nargs="+", choices=["eager", "compile", "whole"], default=["eager", "whole"])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="PyTorch's; ours must report the same")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="timed seconds of each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object per comparison on standard output")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1 or not options.seconds > 0:
        parser.error("--rounds, --threads and --seconds must be positive")
    rows = []
    for work in options.work:
        for mode in options.mode:
            rows.append(compare(work, mode, options))
            if options.json:
                print(json.dumps(rows[-1]), flush=True)
    table(rows)


if __name__ == "__main__":
    main()
