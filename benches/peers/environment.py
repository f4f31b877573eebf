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


def say(text):
    print(text, file=sys.stderr, flush=True)


def checked(command, **settings):
    """Runs a command whose output is for people; ends the program if it fails."""
    say("+ " + shlex.join(map(str, command)))
    done = subprocess.run([str(word) for word in command], stdout=sys.stderr, **settings)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} ended with status {done.returncode}")


def installed(python, names):
    """Versions of the packages of an interpreter; those without a build suffix such as +cu132."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower(): d.version.split('+')[0] for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run([str(python), "-c", code, *names], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{python} does not run")
    return json.loads(done.stdout)


def pythons(peers, given, pip_arguments):
    """The interpreter of each Python peer: the given one, or that of target/peers/venv, filled by pip as needed.
    `given` maps a peer, or "" for all of them, to an interpreter, which must have the packages."""
    found, missing = {}, {}
    own = TARGET / "venv" / "bin" / "python"
    for peer in peers:
        if peer not in PACKAGES:
            continue
        wanted = COMMON | PACKAGES[peer]
        python = given.get(peer) or given.get("")
        if python is not None:
            have = installed(python, wanted)
            absent = [name for name in wanted if have[name] is None]
            if absent:
                raise SystemExit(f"{python} lacks {', '.join(absent)}: install, or leave out --python for {peer}")
            for name in PACKAGES[peer]:
                if have[name] != wanted[name]:
                    say(f"{peer}: {name} {have[name]} instead of {wanted[name]}")
            found[peer] = python
            continue
        if not own.exists():
            say(f"+ a Python environment in {own.parent.parent.relative_to(ROOT)}")
            venv.create(own.parent.parent, with_pip=True)
        have = installed(own, wanted)
        missing |= {name: version for name, version in wanted.items() if have[name] != version}
        found[peer] = own
    if missing:
        names = [f"{name}=={version}" for name, version in missing.items()]
        checked([own, "-m", "pip", "install", *shlex.split(pip_arguments), *names])
    return found


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
