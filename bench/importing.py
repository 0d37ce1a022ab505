"""How long the imports of a notebook's first cell take, beyond Python's own start."""

import os
import subprocess
import sys
from pathlib import Path

from bench import ROOT
from bench.results import Result, absolute
from bench.sampling import interleave, seconds
from bench.servers import Servers

_ROUNDS = 20
_STATEMENTS = {
    "import_time": "import producers",
    "import_time_jobqueue": "import jobqueue",
    "import_time_submit": "from producers import submit_experiment",
}


def measure_import_time(servers: Servers) -> list[Result]:
    """Measure processes that import, interleaved with ones that do not."""
    bytecode = servers.folder / "bytecode"
    measures = {"": lambda: _start("pass", bytecode)}
    for name, statement in _STATEMENTS.items():
        measures[name] = lambda statement=statement: _start(statement, bytecode)  # type: ignore[misc]
    samples = interleave(servers.rounds(_ROUNDS), measures)
    bare = samples.pop("")
    return [
        absolute(
            name,
            [1000 * (value - base) for value, base in zip(values, bare, strict=True)],
            unit="ms",
            note=f"`{_STATEMENTS[name]}`, beyond a bare python",
        )
        for name, values in samples.items()
    ]


def _start(code: str, bytecode: Path) -> float:
    # Compiled in the round that does not count, whatever this machine's settings say of bytecode.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd="/"))
