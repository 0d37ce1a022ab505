"""Hypothesis strategies for the values of the kernel, valid ones only."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from jobqueue.artifacts import Artifact
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.quantities import MAX_BYTES, MAX_DURATION
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.resources import Resources
from jobqueue.spec import MAX_EXPIRES, ExperimentSpec, parse_spec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
variables = st.from_regex(r"[a-km-z][a-z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
titles = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)
sizes = st.integers(min_value=1, max_value=MAX_BYTES)
durations = st.timedeltas(min_value=timedelta(microseconds=1), max_value=MAX_DURATION)
instants = st.timedeltas(min_value=timedelta(days=-700_000), max_value=timedelta(days=2_900_000)).map(EPOCH.__add__)
hashes = st.from_regex(r"[0-9a-f]{64}", fullmatch=True) | st.just("")

artifacts = st.builds(
    Artifact,
    uri=st.from_regex(r"(s3|file|store):[a-z0-9/.?=%]{1,40}", fullmatch=True),
    sha256=hashes,
    size_bytes=st.integers(min_value=0, max_value=MAX_BYTES),
    unpacked_bytes=st.integers(min_value=0, max_value=MAX_BYTES),
)

resources = st.builds(
    Resources,
    cpus=st.floats(min_value=0.01, max_value=4096),
    memory_bytes=sizes,
    disk_bytes=sizes,
    shm_bytes=sizes,
    gpus=st.integers(min_value=0, max_value=1024),
    gpu_memory_bytes=st.integers(min_value=0, max_value=MAX_BYTES),
)

experiment_ids = st.builds(make_experiment_id)

headers = st.builds(
    lambda submitted_at, lifetime, **fields: Header(
        submitted_at=submitted_at, expires_at=submitted_at + lifetime, **fields
    ),
    experiment_id=experiment_ids,
    queue=names,
    project=names,
    resources=resources,
    submitted_at=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=90_000)).map(EPOCH.__add__),
    lifetime=durations,
)

reports = st.builds(
    Report,
    at=instants,
    experiment_id=experiment_ids | st.just(ExperimentId("")),
    worker_id=texts.map(WorkerId),
    sequence=st.integers(min_value=0, max_value=2**63),
    attempt=st.integers(min_value=0, max_value=2**31),
    token=st.integers(min_value=0, max_value=2**63),
    payload=texts
    | st.builds(
        LogEntry, message=texts, severity=st.sampled_from(Severity), fields=st.dictionaries(texts, texts, max_size=3)
    )
    | st.builds(
        Progress,
        task_state=st.sampled_from(TaskState),
        json=texts,
        error=texts,
        error_code=st.integers(min_value=-(2**31), max_value=2**31 - 1),
    ),
    state=st.none() | st.sampled_from(State),
    reason=st.none() | st.sampled_from(Reason),
    fault=st.none() | st.sampled_from(Fault),
    exit_code=st.none() | st.integers(min_value=0, max_value=255),
    manifest=texts,
)


@st.composite
def specs(draw: st.DrawFn) -> ExperimentSpec:
    """Return a spec with every field filled or left out."""
    optional = {
        "workspace": artifacts,
        "inputs": st.dictionaries(names, artifacts, max_size=3),
        "outputs": st.lists(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?/?", fullmatch=True), max_size=3),
        "env": st.dictionaries(variables, texts, max_size=3),
        "secrets": st.dictionaries(variables.map(lambda name: f"s_{name}"), texts, max_size=3),
        "cpus": st.floats(min_value=0.01, max_value=4096),
        "disk": sizes,
        "timeout": durations,
        "stall_timeout": durations,
        "expires": st.timedeltas(min_value=timedelta(microseconds=1), max_value=MAX_EXPIRES),
        "retries": st.integers(min_value=0, max_value=100),
        "network": st.sampled_from(["none", "egress", "bridge"]),
        "project": names,
        "queue": names,
        "name": titles,
        "labels": st.dictionaries(titles, texts, max_size=3),
        "idempotency_key": titles,
    }
    fields = draw(st.fixed_dictionaries({}, optional=optional))
    memory = draw(sizes)
    gpus = draw(st.integers(min_value=0, max_value=8))
    return parse_spec(
        {
            **fields,
            "image": "python:3.12-slim",
            "command": draw(st.lists(texts, max_size=3).map(lambda words: ["run", *words])),
            "memory": memory,
            "shm_size": draw(st.integers(min_value=1, max_value=memory)),
            "gpus": gpus,
            "gpu_memory": draw(sizes) if gpus else 0,
        }
    )
