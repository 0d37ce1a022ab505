"""Keeping the values of secrets out of what an experiment prints and tells of itself."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

REDACTED: Final = b"[secret]"
# Of what is shorter, other forms and single lines would be found everywhere.
_MIN_FORM_BYTES: Final = 6
_MAX_FORM_BYTES: Final = 8192
_PROBE_BYTES: Final = 8


def forms_of(values: Iterable[str]) -> tuple[bytes, ...]:
    """Return the values of secrets, and the forms that programs print them in without meaning to.

    These are: without blanks around it, each line by itself, as in JSON and other quotes, in a URL, in base64.
    """
    forms = set[bytes]()
    for value in values:
        forms.add(value.encode())
        if len(value) <= _MAX_FORM_BYTES:
            forms.update(form for form in _other_forms(value) if len(form) >= _MIN_FORM_BYTES)
    return tuple(sorted(forms - {b""}))


def _other_forms(value: str) -> Iterator[bytes]:
    for form in (value, value.strip()):
        yield form.encode()
        yield json.dumps(form)[1:-1].encode()
        yield json.dumps(form, ensure_ascii=False)[1:-1].encode()
        yield repr(form)[1:-1].encode(errors="backslashreplace")
        yield quote(form).encode()
        yield quote(form, safe="").encode()
        coded = base64.b64encode(form.encode()).rstrip(b"=")
        yield from (coded, coded.translate(bytes.maketrans(b"+/", b"-_")))
    yield from (line.strip().encode() for line in value.splitlines())


class Redactor:
    """Replaces secrets in a stream of bytes, across the borders of its pieces; what comes out does not depend on these.

    Secrets that overlap are covered together, so that no part of any is left.

    Args:
        secrets: the values; empty ones are none.
    """

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._secrets = longest_first(secrets)
        self._rest = b""
        # Of the rest, what belongs to a secret that has been replaced already.
        self._covered_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return what is safe to pass on; the end is kept back while it may be the beginning of a secret."""
        if not self._secrets:
            return data
        data = self._rest + data
        return self._release(data, len(data) - max(_suspect_bytes(data, secret) for secret in self._secrets))

    def flush(self) -> bytes:
        """Return what was kept back."""
        return self._release(self._rest, len(self._rest))

    def _release(self, data: bytes, cut: int) -> bytes:
        clean, done = _cover(data, self._secrets, cut=cut, covered=self._covered_bytes)
        self._rest, self._covered_bytes = data[cut:], max(0, done - cut)
        return clean


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
            return {redact_text(str(name), secrets): redact_json(item, secrets) for name, item in value.items()}
        case list():
            return [redact_json(item, secrets) for item in value]
        case str():
            return redact_text(value, secrets)
        case _:
            written = json.dumps(value).encode()
            return REDACTED.decode() if any(secret in written for secret in secrets) else value


def redact_text(text: str, secrets: tuple[bytes, ...]) -> str:
    """Return a text without secrets."""
    data = text.encode(errors="surrogatepass")
    return _cover(data, secrets, cut=len(data))[0].decode(errors="replace")


def _cover(data: bytes, secrets: tuple[bytes, ...], *, cut: int, covered: int = 0) -> tuple[bytes, int]:
    """Return what is clean of `data[:cut]`, and where the last secret that begins there ends.

    So many bytes at the beginning as are `covered` belong to what was replaced before.
    """
    clean, done = [], covered
    for start, end in sorted(_spans(data, secrets, cut)):
        if start >= done:
            clean += [data[done:start], REDACTED]
        done = max(done, end)
    return b"".join([*clean, data[done:cut]]), done


def _spans(data: bytes, secrets: tuple[bytes, ...], cut: int) -> Iterator[tuple[int, int]]:
    for secret in secrets:
        start = data.find(secret)
        while 0 <= start < cut:
            yield start, start + len(secret)
            start = data.find(secret, start + 1)


def _suspect_bytes(data: bytes, secret: bytes) -> int:
    """Return the length of the longest end of `data` that a secret begins with, but is not all of."""
    start = max(0, len(data) - len(secret) + 1)
    while 0 <= start <= len(data) - _PROBE_BYTES:
        start = data.find(secret[:_PROBE_BYTES], start)
        if start < 0:
            break
        if secret.startswith(data[start:]):
            return len(data) - start
        start += 1
    ends = range(min(_PROBE_BYTES - 1, len(data), len(secret) - 1), 0, -1)
    return next((length for length in ends if secret.startswith(data[-length:])), 0)
