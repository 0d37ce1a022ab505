"""What may go ahead of others is small; what is not is told all its limits at once."""

from datetime import timedelta
from typing import Any

import pytest

from jobqueue.artifacts import Artifact
from jobqueue.codec import decode_spec, encode_spec
from jobqueue.errors import InvalidSpec
from jobqueue.priority import FAST, LONGEST, NORMAL
from jobqueue.spec import parse_spec

SHORTEST: dict[str, Any] = {"image": "busybox", "command": "true"}


def test_nothing_goes_ahead_that_does_not_say_so() -> None:
    spec = parse_spec(SHORTEST)
    assert (spec.priority, spec.timeout) == (NORMAL, timedelta(hours=24))


def test_what_goes_ahead_may_run_as_long_as_it_may_unless_it_says_less() -> None:
    assert parse_spec({**SHORTEST, "priority": FAST}).timeout == LONGEST
    assert parse_spec({**SHORTEST, "priority": FAST, "max_duration": "2m"}).timeout == timedelta(minutes=2)


def test_what_is_too_large_to_go_ahead_is_refused_with_the_limits() -> None:
    huge = Artifact(uri="s3://bucket/huge.tar.zst", size_bytes=2**40)
    fields = {"timeout": "1h", "cpus": 64, "memory": "2TiB", "gpus": 8, "inputs": {"data": huge}}
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({**SHORTEST, **fields, "priority": FAST})
    (problem,) = caught.value.problems
    assert problem.path == "priority"
    told = "asks for a timeout of 1h, 64 cpus, 2 TiB of memory, 8 GPUs, 1 TiB of files (at most 15m, 4 cpus"
    assert told in problem.message
    assert parse_spec({**SHORTEST, **fields}).priority == NORMAL


def test_what_is_just_as_large_as_it_may_be_goes_ahead() -> None:
    large = Artifact(uri="s3://bucket/large", size_bytes=64 * 2**20)
    fields = {"timeout": "15m", "cpus": 4, "memory": "16GiB", "gpus": 1, "inputs": {"data": large}}
    assert parse_spec({**SHORTEST, **fields, "priority": FAST}).priority == FAST


def test_another_word_is_no_priority() -> None:
    with pytest.raises(InvalidSpec, match="'normal' or 'fast'"):
        parse_spec({**SHORTEST, "priority": "urgent"})


def test_it_travels_and_what_waits_like_others_looks_as_before() -> None:
    fast = parse_spec({**SHORTEST, "priority": FAST})
    assert decode_spec(encode_spec(fast)) == fast
    assert NORMAL.encode() not in encode_spec(parse_spec(SHORTEST))
