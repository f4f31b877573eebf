"""PyTorch on a GPU: the peer of `twoclocks bench --device cuda:N`, for scripts/gpu-check.

    python benches/peers/pytorch_gpu.py --only gemm steps --seconds 0.3 --problems target/peers <<<round

One round for each line of standard input, so that sides take turns in one run without starting again; JSON on standard
output: an `about`, then rows, `failed` with the reason where a case cannot run, and `round_done` after each round.

A sample is one CUDA graph of as many repetitions as take 2 ms, by events, as ours is. Modes
  eager      PyTorch's own kernels, captured. Of steps: not captured, 50 given before they are waited for, by the host's clock
  cublaslt   products with cuBLASLt asked for
  compile    torch.compile, captured. Of steps: forward and loss compiled, AdamW(fused=True), not captured
  graph      steps: 8 of them, each with its batch, in one CUDA graph; AdamW(fused=True, capturable=True)
  whole      steps: forward, gradient and AdamW as one compiled function, 8 of them in one CUDA graph
f32 is IEEE f32 (TF32 off); bf16 of steps is autocast with f32 weights and optimizer.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import sys
import time

GEMM = "1024x1024x1024 2048x2048x2048 4096x4096x4096 8192x8192x8192 128x512x784 128x512x512 128x10x512"
GEMM += " 784x512x128:tn 512x512x128:tn 512x10x128:tn 128x512x10:nt"
CE = "128x10 65536x1000 8192x50257 4096x131072"
ADAMW = "10000000x1 100000000x50"
ROWS = "65536x1024 8192x8192 2048x65536"
SUMS = "65536x1024"
NETS = "mlp mlp64 mlp2048"
LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
CHECKED_STEPS, GROUP = 200, 8
SAMPLE = 2e-3

parser = argparse.ArgumentParser(description="Time PyTorch on a GPU.")
KINDS = ["gemm", "steps", "ce", "adamw", "layer_norm", "softmax", "reduce"]
parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
parser.add_argument("--device", default="cuda:0", help="cpu tries the program out without a GPU: host clock, nothing captured")
parser.add_argument("--seconds", type=float, default=0.3, help="timed seconds of each row and round")
parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no further case is prepared")
parser.add_argument("--problems", type=pathlib.Path, help="folder of <net>.safetensors, as problem.py writes them")
parser.add_argument("--no-compile", dest="compile", action="store_false")
for name, sizes in (("gemm", GEMM), ("ce", CE), ("adamw", ADAMW), ("rows", ROWS), ("sums", SUMS), ("nets", NETS)):
    parser.add_argument(f"--{name}", nargs="+", default=sizes.split())
OPTIONS = parser.parse_args()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

DEVICE = torch.device(OPTIONS.device)
ON_GPU = DEVICE.type == "cuda"
BEGAN = time.perf_counter()


def say(**row):
    print(json.dumps(row), flush=True)


def wait():
    if ON_GPU:
        torch.cuda.synchronize()


class Recorded:
    """A call captured as a graph, `repeats` times; on the CPU just the call."""

    def __init__(self, call, repeats):
        self.call, self.repeats, self.graph = call, repeats, None
        if ON_GPU:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            wait()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for _ in range(repeats):
                    call()

    def seconds(self):
        """Of one launch."""
        if self.graph is None:
            began = time.perf_counter()
            for _ in range(self.repeats):
                self.call()
            return time.perf_counter() - began
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3


def sampled(take, share):
    """Milliseconds of `take()` * share, for the time of a round; the first one warms up."""
    times, until = [], time.perf_counter() + OPTIONS.seconds
    take()
    while len(times) < 5 or time.perf_counter() < until:
        times.append(take() * share * 1e3)
    return times


def repeated(call):
    """A function that measures `call` for one round."""
    once = Recorded(call, 1)
    once.seconds()
    repeats = max(1, min(1000, math.ceil(SAMPLE / max(once.seconds(), 1e-7))))
    recorded = Recorded(call, repeats) if repeats > 1 else once
    return lambda: sampled(recorded.seconds, 1.0 / repeats)


# --- kernels: (work, precision, mode, prepare); prepare() gives a function that measures one round


def extents(size):
    return [int(word) for word in size.split("x")]


@contextlib.contextmanager
def library(name):
    set_library = getattr(torch.backends.cuda, "preferred_blas_library", None)
    before = set_library() if set_library and ON_GPU else None
    if before is not None:
        set_library(name)
    try:
        yield
    finally:
        if before is not None:
            set_library(before)


def gemm_cases():
    def product(size, element, mode):
        size, _, layout = size.partition(":")
        m, n, k = extents(size)
        a = torch.randn((k, m) if layout == "tn" else (m, k), device=DEVICE).to(element)
        b = torch.randn((n, k) if layout == "nt" else (k, n), device=DEVICE).to(element)
        a, b = (a.t() if layout == "tn" else a), (b.t() if layout == "nt" else b)
        c = torch.empty(m, n, dtype=element, device=DEVICE)
        with library("cublaslt" if mode == "cublaslt" else "cublas"):
            return repeated(lambda: torch.mm(a, b, out=c))

    for size in OPTIONS.gemm:
        for precision, element in (("bf16", torch.bfloat16), ("f32", torch.float32)):
            for mode in ("eager", "cublaslt"):
                yield f"gemm_{size.replace(':', '_')}", precision, mode, lambda s=size, e=element, m=mode: product(s, e, m)


def compiled(call):
    return torch.compile(call, fullgraph=True, dynamic=False)


def modes(call):
    """Eager, and compiled when asked for."""
    yield "eager", lambda: call
    if OPTIONS.compile:
        yield "compile", lambda: compiled(call)


def ce_cases():
    def of_logits(logits, labels):
        return F.cross_entropy(logits, labels)

    def eager(logits, labels):
        logits = logits.detach().requires_grad_()
        loss = F.cross_entropy(logits, labels)
        return loss, torch.autograd.grad(loss, logits)[0]

    def prepare(size, mode):
        rows, classes = extents(size)
        logits = torch.randn(rows, classes, device=DEVICE)
        labels = torch.randint(classes, (rows,), device=DEVICE)
        call = eager if mode == "eager" else compiled(torch.func.grad_and_value(of_logits))
        return repeated(lambda: call(logits, labels))

    for size in OPTIONS.ce:
        for mode in ("eager", "compile") if OPTIONS.compile else ("eager",):
            yield f"ce_{size}", "f32", mode, lambda s=size, m=mode: prepare(s, m)


def adamw_cases():
    def prepare(size):
        total, tensors = extents(size)
        bounds = [i * total // tensors for i in range(tensors + 1)]
        parameters = [torch.randn(end - start, device=DEVICE) for start, end in zip(bounds, bounds[1:])]
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY, fused=True, capturable=ON_GPU)
        return repeated(optimizer.step)

    for size in OPTIONS.adamw:
        yield f"adamw_{size}", "f32", "eager", lambda s=size: prepare(s)


def rows_cases():
    def norm(x, gain, shift):
        return torch.native_layer_norm(x, gain.shape, gain, shift, 1e-5)

    def norm_backward(dy, x, mean, rstd, gain, shift):
        return torch.ops.aten.native_layer_norm_backward(dy, x, gain.shape, mean, rstd, gain, shift, [True, True, True])

    def softmax(x):
        return torch.softmax(x, 1)

    def softmax_backward(dy, y):
        return torch.ops.aten._softmax_backward_data(dy, y, 1, torch.float32)

    def prepare(call, tensors, size):
        rows, columns = extents(size)
        with torch.no_grad():
            x, dy = torch.randn(rows, columns, device=DEVICE), torch.randn(rows, columns, device=DEVICE)
            gain, shift = torch.ones(columns, device=DEVICE), torch.zeros(columns, device=DEVICE)
            _, mean, rstd = norm(x, gain, shift)
            given = {"x": x, "dy": dy, "gain": gain, "shift": shift, "mean": mean, "rstd": rstd}
            if "y" in tensors:
                given["y"] = softmax(x)
            given = [given[name] for name in tensors]
            call = call()

            def run():
                with torch.no_grad():
                    return call(*given)

            return repeated(run)

    calls = {
        "layer_norm": [("layer_norm", norm, ["x", "gain", "shift"])],
        "softmax": [("softmax", softmax, ["x"]), ("softmax_backward", softmax_backward, ["dy", "y"])],
        "reduce": [("sum_of_rows", lambda x: x.sum(1), ["x"]), ("sum_of_columns", lambda x: x.sum(0), ["x"])],
    }
    calls["layer_norm"].append(("layer_norm_backward", norm_backward, ["dy", "x", "mean", "rstd", "gain", "shift"]))
    for kind, entries in calls.items():
        for size in OPTIONS.sums if kind == "reduce" else OPTIONS.rows:
            for name, call, tensors in entries if kind in OPTIONS.only else []:
                for mode, make in modes(call):
                    yield f"{name}_{size}", "f32", mode, lambda c=make, t=tensors, s=size: prepare(c, t, s)


# --- steps


def mixed(precision):
    if precision == "bf16":
        # Casts that a capture may keep, not those of an earlier step.
        return torch.autocast(DEVICE.type, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


class Problem:
    def __init__(self, net):
        from safetensors.numpy import load_file

        file = load_file(OPTIONS.problems / f"{net}.safetensors")
        self.inputs = torch.from_numpy(file["inputs"]).to(DEVICE)
        self.labels = torch.from_numpy(file["labels"].astype("int64")).to(DEVICE)
        self.layers = [(file[f"weight{i}"], file[f"bias{i}"]) for i in range(len(file) // 2 - 1)]
        self.batches = len(self.inputs)

    def parameters(self):
        """Weights as nn.Linear has them, [outputs, inputs], and biases, in turn."""
        arrays = [array for weight, bias in self.layers for array in (weight.T, bias)]
        return [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]


def autograd_step(problem, precision, mode):
    modules = []
    for weight, _ in problem.layers:
        modules += [torch.nn.Linear(*weight.shape, device="meta"), torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    names = [name for name, _ in net.named_parameters()]
    net.load_state_dict(dict(zip(names, problem.parameters())), assign=True)
    net.requires_grad_()
    settings = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY, "fused": True}
    optimizer = torch.optim.AdamW(net.parameters(), **settings, capturable=mode == "graph" and ON_GPU)

    def loss_of(x, labels):
        with mixed(precision):
            logits = net(x)
        return F.cross_entropy(logits.float(), labels)

    if mode == "compile":
        loss_of = compiled(loss_of)

    def step(x, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    # Weights, then what the optimizer made in its first step.
    return step, lambda: [*net.parameters(), *(value for one in optimizer.state.values() for value in one.values())]


def whole_step(problem, precision):
    weights = problem.parameters()
    first, second = [torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    taken = torch.zeros((), dtype=torch.float32, device=DEVICE)
    element = torch.bfloat16 if precision == "bf16" else torch.float32

    def loss_of(weights, x, labels):
        h = x.to(element)
        for i in range(0, len(weights), 2):
            h = F.linear(h, weights[i].to(element), weights[i + 1].to(element))
            if i + 2 < len(weights):
                h = F.relu(h)
        return F.cross_entropy(h.float(), labels)

    value_and_gradient = torch.func.grad_and_value(loss_of)

    def train(weights, first, second, taken, x, labels):
        gradients, loss = value_and_gradient(weights, x, labels)
        taken.add_(1.0)
        rate = LR / (1.0 - BETA1**taken)
        unbias = torch.rsqrt(1.0 - BETA2**taken)
        for p, m, v, g in zip(weights, first, second, gradients):
            m.lerp_(g, 1.0 - BETA1)
            v.mul_(BETA2).add_(g * g * (1.0 - BETA2))
            p.mul_(1.0 - LR * DECAY).sub_(rate * m / (v.sqrt() * unbias + EPS))
        return loss

    call = compiled(train)

    def step(x, labels):
        with torch.no_grad():
            return call(weights, first, second, taken, x, labels)

    return step, lambda: [*weights, *first, *second, taken]


def step_case(net, precision, mode):
    """Takes 200 steps, whose last pass gives the loss; then measures."""
    problem = Problem(net)
    step, state = whole_step(problem, precision) if mode == "whole" else autograd_step(problem, precision, mode)
    batch = lambda i: (problem.inputs[i % problem.batches], problem.labels[i % problem.batches])  # noqa: E731
    losses = torch.zeros(CHECKED_STEPS, device=DEVICE)
    if mode in ("eager", "compile") or not ON_GPU:
        for i in range(CHECKED_STEPS):
            losses[i] = step(*batch(i))
        number = [CHECKED_STEPS]

        def take():
            began = time.perf_counter()
            for _ in range(50):
                step(*batch(number[0]))
                number[0] += 1
            wait()
            return time.perf_counter() - began

        return (lambda: sampled(take, 1 / 50)), losses[-problem.batches :].mean().item()
    # A stream beside the main one warms up; then the state is put back, so that the 200 steps are those of the others.
    before = [tensor.detach().clone() for tensor in state()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            step(*batch(i))
    torch.cuda.current_stream().wait_stream(stream)
    wait()
    graphs, results = [], torch.zeros(GROUP, device=DEVICE)
    for start in range(0, problem.batches, GROUP):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
            for i in range(GROUP):
                results[i] = step(*batch(start + i))
        graphs.append(graph)
    with torch.no_grad():
        for i, tensor in enumerate(state()):
            # Moments and step counts are made by the first step, and begin at zero.
            tensor.copy_(before[i]) if i < len(before) else tensor.zero_()
    for i in range(0, CHECKED_STEPS, GROUP):
        graphs[i // GROUP % len(graphs)].replay()
        losses[i : i + GROUP] = results

    def take():
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for i in range(6):
            graphs[i % len(graphs)].replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3

    return (lambda: sampled(take, 1 / (6 * GROUP))), losses[-problem.batches :].mean().item()


def step_cases():
    def prepare(net, precision, mode):
        measure, loss = step_case(net, precision, mode)
        prepare.loss[net, precision, mode] = loss
        return measure

    prepare.loss = LOSSES
    ways = ["graph", "eager"] + (["whole", "compile"] if OPTIONS.compile else [])
    for mode in ways:
        for net in OPTIONS.nets:
            for precision in ("f32", "bf16"):
                yield net, precision, mode, lambda n=net, p=precision, m=mode: prepare(n, p, m)


LOSSES = {}


def main():
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    about = {"event": "about", "peer": "pytorch", "version": torch.__version__, "device": OPTIONS.device}
    if ON_GPU:
        about |= {"name": torch.cuda.get_device_name(DEVICE), "cuda": torch.version.cuda}
    say(**about)
    cases = []
    if "steps" in OPTIONS.only:
        cases += step_cases()
    for kind, all_of in (("gemm", gemm_cases), ("ce", ce_cases), ("adamw", adamw_cases)):
        if kind in OPTIONS.only:
            cases += all_of()
    cases += rows_cases()
    # What compiles comes last: it takes longest to prepare.
    cases.sort(key=lambda case: case[2] in ("compile", "whole"))
    ready, failed = {}, set()
    for number, line in enumerate(sys.stdin):
        if not line.strip():
            continue
        for work, precision, mode, prepare in cases:
            key = (work, precision, mode)
            if key in failed:
                continue
            try:
                if key not in ready:
                    if time.perf_counter() - BEGAN > OPTIONS.limit:
                        raise TimeoutError(f"not prepared within {OPTIONS.limit:.0f} s")
                    ready[key] = prepare()
                times = ready[key]()
            except Exception as error:  # noqa: BLE001 - every case stands alone
                failed.add(key)
                ready.pop(key, None)
                say(event="failed", work=work, precision=precision, mode=mode, why=f"{type(error).__name__}: {error}"[:400])
                continue
            cuts = statistics.quantiles(times, n=20, method="inclusive")
            row = {"event": "bench", "peer": "pytorch", "work": work, "precision": precision, "mode": mode}
            row |= {"device": OPTIONS.device, "round": number, "median_ms": statistics.median(times), "p05_ms": cuts[0]}
            say(**row, p95_ms=cuts[-1], n=len(times), loss_200=LOSSES.get(key))
        say(event="round_done", round=number)


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(8, os.cpu_count() or 1)))
    main()
