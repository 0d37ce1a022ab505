"""Keeping the values of secrets out of what an experiment prints and tells of itself."""

import json
from typing import Final

REDACTED: Final = b"[secret]"


class Redactor:
    """Replaces secrets in a stream of bytes, across the borders of its pieces.

    Args:
        secrets: the values; empty ones are none.
    """

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._secrets = longest_first(secrets)
        self._keep_bytes = max((len(secret) - 1 for secret in self._secrets), default=0)
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return what is safe to pass on; the end is kept back while it may be the beginning of a secret."""
        if not self._secrets:
            return data
        data = _redact(self._rest + data, self._secrets)
        cut = len(data) - self._suspect_bytes(data)
        self._rest = data[cut:]
        return data[:cut]

    def flush(self) -> bytes:
        """Return what was kept back."""
        rest, self._rest = self._rest, b""
        return rest

    def _suspect_bytes(self, data: bytes) -> int:
        for length in range(min(self._keep_bytes, len(data)), 0, -1):
            if any(secret.startswith(data[-length:]) for secret in self._secrets):
                return length
        return 0


def longest_first(secrets: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the secrets in the order to look for them: one may be a part of another."""
    return tuple(sorted(filter(None, secrets), key=len, reverse=True))


def redact_json(value: object, secrets: tuple[bytes, ...]) -> object:
    """Return a JSON value without secrets: in its texts and names as they read, and in its numbers as they are written.

    Raises:
        RecursionError: it is nested too deeply.
    """
    match value:
        case dict():
            return {_redact_text(str(name), secrets): redact_json(item, secrets) for name, item in value.items()}
        case list():
            return [redact_json(item, secrets) for item in value]
        case str():
            return _redact_text(value, secrets)
        case _:
            written = json.dumps(value).encode()
            return REDACTED.decode() if any(secret in written for secret in secrets) else value


def _redact_text(text: str, secrets: tuple[bytes, ...]) -> str:
    return _redact(text.encode(errors="surrogatepass"), secrets).decode(errors="replace")


def _redact(data: bytes, secrets: tuple[bytes, ...]) -> bytes:
    for secret in secrets:
        data = data.replace(secret, REDACTED)
    return data
