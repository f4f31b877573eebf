"""PyTorch trains MNIST to 98 % test accuracy: the peer of `twoclocks train mnist --target-acc 0.98`.

    python benches/peers/mnist.py --data FOLDER --recipe tuned --seed 0

MLP 784-512-512-10 with ReLU, AdamW(fused=True, weight_decay=0.01), a one-cycle rate. The whole data set is in memory as
normalised floats. The test set is scored at the end of each epoch and of the steps, and reaching --target ends the run. One
JSON object on standard output:

    seconds_training   optimizer steps and shuffling, without the scoring
    seconds_process    from the process's creation (interpreter, imports, data) to the end
    test_acc, reached, epochs, recipe, seed
"""

import argparse
import json
import os
import pathlib
import time

import harness

# rate: the peak of the cycle; rise: its rising share; steps: of the whole run (0: whole epochs); centred: each pixel has its own
# mean, and weights start by Glorot's rule. `plain` is what a careful user writes down first, `tuned` was found by hand, `ours` is
# the recipe of `twoclocks train mnist` in all that can be said here.
RECIPES = {
    "plain": {"precision": "f32", "batch": 128, "rate": 2e-3, "rise": 0.3, "anneal": "cos", "beta1": 0.9, "beta2": 0.999, "smoothing": 0.0, "epochs": 4, "steps": 0, "centred": 0},
    "tuned": {"precision": "bf16", "batch": 256, "rate": 4e-3, "rise": 0.3, "anneal": "cos", "beta1": 0.9, "beta2": 0.999, "smoothing": 0.1, "epochs": 2, "steps": 0, "centred": 0},
    "ours": {"precision": "bf16", "batch": 128, "rate": 2.5e-3, "rise": 0.1, "anneal": "linear", "beta1": 0.8, "beta2": 0.95, "smoothing": 0.1, "epochs": 1, "steps": 0, "centred": 1},
}


def idx(path, torch):
    """The array of bytes in an IDX file."""
    data = path.read_bytes()
    axes = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * axes + torch.Size(shape).numel():
        raise SystemExit(f"{path}: no IDX file of bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


def main():
    parser = argparse.ArgumentParser(description="Train MNIST with PyTorch.")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the four IDX files, unpacked")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="tuned")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", type=float, default=0.98)
    options = parser.parse_args()
    recipe = dict(RECIPES[options.recipe])
    for word in options.set:
        key, _, value = word.partition("=")
        if key not in recipe:
            parser.error(f"--set {word}: a recipe has {', '.join(recipe)}")
        recipe[key] = type(recipe[key])(value)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch
    import torch.nn.functional as F

    torch.set_num_threads(options.threads)
    if hasattr(torch.backends.mkldnn, "matmul"):
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.manual_seed(options.seed)
    bf16 = recipe["precision"] == "bf16"
    element = torch.bfloat16 if bf16 else torch.float32

    images, labels = {}, {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pixels = idx(options.data / f"{name}-images-idx3-ubyte", torch)
        images[split] = pixels.view(len(pixels), -1).float()
        labels[split] = idx(options.data / f"{name}-labels-idx1-ubyte", torch).long()
    if recipe["centred"]:
        mean = images["train"].mean(0)
        deviation = torch.std(images["train"] - mean, correction=0)
    else:
        deviation, mean = torch.std_mean(images["train"], correction=0)
    # Autocast would turn each batch into bf16 anyway: so only once.
    images = {split: values.sub_(mean).div_(deviation).to(element) for split, values in images.items()}

    net = torch.nn.Sequential(
        torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)
    )
    if recipe["centred"]:
        for number, layer in enumerate(layer for layer in net if isinstance(layer, torch.nn.Linear)):
            (torch.nn.init.xavier_uniform_ if number == 2 else torch.nn.init.xavier_normal_)(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    betas = (recipe["beta1"], recipe["beta2"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe["rate"], betas=betas, weight_decay=0.01, fused=True)
    rows, batch = len(labels["train"]), recipe["batch"]
    steps = recipe["steps"] or recipe["epochs"] * -(-rows // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe["rate"], total_steps=steps, pct_start=recipe["rise"], cycle_momentum=False, anneal_strategy=recipe["anneal"]
    )

    def logits(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return net(x)

    seconds, accuracy, epochs, step = 0.0, 0.0, 0, 0
    while step < steps and accuracy < options.target:
        began = time.perf_counter()
        for chosen in torch.randperm(rows).split(batch)[: steps - step]:
            step += 1
            x, y = images["train"].index_select(0, chosen), labels["train"].index_select(0, chosen)
            loss = F.cross_entropy(logits(x).float(), y, label_smoothing=recipe["smoothing"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds += time.perf_counter() - began
        epochs += 1
        with torch.no_grad():
            accuracy = (logits(images["test"]).argmax(1) == labels["test"]).float().mean().item()
    line = {"event": "done", "peer": "pytorch", "version": torch.__version__, "recipe": options.recipe, **recipe}
    line |= {"seed": options.seed, "threads": options.threads, "epochs": epochs, "steps": step, "test_acc": accuracy}
    line |= {"reached": accuracy >= options.target, "seconds_training": seconds}
    line["seconds_process"] = time.clock_gettime(time.CLOCK_BOOTTIME) - harness.process_start()
    print(json.dumps(line))


if __name__ == "__main__":
    main()
