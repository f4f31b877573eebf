"""Median time of a tinygrad training step on the CPU: a peer of `twoclocks bench step`.

    python benches/peers/tinygrad_step.py --work mlp --problem target/peers/mlp.safetensors

One step in a TinyJit: forward, softmax cross-entropy (mean), backward, tinygrad.nn.optim.AdamW (harness.py has its numbers;
all parameters decay). tinygrad compiles its kernels with clang or LLVM; DEV chooses.
"""

import os

import harness
from harness import BETA1, BETA2, DECAY, EPS, LR

OPTIONS = harness.arguments(["jitted"], "Time tinygrad training steps on the CPU.")
os.environ.setdefault("DEV", "CPU")
os.environ["TRAINING"] = "1"
os.environ["NUM_CPU_THREADS"] = str(OPTIONS.threads)

import importlib.metadata  # noqa: E402

from tinygrad import Tensor, TinyJit  # noqa: E402
from tinygrad.nn.optim import AdamW  # noqa: E402


def main():
    if OPTIONS.precision != "f32":
        raise SystemExit("only f32 is measured")
    inputs, labels, layers = harness.load(OPTIONS.problem)
    layers = [(Tensor(weight).realize(), Tensor(bias).realize()) for weight, bias in layers]
    parameters = [p.is_param_(True) for pair in layers for p in pair]
    optimizer = AdamW(parameters, lr=LR, b1=BETA1, b2=BETA2, eps=EPS, weight_decay=DECAY)
    batches = [(Tensor(x).realize(), Tensor(y.astype("int32")).realize()) for x, y in zip(inputs, labels)]

    @TinyJit
    def step(x, y):
        optimizer.zero_grad()
        for number, (weight, bias) in enumerate(layers):
            x = x @ weight + bias
            if number + 1 < len(layers):
                x = x.relu()
        loss = x.sparse_categorical_crossentropy(y).backward()
        return loss.realize(*optimizer.schedule_step())

    def take(number, count):
        return [step(*batches[i % len(batches)]).item() for i in range(number, number + count)]

    version = importlib.metadata.version("tinygrad")
    harness.measure(OPTIONS, "tinygrad", version, take, len(batches), inputs.shape[1])


if __name__ == "__main__":
    main()
