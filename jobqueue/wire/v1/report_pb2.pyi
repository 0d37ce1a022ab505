from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogSeverity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    Default: _ClassVar[LogSeverity]
    Trace: _ClassVar[LogSeverity]
    Debug: _ClassVar[LogSeverity]
    Info: _ClassVar[LogSeverity]
    Warning: _ClassVar[LogSeverity]
    Error: _ClassVar[LogSeverity]
    Fatal: _ClassVar[LogSeverity]

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    Prestart: _ClassVar[TaskState]
    Started: _ClassVar[TaskState]
    Stopping: _ClassVar[TaskState]
    Failed: _ClassVar[TaskState]
    Success: _ClassVar[TaskState]
Default: LogSeverity
Trace: LogSeverity
Debug: LogSeverity
Info: LogSeverity
Warning: LogSeverity
Error: LogSeverity
Fatal: LogSeverity
Prestart: TaskState
Started: TaskState
Stopping: TaskState
Failed: TaskState
Success: TaskState

class Report(_message.Message):
    __slots__ = ("time", "experiment_id", "unique_id", "executor_id", "proto_any", "text", "logging", "progress", "sequence", "attempt", "fencing_token", "state", "reason", "fault", "exit_code", "manifest", "queue", "node_key_id", "signature")
    TIME_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ID_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    PROTO_ANY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGGING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    experiment_id: _wrappers_pb2.StringValue
    unique_id: _wrappers_pb2.StringValue
    executor_id: _wrappers_pb2.StringValue
    proto_any: _any_pb2.Any
    text: _wrappers_pb2.StringValue
    logging: LogEntry
    progress: Progress
    sequence: int
    attempt: int
    fencing_token: int
    state: str
    reason: str
    fault: str
    exit_code: int
    manifest: str
    queue: str
    node_key_id: str
    signature: bytes
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., experiment_id: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., unique_id: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., executor_id: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., proto_any: _Optional[_Union[_any_pb2.Any, _Mapping]] = ..., text: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., logging: _Optional[_Union[LogEntry, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., sequence: _Optional[int] = ..., attempt: _Optional[int] = ..., fencing_token: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., fault: _Optional[str] = ..., exit_code: _Optional[int] = ..., manifest: _Optional[str] = ..., queue: _Optional[str] = ..., node_key_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SealedReport(_message.Message):
    __slots__ = ("version", "suite", "reporting_key_id", "ciphertext")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    REPORTING_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    version: int
    suite: int
    reporting_key_id: str
    ciphertext: bytes
    def __init__(self, version: _Optional[int] = ..., suite: _Optional[int] = ..., reporting_key_id: _Optional[str] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("time", "severity", "message", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TIME_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    severity: LogSeverity
    message: _wrappers_pb2.StringValue
    fields: _containers.ScalarMap[str, str]
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., severity: _Optional[_Union[LogSeverity, str]] = ..., message: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("time", "json", "state", "error")
    class Error(_message.Message):
        __slots__ = ("msg", "code")
        MSG_FIELD_NUMBER: _ClassVar[int]
        CODE_FIELD_NUMBER: _ClassVar[int]
        msg: _wrappers_pb2.StringValue
        code: int
        def __init__(self, msg: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., code: _Optional[int] = ...) -> None: ...
    TIME_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    json: _wrappers_pb2.StringValue
    state: TaskState
    error: Progress.Error
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., json: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., state: _Optional[_Union[TaskState, str]] = ..., error: _Optional[_Union[Progress.Error, _Mapping]] = ...) -> None: ...
