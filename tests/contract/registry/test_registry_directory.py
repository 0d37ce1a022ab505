"""Every registry keeps the newest document of each operator, as it came."""

from uuid import uuid4

from jobqueue.registry.base import Registry


def test_a_document_is_kept_as_it_came_until_the_next_one(registry: Registry) -> None:
    one, other = uuid4().hex, uuid4().hex
    assert one not in registry.directory.documents()
    registry.directory.put(one, b"first")
    registry.directory.put(other, bytes(range(256)))
    registry.directory.put(one, b"second")
    found = registry.directory.documents()
    assert (found[one], found[other]) == (b"second", bytes(range(256)))
