from google.protobuf import timestamp_pb2 as _timestamp_pb2
from jobqueue.wire.v1 import common_pb2 as _common_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Header(_message.Message):
    __slots__ = ("experiment_id", "queue", "project", "resources", "submitted_at", "expires_at")
    EXPERIMENT_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    experiment_id: str
    queue: str
    project: str
    resources: _common_pb2.Resources
    submitted_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, experiment_id: _Optional[str] = ..., queue: _Optional[str] = ..., project: _Optional[str] = ..., resources: _Optional[_Union[_common_pb2.Resources, _Mapping]] = ..., submitted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SealedEnvelope(_message.Message):
    __slots__ = ("version", "suite", "sender_key_id", "node_key_id", "nonce", "header", "ciphertext", "signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    SENDER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    suite: int
    sender_key_id: str
    node_key_id: str
    nonce: bytes
    header: bytes
    ciphertext: bytes
    signature: bytes
    def __init__(self, version: _Optional[int] = ..., suite: _Optional[int] = ..., sender_key_id: _Optional[str] = ..., node_key_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., header: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SealedSpec(_message.Message):
    __slots__ = ("sender_key_id", "spec", "reporting_key", "permit")
    SENDER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REPORTING_KEY_FIELD_NUMBER: _ClassVar[int]
    PERMIT_FIELD_NUMBER: _ClassVar[int]
    sender_key_id: str
    spec: bytes
    reporting_key: str
    permit: bytes
    def __init__(self, sender_key_id: _Optional[str] = ..., spec: _Optional[bytes] = ..., reporting_key: _Optional[str] = ..., permit: _Optional[bytes] = ...) -> None: ...
