"""Keys of nodes that are published through a registry which lies."""

import errno
import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobqueue.errors import KeyRefused, NotFound
from jobqueue.keys import (
    KeyRing,
    Reader,
    SealingPublicKey,
    Signer,
    SigningPublicKey,
    Suite,
    make_pair,
    revoke,
    sign_list,
    trust,
)
from jobqueue.keys.directory import MAX_LIST_BYTES

AT = datetime.now(UTC) - timedelta(minutes=1)
LIFE = timedelta(days=30)


class World:
    """An operator who has published some keys, and a sender who trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self.later = folder, 0.0, timedelta(0)
        self.operator_keys, self.sender_keys = folder / "operator's", folder / "sender's"
        self.operator: SigningPublicKey = make_pair(self.operator_keys, Signer.OPERATOR)
        self.shown: dict[str, bytes] = {}
        trust(self.sender_keys, self.operator.line)
        self.ring = self.make_ring()

    def make_ring(self, *, weakest: Suite = Suite.X25519) -> KeyRing:
        """Return the sender's keys, as a new process has them."""
        return KeyRing(
            self.sender_keys,
            clock=lambda: self.seconds,
            now=lambda: datetime.now(UTC) + self.later,
            shown=lambda: self.shown,
            weakest=weakest,
        )

    def make_node(self, name: str, *, suite: Suite = Suite.MLKEM768_X25519) -> SealingPublicKey:
        """Return the key of a new node."""
        return make_pair(self.folder / name, Reader.NODE, suite=suite)

    def sign(self, *keys: tuple[str, SealingPublicKey], after: timedelta = timedelta(0)) -> bytes:
        """Return a list as the operator signs it."""
        at = AT + after
        return sign_list(keys, at=at, until=at + LIFE, operator=KeyRing(self.operator_keys).operators()[-1])

    def sign_body(self, body: str) -> bytes:
        """Return any text, signed as a list."""
        signature = KeyRing(self.operator_keys).operators()[-1].sign(b"jobqueue/v1/published" + body.encode()).hex()
        return json.dumps({"body": body, "signature": signature}).encode()

    def show(self, document: bytes) -> None:
        """Have the registry show a document, and the sender ask again."""
        self.shown[self.operator.key_id] = document
        self.seconds += 60


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_sender_seals_to_what_a_trusted_operator_publishes(world: World) -> None:
    common, lab = world.make_node("common"), world.make_node("lab")
    world.show(world.sign(("", common), ("lab_", lab)))
    assert (world.ring.recipient("default_cpu"), world.ring.recipient("lab_gpu")) == (common, lab)


def test_a_key_of_ones_own_folder_comes_before_what_is_published(world: World) -> None:
    own = world.make_node("own")
    trust(world.sender_keys, own.line, queue_prefix="lab_")
    world.show(world.sign(("lab_", world.make_node("other"))))
    assert world.ring.recipient("lab_cpu") == own
    with pytest.raises(NotFound):
        world.ring.recipient("default_cpu")


def test_a_published_key_is_used_once_its_time_has_come(world: World) -> None:
    now = datetime.now(UTC)
    old = make_pair(world.folder / "old", Reader.NODE, used_from=now - timedelta(days=1))
    new = make_pair(world.folder / "new", Reader.NODE, used_from=now + timedelta(days=1))
    world.show(world.sign(("", new), ("", old)))
    assert world.ring.recipient("q") == old


@pytest.mark.security_case("published key forged")
def test_a_list_that_no_trusted_operator_has_signed_changes_nothing(world: World, tmp_path: Path) -> None:
    """Whoever can write to the registry publishes a node's key of its own, for all queues or another prefix.

    Refused: nothing is sealed to a key whose list the trusted operator has not signed as it is.
    Evidence: unsigned, self-signed, re-labelled, mangled and oversized lists leave the sender with the key it had.
    """
    mine, good = world.make_node("attacker"), world.make_node("good")
    sound = world.sign(("lab_", good))
    make_pair(tmp_path / "attacker", Signer.OPERATOR)
    attacker = KeyRing(tmp_path / "attacker").operators()[-1]
    forged = sign_list([("", mine)], at=AT + timedelta(days=1), until=AT + LIFE, operator=attacker)
    outside = json.loads(sound)
    for document in (
        forged,
        json.dumps({**outside, "body": outside["body"].replace('"lab_"', '""')}).encode(),
        json.dumps({**outside, "body": json.loads(forged)["body"]}).encode(),
        json.dumps({**outside, "body": outside["body"].replace('"until": "20', '"until": "21')}).encode(),
        json.dumps({**outside, "signature": ""}).encode(),
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        sound + b" " * 300_000,
    ):
        world.show(document)
        with pytest.raises(NotFound):
            world.ring.recipient("default_cpu")
    world.show(sound)
    assert world.ring.recipient("lab_cpu") == good
    world.show(forged)
    assert (world.ring.recipient("lab_cpu"), world.make_ring().recipient("lab_cpu")) == (good, good)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"at": 1, "until": "2999-01-01T00:00:00Z", "keys": []}',
        '{"at": "2099-01-01T00:00:00", "until": "2999-01-01T00:00:00Z", "keys": []}',
        '{"at": "2099-01-01T00:00:00Z", "keys": []}',
        '{"at": "2099-01-01T00:00:00Z", "until": 1, "keys": []}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00", "keys": []}',
        '{"at": "2099-01-01T00:00:00Z", "until": "9999-12-31T23:59:59-01:00", "keys": []}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": 1}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": [1]}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": [{"queue": 1, "line": "LINE"}]}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": [{"queue": "lab_", "line": 1}]}',
        '{"at": "2099-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": [{"queue": "", "line": "no key"}]}',
    ],
)
def test_a_signed_list_that_is_none_changes_nothing(world: World, body: str) -> None:
    node = world.make_node("node")
    world.show(world.sign(("", node)))
    assert world.ring.recipient("default_cpu") == node
    world.show(world.sign_body(body.replace("LINE", node.line)))
    assert world.ring.recipient("default_cpu") == world.make_ring().recipient("default_cpu") == node


def test_a_list_that_nobody_would_read_is_not_signed(world: World) -> None:
    node = world.make_node("node")
    with pytest.raises(KeyRefused, match="bytes"):
        world.sign(*[(f"lab{number}_", node) for number in range(MAX_LIST_BYTES // len(node.line) + 1)])


@pytest.mark.security_case("published key replayed")
def test_an_older_list_that_is_shown_again_changes_nothing(world: World) -> None:
    """The registry shows the list from before a stolen node's key was unpublished, or hides the newer one.

    Refused: the newest list that was ever seen is kept beside the operator's key, and counts.
    Evidence: nothing is sealed to the stolen node's key, by this process and by a new one.
    """
    stolen, fresh = world.make_node("stolen"), world.make_node("fresh")
    older = world.sign(("", stolen))
    world.show(older)
    assert world.ring.recipient("q") == stolen
    world.show(world.sign(("", fresh), after=timedelta(seconds=1)))
    assert world.ring.recipient("q") == fresh
    for document in (older, b""):
        world.show(document)
        assert (world.ring.recipient("q"), world.make_ring().recipient("q")) == (fresh, fresh)


def test_an_older_list_changes_nothing_where_the_newest_cannot_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    stolen, fresh = world.make_node("stolen"), world.make_node("fresh")
    older = world.sign(("", stolen))
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "fsync", refuse)
        world.show(world.sign(("", fresh), after=timedelta(seconds=1)))
        assert world.ring.recipient("q") == fresh
        for document in (older, b""):
            world.show(document)
            assert world.ring.recipient("q") == fresh
    world.show(older)
    assert (world.ring.recipient("q"), world.make_ring().recipient("q")) == (fresh, fresh)


def test_a_list_that_cannot_be_kept_counts_and_one_that_cannot_be_read_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    node, folder = world.make_node("node"), world.sender_keys / "operator"
    world.show(world.sign(("", node)))
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        assert world.ring.recipient("q") == node
    assert [path.suffix for path in folder.iterdir()] == [".pub"]
    (folder / f"{world.operator.key_id}.published").mkdir()
    with pytest.raises(KeyRefused, match="cannot be read"):
        world.make_ring().recipient("q")


@pytest.mark.security_case("published key replayed")
def test_a_list_ends_for_whom_no_newer_one_is_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A registry shows an old list, with a stolen node's key, for ever: to senders that have never seen another one.

    Refused: a list is signed until a time, 30 days by default; then nothing is sealed to what is in it.
    Evidence: the error and what it tells to do, also for a queue of a less specific key; a warning before, once.
    Red before: a list counted for ever.
    """
    caplog.set_level(logging.WARNING)
    stolen, other = world.make_node("stolen"), make_pair(world.folder / "other operator's", Signer.OPERATOR)
    second = KeyRing(world.folder / "other operator's").operators()[-1]
    world.shown[other.key_id] = sign_list([("", stolen)], at=AT, until=AT + 3 * LIFE, operator=second)
    trust(world.sender_keys, other.line)
    world.show(world.sign(("lab_", stolen)))
    assert world.ring.recipient("lab_cpu") == stolen
    assert caplog.text == ""
    for _ in range(3):
        world.later, world.seconds = LIFE * 0.8, world.seconds + 60
        assert world.ring.recipient("lab_cpu") == stolen
    assert caplog.text.count("keys.list_ends") == 1
    world.later = LIFE
    for ring in (world.ring, world.make_ring()):
        with pytest.raises(NotFound, match="no newer list") as raised:
            ring.recipient("lab_cpu")
        assert "jobqueue keys publish" in raised.value.hint
        assert ring.recipient("default_cpu") == stolen, "which is the other operator's to say"
    fresh = world.make_node("fresh")
    world.show(world.sign(("lab_", fresh), after=LIFE))
    assert world.ring.recipient("lab_cpu") == fresh


def test_a_newer_list_that_has_ended_is_not_replaced_by_an_older_one(world: World) -> None:
    old, new = world.make_node("old"), world.make_node("new")
    operator = KeyRing(world.operator_keys).operators()[-1]
    older = sign_list([("", old)], at=AT, until=AT + 100 * LIFE, operator=operator)
    world.show(world.sign(("", new), after=timedelta(seconds=1)))
    assert world.ring.recipient("q") == new
    world.later = LIFE * 2
    world.show(older)
    with pytest.raises(NotFound, match="no newer list"):
        world.ring.recipient("q")


def test_a_kind_of_key_that_is_not_known_yet_leaves_the_others_and_its_queues_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    common, lab = world.make_node("common"), world.make_node("lab")
    newer = lab.line.replace("node-mlkem768-x25519", "node-mlkem1024-x448")
    lines = [("", common.line), ("lab_", lab.line), ("lab_", newer), ("vision_", newer)]
    body = {"at": AT.isoformat(), "until": (AT + LIFE).isoformat()}
    body |= {"keys": [{"queue": prefix, "line": line} for prefix, line in lines]}  # type: ignore[dict-item]
    world.show(world.sign_body(json.dumps(body)))
    assert (world.ring.recipient("default_cpu"), world.ring.recipient("lab_cpu")) == (common, lab)
    assert caplog.text.count("keys.unknown_kind") == 1
    with pytest.raises(NotFound, match="does not know") as raised:
        world.ring.recipient("vision_cpu")  # nor to `common`, whose nodes need not be those of the queue
    assert "update" in raised.value.hint


@pytest.mark.security_case("published key forged")
def test_an_operator_that_is_revoked_or_trusted_for_other_queues_publishes_nothing_here(world: World) -> None:
    """An operator publishes keys for queues that it is not trusted for, or after it was revoked.

    Refused: a list counts for the queues of the operator's prefix, and while the operator is trusted.
    Evidence: nothing is found to seal to.
    """
    revoke(world.sender_keys, world.operator.key_id)
    trust(world.sender_keys, world.operator.line, queue_prefix="lab_")
    node = world.make_node("node")
    world.show(world.sign(("", node)))
    assert world.ring.recipient("lab_cpu") == node
    with pytest.raises(NotFound):
        world.ring.recipient("default_cpu")
    revoke(world.sender_keys, world.operator.key_id)
    world.seconds += 60
    with pytest.raises(NotFound):
        world.ring.recipient("lab_cpu")


@pytest.mark.security_case("suite below the floor")
def test_a_published_key_below_the_floor_is_not_sealed_to(world: World) -> None:
    """An operator publishes a node's key of a weaker suite than the sender's floor.

    Refused: nothing is sealed to it.
    Evidence: looking for a key raises, and names what is missing.
    """
    world.show(world.sign(("", world.make_node("weak", suite=Suite.X25519))))
    assert world.ring.recipient("q")
    with pytest.raises(Exception, match="mlkem768"):
        world.make_ring(weakest=Suite.MLKEM768_X25519).recipient("q")
