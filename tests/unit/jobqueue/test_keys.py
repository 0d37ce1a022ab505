"""Keys are files: made, mailed, trusted, revoked, re-read, and refused when they are not safe."""

import errno
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobqueue.errors import InvalidSetting, JobqueueError, KeyRefused, NotFound, Undecryptable
from jobqueue.ids import KeyId
from jobqueue.keys import (
    KeyRing,
    Reader,
    SealingPublicKey,
    Signer,
    SigningPublicKey,
    Suite,
    ensure_laptop_keys,
    list_keys,
    make_pair,
    parse_key,
    parse_reporting,
    revoke,
    trust,
    trust_lines,
)
from jobqueue.keys.signing import WEAK_Y, make_signing_key

NOW = datetime(2026, 7, 1, tzinfo=UTC)
PRIME = 2**255 - 19


class Clock:
    """Seconds that grow when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def private_file(folder: Path) -> Path:
    (path,) = folder.glob("*.key")
    return path


@pytest.mark.parametrize("suite", list(Suite))
def test_what_is_sealed_to_a_node_opens_with_its_key_from_the_file(tmp_path: Path, suite: Suite) -> None:
    public = make_pair(tmp_path, Reader.NODE, suite=suite)
    ring = KeyRing(tmp_path)
    ciphertext = ring.recipient("default_cpu").seal(b"spec", info=b"context")
    assert ring.recipient("default_cpu") == public
    assert ring.node_key(public.key_id).open(ciphertext, info=b"context") == b"spec"
    for changed, info in ((ciphertext, b"other"), (ciphertext[:-1], b"context"), (b"", b"context")):
        with pytest.raises(Undecryptable):
            ring.node_key(public.key_id).open(changed, info=info)


def test_the_suite_is_post_quantum_unless_said_otherwise(tmp_path: Path) -> None:
    assert make_pair(tmp_path, Reader.NODE).suite is Suite.MLKEM768_X25519


def test_what_a_sender_signs_holds_for_those_who_trust_it(tmp_path: Path) -> None:
    public = make_pair(tmp_path, Signer.SENDER)
    trust(tmp_path, public.line)
    ring = KeyRing(tmp_path)
    signature = ring.sender().sign(b"message")
    trusted = ring.trusted(public.key_id, queue="default_cpu")
    assert trusted.has_signed(b"message", signature)
    assert not trusted.has_signed(b"message!", signature)
    assert not trusted.has_signed(b"message", b"")


def test_private_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_pair(tmp_path / "keys", Reader.NODE)
        make_pair(tmp_path / "keys", Signer.SENDER)
    finally:
        os.umask(old)
    for role in ("node", "sender"):
        folder = tmp_path / "keys" / role
        assert folder.stat().st_mode & 0o777 == 0o700
        assert private_file(folder).stat().st_mode & 0o777 == 0o600
        assert sorted(path.suffix for path in folder.iterdir()) == [".key", ".pub"]
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


@pytest.mark.security_case("key file world-readable")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_read_is_refused_with_the_command_to_run(tmp_path: Path, mode: int) -> None:
    """A private key's file can be read by its group or by everybody.

    Refused: the key is not used, and the hint is the chmod to run.
    Evidence: looking it up raises KeyRefused for each mode.
    """
    make_pair(tmp_path, Signer.SENDER)
    path = private_file(tmp_path / "sender")
    path.chmod(mode)
    with pytest.raises(KeyRefused) as caught:
        KeyRing(tmp_path).sender()
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.security_case("key file world-readable")
def test_a_trusted_key_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    """The file of a trusted key can be replaced by others.

    Refused: nobody of that folder is trusted until it is mended.
    Evidence: looking it up raises KeyRefused.
    """
    key_id = trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    path = tmp_path / "trusted" / f"{key_id}.pub"
    path.chmod(0o664)
    with pytest.raises(KeyRefused, match="replace"):
        KeyRing(tmp_path).trusted(key_id, queue="q")


@pytest.mark.security_case("key file of another user")
@pytest.mark.parametrize("whose", ["keys/sender/*.key", "keys/trusted/*.pub", "keys/trusted", "keys"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key file, or a folder of keys, is another user's, who reads and replaces what is in it whatever its mode is.

    Refused: only what is one's own or root's is used; what is mounted read-only nobody changes.
    Evidence: listing the keys raises KeyRefused, with the chown to run; on a read-only mount the same is used.
    Red before: modes alone were looked at, so a worker of root's took a key that its owner could exchange.
    """
    folder = tmp_path / "keys"
    trust(folder, make_pair(folder, Signer.SENDER).line)
    assert len(list_keys(folder)) == 3
    try:
        os.chown(next(tmp_path.glob(whose)), 4711, -1)
    except OSError:  # only root may: but to a third user all of it is somebody else's
        monkeypatch.setattr("jobqueue.keys.files._ROOT", 4711)
        monkeypatch.setattr(os, "geteuid", lambda: 4712)
    with pytest.raises(KeyRefused, match="another user") as raised:
        list_keys(folder)
    assert f"chown {os.geteuid()} {folder}" in raised.value.hint
    for name in ("statvfs", "fstatvfs"):
        monkeypatch.setattr(os, name, lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert len(list_keys(folder)) == 3


@pytest.mark.security_case("key file world-readable")
@pytest.mark.parametrize("folder", ["trusted", "."])
def test_a_folder_that_others_can_add_keys_to_is_refused(tmp_path: Path, folder: str) -> None:
    """Others can put keys into the folder of those who are trusted, or another folder in its place.

    Refused: nobody of that folder is trusted until it is mended.
    Evidence: looking up raises KeyRefused with the chmod to run.
    """
    key_id = trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    (tmp_path / folder).chmod(0o777)
    with pytest.raises(KeyRefused) as raised:
        KeyRing(tmp_path).trusted(key_id, queue="q")
    assert raised.value.hint == f"chmod 700 {tmp_path / folder}"


def test_a_missing_key_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "nowhere")
    for look_up in (
        ring.sender,
        lambda: ring.recipient("q"),
        lambda: ring.node_key(KeyId("k")),
        lambda: ring.trusted(KeyId("k"), queue="q"),
        ring.node_signer,
        lambda: ring.trusted_node(KeyId("k"), queue="q"),
        lambda: ring.reporting_key(KeyId("k")),
    ):
        with pytest.raises(NotFound) as caught:
            look_up()
        assert "jobqueue keys " in caught.value.hint


def test_the_newest_key_is_used_and_an_older_one_still_opens(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, Reader.NODE), make_pair(tmp_path, Reader.NODE)
    signer = [make_pair(tmp_path, Signer.SENDER) for _ in range(2)][-1]
    ring = KeyRing(tmp_path)
    assert ring.recipient("q").key_id == second.key_id
    assert ring.node_key(first.key_id).open(first.seal(b"old", info=b""), info=b"") == b"old"
    assert ring.sender().public == signer


def test_a_key_that_appears_or_vanishes_is_noticed_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    ring = KeyRing(tmp_path, clock=clock)
    key_id = trust(tmp_path, make_pair(tmp_path / "other", Signer.SENDER).line)
    assert ring.trusted(key_id, queue="q").key_id == key_id
    revoke(tmp_path, key_id)
    assert ring.trusted(key_id, queue="q").key_id == key_id
    clock.seconds += 1
    with pytest.raises(NotFound):
        ring.trusted(key_id, queue="q")


def test_an_unchanged_folder_is_not_read_again(tmp_path: Path) -> None:
    clock = Clock()
    make_pair(tmp_path, Signer.SENDER)
    ring = KeyRing(tmp_path, clock=clock)
    first = ring.sender()
    clock.seconds += 5
    assert ring.sender() is first


def test_a_file_that_becomes_unsafe_is_refused_every_time_until_it_is_mended(tmp_path: Path) -> None:
    clock = Clock()
    make_pair(tmp_path, Signer.SENDER)
    path = private_file(tmp_path / "sender")
    ring = KeyRing(tmp_path, clock=clock)
    ring.sender()
    path.chmod(0o644)
    clock.seconds += 1
    for _ in range(2):
        with pytest.raises(KeyRefused):
            ring.sender()
    path.chmod(0o600)
    assert ring.sender()


def test_the_longest_queue_prefix_wins_alone(tmp_path: Path) -> None:
    everybody, team, lab = (make_pair(tmp_path / name, Signer.SENDER).line for name in "abc")
    for line, prefix in ((everybody, ""), (team, "team_"), (lab, "team_lab"), (everybody, "team_lab")):
        trust(tmp_path, line, queue_prefix=prefix)
    ring = KeyRing(tmp_path)
    allowed = {
        "default_cpu": [everybody],
        "team_cpu": [team],
        "team_lab_gpu": [lab, everybody],
    }
    for queue, lines in allowed.items():
        for line in (everybody, team, lab):
            key_id = _key_id(line)
            if line in lines:
                assert ring.trusted(key_id, queue=queue).line == line
            else:
                with pytest.raises(NotFound):
                    ring.trusted(key_id, queue=queue)


def _key_id(line: str) -> KeyId:
    key = parse_key(line)
    assert isinstance(key, SigningPublicKey | SealingPublicKey)
    return key.key_id


def test_a_queue_with_node_keys_of_its_own_is_sealed_to_them(tmp_path: Path) -> None:
    common, own = make_pair(tmp_path / "a", Reader.NODE), make_pair(tmp_path / "b", Reader.NODE)
    trust(tmp_path, own.line, queue_prefix="secret_")
    trust(tmp_path, common.line)
    ring = KeyRing(tmp_path)
    assert ring.recipient("secret_gpu").key_id == own.key_id
    assert ring.recipient("default_gpu").key_id == common.key_id


def test_a_nodes_reports_are_checked_with_the_key_that_is_trusted_for_the_queue(tmp_path: Path) -> None:
    common, lab = make_pair(tmp_path / "a", Signer.NODE), make_pair(tmp_path / "b", Signer.NODE)
    trust(tmp_path, common.line)
    trust(tmp_path, lab.line, queue_prefix="lab_")
    trust(tmp_path, make_pair(tmp_path / "c", Reader.NODE).line, queue_prefix="default_")
    ring = KeyRing(tmp_path)
    signature = KeyRing(tmp_path / "a").node_signer().sign(b"report")
    assert ring.trusted_node(common.key_id, queue="default_cpu").has_signed(b"report", signature)
    assert not ring.trusted_node(lab.key_id, queue="lab_cpu").has_signed(b"report", signature)
    with pytest.raises(NotFound, match="keys trust"):
        ring.trusted_node(common.key_id, queue="lab_cpu")


@pytest.mark.security_case("wrong key")
def test_a_nodes_signature_is_never_taken_for_a_senders(tmp_path: Path) -> None:
    """A node's key is used to sign messages as a sender.

    Refused: a key's id holds what it is for; a node's key is never among the senders.
    Evidence: neither its id nor that of the same bytes as a sender's key is found.
    """
    node = make_pair(tmp_path / "node", Signer.NODE)
    trust(tmp_path, node.line)
    (tmp_path / "trusted").mkdir(mode=0o700)
    shutil.copy(tmp_path / "node" / f"{node.key_id}.pub", tmp_path / "trusted")  # as if by mistake
    as_sender = SigningPublicKey(signer=Signer.SENDER, content=node.content, created_at=node.created_at)
    ring = KeyRing(tmp_path)
    assert node.key_id != as_sender.key_id
    for key_id in (node.key_id, as_sender.key_id):
        with pytest.raises(NotFound):
            ring.trusted(key_id, queue="q")


def test_reports_are_sealed_to_the_newest_key_for_the_queue_and_opened_with_any(tmp_path: Path) -> None:
    assert KeyRing(tmp_path).reporting("q") is None
    assert KeyRing(tmp_path).own_reporting() is None
    first, second = make_pair(tmp_path, Reader.REPORTING), make_pair(tmp_path, Reader.REPORTING)
    team = make_pair(tmp_path / "team", Reader.REPORTING)
    trust(tmp_path, team.line, queue_prefix="team_")
    ring = KeyRing(tmp_path)
    assert (ring.reporting("default_cpu"), ring.reporting("team_cpu")) == (second, team)
    assert ring.own_reporting() == second
    for key in (first, second):
        assert ring.reporting_key(key.key_id).open(parse_reporting(key.line).seal(b"r", info=b"i"), info=b"i") == b"r"
    with pytest.raises(NotFound, match="keys new reporting"):
        ring.reporting_key(team.key_id)


def test_a_revoked_key_for_reports_is_named_no_more_and_still_opens(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, Reader.REPORTING), make_pair(tmp_path, Reader.REPORTING)
    revoke(tmp_path, second.key_id)
    ring = KeyRing(tmp_path)
    assert ring.own_reporting() == ring.reporting("q") == first
    assert ring.reporting_key(second.key_id)


def test_a_node_without_a_key_to_sign_reports_with_says_what_to_run(tmp_path: Path) -> None:
    make_pair(tmp_path, Reader.NODE)
    trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    with pytest.raises(NotFound, match="sign reports with") as caught:
        KeyRing(tmp_path).check_node(["q"])
    assert "jobqueue keys new node" in caught.value.hint
    make_pair(tmp_path, Signer.NODE)
    KeyRing(tmp_path).check_node(["q"])


def test_a_node_whose_keys_are_all_below_its_floor_does_not_start(tmp_path: Path) -> None:
    make_pair(tmp_path, Reader.NODE, suite=Suite.X25519)
    make_pair(tmp_path, Signer.NODE)
    trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    KeyRing(tmp_path).check_node(["q"])
    with pytest.raises(NotFound, match="mlkem768"):
        KeyRing(tmp_path, weakest=Suite.MLKEM768_X25519).check_node(["q"])


def test_several_lines_are_trusted_at_once_or_not_at_all(tmp_path: Path) -> None:
    keys = [
        make_pair(tmp_path / "node", Reader.NODE),
        make_pair(tmp_path / "node", Signer.NODE),
        make_pair(tmp_path / "r", Reader.REPORTING),
    ]
    text = "".join(f"{key.line}\r\n\n" for key in keys).replace("AAA", "A\r\nA A")
    assert trust_lines(tmp_path, text) == [key.key_id for key in keys]
    with pytest.raises(KeyRefused):
        trust_lines(tmp_path / "other", f"{text}\njobqueue-no-key here 2026-07-01T00:00:00Z")
    assert not (tmp_path / "other").exists()
    for nothing in ("", " \n", f"Dear colleague {text}"):
        with pytest.raises(KeyRefused):
            trust_lines(tmp_path / "other", nothing)


@pytest.mark.parametrize("prefix", ["../x", "a.b", "a/b", "-a", "a" * 71])
def test_a_prefix_that_no_queue_can_have_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InvalidSetting, match="prefix"):
        trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line, queue_prefix=prefix)


def test_a_line_survives_a_mail_program(tmp_path: Path) -> None:
    line = make_pair(tmp_path / "node", Reader.NODE).line
    assert "\n" not in line
    kind, content, created = line.split(" ")
    wrapped = "\r\n".join([kind, *(content[at : at + 76] for at in range(0, len(content), 76)), created])
    assert trust(tmp_path, f"\n  {wrapped}\n\n") == _key_id(line)


def test_what_is_not_a_public_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    make_pair(tmp_path / "mine", Signer.SENDER)
    private = private_file(tmp_path / "mine" / "sender").read_text()
    public = make_pair(tmp_path / "other", Signer.SENDER).line
    kind, content, created = public.split(" ")
    for line in (
        "",
        "ssh-ed25519 AAAA me@here",
        private,
        public[:-30],
        f"{kind} {content}!! {created}",
        f"{kind} {content[:-4]} {created}",
        f"{kind} {content} yesterday",
        f"{kind} {content} 2026-07-01T00:00:00",
        f"jobqueue-sender-rsa {content} {created}",
        f"jobqueue-node-x25519 {content[:8]} {created}",
        f"jobqueue-node-mlkem768-x25519 {content} {created}",
    ):
        with pytest.raises(KeyRefused) as caught:
            trust(tmp_path, line)
        assert content[:10] not in str(caught.value)
        assert private.split()[1][:10] not in str(caught.value)
    assert not (tmp_path / "trusted").exists()


def test_the_weak_points_are_the_eight_of_small_order() -> None:
    identity = (0, 1)
    points = [point for y in WEAK_Y for point in _points(y)]
    assert len(points) == 8
    for point in points:
        for _ in range(3):
            point = _add(point, point)  # noqa: PLW2901 - doubled in place
        assert point == identity


@pytest.mark.security_case("small-order keys")
@pytest.mark.parametrize("y", [*sorted(WEAK_Y), PRIME, PRIME + 1, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_weak_sender_key_is_refused_when_it_is_registered_and_when_it_is_used(
    tmp_path: Path, y: int, sign: int
) -> None:
    """A key of small order is given out as a sender's: under it zeros are a signature of anything.

    Refused: refused when it is installed, and when its file is read.
    Evidence: all eight points, and encodings that are not canonical, raise KeyRefused.
    """
    content = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(KeyRefused, match="weak"):
        SigningPublicKey(signer=Signer.SENDER, content=content, created_at=NOW)
    good = make_pair(tmp_path, Signer.SENDER)
    path = tmp_path / "trusted" / f"{trust(tmp_path, good.line)}.pub"
    object.__setattr__(good, "content", content)
    with pytest.raises(KeyRefused, match="weak"):
        trust(tmp_path, good.line)
    path.write_text(good.line)
    with pytest.raises(KeyRefused, match="weak") as caught:
        KeyRing(tmp_path).trusted(good.key_id, queue="q")
    assert str(path) in caught.value.message


@pytest.mark.security_case("Signature changed")
@pytest.mark.parametrize("times", range(1, 16))
def test_a_signature_has_one_form(times: int) -> None:
    """Somebody who reads the broker makes another signature of a sound one, by adding the order of the group to it.

    Refused: only the smallest of those numbers is a signature; a message has one digest.
    Evidence: what was signed holds, and does not with each of the fifteen that fit.
    """
    pair = make_signing_key(Signer.SENDER, NOW)
    signature = pair.sign(b"message")
    number = int.from_bytes(signature[32:], "little") + times * (2**252 + 27742317777372353535851937790883648493)
    assert pair.public.has_signed(b"message", signature)
    if number < 2**256:
        assert not pair.public.has_signed(b"message", signature[:32] + number.to_bytes(32, "little"))


def test_a_node_key_that_leads_to_no_secret_is_refused() -> None:
    with pytest.raises(KeyRefused):
        SealingPublicKey(reader=Reader.NODE, suite=Suite.X25519, content=bytes(32), created_at=NOW)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_line_whose_time_is_none_in_utc_is_refused(tmp_path: Path, moment: str) -> None:
    line = " ".join([*make_pair(tmp_path, Reader.REPORTING).line.split()[:2], moment])
    with pytest.raises(KeyRefused, match="the time it was made"):
        parse_reporting(line)


def test_a_file_that_is_not_named_after_its_key_is_refused(tmp_path: Path) -> None:
    key_id = trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    path = tmp_path / "trusted" / f"{key_id}.pub"
    path.rename(path.with_name("friend.pub"))
    with pytest.raises(KeyRefused, match="keys trust"):
        KeyRing(tmp_path).trusted(key_id, queue="q")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    key_id = trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    for name in ("README", ".beside.pub", "..data"):
        (tmp_path / "trusted" / name).write_text("not a key")
    assert KeyRing(tmp_path).trusted(key_id, queue="q")


def test_the_list_shows_every_key_and_no_private_part(tmp_path: Path) -> None:
    ensure_laptop_keys(tmp_path)
    trust(tmp_path, make_pair(tmp_path / "other", Signer.SENDER).line, queue_prefix="team_")
    entries = list_keys(tmp_path)
    assert [(entry.role, entry.path.suffix, entry.queue_prefix) for entry in entries] == [
        ("node", ".key", ""), ("node", ".pub", ""), ("node", ".key", ""), ("node", ".pub", ""),
        ("sender", ".key", ""), ("sender", ".pub", ""), ("trusted", ".pub", ""), ("trusted", ".pub", "team_"),
    ]  # fmt: skip
    assert "content=b" not in repr([entry for entry in entries if entry.path.suffix == ".key"])


def test_a_revoked_key_is_gone_and_a_nodes_old_messages_still_open(tmp_path: Path) -> None:
    node, sender = make_pair(tmp_path, Reader.NODE), make_pair(tmp_path, Signer.SENDER)
    trust(tmp_path, sender.line, queue_prefix="a_")
    trust(tmp_path, sender.line, queue_prefix="b_")
    revoke(tmp_path, node.key_id)
    revoke(tmp_path, sender.key_id)
    ring = KeyRing(tmp_path)
    assert ring.node_key(node.key_id)
    assert len(list_keys(tmp_path)) == 1
    with pytest.raises(NotFound):
        revoke(tmp_path, sender.key_id)


def test_a_laptop_gets_a_complete_set_once(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "keys"
    ensure_laptop_keys(folder)
    before = sorted(folder.rglob("*"))
    ensure_laptop_keys(folder)
    assert sorted(folder.rglob("*")) == before
    ring = KeyRing(folder)
    assert ring.node_key(ring.recipient("any_queue").key_id)
    assert ring.trusted(ring.sender().public.key_id, queue="any_queue") == ring.sender().public
    assert ring.trusted_node(ring.node_signer().public.key_id, queue="any_queue") == ring.node_signer().public
    assert ring.reporting("any_queue") == ring.own_reporting()


def test_a_laptop_set_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    ensure_laptop_keys(tmp_path)
    for path in (*tmp_path.glob("node/*.pub"), *tmp_path.glob("trusted/*")):
        path.unlink()
    ensure_laptop_keys(tmp_path)
    ring = KeyRing(tmp_path)
    assert ring.node_key(ring.recipient("q").key_id)
    assert ring.trusted(ring.sender().public.key_id, queue="q")


def test_processes_that_make_laptop_keys_at_once_make_one_set(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork" if threading.active_count() == 1 else "spawn")) as pool:
        list(pool.map(ensure_laptop_keys, [tmp_path / "keys"] * 4))
    assert len(list((tmp_path / "keys").rglob("*.key"))) == 3


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyRefused, match="disk full"):
        make_pair(tmp_path, Signer.SENDER)
    assert list((tmp_path / "sender").iterdir()) == []


def test_every_error_is_one_of_ours_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "trusted").mkdir(mode=0o700)
    (tmp_path / "trusted" / "x.pub").write_bytes(b"\xff" * 100)
    with pytest.raises(JobqueueError) as caught:
        list_keys(tmp_path)
    assert caught.value.hint


def _points(y: int) -> list[tuple[int, int]]:
    """Return the points of the curve with this y: independent of the library, straight from RFC 8032."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, PRIME) % PRIME
    roots = {x for root in (pow(square, (PRIME + 3) // 8, PRIME),) for x in (root, root * _SQRT_MINUS_1 % PRIME)}
    return [(x, y) for x in {sign % PRIME for root in roots for sign in (root, -root)} if x * x % PRIME == square]


def _add(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = left, right
    product = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, PRIME) % PRIME
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, PRIME) % PRIME
    return x, y


_D = -121665 * pow(121666, -1, PRIME) % PRIME
_SQRT_MINUS_1 = pow(2, (PRIME - 1) // 4, PRIME)
