"""What the Python peers share: arguments, the problem file, timing and the JSON line. The Rust peers have harness.rs."""

import argparse
import json
import math
import os
import statistics
import sys
import time

# Steps after which all sides must have the same loss: the mean of the last pass over the batches.
CHECKED_STEPS = 200
LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01


def process_start():
    """Time of the process's creation on the clock of time.clock_gettime(CLOCK_BOOTTIME), to 10 ms."""
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def arguments(modes, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", required=True, help="the net's name")
    parser.add_argument("--problem", required=True, help="the net's file, written by problem.py")
    parser.add_argument("--mode", choices=modes, default=modes[0])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="timed seconds")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of the process after which no step begins")
    options = parser.parse_args()
    if options.threads < 1 or not options.seconds > 0 or not options.limit > 0:
        parser.error("--threads, --seconds and --limit must be positive")
    # Before any library reads it.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def load(path):
    """inputs [batches, batch, features], labels [batches, batch] (int64), [(weight [in, out], bias [out])] as numpy arrays."""
    from safetensors.numpy import load_file

    file = load_file(path)
    layers = [(file[f"weight{i}"], file[f"bias{i}"]) for i in range(len(file) // 2 - 1)]
    return file["inputs"], file["labels"].astype("int64"), layers


def measure(options, peer, version, take, batches, batch, group=1):
    """Prints the JSON line of a peer. `take(number, count)` takes the steps `number` to `number + count - 1`, on the batches
    of the same number modulo `batches`, and returns their losses as floats; a call takes `group` steps, which must divide 200.
    Times are those of a call over its steps. After `--limit` seconds, one pass over the batches and 5 calls no step begins:
    a side that is slower gives the times and losses of the steps that it took."""
    assert CHECKED_STEPS % group == 0
    number, losses = 0, []

    def age():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - process_start()

    def call():
        nonlocal number, losses
        began = time.perf_counter()
        got = take(number, group)
        elapsed = (time.perf_counter() - began) * 1e3 / group
        if number < CHECKED_STEPS:
            losses += got
        number += group
        return elapsed, got

    _, got = call()
    first, times = age(), []
    while number < CHECKED_STEPS and (age() < options.limit or number < batches or len(times) < 5):
        elapsed, got = call()
        times.append(elapsed)
    if number >= CHECKED_STEPS:
        # The first of them are warm-up.
        for duration, least in ((options.seconds / 5, 1), (options.seconds, 5)):
            times, until = [], time.perf_counter() + duration
            while len(times) < least or (time.perf_counter() < until and age() < options.limit):
                elapsed, got = call()
                times.append(elapsed)
    if not all(map(math.isfinite, [*losses, *got])):
        raise SystemExit(f"a loss is not finite: {[*losses[-1:], *got]}")
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    row = {
        "event": "bench",
        "work": options.work,
        "device": "cpu",
        "precision": options.precision,
        "threads": options.threads,
        "batch": batch,
        "median_ms": statistics.median(times),
        "p05_ms": cuts[0],
        "p95_ms": cuts[-1],
        "n": len(times),
        "peer": peer,
        "version": version,
        "mode": options.mode,
        "group": group,
        "first_step_ms": first * 1e3,
        # Mean losses of the whole passes over the batches, and of the last `batches` of the 200 steps.
        "pass_losses": [statistics.fmean(losses[i : i + batches]) for i in range(0, len(losses) - batches + 1, batches)],
        "loss_200": statistics.fmean(losses[-batches:]) if len(losses) == CHECKED_STEPS else None,
        "loss": got[-1],
    }
    print(json.dumps(row))
    sys.stdout.flush()
