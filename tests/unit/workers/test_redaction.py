"""Secrets are found in a stream, whatever they are and wherever it is cut."""

import base64
import gc
import hashlib
import itertools
import json
import time
import weakref
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.attempt.redaction import REDACTED, Redactor, _Search, forms_of

# None of the letters of the mark, so that it can be told from what an experiment wrote; few, so that secrets overlap.
LETTERS = "ab\n\0\u00fc"
VALUES = st.lists(st.text(LETTERS, min_size=1, max_size=12).map(str.encode), min_size=1, max_size=4).map(tuple)


def redacted(secrets: tuple[bytes, ...], *pieces: bytes) -> bytes:
    redactor = Redactor(secrets)
    return b"".join([*map(redactor.feed, pieces), redactor.flush()])


def by_hand(secrets: tuple[bytes, ...], text: bytes) -> bytes:
    """Return what is left: a byte stays unless it belongs to a secret; secrets that overlap are one."""
    starts = {start for secret in secrets for start in range(len(text)) if text.startswith(secret, start)}
    clean, done = b"", 0
    for place in range(len(text)):
        if place in starts:
            clean += REDACTED if place >= done else b""
            done = max(done, *(place + len(secret) for secret in secrets if text.startswith(secret, place)))
        clean += text[place : place + 1] if place >= done else b""
    return clean


@pytest.mark.security_case("secrets in a stream")
@given(secrets=VALUES, text=st.text(LETTERS, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=12))
@example(secrets=(b"abcdef", b"abc"), text="abcdef", cuts=[3])
@example(secrets=(b"abc", b"bcd"), text="abcd", cuts=[2, 3])
@example(secrets=(b"aa",), text="aaaaaaa", cuts=[1, 2, 3, 4, 5, 6])
@example(secrets=(b"abab", b"ba\nb"), text="ababa\nb", cuts=[4])
@example(secrets=("a\u00fcb".encode(),), text="a\u00fcb", cuts=[2])
@example(secrets=(b"(a|b)*\\", b"[^]-.]{2}$", b"^"), text="a(a|b)*\\\n[^]-.]{2}$", cuts=[5])
@example(secrets=(b"aabb\0\0", b"abb"), text="aabb\0\0", cuts=[3])
def test_no_secret_comes_out_whatever_it_is_and_wherever_the_stream_is_cut(
    secrets: tuple[bytes, ...], text: str, cuts: list[int]
) -> None:
    """Secrets printed in pieces: short ones, some that overlap or contain others, with line ends, NUL or half letters.

    Refused: none of them, nor the rest of one that overlaps another, leaves the node; everything else does.
    Evidence: over random secrets, texts and borders, what comes out is what a search of the whole text leaves.
    Red before: of two secrets that overlap, or begin alike, the end of the longer one was left.
    """
    content = text.encode()
    borders = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    out = redacted(secrets, *(content[first:last] for first, last in itertools.pairwise(borders)))
    assert not any(secret in out for secret in secrets)
    assert out == by_hand(secrets, content)


@given(secret=st.text(LETTERS, min_size=1, max_size=12), text=st.text(LETTERS, max_size=30))
def test_a_text_is_redacted_as_a_stream_is(secret: str, text: str) -> None:
    secrets = (secret.encode(),)
    assert Redactor(secrets).redact(text) == by_hand(secrets, text.encode()).decode(errors="replace")


def test_memory_is_bounded_by_the_longest_secret() -> None:
    redactor = Redactor((b"a" * 100, b"aa"))
    out = [redactor.feed(b"a" * 1000) for _ in range(50)]
    assert len(redactor._rest) < 100
    assert b"".join(out) == REDACTED


def test_many_secrets_are_looked_for_at_once() -> None:
    secrets = forms_of(hashlib.sha256(bytes([number])).hexdigest() for number in range(64))
    redactor = Redactor(secrets)
    line = b"[INFO] step 1234/5678 loss=0.1234 accuracy=0.98 lr=1e-4 on cuda:0, 12.3 images a second\n"
    began = time.process_time()
    assert b"".join(redactor.feed(line) for _ in range(10_000)) + redactor.flush() == line * 10_000
    assert time.process_time() - began < 2  # a tenth of that, and five seconds when each was looked for by itself


def test_what_begins_as_no_secret_does_costs_no_step_of_its_own() -> None:
    search = _Search(forms_of(["111111", "222222"]))
    assert search._candidates.search(b"121212 MTMT") is None
    assert [found.start() for found in search._candidates.finditer(b"12122221211112 MTEx")] == [3, 9]


def test_nothing_of_a_secret_outlives_its_redactor() -> None:
    redactor = Redactor(forms_of(["hunter2-hunter2"]))
    assert redactor._search
    kept = weakref.ref(redactor._search._candidates)
    del redactor
    gc.collect()
    assert kept() is None


@pytest.mark.security_case("secrets in other forms")
@pytest.mark.parametrize(
    "secret", ['pa"ss w\u00f6rd/+1', "-----BEGIN KEY-----\nfirst line\nsecond line\n", " padded-value\n"]
)
def test_a_secret_is_found_in_the_forms_that_programs_print(secret: str) -> None:
    """A secret that a program prints in quotes, as JSON, in a URL or a form, in base64, without its line end, by lines.

    Refused: these forms are looked for as the value itself is.
    Evidence: nothing of them is left in what comes out.
    Red before: the value itself was looked for alone; then not behind a user's name in base64, nor in a form.
    """
    plain = secret.strip()
    words = [secret, plain, repr(secret)[1:-1], repr(plain)[1:-1], *plain.splitlines()]
    words += [json.dumps(each, ensure_ascii=is_ascii)[1:-1] for each in (secret, plain) for is_ascii in (True, False)]
    words += [quote(plain), quote(secret, safe=""), quote_plus(plain)]
    for code in (base64.b64encode, base64.urlsafe_b64encode):
        words += [code(each.encode()).decode().rstrip("=") for each in (secret, plain)]
    printed = "\0".join(f"key=<{word}>" for word in words)
    assert redacted(forms_of([secret]), printed.encode()).decode().split("\0") == ["key=<[secret]>"] * len(words)


@pytest.mark.parametrize("ahead", ["", "a", "me:", "user:", "a whole name:"])
@pytest.mark.parametrize("behind", ["", ":", ":x", "\n"])
@pytest.mark.parametrize("secret", ["hunter2-hunter2", "/+?>~~ \u00fc\u00ff"])
def test_a_secret_is_found_in_base64_with_something_around_it(secret: str, ahead: str, behind: str) -> None:
    forms = forms_of([secret])
    for code in (base64.b64encode, base64.urlsafe_b64encode):
        text = code(f"{ahead}{secret}{behind}".encode())
        left = redacted(forms, b"Authorization: Basic ", text, b"\r\n")
        before, mark, after = left.removeprefix(b"Authorization: Basic ").rstrip(b"\r\n").partition(REDACTED)
        assert mark
        assert len(before) <= -(-len(ahead) * 8 // 6)
        assert text.startswith(before)
        assert len(after.rstrip(b"=")) <= -(-len(behind) * 8 // 6) + 1


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("columns", [64, 76])
def test_a_long_secret_is_found_in_base64_that_is_written_in_lines(end: str, columns: int) -> None:
    secret = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(8))
    text = base64.b64encode(f"{secret}{end}".encode()).decode()
    lines = "\n".join(text[at : at + columns] for at in range(0, len(text), columns))
    left = redacted(forms_of([secret]), lines.encode()).decode()
    assert all(len(line.replace(REDACTED.decode(), "")) < 6 for line in left.splitlines())


def test_what_is_short_is_looked_for_as_it_is_alone() -> None:
    assert forms_of(["", "a", "x y"]) == (b"a", b"x y")
    assert b"12345" not in forms_of(["12345\n"])
    assert b"123456" in forms_of(["123456\n"])


def test_what_begins_no_secret_is_not_kept_back() -> None:
    redactor = Redactor((b"hunter2-hunter2",))
    assert redactor.feed(b"epoch 1 by h") + redactor.feed(b"and\n") == b"epoch 1 by hand\n"


def test_a_text_with_half_a_character_is_redacted_all_the_same() -> None:
    assert Redactor((b"hunter2",)).redact("\ud83d hunter2") == "\ufffd\ufffd\ufffd [secret]"
