# ruff: noqa: T201 - printing is what it is for
"""Fuzzes each parser for a while, led by coverage: exit 1 when one of them raised what it does not document.

What was found interesting is kept in `.cache/fuzz`, and what broke a parser as well.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

_CACHE = Path(__file__).parents[2] / ".cache" / "corpus"
# Of one input: no parser is slow, and none needs much.
_SECONDS, _MEBIBYTES, _LONGEST = 10, 2048, 65536


def main(arguments: list[str]) -> int:
    """Do what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--only", default="", help="one parser")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.run:
        return _run(asked.run, asked.seconds)
    from fuzz.targets import TARGETS

    broken = [name for name in TARGETS if asked.only in ("", name) and _start(name, asked.seconds)]
    print("broken: " + ", ".join(broken) if broken else "every parser did as it says")
    return int(bool(broken))


def _start(name: str, seconds: int) -> bool:
    """Fuzz one parser in a process of its own, which the fuzzer ends, and tell whether it broke."""
    command = [sys.executable, "-m", "fuzz", "--run", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    runs = next((line for line in reversed(lines) if line.startswith("Done ")), "")
    print(f"{name}: {runs or done.stderr[-4000:]}", flush=True)
    return done.returncode != 0


def _run(name: str, seconds: int) -> int:
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["jobqueue", "workers"]):
        from fuzz.targets import TARGETS

    corpus = _CACHE / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds():
        if len(seed) <= _LONGEST:
            (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={_SECONDS}",
        f"-rss_limit_mb={_MEBIBYTES}",
        f"-max_len={_LONGEST}",
        f"-artifact_prefix={_CACHE}/broke-{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
