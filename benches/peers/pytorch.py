"""Median time of a PyTorch training step on the CPU: a peer of `twoclocks bench step`.

    python benches/peers/pytorch.py --work mlp --problem target/peers/mlp.safetensors --mode whole --precision bf16

One step: forward, softmax cross-entropy (mean), backward, AdamW (harness.py has its numbers; all parameters decay).

Modes
  eager    nn.Sequential, autograd, torch.optim.AdamW(fused=True)
  compile  the same with forward and loss (and so backward) in torch.compile
  whole    forward, gradient and AdamW written as one function in one torch.compile
f32 is IEEE f32 (no bf16 or tf32 inside f32 products); bf16 is autocast: bf16 products, f32 master weights, loss and AdamW.
"""

import contextlib

import harness
from harness import BETA1, BETA2, DECAY, EPS, LR

OPTIONS = harness.arguments(["eager", "compile", "whole"], "Time PyTorch training steps on the CPU.")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402


def mixed():
    if OPTIONS.precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def parameters(layers):
    """Weights as nn.Linear has them, [outputs, inputs], and biases, in turn."""
    arrays = [array for weight, bias in layers for array in (weight.T, bias)]
    return [torch.from_numpy(array.copy()) for array in arrays]


def autograd_step(layers, compiled):
    """The step of the modes `eager` and `compile`: (x, labels) -> loss."""
    modules = []
    for weight, _ in layers:
        modules += [torch.nn.Linear(*weight.shape, device="meta"), torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    names = [name for name, _ in net.named_parameters()]
    net.load_state_dict(dict(zip(names, parameters(layers))), assign=True)
    net.requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, fused=True)

    def loss_of(x, labels):
        with mixed():
            logits = net(x)
        return F.cross_entropy(logits.float(), labels)

    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def step(x, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def whole_step(layers):
    """The step of the mode `whole`: one compiled function that also updates parameters and moments in place."""
    weights = parameters(layers)
    first = [torch.zeros_like(p) for p in weights]
    second = [torch.zeros_like(p) for p in weights]
    # A tensor, so that a new step number does not ask for a new compilation.
    taken = torch.zeros((), dtype=torch.float32)
    element = torch.bfloat16 if OPTIONS.precision == "bf16" else torch.float32

    def loss_of(weights, x, labels):
        # Casts written out: what autocast does, without its state inside the traced function.
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

    compiled = torch.compile(train, fullgraph=True, dynamic=False)

    def step(x, labels):
        with torch.no_grad():
            return compiled(weights, first, second, taken, x, labels)

    return step


def main():
    torch.set_num_threads(OPTIONS.threads)
    # From PyTorch 2.9 oneDNN may use bf16 or tf32 inside f32 products unless told not to; earlier ones have no such setting.
    if hasattr(torch.backends.mkldnn, "matmul"):
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    inputs, labels, layers = harness.load(OPTIONS.problem)
    batches = list(zip(torch.from_numpy(inputs), torch.from_numpy(labels)))
    step = whole_step(layers) if OPTIONS.mode == "whole" else autograd_step(layers, OPTIONS.mode == "compile")

    def take(number, count):
        return [step(*batches[i % len(batches)]).item() for i in range(number, number + count)]

    harness.measure(OPTIONS, "pytorch", torch.__version__, take, len(batches), inputs.shape[1])


if __name__ == "__main__":
    main()
