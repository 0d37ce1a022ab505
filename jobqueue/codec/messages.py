"""What reading and writing any generated message needs: parse errors, unknown fields, instants, resources."""

from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from jobqueue.errors import BadEnvelope
from jobqueue.resources import Resources
from jobqueue.wire.v1 import common_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Parsed = TypeVar("_Parsed", bound=Message)


def serialise(message: Message) -> bytes:
    """Return the message's bytes; equal messages have equal bytes."""
    return message.SerializeToString(deterministic=True)


def parse(message: _Parsed, content: bytes) -> _Parsed:
    """Fill an empty message from `content` and return it.

    Raises:
        BadEnvelope: the bytes are no such message.
    """
    try:
        message.ParseFromString(content)
    except (DecodeError, ValueError):  # a ValueError where the runtime is the one without C
        raise BadEnvelope(f"the bytes are not a {message.DESCRIPTOR.name}") from None
    return message


def has_unknown_fields(message: Message) -> bool:
    """Tell whether the message holds what these definitions do not name, at any depth; what it held of it is gone."""
    size = message.ByteSize()
    message.DiscardUnknownFields()
    return message.ByteSize() != size


def write_instant(moment: datetime) -> Timestamp:
    """Return an aware time as a message, to the microsecond."""
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def read_instant(timestamp: Timestamp) -> datetime:
    """Return the aware time of a message, to the microsecond.

    Raises:
        BadEnvelope: it lies outside of the years 1 to 9999.
    """
    try:
        return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    except OverflowError:
        raise BadEnvelope(f"not an instant: {timestamp.seconds} seconds since 1970") from None


def write_resources(resources: Resources) -> common_pb2.Resources:
    """Return a request as a message."""
    return common_pb2.Resources(
        cpus=resources.cpus,
        memory_bytes=resources.memory_bytes,
        disk_bytes=resources.disk_bytes,
        shm_bytes=resources.shm_bytes,
        gpus=resources.gpus,
        gpu_memory_bytes=resources.gpu_memory_bytes,
    )


def read_resources(message: common_pb2.Resources) -> Resources:
    """Return the request of a message, unchecked."""
    return Resources(
        cpus=message.cpus,
        memory_bytes=message.memory_bytes,
        disk_bytes=message.disk_bytes,
        shm_bytes=message.shm_bytes,
        gpus=message.gpus,
        gpu_memory_bytes=message.gpu_memory_bytes,
    )
