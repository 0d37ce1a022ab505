"""Values come back from the wire as they went."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st
from strategies import headers, reports, specs

from jobqueue.codec import (
    SealedEnvelope,
    SealedSpec,
    decode_envelope,
    decode_header,
    decode_report,
    decode_sealed_spec,
    decode_spec,
    encode_envelope,
    encode_header,
    encode_report,
    encode_sealed_spec,
    encode_spec,
)
from jobqueue.errors import BadEnvelope, InvalidSpec, JobqueueError
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, KeyId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.resources import Resources
from jobqueue.spec import ExperimentSpec, parse_spec
from jobqueue.wire.v1 import envelope_pb2, experiment_pb2, report_pb2

NOW = datetime(2026, 7, 1, 12, 30, 15, 250_000, tzinfo=UTC)
NOT_A_MESSAGE = b"\x0a\xff\xff"


def wire_spec() -> experiment_pb2.ExperimentSpec:
    spec = parse_spec({"image": "busybox", "command": "true"})
    return experiment_pb2.ExperimentSpec.FromString(encode_spec(spec))


def report(**fields: object) -> Report:
    values: dict[str, object] = {
        "at": NOW,
        "experiment_id": ExperimentId("exp-01j00000000000000000000000"),
        "worker_id": WorkerId("gpu0@node1"),
        "sequence": 3,
        "attempt": 2,
        "token": 77,
        "payload": "hello",
    }
    return Report(**{**values, **fields})  # type: ignore[arg-type]


@given(specs())
def test_a_spec_comes_back_as_it_went(spec: ExperimentSpec) -> None:
    assert decode_spec(encode_spec(spec)) == spec


@given(specs())
def test_a_spec_has_one_encoding_whatever_the_order_of_its_mappings(spec: ExperimentSpec) -> None:
    turned = spec.model_copy(update={"env": dict(reversed(spec.env.items()))})
    assert encode_spec(turned) == encode_spec(spec)


def test_a_spec_without_outputs_does_not_come_back_with_the_default_ones() -> None:
    spec = parse_spec({"image": "busybox", "command": "true", "outputs": []})
    assert decode_spec(encode_spec(spec)).outputs == ()


def test_every_wrong_field_of_a_spec_on_the_wire_is_named_at_once() -> None:
    message = wire_spec()
    message.image = "-rm"
    message.resources.cpus = float("nan")
    message.timeout.seconds = 2**60
    message.inputs["x"].uri = ""
    message.network = "host"
    with pytest.raises(InvalidSpec) as caught:
        decode_spec(message.SerializeToString())
    assert {problem.path for problem in caught.value.problems} == {"image", "cpus", "timeout", "inputs.x", "network"}


def test_an_empty_spec_is_refused_field_by_field() -> None:
    with pytest.raises(InvalidSpec) as caught:
        decode_spec(b"")
    assert {"image", "command", "cpus", "memory", "timeout"} <= {problem.path for problem in caught.value.problems}


@pytest.mark.parametrize("place", ["spec", "resources"])
def test_a_spec_with_a_field_that_this_version_does_not_know_is_refused(place: str) -> None:
    message = wire_spec()
    unknown = experiment_pb2.ExperimentSpec(labels={"a": "limit"})
    (message if place == "spec" else message.resources).MergeFromString(
        unknown.SerializeToString() if place == "resources" else b"\xfa\x3e\x01x"
    )
    with pytest.raises(InvalidSpec, match="newer version"):
        decode_spec(message.SerializeToString())


@pytest.mark.parametrize("decode", [decode_spec, decode_header, decode_report, decode_envelope, decode_sealed_spec])
def test_bytes_that_are_no_message_are_a_bad_envelope(decode: object) -> None:
    with pytest.raises(BadEnvelope):
        decode(NOT_A_MESSAGE)  # type: ignore[operator]


@pytest.mark.parametrize("decode", [decode_spec, decode_header, decode_report, decode_envelope, decode_sealed_spec])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_an_error_of_ours(decode: object, content: bytes) -> None:
    with suppress(JobqueueError):
        decode(content)  # type: ignore[operator]


@given(headers)
def test_a_header_comes_back_as_it_went(header: Header) -> None:
    assert decode_header(encode_header(header)) == header


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("experiment_id", "exp-1"),
        ("experiment_id", "../../etc"),
        ("queue", "a b"),
        ("queue", "a" * 71),
        ("project", "é"),
        ("resources", Resources(cpus=float("nan"), memory_bytes=1, disk_bytes=1, shm_bytes=1)),
        ("resources", Resources(cpus=0, memory_bytes=1, disk_bytes=1, shm_bytes=1)),
        ("expires_at", NOW),
    ],
)
def test_a_header_that_nothing_can_be_scheduled_by_is_refused_by_field(field: str, value: object) -> None:
    fields = {
        "experiment_id": make_experiment_id(),
        "queue": "default_cpu",
        "project": "default",
        "resources": Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1),
        "submitted_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
    }
    header = Header(**{**fields, field: value})  # type: ignore[arg-type]
    with pytest.raises(BadEnvelope, match=field):
        decode_header(encode_header(header))


def test_a_header_with_an_impossible_time_is_refused() -> None:
    message = envelope_pb2.Header()
    message.submitted_at.seconds = 2**62
    with pytest.raises(BadEnvelope, match="instant"):
        decode_header(message.SerializeToString())


@given(reports)
def test_a_report_comes_back_as_it_went(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_a_report_is_readable_by_studioml_listeners_under_its_names_and_numbers() -> None:
    final = report(
        payload=Progress(task_state=TaskState.FAILED, json='{"loss": 1}', error="too long", error_code=137),
        state=State.FAILED,
        reason=Reason.TIMED_OUT,
        fault=Fault.USER,
        exit_code=0,
        manifest="m.json",
    )
    message = report_pb2.Report.FromString(encode_report(final))
    assert message.time.ToDatetime(tzinfo=UTC) == NOW
    assert message.experiment_id.value == final.experiment_id
    assert message.unique_id.value == final.attempt_id
    assert message.executor_id.value == "gpu0@node1"
    assert message.progress.state == report_pb2.Failed == 20
    assert (message.progress.error.msg.value, message.progress.error.code) == ("too long", 137)
    assert message.progress.time == message.time
    numbers = {field.name: field.number for field, _ in message.ListFields()}
    ours = ("sequence", "attempt", "fencing_token", "state", "reason", "fault", "exit_code", "manifest")
    theirs = {"time": 1, "experiment_id": 2, "unique_id": 3, "executor_id": 4, "progress": 13}
    assert numbers == theirs | {name: 101 + index for index, name in enumerate(ours)}


def test_studioml_numbers_are_kept() -> None:
    fields = {name: field.number for name, field in report_pb2.Report.DESCRIPTOR.fields_by_name.items()}
    assert [fields[name] for name in ("proto_any", "text", "logging", "progress")] == [10, 11, 12, 13]
    assert {name.upper(): number for name, number in report_pb2.LogSeverity.items()} == Severity.__members__
    assert {name.upper(): number for name, number in report_pb2.TaskState.items()} == TaskState.__members__
    assert [(field.name, field.number) for field in report_pb2.LogEntry.DESCRIPTOR.fields] == [
        ("time", 1), ("severity", 2), ("message", 3), ("fields", 4),
    ]  # fmt: skip
    assert [(field.name, field.number) for field in report_pb2.Progress.DESCRIPTOR.fields] == [
        ("time", 1), ("json", 2), ("state", 3), ("error", 4),
    ]  # fmt: skip
    assert [(field.name, field.number) for field in report_pb2.Progress.Error.DESCRIPTOR.fields] == [
        ("msg", 20), ("code", 21),
    ]  # fmt: skip


def test_words_and_numbers_of_a_newer_peer_do_not_stop_a_reader() -> None:
    message = report_pb2.Report(state="HIBERNATED", reason="EATEN_BY_A_DOG", fault="dog", sequence=4)
    message.progress.state = 99
    message.MergeFromString(b"\xfa\x3e\x01x")
    read = decode_report(message.SerializeToString())
    assert (read.state, read.reason, read.fault, read.sequence) == (None, None, None, 4)
    assert read.payload == Progress(task_state=TaskState.PRESTART)
    message.logging.severity = 5
    assert decode_report(message.SerializeToString()).payload == LogEntry(message="", severity=Severity.DEFAULT)


def test_a_report_of_a_foreign_kind_reads_as_an_empty_text() -> None:
    packed = Any()
    packed.Pack(StringValue(value="x"))
    assert decode_report(report_pb2.Report(proto_any=packed).SerializeToString()).payload == ""


def test_a_report_about_nobody_names_no_experiment_on_the_wire() -> None:
    message = report_pb2.Report.FromString(encode_report(report(experiment_id=ExperimentId(""))))
    assert not message.HasField("experiment_id")
    assert not message.HasField("unique_id")


def test_half_a_character_in_a_report_is_replaced_and_the_report_goes_out() -> None:
    broken = report(payload=LogEntry(message="a\udcffb", fields={"k\udcff": "v\udcff"}), manifest="\udcff")
    assert decode_report(encode_report(broken)).payload == LogEntry(message="a?b", fields={"k?": "v?"})


def test_an_envelope_comes_back_as_it_went_and_has_one_encoding() -> None:
    envelope = SealedEnvelope(
        version=1, suite=2, sender_key_id=KeyId("a"), node_key_id=KeyId("b"),
        nonce=b"n" * 16, header=b"h", ciphertext=b"c" * 100, signature=b"s" * 64,
    )  # fmt: skip
    content = encode_envelope(envelope)
    assert decode_envelope(content) == envelope
    for other in (content + b"\xfa\x3e\x01x", content + content[:2], content[2:] + content[:2]):
        with pytest.raises(BadEnvelope, match="canonical"):
            decode_envelope(other)


def test_the_sealed_part_names_its_sender() -> None:
    sealed = SealedSpec(sender_key_id=KeyId("k"), spec=b"spec", reporting_key="line")
    assert decode_sealed_spec(encode_sealed_spec(sealed)) == sealed
    with pytest.raises(BadEnvelope, match="does not know"):
        decode_sealed_spec(b"\xfa\x3e\x01x")
