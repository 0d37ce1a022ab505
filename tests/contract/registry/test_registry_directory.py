"""Every registry keeps the newest document of each operator, as it came."""

from uuid import uuid4

from jobqueue.registry.base import Registry


def test_a_document_is_kept_as_it_came_until_the_next_one(registry: Registry) -> None:
    one, other = uuid4().hex, uuid4().hex
    assert one not in registry.directory.documents()
    assert registry.directory.put({one: b"first"}, seen={})
    assert registry.directory.put({other: bytes(range(256))}, seen={})
    assert registry.directory.put({one: b"second"}, seen=registry.directory.documents())
    found = registry.directory.documents()
    assert (found[one], found[other]) == (b"second", bytes(range(256)))


def test_what_was_replaced_since_it_was_seen_stays_and_with_it_all_that_was_to_be_put_together(
    registry: Registry,
) -> None:
    one, other = uuid4().hex, uuid4().hex
    nothing = registry.directory.documents()
    assert registry.directory.put({one: b"first", other: b"first"}, seen=nothing)
    seen = registry.directory.documents()
    assert registry.directory.put({other: b"somebody else's"}, seen=seen)
    for before in (nothing, seen):
        assert not registry.directory.put({one: b"second", other: b"second"}, seen=before)
    found = registry.directory.documents()
    assert (found[one], found[other]) == (b"first", b"somebody else's")
    assert registry.directory.put({one: b"second"}, seen=seen), "nobody has replaced that one"
