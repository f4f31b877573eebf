"""Median time of a JAX training step on the CPU: a peer of `twoclocks bench step`.

    python benches/peers/jax_step.py --work mlp --problem target/peers/mlp.safetensors --mode scanned --precision f32

One step: forward, softmax cross-entropy (mean), gradient, AdamW (harness.py has its numbers; all parameters decay).

Modes
  jitted   one step in jax.jit with donated buffers; 40 calls are queued before their losses are read
  scanned  many steps in one jax.lax.scan, compiled as one program
bf16 is bf16 products with f32 master weights, loss and AdamW.
"""

import os

import harness
from harness import BETA1, BETA2, DECAY, EPS, LR

OPTIONS = harness.arguments(["scanned", "jitted"], "Time JAX training steps on the CPU.")
# XLA has as many threads as the process may use processors. compare.py gives every side these processors already.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

# Steps of one call; a call of small steps must outweigh what starting it costs.
GROUP = {"mlp64": 200, "mlp": 40, "mlp2048": 8}
ELEMENT = jnp.bfloat16 if OPTIONS.precision == "bf16" else jnp.float32


def loss_of(layers, x, labels):
    h = x.astype(ELEMENT)
    for number, (weight, bias) in enumerate(layers):
        h = h @ weight.astype(ELEMENT) + bias.astype(ELEMENT)
        if number + 1 < len(layers):
            h = jax.nn.relu(h)
    logits = h.astype(jnp.float32)
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - right)


def step(state, x, labels):
    layers, first, second, taken = state
    loss, gradients = jax.value_and_grad(loss_of)(layers, x, labels)
    taken = taken + 1
    rate = LR / (1 - BETA1**taken)
    unbias = jax.lax.rsqrt(1 - BETA2**taken)
    first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, gradients)

    def update(p, m, v):
        return p * (1 - LR * DECAY) - rate * m / (jnp.sqrt(v) * unbias + EPS)

    return (jax.tree.map(update, layers, first, second), first, second, taken), loss


def main():
    inputs, labels, layers = harness.load(OPTIONS.problem)
    batches, batch = labels.shape
    layers = jax.tree.map(jnp.asarray, layers)
    state = (layers, jax.tree.map(jnp.zeros_like, layers), jax.tree.map(jnp.zeros_like, layers), jnp.float32(0))
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels.astype("int32"))
    group = GROUP.get(OPTIONS.work, 40)

    if OPTIONS.mode == "scanned":

        @jax.jit
        def plan(number):
            return (number + jnp.arange(group)) % batches

        def many(state, numbers, inputs, labels):
            return jax.lax.scan(lambda state, i: step(state, inputs[i], labels[i]), state, numbers)

        compiled = jax.jit(many, donate_argnums=0)

        def take(number, count):
            nonlocal state
            state, losses = compiled(state, plan(number), inputs, labels)
            return losses.tolist()

    else:
        compiled = jax.jit(step, donate_argnums=0)
        rows = [(inputs[i], labels[i]) for i in range(batches)]

        def take(number, count):
            nonlocal state
            losses = []
            for i in range(number, number + count):
                state, loss = compiled(state, *rows[i % batches])
                losses.append(loss)
            return [float(loss) for loss in losses]

        group = min(group, 40)

    harness.measure(OPTIONS, "jax", jax.__version__, take, batches, batch, group)


if __name__ == "__main__":
    main()
