"""A spec to bytes and back, through `parse_spec`: what comes out of here has been checked."""

from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from jobqueue.artifacts import Artifact
from jobqueue.codec.messages import has_unknown_fields, parse, serialise, write_resources
from jobqueue.errors import InvalidSpec, Problem
from jobqueue.priority import NORMAL
from jobqueue.spec import ExperimentSpec, parse_spec
from jobqueue.wire.v1 import common_pb2, experiment_pb2


def encode_spec(spec: ExperimentSpec) -> bytes:
    """Return the spec's bytes, secrets included: they belong into an envelope, or into a digest."""
    message = experiment_pb2.ExperimentSpec(
        image=spec.image,
        command=spec.command,
        workspace=_write_artifact(spec.workspace) if spec.workspace else None,
        inputs={name: _write_artifact(artifact) for name, artifact in spec.inputs.items()},
        outputs=spec.outputs,
        env=spec.env,
        secrets=spec.secrets,
        resources=write_resources(spec.resources),
        timeout=_write_duration(spec.timeout),
        stall_timeout=_write_duration(spec.stall_timeout) if spec.stall_timeout else None,
        expires=_write_duration(spec.expires),
        retries=spec.retries,
        network=spec.network,
        project=spec.project,
        queue=spec.queue,
        name=spec.name,
        labels=spec.labels,
        idempotency_key=spec.idempotency_key,
        priority=None if spec.priority == NORMAL else spec.priority,
    )
    return serialise(message)


def decode_spec(content: bytes) -> ExperimentSpec:
    """Return the spec that `encode_spec` wrote.

    Raises:
        BadEnvelope: the bytes are no spec.
        InvalidSpec: they are one, with wrong fields, or with fields that this version does not know.
    """
    message = parse(experiment_pb2.ExperimentSpec(), content)
    if has_unknown_fields(message):
        what = "written by a newer version, with fields that this one does not know (update this node)"
        raise InvalidSpec([Problem(path="", message=what)])
    return parse_spec(_fields(message))


def _fields(message: experiment_pb2.ExperimentSpec) -> dict[str, Any]:
    resources = message.resources
    fields = {
        "image": message.image,
        "command": tuple(message.command),
        "inputs": {name: _read_artifact(artifact) for name, artifact in message.inputs.items()},
        "outputs": tuple(message.outputs),
        "env": dict(message.env),
        "secrets": dict(message.secrets),
        "gpus": resources.gpus,
        "gpu_memory": resources.gpu_memory_bytes,
        "cpus": resources.cpus,
        "memory": resources.memory_bytes,
        "disk": resources.disk_bytes,
        "shm_size": resources.shm_bytes,
        "timeout": _read_duration(message.timeout),
        "expires": _read_duration(message.expires),
        "retries": message.retries,
        "network": message.network,
        "project": message.project,
        "labels": dict(message.labels),
    }
    if message.HasField("workspace"):
        fields["workspace"] = _read_artifact(message.workspace)
    if message.HasField("stall_timeout"):
        fields["stall_timeout"] = _read_duration(message.stall_timeout)
    if message.HasField("queue"):
        fields["queue"] = message.queue
    if message.HasField("name"):
        fields["name"] = message.name
    if message.HasField("idempotency_key"):
        fields["idempotency_key"] = message.idempotency_key
    if message.HasField("priority"):
        fields["priority"] = message.priority
    return fields


def _write_artifact(artifact: Artifact) -> common_pb2.Artifact:
    return common_pb2.Artifact(
        uri=artifact.uri,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        unpacked_bytes=artifact.unpacked_bytes,
    )


def _read_artifact(message: common_pb2.Artifact) -> Artifact:
    return Artifact(
        uri=message.uri,
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        unpacked_bytes=message.unpacked_bytes,
    )


def _write_duration(duration: timedelta) -> Duration:
    return Duration(seconds=duration.days * 86400 + duration.seconds, nanos=duration.microseconds * 1000)


def _read_duration(message: Duration) -> timedelta | str:
    """Return the duration; as text where it is too long for one, which `parse_spec` then refuses with its field."""
    try:
        return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        return f"{message.seconds}s"
