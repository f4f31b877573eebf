"""Reference values for the Rust tests, computed by PyTorch on the CPU with one thread.

    python tests/pytorch/reference.py tests/pytorch

writes `formula.json`, `ops.json`, `schedules.json` and `trajectory_*.json` into the folder; README.md beside this program
says what each key means. No random numbers: every input comes from an integer hash that Rust redoes exactly.

    hash(i, salt)           = splitmix64's output for the state x = i + salt * 2^32, all modulo 2^64:
                              z = x + 0x9E3779B97F4A7C15
                              z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
                              z = (z ^ (z >> 27)) * 0x94D049BB133111EB
                              z = z ^ (z >> 31)
    value(i, salt)          = (hash(i, salt) >> 40) / 2^23 - 1      in [-1, 1), a multiple of 2^-23: exact in f32
    index(i, salt, classes) = (hash(i, salt) >> 40) mod classes     labels and table rows

`i` is the row-major position in the tensor. Scales are powers of two, so scaled values are exact too.

    value(0, 0) = 0.7666215896606445    value(1, 0) = 0.13312304019927979    value(0, 1) = 0.5326035022735596

Source of the hash: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the finalizer is
Stafford's variant 13).
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

STEPS = 10
BATCH = 24
WIDTHS = [20, 32, 16, 5]
# Salts: batch inputs use the step (0..9); the rest stays clear of them.
LABEL_SALT = 500
PARAMETER_SALT = 1000
OPS_SALT = 2000
WEIGHT_SCALE = 0.5
BIAS_SCALE = 0.125
SCHEDULE_STEPS = 60
# Unit in which a trajectory states f64 minus f32: far below f32's rounding, and short to write.
DIFFERENCE_UNIT = 1e-9


def hashes(count, salt):
    """hash(i, salt) for i in 0..count, as u64."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + (np.uint64(salt) << np.uint64(32))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def values(shape, salt, scale=1.0):
    """A tensor of scale * value(i, salt) in f64; exact in f32 as well."""
    bits = (hashes(math.prod(shape), salt) >> np.uint64(40)).astype(np.float64)
    scaled = (bits / 2.0**23 - 1.0) * scale
    assert np.array_equal(scaled.astype(np.float32).astype(np.float64), scaled)
    return torch.from_numpy(scaled.reshape(shape))


def indices(count, salt, classes):
    """index(i, salt, classes) for i in 0..count."""
    return torch.from_numpy(((hashes(count, salt) >> np.uint64(40)) % np.uint64(classes)).astype(np.int64))


# --- trajectories ---------------------------------------------------------------------------------------------------


def start_parameters(layer_norm, dtype):
    """Name -> leaf tensor, in twoclocks' layout (weight [in, out]); the k-th parameter has salt PARAMETER_SALT + k."""
    parameters = {}

    def add(name, shape, scale):
        salt = PARAMETER_SALT + len(parameters)
        start = torch.ones(shape) if scale is None else values(shape, salt, scale)
        parameters[name] = start.to(dtype).requires_grad_()

    for layer, (fan_in, fan_out) in enumerate(zip(WIDTHS, WIDTHS[1:])):
        add(f"linear{layer}.weight", (fan_in, fan_out), WEIGHT_SCALE)
        add(f"linear{layer}.bias", (fan_out,), BIAS_SCALE)
        if layer_norm and layer < len(WIDTHS) - 2:
            add(f"norm{layer}.gamma", (fan_out,), None)
            add(f"norm{layer}.beta", (fan_out,), BIAS_SCALE)
    return parameters


def logits_of(parameters, x):
    """ReLU after each hidden layer, or layer_norm then exact gelu where the parameters have norms."""
    last = len(WIDTHS) - 2
    for layer in range(last + 1):
        x = x @ parameters[f"linear{layer}.weight"] + parameters[f"linear{layer}.bias"]
        if layer == last:
            return x
        gamma = parameters.get(f"norm{layer}.gamma")
        if gamma is None:
            x = F.relu(x)
        else:
            x = F.layer_norm(x, gamma.shape, gamma, parameters[f"norm{layer}.beta"], eps=1e-5)
            x = F.gelu(x)


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2. sign(0) is 0."""

    def __init__(self, groups, lr, betas):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                direction = (beta1 * momentum + (1 - beta1) * p.grad).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)
                momentum.mul_(beta2).add_(p.grad, alpha=1 - beta2)


def make_optimizer(config, parameters):
    decayed = [p for name, p in parameters.items() if name.endswith(".weight")]
    others = [p for name, p in parameters.items() if not name.endswith(".weight")]
    groups = [
        {"params": decayed, "weight_decay": config["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = config["lr"]
    if config["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config["betas"], eps=config["eps"], foreach=False, fused=False)
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=config["momentum"], nesterov=config["nesterov"], foreach=False, fused=False
        )
    if config["optimizer"] == "lion":
        return Lion(groups, lr=lr, betas=config["betas"])
    raise ValueError(config["optimizer"])


def run_trajectory(config, dtype):
    """Losses, gradient norms (before clipping) and final parameters of STEPS steps."""
    parameters = start_parameters(config["layer_norm"], dtype)
    optimizer = make_optimizer(config, parameters)
    losses, norms = [], []
    parts = config["accumulate"]
    cycle = config.get("one_cycle")
    # It sets rate and momentum, or beta1, of the first step as it is made.
    scheduler = cycle and torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config["lr"], total_steps=STEPS, cycle_momentum=True, **cycle
    )
    for step in range(STEPS):
        x = values((BATCH, WIDTHS[0]), step).to(dtype)
        labels = indices(BATCH, LABEL_SALT + step, WIDTHS[-1])
        optimizer.zero_grad()
        step_loss = 0.0
        for part_x, part_labels in zip(x.chunk(parts), labels.chunk(parts)):
            loss = F.cross_entropy(logits_of(parameters, part_x), part_labels) / parts
            loss.backward()
            step_loss = step_loss + loss.detach()
        limit = config["clip_norm"] if config["clip_norm"] is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit, foreach=False)
        optimizer.step()
        if scheduler and step + 1 < STEPS:
            scheduler.step()
        losses.append(step_loss)
        norms.append(norm)
    return torch.stack(losses), torch.stack(norms), {name: p.detach() for name, p in parameters.items()}


def trajectory(config):
    loss32, norm32, end32 = run_trajectory(config, torch.float32)
    loss64, norm64, end64 = run_trajectory(config, torch.float64)
    difference = {
        name: torch.round((end64[name] - end32[name].double()) / DIFFERENCE_UNIT).long() for name in end32
    }
    worst = max(d.abs().max().item() for d in difference.values()) * DIFFERENCE_UNIT
    # Past this, a jump (a sign, a ReLU) was taken differently in the two precisions, and a reference would be chance.
    assert worst < 2e-5, f"f32 and f64 part by {worst}"
    result = {
        "torch": torch.__version__.split("+")[0],
        "config": {"widths": WIDTHS, "batch": BATCH, "steps": STEPS, **config},
        "shapes": {name: list(p.shape) for name, p in end32.items()},
        "f32": {"loss": numbers(loss32), "grad_norm": numbers(norm32), "parameters": numbers(end32)},
        "f64": {
            "loss": numbers(loss64),
            "grad_norm": numbers(norm64),
            "difference_unit": DIFFERENCE_UNIT,
            "parameters_minus_f32": numbers(difference),
        },
    }
    return result, worst


def trajectory_configs():
    adamw = {"optimizer": "adamw", "lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    sgd = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    plain = {"activation": "relu", "layer_norm": False, "clip_norm": None, "accumulate": 1}
    one_cycle = {
        "pct_start": 0.4,
        "div_factor": 25.0,
        "final_div_factor": 1e4,
        "base_momentum": 0.85,
        "max_momentum": 0.95,
    }
    return {
        "adamw": plain | adamw,
        "adamw_gelu_layer_norm": plain | adamw | {"activation": "gelu", "layer_norm": True},
        "adamw_accumulate": plain | adamw | {"accumulate": 2},
        "sgd_nesterov": plain | sgd | {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
        "sgd_clip": plain | sgd | {"clip_norm": 0.5},
        "lion": plain | {"optimizer": "lion", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "adamw_one_cycle": plain | adamw | {"one_cycle": one_cycle},
        "sgd_one_cycle": plain | sgd | {"momentum": 0.9, "one_cycle": one_cycle},
    }


# --- operations -----------------------------------------------------------------------------------------------------


class Cases:
    """Collects rows of ops.json; every input takes the next salt, so that no two inputs are alike."""

    def __init__(self):
        self.rows = []
        self.salt = OPS_SALT

    def next_salt(self):
        self.salt += 1
        return self.salt

    def add(self, name, op, inputs, function, parameters=None, integers=None, constants=None):
        """`inputs`: name -> (shape, scale), all differentiated. `integers` and `constants` are written out in full.

        A scalar output is a loss and gets the upstream gradient 1; any other gets values of the formula.
        """
        described, tensors = {}, {}
        for key, (shape, scale) in inputs.items():
            salt = self.next_salt()
            described[key] = {"shape": list(shape), "salt": salt, "scale": scale}
            tensors[key] = values(shape, salt, scale).requires_grad_()
        written = {**(integers or {}), **(constants or {})}
        y = function(**tensors, **written)
        row = {"name": name, "op": op, "parameters": parameters or {}, "inputs": described}
        for label, group in (("integers", integers), ("constants", constants)):
            row[label] = {k: {"shape": list(t.shape), "values": numbers(t)} for k, t in (group or {}).items()}
        if y.dim() == 0:
            y.backward()
            row["upstream"] = None
        else:
            salt = self.next_salt()
            y.backward(values(y.shape, salt))
            row["upstream"] = {"shape": list(y.shape), "salt": salt, "scale": 1.0}
        row["output"] = numbers(y.detach())
        row["gradients"] = {key: numbers(t.grad) for key, t in tensors.items()}
        self.rows.append(row)


def operations():
    cases = Cases()
    shape = (5, 7)
    rows, classes = shape
    for name, function in (
        ("gelu", lambda x: F.gelu(x)),
        ("silu", lambda x: F.silu(x)),
        ("tanh", lambda x: torch.tanh(x)),
        ("sigmoid", lambda x: torch.sigmoid(x)),
    ):
        cases.add(name, name, {"x": (shape, 4.0)}, function)
    cases.add("gelu_wide", "gelu", {"x": (shape, 16.0)}, lambda x: F.gelu(x))
    cases.add("softmax", "softmax", {"x": (shape, 4.0)}, lambda x: F.softmax(x, -1))
    cases.add("log_softmax", "log_softmax", {"x": (shape, 4.0)}, lambda x: F.log_softmax(x, -1))

    labels = indices(rows, cases.next_salt(), classes)
    # Sixty-fourths that sum to one exactly, so that f32 sees the same targets.
    sixty_fourths = indices(rows * classes, cases.next_salt(), 8).reshape(shape)
    sixty_fourths[:, -1] += 64 - sixty_fourths.sum(1)
    targets = sixty_fourths.double() / 64
    assert bool((targets >= 0).all()) and bool((targets.sum(1) == 1).all())
    cross_entropy = "softmax_cross_entropy"
    for name, smoothing in (("cross_entropy", 0.0), ("cross_entropy_smoothed", 0.1)):
        cases.add(
            name,
            cross_entropy,
            {"x": (shape, 4.0)},
            lambda x, labels, smoothing=smoothing: F.cross_entropy(x, labels, label_smoothing=smoothing),
            parameters={"label_smoothing": smoothing, "reduction": "mean"},
            integers={"labels": labels},
        )
    # Each row's label is its largest logit, so that margins are wide and the gradient of the right class is tiny.
    confident = values(shape, cases.salt + 1, 64.0)
    cases.add(
        "cross_entropy_confident",
        cross_entropy,
        {"x": (shape, 64.0)},
        lambda x, labels: F.cross_entropy(x, labels),
        parameters={"label_smoothing": 0.0, "reduction": "mean"},
        integers={"labels": confident.argmax(1)},
    )
    # PyTorch takes p - 1 for the right class, which rounds to zero at wide margins, in f64 too: minus the sum of the other
    # classes' gradients is the same number without the cancellation.
    gradient = np.array(cases.rows[-1]["gradients"]["x"]).reshape(shape)
    right = (np.arange(rows), confident.argmax(1).numpy())
    by_torch = gradient[right]
    gradient[right] = 0.0
    gradient[right] = -gradient.sum(1)
    assert np.abs(gradient[right] - by_torch).max() < 1e-15
    cases.rows[-1]["gradients"]["x"] = gradient.reshape(-1).tolist()
    cases.add(
        "cross_entropy_soft",
        cross_entropy,
        {"x": (shape, 4.0)},
        lambda x, targets: F.cross_entropy(x, targets),
        parameters={"label_smoothing": 0.0, "reduction": "mean"},
        constants={"targets": targets},
    )

    cases.add(
        "layer_norm",
        "layer_norm",
        {"x": (shape, 2.0), "gamma": ((classes,), 1.0), "beta": ((classes,), 1.0)},
        lambda x, gamma, beta: F.layer_norm(x, gamma.shape, gamma, beta, eps=1e-5),
        parameters={"eps": 1e-5},
    )
    cases.add(
        "rms_norm",
        "rms_norm",
        {"x": (shape, 2.0), "gamma": ((classes,), 1.0)},
        lambda x, gamma: F.rms_norm(x, gamma.shape, gamma, eps=1e-6),
        parameters={"eps": 1e-6},
    )
    cases.add(
        "mse",
        "mse",
        {"x": (shape, 2.0), "target": (shape, 2.0)},
        lambda x, target: F.mse_loss(x, target),
        parameters={"reduction": "mean"},
    )
    cases.add(
        "embedding",
        "embedding",
        {"table": ((6, 4), 1.0)},
        lambda table, ids: F.embedding(ids, table),
        # Row 3 three times, row 0 twice, rows 2 and 4 never: their gradient is zero.
        integers={"ids": torch.tensor([3, 0, 5, 3, 1, 0, 3])},
    )
    return {"torch": torch.__version__.split("+")[0], "cases": cases.rows}


# --- schedules ------------------------------------------------------------------------------------------------------


def schedules():
    import torch.optim.lr_scheduler as S

    one_cycle = {
        "max_lr": 0.1,
        "total_steps": SCHEDULE_STEPS,
        "pct_start": 0.3,
        "div_factor": 25.0,
        "final_div_factor": 1e4,
    }
    cyclic = {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 8, "step_size_down": 12}
    momentum = {"base_momentum": 0.85, "max_momentum": 0.95}
    rows = [
        ("step", S.StepLR, 0.1, {"step_size": 15, "gamma": 0.5}),
        ("cosine", S.CosineAnnealingLR, 0.1, {"T_max": SCHEDULE_STEPS - 1, "eta_min": 1e-4}),
        ("linear", S.LinearLR, 0.1, {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 20}),
        ("one_cycle_cos", S.OneCycleLR, 0.1, {**one_cycle, "anneal_strategy": "cos"}),
        ("one_cycle_linear", S.OneCycleLR, 0.1, {**one_cycle, "anneal_strategy": "linear"}),
        ("cyclic_triangular", S.CyclicLR, 0.001, {**cyclic, "mode": "triangular"}),
        ("cyclic_triangular2", S.CyclicLR, 0.001, {**cyclic, "mode": "triangular2"}),
        ("cyclic_exp_range", S.CyclicLR, 0.001, {**cyclic, "mode": "exp_range", "gamma": 0.97}),
        ("one_cycle_momentum", S.OneCycleLR, 0.1, {**one_cycle, "anneal_strategy": "cos", **momentum}),
        ("one_cycle_linear_momentum", S.OneCycleLR, 0.1, {**one_cycle, "anneal_strategy": "linear", **momentum}),
        ("cyclic_momentum", S.CyclicLR, 0.001, {**cyclic, "mode": "triangular2", **momentum}),
    ]
    result = []
    for name, kind, lr, parameters in rows:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
        cycles = "max_momentum" in parameters
        extra = {"cycle_momentum": cycles} if kind in (S.OneCycleLR, S.CyclicLR) else {}
        scheduler = kind(optimizer, **parameters, **extra)
        used, momenta = [], []
        for _ in range(SCHEDULE_STEPS):
            used.append(float(optimizer.param_groups[0]["lr"]))
            momenta.append(float(optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            # OneCycleLR raises past total_steps; the value after the last step is not used.
            if len(used) < SCHEDULE_STEPS:
                scheduler.step()
        row = {"name": name, "torch_class": kind.__name__, "base_lr": lr, "parameters": parameters, "lr": used}
        result.append(row | ({"momentum": momenta} if cycles else {}))
    return {"torch": torch.__version__.split("+")[0], "steps": SCHEDULE_STEPS, "schedules": result}


# --- writing --------------------------------------------------------------------------------------------------------


def formula():
    """Rows that a redone formula can be checked against."""
    places = ((0, 0), (1, 0), (2, 0), (0, 1), (479, 9), (639, 1000))
    label_places = ((0, 500), (1, 500), (2, 500), (23, 509))
    return {
        "hash": [[i, salt, f"{hashes(i + 1, salt)[i]:016x}"] for i, salt in places],
        "value": [[i, salt, values((i + 1,), salt)[i].item()] for i, salt in places],
        "index": [[i, salt, 5, indices(i + 1, salt, 5)[i].item()] for i, salt in label_places],
    }


def numbers(data):
    """Flat row-major lists; f32 in the fewest digits that give the same f32 back."""
    if isinstance(data, dict):
        return {key: numbers(value) for key, value in data.items()}
    array = data.numpy().reshape(-1)
    assert np.isfinite(array).all()
    if array.dtype == np.float32:
        return [float(str(v)) for v in array]
    return array.tolist()


def render(data, depth=0):
    """JSON with one line per object key, and lists of plain numbers on one line."""
    indent = " " * (depth + 1)
    if isinstance(data, dict) and any(isinstance(v, (dict, list)) for v in data.values()):
        items = (f"{indent}{json.dumps(k)}: {render(v, depth + 1)}" for k, v in data.items())
        return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"
    if isinstance(data, list) and any(isinstance(v, (dict, list)) for v in data):
        return "[\n" + ",\n".join(indent + render(v, depth + 1) for v in data) + "\n" + " " * depth + "]"
    separators = (",", ":") if isinstance(data, list) else (", ", ": ")
    return json.dumps(data, separators=separators, allow_nan=False)


def main():
    parser = argparse.ArgumentParser(description="Write PyTorch reference values for the Rust tests.")
    parser.add_argument("folder", type=pathlib.Path, help="where the JSON files go (made if missing)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"

    def write(name, data):
        text = render(data) + "\n"
        (folder / name).write_text(text)
        return len(text)

    total = write("formula.json", formula()) + write("ops.json", operations()) + write("schedules.json", schedules())
    for name, config in trajectory_configs().items():
        result, worst = trajectory(config)
        total += write(f"trajectory_{name}.json", result)
        loss = result["f32"]["loss"]
        print(f"{name}: loss {loss[0]:.6f} -> {loss[-1]:.6f}, largest |f64 - f32| of a parameter {worst:.1e}")
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()
