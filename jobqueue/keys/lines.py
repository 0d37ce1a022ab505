"""A key as one line of text: its kind, its content in base64, when it was made.

The line survives a mail program that wraps it.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jobqueue.errors import KeyRefused
from jobqueue.ids import KeyId

_MARK = "jobqueue-"
_FINGERPRINT_BYTES = 20


@dataclass(frozen=True, kw_only=True)
class KeyLine:
    """The parts of a line.

    Attributes:
        kind: what the key is for and its algorithm: `sender-ed25519`; a private key's ends with `-private`.
        content: the raw key.
        created_at: aware; which of several keys is the newest.
    """

    kind: str
    content: bytes = field(repr=False)
    created_at: datetime


def write_line(line: KeyLine) -> str:
    """Return the line as text, without a line end."""
    created = line.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return f"{_MARK}{line.kind} {base64.b64encode(line.content).decode()} {created}"


def read_line(text: str) -> KeyLine:
    """Return the parts of a line, wrapped or not.

    Raises:
        KeyRefused: it is not one; the message never shows the text.
    """
    match text.split():
        case [mark, *content, created] if content and mark.startswith(_MARK):
            return KeyLine(kind=mark.removeprefix(_MARK), content=_decode(content), created_at=_instant(created))
    raise KeyRefused(f"not a key: it is not of the form '{_MARK}KIND BASE64 TIME'", hint="copy the whole line")


def split_lines(text: str) -> list[str]:
    """Return the lines of several keys, wrapped or not; what is none is for `read_line` to refuse."""
    lines: list[list[str]] = []
    for word in text.split():
        if word.startswith(_MARK) or not lines:
            lines.append([])
        lines[-1].append(word)
    return [" ".join(words) for words in lines] or [""]


def fingerprint(kind: str, content: bytes) -> KeyId:
    """Return the key id of a public key: 32 lower-case letters and digits."""
    digest = hashlib.sha256(kind.encode() + b"\0" + content).digest()
    return KeyId(base64.b32encode(digest[:_FINGERPRINT_BYTES]).decode().lower())


def _decode(parts: list[str]) -> bytes:
    try:
        return base64.b64decode("".join(parts), validate=True)
    except ValueError:  # also what stands there for letters that are not ASCII
        raise KeyRefused("not a key: its content is not base64", hint="copy the whole line") from None


def _instant(text: str) -> datetime:
    told = "not a key: it does not end with the time it was made"
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise KeyRefused(told, hint="copy the whole line")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):  # an OverflowError where it lies in no year of UTC
        raise KeyRefused(told, hint="copy the whole line") from None
