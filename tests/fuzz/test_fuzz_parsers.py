"""Whatever bytes a parser gets, it ends, and with nothing but the errors that it documents."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

# Of a larger one nothing is damaged: it is there for its size.
_LARGEST = 8192
_TOKENS = (b"\0", b"\xff" * 8, b"\n", b"-1", b"Infinity", b"NaN", b"null", b"[]", b"{}", b"\xed\xa0\x80", b"9" * 5000)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "../x", "9" * 400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Return a seed with a few of its bytes changed, taken out, doubled, or replaced by what often hurts."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        middle = draw(
            st.just(b"")
            | st.just(content[start:end] * 2)
            | st.sampled_from(_TOKENS)
            | st.binary(min_size=1, max_size=8)
        )
        content = content[:start] + middle + content[end:]
    return content


@st.composite
def rewritten(draw: st.DrawFn, seeds: tuple[dict[str, Any], ...]) -> bytes:
    """Return a seed of JSON with some of its values of another kind."""
    fields = dict(draw(st.sampled_from(seeds)))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True)):
        value = fields[name]
        if isinstance(value, dict) and value and draw(st.booleans()):
            fields[name] = {**value, draw(st.sampled_from(sorted(value))): draw(_JSON)}
        elif isinstance(value, list) and value and isinstance(value[0], dict) and value[0] and draw(st.booleans()):
            fields[name] = [{**value[0], draw(st.sampled_from(sorted(value[0]))): draw(_JSON)}]
        else:
            fields[name] = draw(_JSON)
    return json.dumps(fields).encode(errors="surrogatepass")


def inputs(name: str) -> st.SearchStrategy[bytes]:
    small = tuple(seed for seed in TARGETS[name].seeds() if len(seed) <= _LARGEST)
    objects = tuple(value for value in map(as_object, small) if value)
    strategies = [st.binary(max_size=64), damaged(small), *([rewritten(objects)] if objects else [])]
    return st.one_of(strategies)


def as_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@pytest.mark.security_case("Fuzzing of the parsers")
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_whatever_a_parser_gets_it_answers_as_documented(name: str) -> None:
    """Bytes that nobody meant, and sound ones that were damaged, reach a parser of what strangers send.

    Refused: each parser raises what its docstring names, or returns what it can write again.
    Evidence: some thousand inputs, made up anew from seeds; `make fuzz` makes up more, led by coverage.
    Red before: addresses with a bracket, keys with an umlaut, and manifests and markers with infinite numbers, deep
        nesting or other kinds of values raised what nobody expects.
    """

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(name))
    def feed(content: bytes) -> None:
        TARGETS[name](content)

    TARGETS[name].feed(TARGETS[name].seeds()[0])
    for seed in TARGETS[name].seeds():
        TARGETS[name](seed)
    feed()
