"""Median time of a PyTorch training step on the CPU: the peer of `twoclocks bench step`.

    python benches/peers/pytorch.py --work mlp --mode whole --precision f32 --threads 2 --seconds 5 --json

One step: forward, softmax cross-entropy (mean), backward, AdamW (lr 1e-3, betas 0.9 and 0.999, eps 1e-8, decay 0.01 on all
parameters). With --json, one JSON object per net on standard output; people's text goes to standard error.

Modes
  eager    nn.Sequential, autograd, torch.optim.AdamW(fused=True)
  compile  the same with forward and loss (and so backward) in torch.compile
  whole    forward, gradient and AdamW written as one function in one torch.compile
f32 is IEEE f32 (no bf16 or tf32 inside f32 products); bf16 is autocast: bf16 products, f32 master weights, loss and AdamW.

Before timing, the chosen mode takes five steps from a fixed start, and its losses must match eager f32. Then warm-up steps
run for a fifth of --seconds (at least 10), then every step is timed on its own until --seconds have passed (at least 20).
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F

NETS = {
    "mlp64": [64, 64, 64, 10],
    "mlp": [784, 512, 512, 10],
    "mlp2048": [784, 2048, 2048, 2048, 10],
}
BATCH = 128
# Batches taken in turn, so that the loss does not reach zero and moments do not become denormal.
BATCHES = 16
LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
SEED = 0
CHECK_STEPS = 5
# Relative difference of a loss from eager f32: other summation orders; bf16 keeps 8 bits.
LOSS_TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}


def synthetic(widths):
    """BATCHES batches of standard normal inputs with uniform labels: (x [BATCH, in], labels [BATCH])."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(BATCHES, BATCH, widths[0], generator=generator)
    labels = torch.randint(widths[-1], (BATCHES, BATCH), generator=generator)
    return list(zip(x, labels))


def network(widths):
    torch.manual_seed(SEED)
    layers = []
    for fan_in, fan_out in zip(widths, widths[1:]):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def mixed(precision):
    if precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def autograd_step(widths, precision, compiled):
    """The step of the modes `eager` and `compile`: (x, labels) -> loss."""
    net = network(widths)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, fused=True)

    def loss_of(x, labels):
        with mixed(precision):
            logits = net(x)
        return F.cross_entropy(logits.float(), labels)

    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def step(x, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def whole_step(widths, precision):
    """The step of the mode `whole`: one compiled function that also updates parameters and moments in place."""
    parameters = [p.detach().clone() for p in network(widths).parameters()]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    # A tensor, so that a new step number does not ask for a new compilation.
    taken = torch.zeros((), dtype=torch.float32)
    element = torch.bfloat16 if precision == "bf16" else torch.float32

    def loss_of(parameters, x, labels):
        # Casts written out: what autocast does, without its state inside the traced function.
        h = x.to(element)
        for i in range(0, len(parameters), 2):
            h = F.linear(h, parameters[i].to(element), parameters[i + 1].to(element))
            if i + 2 < len(parameters):
                h = F.relu(h)
        return F.cross_entropy(h.float(), labels)

    value_and_gradient = torch.func.grad_and_value(loss_of)

    def train(parameters, first, second, taken, x, labels):
        gradients, loss = value_and_gradient(parameters, x, labels)
        taken.add_(1.0)
        rate = LR / (1.0 - BETA1**taken)
        unbias = torch.rsqrt(1.0 - BETA2**taken)
        for p, m, v, g in zip(parameters, first, second, gradients):
            m.lerp_(g, 1.0 - BETA1)
            v.mul_(BETA2).add_(g * g * (1.0 - BETA2))
            p.mul_(1.0 - LR * DECAY).sub_(rate * m / (v.sqrt() * unbias + EPS))
        return loss

    compiled = torch.compile(train, fullgraph=True, dynamic=False)

    def step(x, labels):
        with torch.no_grad():
            return compiled(parameters, first, second, taken, x, labels)

    return step


def make_step(widths, mode, precision):
    if mode == "whole":
        return whole_step(widths, precision)
    return autograd_step(widths, precision, compiled=mode == "compile")


def verify(step, widths, mode, precision, batches):
    """Exits if the losses of the first steps are not those of eager f32; returns the seconds of the first step."""
    reference = autograd_step(widths, "f32", compiled=False)
    first_step_s = None
    for number, (x, labels) in enumerate(batches[:CHECK_STEPS]):
        expected = reference(x, labels).item()
        began = time.perf_counter()
        loss = step(x, labels).item()
        if first_step_s is None:
            first_step_s = time.perf_counter() - began
        tolerance = LOSS_TOLERANCE[precision]
        if not (math.isfinite(loss) and abs(loss - expected) <= tolerance * abs(expected)):
            raise SystemExit(f"{mode} {precision}: loss {loss} at step {number}, eager f32 has {expected}")
    return first_step_s


def measure(work, mode, precision, threads, seconds):
    widths = NETS[work]
    batches = synthetic(widths)
    step = make_step(widths, mode, precision)
    first_step_s = verify(step, widths, mode, precision, batches)
    number = CHECK_STEPS

    def timed_step():
        nonlocal number
        x, labels = batches[number % BATCHES]
        number += 1
        began = time.perf_counter()
        loss = step(x, labels)
        return (time.perf_counter() - began) * 1e3, loss

    def run(duration, least):
        times, until = [], time.perf_counter() + duration
        while time.perf_counter() < until or len(times) < least:
            elapsed, loss = timed_step()
            times.append(elapsed)
        return times, loss.item()

    warm_up, _ = run(seconds / 5, 10)
    times, loss = run(seconds, 20)
    if not math.isfinite(loss):
        raise SystemExit(f"{work}: the loss is {loss} after {number} steps")
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    median = statistics.median(times)
    return {
        "event": "bench",
        "work": work,
        "device": "cpu",
        "isa": torch.backends.cpu.get_cpu_capability().lower(),
        "precision": precision,
        "threads": threads,
        "batch": BATCH,
        "median_ms": median,
        "p05_ms": cuts[0],
        "p95_ms": cuts[-1],
        "n": len(times),
        "items_per_s": BATCH / median * 1e3,
        "peer": "pytorch",
        "version": torch.__version__,
        "mode": mode,
        "warm_up_steps": CHECK_STEPS + len(warm_up),
        "first_step_s": first_step_s,
        "loss": loss,
    }


def main():
    parser = argparse.ArgumentParser(description="Time PyTorch training steps on the CPU.")
    parser.add_argument("--work", nargs="+", choices=sorted(NETS), default=["mlp"], help="nets (default mlp)")
    parser.add_argument("--mode", choices=["eager", "compile", "whole"], default="eager")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="timed seconds of each net")
    parser.add_argument("--json", action="store_true", help="one JSON object per net on standard output")
    options = parser.parse_args()
    if options.threads < 1 or not options.seconds > 0:
        parser.error("--threads and --seconds must be positive")
    torch.set_num_threads(options.threads)
    # From PyTorch 2.9 oneDNN may use bf16 or tf32 inside f32 products unless told not to; earlier ones have no such setting.
    if hasattr(torch.backends.mkldnn, "matmul"):
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    for work in options.work:
        row = measure(work, options.mode, options.precision, options.threads, options.seconds)
        line = (
            f"{work} {row['mode']} {row['precision']} {row['threads']} threads: median {row['median_ms']:.3f} ms "
            f"({row['p05_ms']:.3f} to {row['p95_ms']:.3f}, n {row['n']}), {row['items_per_s']:.0f} items/s, "
            f"first step after {row['first_step_s']:.2f} s"
        )
        print(line, file=sys.stderr if options.json else sys.stdout)
        if options.json:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
