"""What a comparison needs: Python with the peers' packages, the Rust peers, our command, the problem files.

Needs nothing but Python's standard library. What is there already is not made again.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import venv

PEERS = pathlib.Path(__file__).resolve().parent
ROOT = PEERS.parent.parent
TARGET = ROOT / "target" / "peers"

# The packages of each Python peer and of problem.py, besides numpy and safetensors.
PACKAGES = {
    "problem": {},
    "pytorch": {"torch": "2.15.0"},
    "jax": {"jax": "0.10.2"},
    "tinygrad": {"tinygrad": "0.14.0"},
}
COMMON = {"numpy": "2.4.6", "safetensors": "0.8.0"}
RUST = ["candle", "burn", "fastnn"]
# Those whose AVX-512 kernels are compiled on request only.
WITH_AVX512 = ["candle", "burn"]


class Missing(Exception):
    """Why something that a comparison needs is not there."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def checked(command, **settings):
    """Runs a command whose output is for people."""
    command = [str(word) for word in command]
    say("+ " + shlex.join(command))
    lines = []
    try:
        with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace", **settings) as run:
            for line in run.stderr:
                sys.stderr.write(line)
                lines.append(line.strip())
    except OSError as error:
        raise Missing(f"{command[0]}: {error}") from error
    if run.returncode != 0:
        # What is wrong stands in the first line that says so, else in the last one.
        why = [line for line in lines if line.lower().startswith("error")][:1] or lines[-1:]
        raise Missing(f"`{shlex.join(command[:3])}` ended with status {run.returncode}: {' '.join(why)[:300]}")


def installed(python, names):
    """Versions of the packages of an interpreter; those without a build suffix such as +cu132."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower(): d.version.split('+')[0] for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n) for n in sys.argv[1:]}))"
    )
    try:
        done = subprocess.run([str(python), "-c", code, *names], stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise Missing(f"{python}: {error}") from error
    if done.returncode != 0:
        raise Missing(f"{python} does not run")
    return json.loads(done.stdout)


def python(peer, given, pip_arguments):
    """The interpreter of a Python peer: the given one, or that of target/peers/venv, filled by pip as needed.
    `given` maps a peer, or "" for all of them, to an interpreter, which must have the packages."""
    wanted = COMMON | PACKAGES[peer]
    found = given.get(peer) or given.get("")
    if found is not None:
        have = installed(found, wanted)
        absent = [name for name in wanted if have[name] is None]
        if absent:
            raise Missing(f"{found} lacks {', '.join(absent)}: install, or leave out --python for {peer}")
        for name in PACKAGES[peer]:
            if have[name] != wanted[name]:
                say(f"{peer}: {name} {have[name]} instead of {wanted[name]}")
        return found
    own = TARGET / "venv" / "bin" / "python"
    if not own.exists():
        say(f"+ a Python environment in {own.parent.parent.relative_to(ROOT)}")
        try:
            venv.create(own.parent.parent, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(f"no Python environment: {error}") from error
    have = installed(own, wanted)
    missing = [f"{name}=={version}" for name, version in wanted.items() if have[name] != version]
    if missing:
        checked([own, "-m", "pip", "install", *shlex.split(pip_arguments), *missing])
    return own


def processors(threads):
    """The processors of all sides, of those that this process may use: as many as threads, of different cores first."""
    allowed = sorted(os.sched_getaffinity(0))
    first, others, cores = [], [], set()
    for number in allowed:
        path = pathlib.Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        core = path.read_text() if path.exists() else str(number)
        (others if core in cores else first).append(number)
        cores.add(core)
    return sorted((first + others)[:threads])


def cpu():
    """Model name and flags of the processor."""
    model, flags = "unknown", []
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = value.split()
    return model, flags


def rust_peer(peer, mode, build):
    """Builds a Rust peer and gives its program."""
    folder = TARGET / f"{peer}-{mode}"
    program = folder / "release" / f"peer-{peer}"
    if build or not program.exists():
        command = ["cargo", "build", "--release", "--locked", "--manifest-path", PEERS / peer / "Cargo.toml"]
        settings = os.environ | {"CARGO_TARGET_DIR": str(folder)}
        if mode == "avx512":
            command += ["--features", "avx512"]
            settings["RUSTFLAGS"] = "-C target-cpu=native"
        checked(command, env=settings)
    return program


def ours(given, build):
    """Our command: the given one, or that of `cargo build --release`."""
    if given is not None:
        return given
    if build:
        checked(["cargo", "build", "--release", "--manifest-path", ROOT / "Cargo.toml"])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "twoclocks"


def problems(python, nets):
    """Writes the problem files and gives their paths."""
    checked([python, PEERS / "problem.py", TARGET, *nets])
    return {net: TARGET / f"{net}.safetensors" for net in nets}
