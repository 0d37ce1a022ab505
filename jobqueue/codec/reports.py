"""A report to bytes and back, in StudioML's format with more fields."""

from enum import Enum, IntEnum
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue

from jobqueue.codec.messages import parse, read_instant, serialise, write_instant
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.wire.v1 import report_pb2

_Word = TypeVar("_Word", bound=Enum)
_Number = TypeVar("_Number", bound=IntEnum)


def encode_report(report: Report) -> bytes:
    """Return the report's bytes; what is not Unicode in its texts is replaced, so that no report is lost to a byte."""
    message = report_pb2.Report(
        time=write_instant(report.at),
        executor_id=_text(report.worker_id),
        sequence=report.sequence,
        attempt=report.attempt,
        fencing_token=report.token,
        state=report.state.name if report.state else "",
        reason=report.reason.name if report.reason else "",
        fault=report.fault.name if report.fault else "",
        exit_code=report.exit_code,
        manifest=_clean(report.manifest),
        queue=_clean(report.queue),
    )
    if report.experiment_id:
        message.experiment_id.CopyFrom(_text(report.experiment_id))
        message.unique_id.CopyFrom(_text(report.attempt_id))
    _write_payload(message, report)
    return serialise(message)


def decode_report(content: bytes) -> Report:
    """Return the report that `encode_report`, a newer version of it, or StudioML wrote; whose it is, it does not know.

    A state, reason or fault that this version does not know reads as None, an unknown severity or task state as the one
    numbered 0, a payload of an unknown kind as an empty text.

    Raises:
        BadEnvelope: the bytes are no report.
    """
    message = parse(report_pb2.Report(), content)
    return Report(
        at=read_instant(message.time),
        experiment_id=ExperimentId(message.experiment_id.value),
        worker_id=WorkerId(message.executor_id.value),
        sequence=message.sequence,
        attempt=message.attempt,
        token=message.fencing_token,
        payload=_read_payload(message),
        state=_word(State, message.state),
        reason=_word(Reason, message.reason),
        fault=_word(Fault, message.fault),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        manifest=message.manifest,
        queue=message.queue,
    )


def _write_payload(message: report_pb2.Report, report: Report) -> None:
    payload = report.payload
    match payload:
        case Progress():
            message.progress.CopyFrom(_write_progress(payload, message.time))
        case LogEntry():
            message.logging.CopyFrom(_write_entry(payload, message.time))
        case _:
            message.text.CopyFrom(_text(payload))


def _read_payload(message: report_pb2.Report) -> Progress | LogEntry | str:
    match message.WhichOneof("payload"):
        case "progress":
            return _read_progress(message.progress)
        case "logging":
            return _read_entry(message.logging)
        case _:
            return message.text.value


def _write_progress(progress: Progress, time: Timestamp) -> report_pb2.Progress:
    message = report_pb2.Progress(time=time, state=progress.task_state.name.capitalize())
    if progress.json:
        message.json.CopyFrom(_text(progress.json))
    if progress.error or progress.error_code:
        error = report_pb2.Progress.Error(msg=_text(progress.error), code=progress.error_code)
        message.error.CopyFrom(error)
    return message


def _read_progress(message: report_pb2.Progress) -> Progress:
    return Progress(
        task_state=_number(TaskState, message.state),
        json=message.json.value,
        error=message.error.msg.value,
        error_code=message.error.code,
    )


def _write_entry(entry: LogEntry, time: Timestamp) -> report_pb2.LogEntry:
    return report_pb2.LogEntry(
        time=time,
        severity=entry.severity.name.capitalize(),
        message=_text(entry.message),
        fields={_clean(name): _clean(value) for name, value in entry.fields.items()},
    )


def _read_entry(message: report_pb2.LogEntry) -> LogEntry:
    return LogEntry(
        message=message.message.value,
        severity=_number(Severity, message.severity),
        fields=dict(message.fields),
    )


def _word(kind: type[_Word], name: str) -> _Word | None:
    return kind.__members__.get(name)


def _number(kind: type[_Number], number: int) -> _Number:
    return next((member for member in kind if member == number), kind(0))


def _text(text: str) -> StringValue:
    return StringValue(value=_clean(text))


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()
