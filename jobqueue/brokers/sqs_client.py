"""Calls to Amazon SQS, or to what speaks its language: bounded waits, queues by name, this project's errors.

A queue's address is looked up once and never made up, listed or created on the way to it. The client reads credentials
anew after they were refused: those of a file or a session expire while a worker lives.
"""

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from jobqueue.brokers.base import missing_queue
from jobqueue.brokers.sqs_address import LONGEST_HOLD, SqsAddress
from jobqueue.errors import BrokerUnavailable, InvalidSetting, JobqueueError, NoSuchQueue
from jobqueue.tls import hint_of

# The largest message that every SQS takes; newer ones take a mebibyte.
MAX_MESSAGE_BYTES: Final = 256 * 1024

# It has no code of its own.
_CAP_TEXT: Final = "Total VisibilityTimeout for the message is beyond the limit"
_SERVER_ERROR: Final = 500
_TOO_MANY: Final = 429
# Together under the two seconds within which a user is told.
_CONNECT_SECONDS: Final = 0.7
_REPLY_SECONDS: Final = 1.2
# For the answer to a long poll, once its time is over.
_POLL_MARGIN_SECONDS: Final = 5.0
# What failed sooner is worth a second try at once: a connection that died while it lay idle, a server that restarts.
_QUICK_SECONDS: Final = 0.4
_ANY_REGION: Final = "us-east-1"
_IDLE_CONNECTIONS: Final = 16
_NO_QUEUE: Final = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")
_CREDENTIALS: Final = (
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_BUSY: Final = ("OverLimit", "RequestThrottled", "Throttling", "ThrottlingException", "KmsThrottled")
_CREDENTIALS_HINT: Final = "are the AWS credentials valid, and may they use this queue? `aws sts get-caller-identity`"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One delivery of one message, as SQS knows it.

    Attributes:
        handle: of this delivery; SQS may refuse it once the message has been delivered again.
        body: the message as it lies there.
        received_at: on the monotonic clock.
    """

    queue: str
    handle: str = field(repr=False)
    body: str = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    received_at: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> timedelta:
        """How long ago it was received."""
        return timedelta(seconds=time.monotonic() - self.received_at)


class Refusal(BrokerUnavailable):
    """SQS understood a request and does not do it; `reason` is its own code."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, hint="")
        self.reason = reason

    @property
    def is_cap(self) -> bool:
        """Tell whether a message has been held for as long as SQS allows."""
        return _CAP_TEXT in self.message


class SqsServer:
    """The connections to one SQS. Safe in threads; a forked child has its own.

    Args:
        address: where it is.
        visibility: how long a delivery that nobody keeps alive stays away from others.
    """

    def __init__(self, address: SqsAddress, *, visibility: timedelta) -> None:
        self.address = address
        self.visibility_seconds = math.ceil(min(visibility, LONGEST_HOLD).total_seconds())
        self._lock = threading.Lock()
        self._clients: dict[tuple[int, bool], Any] = {}
        self._urls: dict[str, str] = {}

    def __json__(self) -> str:
        """Return what `celery inspect` shows of it."""
        return self.address.name

    def call(self, operation: str, **parameters: Any) -> Any:
        """Return the answer to one request, as `botocore` names and shapes it.

        Raises:
            BrokerUnavailable: it does not answer; as `Refusal`: it does not do it.
            NoSuchQueue: the queue that the request is about does not exist.
        """
        began = time.monotonic()
        try:
            return self._call(operation, parameters)
        except Refusal:
            raise
        except BrokerUnavailable:
            if time.monotonic() - began > _QUICK_SECONDS:
                raise
            return self._call(operation, parameters)

    def on_queue(self, operation: str, queue: str, *, is_patient: bool = False, **parameters: Any) -> Any:
        """Return the answer to a request about a queue; `is_patient` lets SQS wait before it answers."""
        try:
            url = self._urls.get(queue) or self._find(queue)
            parameters["QueueUrl"] = url
            return (
                self._call(operation, parameters, is_patient=True) if is_patient else self.call(operation, **parameters)
            )
        except NoSuchQueue:
            self._urls.pop(queue, None)
            raise missing_queue(queue) from None

    def exists(self, queue: str) -> bool:
        """Ask whether a queue exists; what was known of it is not believed."""
        try:
            return bool(self._find(queue))
        except NoSuchQueue:
            self._urls.pop(queue, None)
            return False

    def send(self, queue: str, body: str, *, attributes: Mapping[str, str] | None = None) -> None:
        """Send a message; SQS has it for good when this returns."""
        values = {
            name: {"DataType": "String", "StringValue": text} for name, text in (attributes or {}).items() if text
        }
        self.on_queue("send_message", queue, MessageBody=body, MessageAttributes=values)

    def receive(self, queue: str, *, count: int = 1, wait: timedelta = timedelta(0)) -> list[Receipt]:
        """Return at most `count` messages, which nobody else gets for `visibility`; waits for the first one."""
        answer = self.on_queue(
            "receive_message",
            queue,
            is_patient=bool(wait),
            MaxNumberOfMessages=count,
            WaitTimeSeconds=math.ceil(wait.total_seconds()),
            VisibilityTimeout=self.visibility_seconds,
            MessageAttributeNames=["All"],
        )
        return [_to_receipt(queue, message) for message in answer.get("Messages", ())]

    def delete(self, receipt: Receipt) -> None:
        """Delete a message; one that is gone already, or has been delivered again, changes nothing."""
        with suppress(Refusal, NoSuchQueue):
            self.on_queue("delete_message", receipt.queue, ReceiptHandle=receipt.handle)

    def delete_all(self, receipts: Sequence[Receipt]) -> None:
        """Delete at most ten messages, with a request for each queue."""
        self._on_each("delete_message_batch", receipts)

    def give_back_all(self, receipts: Sequence[Receipt]) -> None:
        """Let others have at most ten messages at once, with a request for each queue."""
        self._on_each("change_message_visibility_batch", receipts, VisibilityTimeout=0)

    def _on_each(self, operation: str, receipts: Sequence[Receipt], **fields: int) -> None:
        """Do the same to some messages; those that are gone, or have been delivered again, are left alone."""
        for queue in dict.fromkeys(receipt.queue for receipt in receipts):
            handles = [receipt.handle for receipt in receipts if receipt.queue == queue]
            entries = [{"Id": str(at), "ReceiptHandle": handle, **fields} for at, handle in enumerate(handles)]
            with suppress(Refusal, NoSuchQueue):
                self.on_queue(operation, queue, Entries=entries)

    def hide(self, receipt: Receipt, *, seconds: int) -> None:
        """Keep a message from everybody for so long from now; 0 gives it back.

        Raises:
            Refusal: it is visible, deleted, delivered again, or held for too long (`Refusal.is_cap`).
        """
        self.on_queue(
            "change_message_visibility", receipt.queue, ReceiptHandle=receipt.handle, VisibilityTimeout=seconds
        )

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for (pid, _), client in clients.items():
            if pid == os.getpid():
                client.close()

    def _find(self, queue: str) -> str:
        answer = self.call("get_queue_url", QueueName=self.address.prefix + queue)
        self._urls[queue] = str(answer["QueueUrl"])
        return self._urls[queue]

    def _call(self, operation: str, parameters: Mapping[str, Any], *, is_patient: bool = False) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(is_patient=is_patient), operation)(**parameters)
        except ClientError as error:
            raise self._translate(error.response) from None
        except (BotoCoreError, OSError) as error:
            hint = _CREDENTIALS_HINT if "redential" in type(error).__name__ else hint_of(error)
            raise BrokerUnavailable(f"{self.address.name} does not answer: {error}", hint=hint) from None

    def _translate(self, answer: Mapping[str, Any]) -> JobqueueError:
        code, text = str(answer["Error"].get("Code", "")), str(answer["Error"].get("Message", ""))
        status = int(answer["ResponseMetadata"].get("HTTPStatusCode", 0))
        if code in _NO_QUEUE:
            return NoSuchQueue(f"{self.address.name} has no such queue")
        if code in _CREDENTIALS:
            self.close()
            return BrokerUnavailable(f"{self.address.name} refuses these credentials: {code}", hint=_CREDENTIALS_HINT)
        if status >= _SERVER_ERROR or status == _TOO_MANY or code in _BUSY:
            return BrokerUnavailable(f"{self.address.name} does not answer: {code} {text}")
        return Refusal(f"{self.address.name} refuses: {code}: {text}", reason=code)

    def _client(self, *, is_patient: bool) -> Any:
        key = (os.getpid(), is_patient)
        client = self._clients.get(key)
        if client is None:
            with self._lock:
                client = self._clients.setdefault(key, self._connect(is_patient=is_patient))
        return client

    def _connect(self, *, is_patient: bool) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        session = Session()
        # To a server other than Amazon's it is a word like any other.
        region = self.address.region or session.get_config_variable("region") or (self.address.endpoint and _ANY_REGION)
        files = self.address.certificates
        wait_seconds = self.address.wait.total_seconds() + _POLL_MARGIN_SECONDS if is_patient else 0.0
        try:
            return session.create_client(
                "sqs",
                region_name=region or None,
                endpoint_url=self.address.endpoint or None,
                aws_access_key_id=self.address.key or None,
                aws_secret_access_key=self.address.secret or None,
                verify=files.ca or None,
                config=Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_REPLY_SECONDS + wait_seconds,
                    retries={"mode": "standard", "total_max_attempts": 1},
                    max_pool_connections=_IDLE_CONNECTIONS,
                    tcp_keepalive=True,
                    client_cert=(files.cert, files.key) if files.key else files.cert or None,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise InvalidSetting(
                f"SQS cannot be used: {error}", hint="write sqs://?region=…, or set AWS_DEFAULT_REGION"
            ) from None


def _to_receipt(queue: str, message: Mapping[str, Any]) -> Receipt:
    attributes = message.get("MessageAttributes") or {}
    return Receipt(
        queue=queue,
        handle=message["ReceiptHandle"],
        body=message["Body"],
        attributes={name: str(value.get("StringValue", "")) for name, value in attributes.items()},
    )
