"""Operators who publish node keys at the same time, each on a machine of its own, undo nothing of each other's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from services.redis import RedisServer

from jobqueue.keys import KeyRing, Reader, Signer, make_pair
from jobqueue.registry import open_registry

EACH = 6
OPERATOR = """
import sys
from click.testing import CliRunner
from producers.cli import jobqueue

print("ready", flush=True)
sys.stdin.readline()
for key in sys.argv[2:]:
    result = CliRunner().invoke(jobqueue, ["keys", sys.argv[1], key])
    if result.exit_code:
        sys.exit(result.stderr)
"""


def start_operator(server: RedisServer, keys: Path, word: str, *words: str) -> subprocess.Popen[str]:
    """Start a process that runs `jobqueue keys WORD` for each of the words, once it is told to."""
    settings = {"JOBQUEUE_REGISTRY_URL": server.url, "JOBQUEUE_BROKER_URL": server.url, "JOBQUEUE_KEYS": str(keys)}
    operator = subprocess.Popen(
        [sys.executable, "-c", OPERATOR, word, *words],
        env=os.environ | settings | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert operator.stdout
    assert operator.stdout.readline() == "ready\n"
    return operator


def finish(operators: list[subprocess.Popen[str]]) -> None:
    """Let all of them go on at once, and wait for their ends."""
    for operator in operators:
        assert operator.stdin
        operator.stdin.write("go\n")
        operator.stdin.flush()
    for operator in operators:
        _, told = operator.communicate(timeout=300)
        assert operator.returncode == 0, told


def test_what_operators_publish_and_take_back_at_the_same_time_counts(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    make_pair(tmp_path / "first", Signer.OPERATOR)
    make_pair(tmp_path / "first", Signer.OPERATOR)  # as while it is rotated
    for name in ("second", "third"):
        shutil.copytree(tmp_path / "first", tmp_path / name)
    nodes = [make_pair(tmp_path / "nodes", Reader.NODE) for _ in range(3 * EACH)]
    early, some, others = nodes[:EACH], nodes[EACH : 2 * EACH], nodes[2 * EACH :]
    finish([start_operator(redis_server, tmp_path / "first", "publish", *(key.line for key in early))])
    finish(
        [
            start_operator(redis_server, tmp_path / "first", "publish", *(key.line for key in some)),
            start_operator(redis_server, tmp_path / "second", "publish", *(key.line for key in others)),
            start_operator(redis_server, tmp_path / "third", "unpublish", *(key.key_id for key in early)),
        ]
    )
    registry = open_registry(redis_server.url)
    lists = KeyRing(tmp_path / "first", shown=registry.directory.documents).published()
    registry.close()
    assert len(lists) == 2
    for found in lists:
        assert {key.key_id for _, key in found.keys} == {key.key_id for key in (*some, *others)}
