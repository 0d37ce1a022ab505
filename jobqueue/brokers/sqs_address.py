"""What the URL of an SQS broker says."""

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from jobqueue.errors import InvalidSetting
from jobqueue.quantities import format_duration, parse_duration
from jobqueue.tls import Certificates, split_certificates

# What SQS allows from the receipt of a message to the end of its last extension.
LONGEST_INVISIBILITY: Final = timedelta(hours=12)
# Sooner than that, so that there is time to try again.
LONGEST_HOLD: Final = timedelta(hours=11)
LONGEST_WAIT: Final = timedelta(seconds=20)
# Of a node, for what its workers do not poll: 14,400 in an hour.
ASKS_PER_SECOND: Final = 4.0


@dataclass(frozen=True, kw_only=True)
class SqsAddress:
    """What `sqs://[key:secret@][host[:port]][?region=…&prefix=…&wait=…&hold=…&asks=…&tls=false]` says.

    Attributes:
        endpoint: of a server other than Amazon's; empty: Amazon's own, or what `AWS_ENDPOINT_URL` names.
        key, secret: empty: what the environment, a profile or the machine's role gives.
        region: empty: the environment's.
        prefix: stands before the name of every queue.
        wait: how long one poll waits for a message.
        hold: for how long one delivery is kept; a run that is longer goes on under a copy of its message.
        asks: how many queues a node may ask in one second what waits in them, where patterns find several.
        certificates: what the endpoint's own is checked with, and what is shown to it.
    """

    endpoint: str = ""
    key: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    region: str = ""
    prefix: str = ""
    wait: timedelta = LONGEST_WAIT
    hold: timedelta = LONGEST_HOLD
    asks: float = ASKS_PER_SECOND
    certificates: Certificates = field(default_factory=Certificates)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"SQS at {self.endpoint}" if self.endpoint else "SQS"


def parse_address(url: str) -> SqsAddress:
    """Return what the URL says.

    Raises:
        InvalidSetting: it says something else than it may.
    """
    plain, certificates = split_certificates(url)
    try:
        parts = urlsplit(plain)
    except ValueError:
        raise _refusal("its brackets are no address; in a key or secret write [ as %5B") from None
    options = dict(parse_qsl(parts.query))
    host = _parse_host(parts)
    try:
        scheme = {"true": "https", "false": "http"}[options.pop("tls", "true")]
        address = SqsAddress(
            endpoint=f"{scheme}://{host}" if host else "",
            key=unquote(parts.username or ""),
            secret=unquote(parts.password or ""),
            region=options.pop("region", ""),
            prefix=options.pop("prefix", ""),
            wait=_parse_time(options.pop("wait", ""), longest=LONGEST_WAIT),
            hold=_parse_time(options.pop("hold", ""), longest=LONGEST_HOLD),
            asks=_parse_rate(options.pop("asks", "")),
            certificates=certificates,
        )
    except (KeyError, ValueError) as error:
        raise _refusal(str(error)) from None
    if options:
        raise _refusal(f"it has no option {min(options)!r}")
    return address


def _parse_host(parts: SplitResult) -> str:
    try:
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:
        # What the library says of it may be the end of a password.
        raise _refusal("its port is no number; in a key or secret write / as %2F") from None


def _parse_time(text: str, *, longest: timedelta) -> timedelta:
    value = parse_duration(text) if text else longest
    if not timedelta(0) < value <= longest:
        raise ValueError(f"'{text}' is to be more than nothing and at most {format_duration(longest)}")
    return value


def _parse_rate(text: str) -> float:
    value = float(text) if text else ASKS_PER_SECOND
    if not 0 < value < math.inf:
        raise ValueError(f"asks='{text}' is to be more than nothing")
    return value


def _refusal(problem: str) -> InvalidSetting:
    return InvalidSetting(
        f"not the URL of an SQS broker: {problem}",
        hint="write sqs://?region=…, with prefix, wait (at most 20s), hold (at most 11h), asks, tls as further options",
    )
