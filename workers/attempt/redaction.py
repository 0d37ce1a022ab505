"""Keeping the values of secrets out of what an experiment prints and tells of itself."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

REDACTED: Final = b"[secret]"
# Of what is shorter, other forms and single lines would be found everywhere.
_MIN_FORM_BYTES: Final = 6
_MAX_FORM_BYTES: Final = 8192
_BASE64_COLUMNS: Final = (64, 76)
# Secrets are told by so many of their first bytes, the shorter ones by fewer.
_HEADS_BYTES: Final = (16, 8, 4, 2, 1)


def forms_of(values: Iterable[str]) -> tuple[bytes, ...]:
    """Return the values of secrets, and the forms that programs print them in without meaning to.

    These are: without blanks around it, each line by itself, as in JSON and other quotes, in a URL, a form, in base64.
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
        yield repr(form)[1:-1].encode()
        yield quote(form).encode()
        yield quote(form, safe="").encode()
        yield quote_plus(form).encode()
        for coded in _in_base64(form.encode()):
            yield from (coded, coded.translate(bytes.maketrans(b"+/", b"-_")))
    yield from (line.strip().encode() for line in value.splitlines())


def _in_base64(data: bytes) -> Iterator[bytes]:
    """Return it in base64: by itself, and the letters that are its own whatever stands around it, as a user's name.

    The program `base64` writes what is long in lines, as mails have it.
    """
    yield base64.b64encode(data).rstrip(b"=")
    for ahead in range(3):
        yield base64.b64encode(bytes(ahead) + data)[-(-ahead * 8 // 6) : (ahead + len(data)) * 8 // 6]
    coded = base64.b64encode(data)[: len(data) * 8 // 6]
    for columns in _BASE64_COLUMNS:
        yield from (coded[at : at + columns] for at in range(0, len(coded), columns))


class Redactor:
    """Replaces secrets in a stream of bytes, across the borders of its pieces; what comes out does not depend on these.

    Secrets that overlap are covered together, so that no part of any is left.

    Args:
        secrets: the values; empty ones are none.
    """

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._search = _Search(secrets) if any(secrets) else None
        self._rest = b""
        # Of the rest, what belongs to a secret that has been replaced already.
        self._covered_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return what is safe to pass on; the end is kept back while it may be the beginning of a secret."""
        return self._release(self._rest + data, is_all=False)

    def flush(self) -> bytes:
        """Return what was kept back."""
        return self._release(self._rest, is_all=True)

    def redact(self, text: str) -> str:
        """Return a text by itself without secrets; not while a stream is being fed."""
        data = text.encode(errors="surrogatepass")
        return (self.feed(data) + self.flush()).decode(errors="replace")

    def _release(self, data: bytes, *, is_all: bool) -> bytes:
        if self._search is None:
            return data
        spans, cut = self._search.find(data, is_all=is_all)
        clean, done = [], self._covered_bytes
        for start, end in spans:
            if start >= done:
                clean += [data[done:start], REDACTED]
            done = max(done, end)
        self._rest, self._covered_bytes = data[cut:], max(0, done - cut)
        return b"".join([*clean, data[done:cut]])


class _Search:
    """Finds many secrets in one pass: by one expression of their beginnings, then by those that begin so.

    To look for each by itself takes a pass for each, and there may be thousands of forms.

    Args:
        secrets: at least one; empty ones are none.
    """

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._by_head: dict[bytes, list[bytes]] = {}
        self._beginnings: set[bytes] = set()
        for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may be a part of another
            head = secret[: _size_head(secret)]
            self._by_head.setdefault(head, []).append(secret)
            self._beginnings.update(head[:size] for size in range(1, len(head)))
        self._sizes = sorted({len(head) for head in self._by_head}, reverse=True)
        groups = ([head for head in self._by_head if len(head) == size] for size in self._sizes)
        self._candidates = re.compile(b"|".join(map(_make_expression, groups)))
        re.purge()  # it would keep the expressions of hundreds of experiments, which are large, and tell of secrets

    def find(self, data: bytes, *, is_all: bool) -> tuple[list[tuple[int, int]], int]:
        """Return where secrets begin and end, in order, and up to where `data` is judged.

        Args:
            data: where to look.
            is_all: nothing follows; else its end is not judged while it may be the beginning of a secret.
        """
        spans: list[tuple[int, int]] = []
        cut = len(data) if is_all else self._find_beginning(data)
        found = self._candidates.search(data)
        while found and (start := found.start()) < cut:
            for secret in self._choose(data, start):
                if data.startswith(secret, start):
                    spans.append((start, start + len(secret)))
                    break
                if not is_all and len(secret) > len(data) - start and secret.startswith(data[start:]):
                    return spans, start
            found = self._candidates.search(data, start + 1)
        return spans, cut

    def _choose(self, data: bytes, start: int) -> Iterator[bytes]:
        """Return those that may begin there, the longest ones first."""
        for size in self._sizes:
            yield from self._by_head.get(data[start : start + size], ())

    def _find_beginning(self, data: bytes) -> int:
        """Return where the beginning of a head stands at the end, or the end."""
        places = range(max(0, len(data) - self._sizes[0] + 1), len(data))
        return next((place for place in places if data[place:] in self._beginnings), len(data))


def _size_head(secret: bytes) -> int:
    return next(size for size in _HEADS_BYTES if size <= len(secret))


def _make_expression(heads: list[bytes]) -> bytes:
    """Return the expression of heads of one size: what each byte can be by itself, which is fast, then the heads."""
    classes = (b"".join(b"\\x%02x" % byte for byte in sorted(set(column))) for column in zip(*heads, strict=True))
    return b"[%s](?<=%s)" % (b"][".join(classes), _make_tree(heads))


def _make_tree(heads: list[bytes]) -> bytes:
    """Return the expression of heads of one size, in which those that begin alike are one until they differ."""
    branches: dict[bytes, list[bytes]] = {}
    for head in filter(None, heads):
        branches.setdefault(head[:1], []).append(head[1:])
    return b"(?:%s)" % b"|".join(re.escape(first) + _make_tree(rests) for first, rests in branches.items())


def redact_json(value: object, redactor: Redactor) -> object:
    """Return a JSON value without secrets: in its texts and names as they read, and in its numbers as they are written.

    Raises:
        RecursionError: it is nested too deeply.
    """
    match value:
        case dict():
            return {redactor.redact(str(name)): redact_json(item, redactor) for name, item in value.items()}
        case list():
            return [redact_json(item, redactor) for item in value]
        case str():
            return redactor.redact(value)
        case _:
            written = json.dumps(value)
            return value if redactor.redact(written) == written else REDACTED.decode()
