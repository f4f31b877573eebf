"""Writes the problem that all sides train on: PATH/<net>.safetensors, one file a net.

    python benches/peers/problem.py target/peers mlp64 mlp mlp2048

inputs   [16, 128, inputs] f32: 256 different rows, standard normal, each several times
labels   [16, 128] u32, uniform over the classes
weight0  [inputs, outputs] f32, uniform in +-1/sqrt(inputs); likewise bias0 [outputs], weight1, ...

The layers are joined by ReLU; the loss is mean cross-entropy. Batches are taken in turn, the first one first. Equal
rows have different labels, so that the loss cannot fall below about 1.6: a net that learns 2048 random labels by heart is at
0.001 after 200 steps, where f32 on one thread and f64 differ by 0.3 %, and later its gradients are denormal.
"""

import argparse
import pathlib

import numpy
from safetensors.numpy import save_file

NETS = {
    "mlp64": [64, 64, 64, 10],
    "mlp": [784, 512, 512, 10],
    "mlp2048": [784, 2048, 2048, 2048, 10],
}
BATCH, BATCHES = 128, 16
ROWS = 256
SEED = 1


def write(path, widths):
    random = numpy.random.default_rng(SEED)
    rows = random.standard_normal((ROWS, widths[0]), dtype=numpy.float32)
    tensors = {
        "inputs": rows[random.integers(ROWS, size=(BATCHES, BATCH))],
        "labels": random.integers(widths[-1], size=(BATCHES, BATCH), dtype=numpy.uint32),
    }
    for number, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        bound = inputs**-0.5
        for name, shape in ((f"weight{number}", (inputs, outputs)), (f"bias{number}", (outputs,))):
            tensors[name] = random.uniform(-bound, bound, shape).astype(numpy.float32)
    # A reader never sees half a file.
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.replace(path)


def main():
    parser = argparse.ArgumentParser(description="Write the problem files.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("nets", nargs="+", choices=sorted(NETS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for net in options.nets:
        write(options.folder / f"{net}.safetensors", NETS[net])


if __name__ == "__main__":
    main()
