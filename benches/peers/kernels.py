"""Median times of PyTorch's kernels on the CPU: the peers of `twoclocks bench gemm`, `ce`, `adamw`, `norm` and `softmax`.

    python benches/peers/kernels.py --threads 1 --seconds 1 --only gemm

JSON on standard output: one object about PyTorch's build, then one a row: `work` (gemm_MxNxK, ce_ROWSxCLASSES,
adamw_PARAMETERSxTENSORS, layer_norm_RxC, layer_norm_backward_RxC, softmax_RxC, softmax_backward_RxC), `precision`, `mode`,
`median_ms`, `p05_ms`, `n`; of products also `library`, the one that multiplied, by its own log.

gemm       C = A B, all row-major in memory, C given. eager is torch.mm in f32 (IEEE) and bf16 (C too); onednn is the
           same f32 product by oneDNN's inner product, where torch.mm takes another library
ce         mean cross-entropy of f32 logits and its gradient by the logits, eager and compiled
adamw      torch.optim.AdamW(fused=True), gradients given; tensors of nearly equal length
layer_norm and softmax over the last axis, f32, and their gradients given the forward's results: eager and compiled
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

GEMM = ["64x64x64", "128x128x128", "256x256x256", "512x512x512", "1024x1024x1024", "2048x2048x2048"]
GEMM += ["128x512x784", "784x512x128", "128x10x512", "128x2048x2048"]
CE = ["128x10", "4096x65", "4096x50257"]
ADAMW = ["10000000x1", "10000000x50"]
ROWS = ["4096x1024"]


def main():
    parser = argparse.ArgumentParser(description="Time PyTorch's kernels on the CPU.")
    kinds = ["gemm", "ce", "adamw", "layer_norm", "softmax"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of each row")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch
    import torch.nn.functional as F

    torch.set_num_threads(options.threads)
    if hasattr(torch.backends.mkldnn, "matmul"):
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.manual_seed(1)

    about = {"event": "about", "peer": "pytorch", "version": torch.__version__, "config": torch.__config__.show()}
    print(json.dumps(about))

    def library_of(call):
        """Which library computes, as MKL and oneDNN log it to standard output; "other" where neither does."""
        sys.stdout.flush()
        kept = os.dup(1)
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 1)
            try:
                with torch.backends.mkl.verbose(1), torch.backends.mkldnn.verbose(1):
                    call()
            finally:
                os.dup2(kept, 1)
                os.close(kept)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
        if any(line.startswith("MKL_VERBOSE") and "GEMM" in line for line in lines):
            return "mkl"
        done = [line.split(",") for line in lines if "_verbose,v1,primitive,exec" in line]
        return f"onednn {done[-1][6]}" if done else "other"

    def report(work, precision, mode, call, **more):
        # A call of microseconds is repeated, so that the clock does not count.
        for _ in range(3):
            call()
        began = time.perf_counter()
        call()
        repeats = max(1, int(2e-4 / max(time.perf_counter() - began, 1e-7)))
        times, until = [], time.perf_counter() + options.seconds * 1.1
        while time.perf_counter() < until or len(times) < 5:
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            times.append((time.perf_counter() - began) * 1e3 / repeats)
        # The first tenth is warm-up.
        times = times[len(times) // 10 :]
        row = {"event": "bench", "work": work, "device": "cpu", "precision": precision, "threads": options.threads}
        row |= {"median_ms": statistics.median(times), "p05_ms": statistics.quantiles(times, n=20, method="inclusive")[0]}
        row |= {"n": len(times), "peer": "pytorch", "version": torch.__version__, "mode": mode} | more
        print(json.dumps(row))
        sys.stdout.flush()

    def pair(size):
        return [int(word) for word in size.split("x")]

    if "gemm" in options.only:
        for size in GEMM:
            m, n, k = pair(size)
            for precision, element in (("f32", torch.float32), ("bf16", torch.bfloat16)):
                a, b = torch.randn(m, k).to(element), torch.randn(k, n).to(element)
                c = torch.empty(m, n, dtype=element)

                def product():
                    return torch.mm(a, b, out=c)

                library = library_of(product)
                report(f"gemm_{size}", precision, "eager", product, library=library)
                if precision == "f32" and "onednn" not in library and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
                    # B transposed twice: row-major in memory, as above. This call makes its C anew.
                    def linear():
                        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")

                    report(f"gemm_{size}", precision, "onednn", linear, library=library_of(linear))
    if "ce" in options.only:

        def gradient(logits, labels):
            loss = F.cross_entropy(logits, labels)
            (by_logits,) = torch.autograd.grad(loss, logits)
            return loss, by_logits

        def of_logits(logits, labels):
            return F.cross_entropy(logits, labels)

        compiled = torch.compile(torch.func.grad_and_value(of_logits), fullgraph=True, dynamic=False)
        for size in CE:
            rows, classes = pair(size)
            logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
            leaf = logits.clone().requires_grad_()
            report(f"ce_{size}", "f32", "eager", lambda: gradient(leaf, labels))
            report(f"ce_{size}", "f32", "compile", lambda: compiled(logits, labels))
    if "adamw" in options.only:
        for size in ADAMW:
            total, tensors = pair(size)
            bounds = [i * total // tensors for i in range(tensors + 1)]
            parameters = [torch.randn(end - start) for start, end in zip(bounds, bounds[1:])]
            for p in parameters:
                p.grad = torch.randn_like(p)
            optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
            report(f"adamw_{size}", "f32", "fused", optimizer.step)

    def norm(x, gain, shift):
        return torch.native_layer_norm(x, gain.shape, gain, shift, 1e-5)

    def norm_backward(dy, x, mean, rstd, gain, shift):
        return torch.ops.aten.native_layer_norm_backward(dy, x, gain.shape, mean, rstd, gain, shift, [True, True, True])

    def softmax(x):
        return torch.softmax(x, 1)

    def softmax_backward(dy, y):
        return torch.ops.aten._softmax_backward_data(dy, y, 1, torch.float32)

    for size in ROWS:
        rows, columns = pair(size)
        x, dy, gain, shift = torch.randn(rows, columns), torch.randn(rows, columns), torch.ones(columns), torch.zeros(columns)
        _, mean, rstd = norm(x, gain, shift)
        calls = {"layer_norm": [(norm, x, gain, shift), (norm_backward, dy, x, mean, rstd, gain, shift)]}
        calls["softmax"] = [(softmax, x), (softmax_backward, dy, softmax(x))]
        with torch.no_grad():
            for kind in calls:
                for call, *tensors in calls[kind] if kind in options.only else []:
                    name = f"{kind}{'_backward' if 'backward' in call.__name__ else ''}_{size}"
                    report(name, "f32", "eager", lambda: call(*tensors))
                    compiled = torch.compile(call, fullgraph=True, dynamic=False)
                    report(name, "f32", "compile", lambda: compiled(*tensors))
            if "softmax" in options.only:
                out = torch.empty_like(x)
                report(f"softmax_{size}", "f32", "out given", lambda: torch.softmax(x, 1, out=out))


if __name__ == "__main__":
    main()
