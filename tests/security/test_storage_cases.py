"""What a node without credentials, and who has stolen one, can read and write of the store: nothing but its own."""

import hashlib
import json
import logging
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from services.certificates import Authority
from services.clerk import Counter, Started, introduce, open_counter
from services.rclone import RcloneServer, open_rclone
from services.secured import HOST, show_certificate
from services.submissions import submission_of
from services.waiting import wait_until

from jobqueue.artifacts import Manifest, OutputFile, attempt_prefix, manifest_key, output_key, result_key
from jobqueue.errors import ArtifactRefused, JobqueueError, Refused, StoreUnavailable, Superseded
from jobqueue.grants import MAX_REQUEST_BYTES, Wish, read_reply
from jobqueue.keys import KeyRing, Reader, Signer, make_pair
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import Marker, marker_to_json
from jobqueue.permit import make_permit
from jobqueue.registry.base import Lease
from jobqueue.storage import locate, open_store, show_permit, signed_urls
from jobqueue.storage.base import PROBE, Store, StoredObject, check_store
from jobqueue.storage.granted import GrantedStore
from jobqueue.storage.manifests import digest_manifest, load_manifest, save_manifest
from jobqueue.storage.markers import read_marker, write_marker
from producers.outputs import Outputs
from producers.pace import Pace

pytestmark = pytest.mark.security
SHORT = timedelta(minutes=1)
BUCKETS = ("site", "shared-data", "private-data")


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    """A clerk of a store in memory: what needs no URL."""
    return open_counter(tmp_path, open_store(f"memory://{uuid.uuid4()}"))


@pytest.fixture(scope="module")
def rclone_server(
    tmp_path_factory: pytest.TempPathFactory, share: Callable[..., AbstractContextManager[RcloneServer]]
) -> Iterator[RcloneServer]:
    with share("rclone_server", open_rclone(tmp_path_factory.mktemp("rclone"), buckets=BUCKETS)) as server:
        yield server


@pytest.fixture
def signing(rclone_server: RcloneServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """A clerk of a store that checks signatures and when they expire."""
    for name, value in rclone_server.environment.items():
        monkeypatch.setenv(name, value)
    return open_counter(
        tmp_path, open_store(f"s3://site/{uuid.uuid4()}", endpoint=rclone_server.url), endpoint=rclone_server.url
    )


def content(store: Store, key: str) -> bytes:
    return b"".join(store.get(key))


def steal(counter: Counter, started: Started) -> Started:
    """Let the lease run out and another worker take it, as after a long pause; return the newer attempt."""
    outcome = Outcome(reason=Reason.WORKER_LOST)
    counter.registry.leases.release(started.lease, outcome, delay=timedelta(0))
    return counter.begin(started.message)


def marker_of(lease: Lease, reason: Reason = Reason.EXITED_ZERO, **fields: Any) -> Marker:
    state = reason.verdict.state or State.FAILED
    return Marker(
        experiment_id=lease.experiment_id,
        attempt=lease.attempt,
        token=lease.token,
        state=state,
        reason=reason,
        finished_at=datetime.now(UTC),
        **fields,
    )


def finish(counter: Counter, started: Started, data: bytes) -> Outputs:
    """Leave one output, commit, and return the outputs as their owner reads them."""
    started.store.put(output_key(started.prefix, "model"), data)
    file = OutputFile(path="model", size_bytes=len(data), sha256=_sha256(data))
    manifest = Manifest(files=(file,))
    save_manifest(started.store, started.prefix, manifest=manifest)
    marker = marker_of(started.lease, manifest=manifest_key(started.prefix), manifest_sha256=digest_manifest(manifest))
    write_marker(started.store, marker)
    counter.registry.leases.finish(started.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    return Outputs(started.lease.experiment_id, lambda: counter.whole)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def try_all(store: GrantedStore, key: str) -> dict[str, object]:
    """Return what each way to touch a key comes to: an error's class, or what was got."""
    ways: dict[str, Callable[[], object]] = {
        "put": lambda: store.put(key, b"mine"),
        "put_if_absent": lambda: store.put_if_absent(key, b"mine"),
        "get": lambda: b"".join(store.get(key)),
        "size": lambda: store.size(key),
        "list": lambda: list(store.list(key)),
    }
    found: dict[str, object] = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except JobqueueError as error:
            found[name] = type(error)
    return found


@pytest.mark.security_case("attempt writing outside its prefix")
@pytest.mark.parametrize("whose", ["another experiment", "an earlier attempt", "a longer token", "shared", "all", "up"])
def test_an_attempt_reaches_nothing_outside_its_prefix(counter: Counter, whose: str) -> None:
    """A node with a lease asks to read, write and list what belongs to others, or to nobody.

    Refused: the clerk grants what lies below the prefix of the attempt that asks, and what its sender has named.
    Evidence: every way to touch such a key is refused, and the store is as before.
    Red before: workers held credentials of the whole store.
    """
    other, mine = counter.start(), counter.start()
    earlier = attempt_prefix(mine.lease.experiment_id, 1, mine.lease.token - 1)
    key = {
        "another experiment": f"{other.prefix}/outputs/model",
        "an earlier attempt": f"{earlier}/outputs/model",
        "a longer token": f"{mine.prefix}0/outputs/model",
        "shared": "workspaces/0123.tar.zst",
        "all": "experiments",
        "up": f"experiments/{mine.lease.experiment_id}/attempts",
    }[whose]
    counter.whole.put(key if whose not in ("all", "up") else f"{key}/x", b"theirs")
    before = {found.key: content(counter.whole, found.key) for found in counter.whole.list("")}
    assert set(try_all(mine.store, key).values()) == {ArtifactRefused}
    assert {found.key: content(counter.whole, found.key) for found in counter.whole.list("")} == before
    mine.store.put_if_absent(f"{mine.prefix}/checkpoint", b"its own")  # so the same node may do this much
    assert mine.store.size(f"{mine.prefix}/checkpoint") == 7


@pytest.mark.security_case("attempt writing outside its prefix")
def test_a_result_is_neither_replaced_nor_written_for_another_experiment(counter: Counter) -> None:
    """A node with a lease writes the result of another experiment, or replaces one that is there.

    Refused: the clerk writes a result once, for the experiment, the attempt and the lease that ask.
    Evidence: refusals by their class; the markers that lie in the store afterwards.
    Red before: workers held credentials of the whole store.
    """
    other, mine = counter.start(), counter.start()
    forged = marker_to_json(marker_of(other.lease))
    with pytest.raises(ArtifactRefused):
        mine.store.put_if_absent(result_key(other.lease.experiment_id), forged)
    with pytest.raises(ArtifactRefused, match="another experiment"):
        mine.store.put_if_absent(result_key(mine.lease.experiment_id), forged)
    with pytest.raises(ArtifactRefused, match="not a result marker"):
        mine.store.put_if_absent(result_key(mine.lease.experiment_id), b"{}")
    foreign = marker_of(mine.lease, manifest=manifest_key(other.prefix))
    with pytest.raises(ArtifactRefused, match="another attempt"):
        write_marker(mine.store, foreign)
    with pytest.raises(ArtifactRefused, match="written once"):
        mine.store.put(result_key(mine.lease.experiment_id), forged)
    assert read_marker(counter.whole, other.lease.experiment_id) is None
    first = marker_of(mine.lease, Reason.EXITED_NONZERO, exit_code=3)
    assert mine.store.put_if_absent(result_key(mine.lease.experiment_id), marker_to_json(first))
    assert not mine.store.put_if_absent(result_key(mine.lease.experiment_id), marker_to_json(marker_of(mine.lease)))
    assert read_marker(counter.whole, mine.lease.experiment_id) == first


@pytest.mark.security_case("stale attempt committing")
def test_an_attempt_that_has_lost_its_lease_writes_nothing_more(counter: Counter) -> None:
    """A worker that was away for longer than its lease comes back, and stores and commits what it has.

    Refused: the clerk looks at the lease for each request; the attempt is told that it was superseded.
    Evidence: each way to write raises `Superseded`; nothing of the old attempt is in the store, no marker either.
    Red before: such a worker wrote its outputs and, if it was first, its marker.
    """
    old = counter.start()
    new = steal(counter, old)
    for write in (
        lambda: old.store.put(f"{old.prefix}/outputs/model", b"late"),
        lambda: old.store.put_if_absent(f"{old.prefix}/once", b"late"),
        lambda: write_marker(old.store, marker_of(old.lease)),
        lambda: old.store.size(f"{old.prefix}/outputs/model"),
    ):
        with pytest.raises(Superseded):
            write()
    assert [found.key for found in counter.whole.list("")] == []
    assert write_marker(new.store, marker_of(new.lease)).attempt == 2
    with pytest.raises(Superseded):
        write_marker(old.store, marker_of(old.lease))


@pytest.mark.security_case("stale attempt committing")
def test_what_a_fenced_attempt_uploads_late_is_never_taken_for_the_result(signing: Counter) -> None:
    """A fenced attempt uses the URL that it got before, when a newer attempt has committed already.

    Refused: a URL cannot be called back, but leads below the old attempt's own prefix only; nobody looks there.
    Evidence: a store that checks signatures takes the late upload, and the outputs are those of the newer attempt.
    """
    old = signing.start()
    url = url_of(old.store, output_key(old.prefix, "model"))
    new = steal(signing, old)
    outputs = finish(signing, new, b"of the newer one")
    put(url, b"late")
    assert content(signing.whole, output_key(old.prefix, "model")) == b"late"
    assert outputs.read_bytes("model") == b"of the newer one"


@pytest.mark.security_case("results changed after the end")
@pytest.mark.parametrize("what", ["an output", "the manifest", "both"])
def test_outputs_that_were_changed_after_the_end_are_refused(counter: Counter, what: str, tmp_path: Path) -> None:
    """Somebody who can write an attempt's prefix, with an old URL or the store's password, swaps its results.

    Refused: the marker, which is written once, names the manifest by its digest, and the manifest each file by its own.
    Evidence: reading and downloading raise `ArtifactRefused`, whichever of them was replaced; nothing is written.
    Red before: with a manifest of their own, changed outputs were downloaded without a word.
    """
    started = counter.start()
    counter.whole.put(output_key(started.prefix, "model"), b"true")
    true = Manifest(files=(OutputFile(path="model", size_bytes=4, sha256=_sha256(b"true")),))
    save_manifest(counter.whole, started.prefix, manifest=true)
    write_marker(
        started.store,
        marker_of(started.lease, manifest=manifest_key(started.prefix), manifest_sha256=digest_manifest(true)),
    )
    assert load_manifest(counter.whole, started.prefix, sha256=digest_manifest(true)) == true
    false = Manifest(files=(OutputFile(path="model", size_bytes=5, sha256=_sha256(b"false")),))
    if what != "the manifest":
        counter.whole.put(output_key(started.prefix, "model"), b"false")
    if what != "an output":
        save_manifest(counter.whole, started.prefix, manifest=false)
    outputs = Outputs(started.lease.experiment_id, lambda: counter.whole)
    with pytest.raises(ArtifactRefused, match="has changed in the store"):
        outputs.read_bytes("model")
    with pytest.raises(ArtifactRefused, match="has changed in the store"):
        outputs.download(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("model"))


@pytest.mark.security_case("presigned URL of another experiment")
@pytest.mark.parametrize("change", ["another key", "another method", "a longer life", "no signature"])
def test_a_url_gives_its_one_right_and_no_other(signing: Counter, change: str) -> None:
    """Whoever has a URL changes it: another experiment's key, writing for reading, a longer life, no signature at all.

    Refused: a store that checks signatures answers 400 or 403.
    Evidence: the store's own answers; what lies there is as before.
    """
    other, mine = signing.start(), signing.start()
    key, theirs = f"{mine.prefix}/outputs/a", f"{other.prefix}/outputs/a"
    signing.whole.put(key, b"mine")
    signing.whole.put(theirs, b"theirs")
    url = signing.whole.presign(key, method="GET", expires=SHORT)
    assert fetch(url) == b"mine"
    changed = {
        "another key": url.replace(mine.prefix, other.prefix),
        "another method": url,
        "a longer life": url.replace("X-Amz-Expires=60", "X-Amz-Expires=86400"),
        "no signature": url.partition("?")[0],
    }[change]
    with pytest.raises(OSError, match=r"HTTP Error 40[013]"):
        put(changed, b"evil") if change == "another method" else fetch(changed)
    assert (content(signing.whole, key), content(signing.whole, theirs)) == (b"mine", b"theirs")


@pytest.mark.security_case("presigned URL of another experiment")
def test_a_url_is_worth_nothing_once_it_has_expired(signing: Counter) -> None:
    """Whoever has found a URL uses it later.

    Refused: a URL lives for minutes; nodes ask for another one with each request.
    Evidence: a store that checks when signatures expire takes one that lives for a second, and soon no more.
    """
    started = signing.start()
    key = f"{started.prefix}/outputs/a"
    signing.whole.put(key, b"content")
    url = signing.whole.presign(key, method="GET", expires=timedelta(seconds=1))

    def is_refused() -> bool:
        with suppress(OSError):
            return not fetch(url)
        return True

    wait_until(is_refused, what="the URL's end")
    assert content(started.store, key) == b"content"


@pytest.mark.security_case("presigned URL of another experiment")
@pytest.mark.parametrize(
    "forgery", ["of another experiment", "with more", "of nobody trusted", "of another queue's sender", "none"]
)
def test_a_node_reads_what_a_trusted_sender_has_signed_for_this_experiment(
    counter: Counter, forgery: str, tmp_path: Path
) -> None:
    """A node with a lease reads an input of another experiment: with that one's permit, or with one of its own making.

    Refused: the permit is signed for one experiment, its queue and its inputs, by a sender trusted for that queue.
    Evidence: the clerk refuses each of them, and grants the true one.
    Red before: workers held credentials of the whole store.
    """
    counter.whole.put("inputs/a", b"mine")
    counter.whole.put("inputs/b", b"theirs")
    other, mine = counter.start(b="store:inputs/b"), counter.start(a="store:inputs/a")
    true = mine.opened.permit
    assert true is not None
    assert mine.store.size("inputs/a") == 4
    stranger = KeyRing(tmp_path / "stranger")
    line = make_pair(stranger.folder, Signer.SENDER).line
    if forgery == "of another queue's sender":
        introduce(counter.clerk_keys, [line], queue="another_cpu")
    spec, lease = other.opened.spec, mine.lease
    permit = {
        "of another experiment": other.opened.permit,
        "with more": replace(true, uris=("store:inputs/a", "store:inputs/b")),
        "of nobody trusted": sign(spec, lease, counter.queue, stranger),
        "of another queue's sender": sign(spec, lease, counter.queue, stranger),
        "none": None,
    }[forgery]
    mine.store.show(permit, attempt=lease.attempt, token=lease.token)
    # Whom the clerk should trust, it may come to trust: attempts wait for that.
    expected = StoreUnavailable if "trusted" in forgery or "queue" in forgery else ArtifactRefused
    with pytest.raises(expected):
        mine.store.size("inputs/b")
    with pytest.raises(expected):
        content(mine.store, "inputs/b")


@pytest.mark.security_case("TLS: unknown authority")
def test_a_url_leads_to_no_store_of_an_unknown_authority(tmp_path: Path) -> None:
    """Somebody between a node and the store shows a certificate of his own where a URL leads.

    Refused: what a node fetches and stores through URLs is checked with the same authorities as every server.
    Evidence: a listener is not spoken to but with its own authority; nothing of the URL is in the error.
    """
    true, other = Authority(tmp_path / "true"), Authority(tmp_path / "other")
    with show_certificate(true.issue("server", addresses=(HOST,))) as port:
        url = f"https://{HOST}:{port}/site/key?X-Amz-Signature=canary"
        for ca in ("", str(other.ca)):
            for use in (
                lambda ca=ca: signed_urls.read(url, key="key", ca=ca),
                lambda ca=ca: signed_urls.write(url, b"content", 7, key="key", ca=ca),
            ):
                with pytest.raises(StoreUnavailable, match="JOBQUEUE_TLS_CA") as raised:
                    use()
                assert "canary" not in str(raised.value)
                assert raised.value.__suppress_context__
        with pytest.raises(StoreUnavailable) as raised:
            signed_urls.read(url, key="key", ca=str(true.ca))
        assert "JOBQUEUE_TLS_CA" not in str(raised.value), "its certificate was taken"


def sign(spec: Any, lease: Lease, queue: str, keys: KeyRing) -> Any:
    return make_permit(spec, experiment_id=lease.experiment_id, queue=queue, sender=keys.sender())


@pytest.mark.security_case("reading another bucket through the clerk")
def test_a_sender_names_no_bucket_that_the_operator_has_not(signing: Counter, rclone_server: RcloneServer) -> None:
    """A trusted sender names an input in a bucket that only the clerk's credentials can read.

    Refused: beside the project's own store, the clerk reads from the buckets that its operator names.
    Evidence: one bucket's object is refused, another's, which the operator shares, is read by a node.
    """
    shared, private = BUCKETS[1:]
    for bucket in (shared, private):
        open_store(f"s3://{bucket}", endpoint=rclone_server.url).put("data", b"content")
    started = signing.start(a=f"s3://{shared}/data", b=f"s3://{private}/data")
    for bucket, is_granted in ((shared, True), (private, False)):
        place, key = locate(f"s3://{bucket}/data", default=started.store)
        if is_granted:
            assert b"".join(place.get(key)) == b"content"
        else:
            with pytest.raises(ArtifactRefused, match="bucket"):
                place.get(key)


@pytest.mark.security_case("stolen node")
@pytest.mark.parametrize("thief", ["revoked", "of another queue", "without a key"])
def test_who_is_no_node_of_the_queue_gets_nothing(counter: Counter, thief: str, tmp_path: Path) -> None:
    """A stolen or foreign machine with the registry's password asks for an experiment whose lease and permit it knows.

    Refused: the clerk answers nodes whose signing key it trusts for that queue; one that was revoked gets no more.
    Evidence: every way to touch the attempt's own prefix is refused, and the clerk gives no URL.
    """
    started = counter.start()
    keys = KeyRing(tmp_path / "thief")
    lines = [make_pair(keys.folder, Reader.NODE).line, make_pair(keys.folder, Signer.NODE).line]
    if thief == "of another queue":
        introduce(counter.clerk_keys, lines, queue="another_cpu")
    if thief == "revoked":
        keys = counter.node
        own = {
            entry for entry in (counter.clerk_keys.folder / "node").iterdir() if entry.name.startswith(counter.queue)
        }
        for entry in own:
            entry.unlink()
        wait_until(lambda: not grants(started.store, started.prefix), what="the clerk seeing that it was revoked")
    store = counter.open_store(keys).scoped(queue=counter.queue, experiment_id=started.lease.experiment_id)
    show_permit(store, started.opened.permit, attempt=started.lease.attempt, token=started.lease.token)
    assert set(try_all(store, f"{started.prefix}/outputs/model").values()) == {StoreUnavailable}
    assert [found.key for found in counter.whole.list("") if found.key != f"{started.prefix}/probe"] == []


@pytest.mark.security_case("stolen node")
def test_a_node_of_another_queue_gets_nothing_of_this_one(counter: Counter, tmp_path: Path) -> None:
    """A node that is trusted for its own queue asks in its own name for what is of another queue.

    Refused: the registry knows of which queue an experiment is, and its nodes alone are granted anything of it.
    Evidence: every way to touch the attempt's prefix, its inputs and its result is refused.
    """
    counter.whole.put("inputs/a", b"theirs")
    started = counter.start(a="store:inputs/a")
    keys, elsewhere = KeyRing(tmp_path / "thief"), "another_cpu"
    lines = [make_pair(keys.folder, Reader.NODE).line, make_pair(keys.folder, Signer.NODE).line]
    introduce(counter.clerk_keys, lines, queue=elsewhere)
    introduce(keys, [counter.clerk_keys.clerk().public.line], queue=elsewhere)
    store = counter.open_store(keys).scoped(queue=elsewhere, experiment_id=started.lease.experiment_id)
    show_permit(store, started.opened.permit, attempt=started.lease.attempt, token=started.lease.token)
    for key in (f"{started.prefix}/outputs/model", "inputs/a", result_key(started.lease.experiment_id)):
        assert set(try_all(store, key).values()) == {ArtifactRefused}
    assert [found.key for found in counter.whole.list("")] == ["inputs/a"]


@pytest.mark.security_case("stolen node")
@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("nothing", ArtifactRefused),
        ("its envelope", ArtifactRefused),
        ("another experiment's", ArtifactRefused),
        ("one of its own making", StoreUnavailable),
        ("garbage", StoreUnavailable),
    ],
)
def test_a_node_of_another_queue_gets_nothing_when_the_registry_says_it_is_its_own(
    counter: Counter, tmp_path: Path, shown: str, expected: type[JobqueueError]
) -> None:
    """A stolen node with the registry's password moves an experiment to its own queue there, and notes its failure.

    Refused: which queue an experiment is of the clerk believes its sender's signature, never the registry.
    Evidence: every way to touch the result is refused, whichever envelope comes with it; the store stays empty; of its
        own queue's experiment the same node may say that it has failed.
    Red before: the clerk took the registry's word, and wrote the marker.
    """
    counter.whole.put("inputs/a", b"theirs")
    elsewhere = "another_cpu"
    thief, stranger = KeyRing(tmp_path / "thief"), KeyRing(tmp_path / "stranger")
    lines = [make_pair(thief.folder, Reader.NODE).line, make_pair(thief.folder, Signer.NODE).line]
    sender_line = counter.sender.sender().public.line
    introduce(counter.clerk_keys, [*lines, sender_line], queue=elsewhere)
    introduce(thief, [counter.clerk_keys.clerk().public.line], queue=elsewhere)
    introduce(counter.node, [sender_line, make_pair(stranger.folder, Signer.SENDER).line], queue=elsewhere)
    for keys in (counter.sender, stranger):
        introduce(keys, lines, queue=elsewhere)
    victim, own = counter.submit({"a": "store:inputs/a"}), counter.submit(queue=elsewhere)
    counter.registry.forget()
    moved = replace(victim, header=replace(victim.header, queue=elsewhere))
    for message in (moved, own):
        counter.registry.experiments.register(submission_of(message.header))
    envelope = {
        "nothing": b"",
        "its envelope": victim.message,
        "another experiment's": own.message,
        "one of its own making": counter.submit(sender=stranger, queue=elsewhere).message,
        "garbage": b"\xff" * 100,
    }[shown]
    store = counter.open_store(thief)
    lease = counter.acquire(moved)
    moved_store = store.scoped(queue=elsewhere, experiment_id=lease.experiment_id, envelope=envelope)
    failed = marker_to_json(marker_of(lease, Reason.ATTEMPTS_EXHAUSTED))
    with pytest.raises(expected):
        moved_store.put_if_absent(result_key(lease.experiment_id), failed)
    assert set(try_all(moved_store, result_key(lease.experiment_id)).values()) <= {expected, ArtifactRefused}
    assert [found.key for found in counter.whole.list("")] == ["inputs/a"]
    own_store = store.scoped(queue=elsewhere, experiment_id=own.header.experiment_id, envelope=own.message)
    write_marker(own_store, marker_of(counter.acquire(own), Reason.ATTEMPTS_EXHAUSTED))


def grants(store: GrantedStore, prefix: str) -> bool:
    try:
        store.size(f"{prefix}/probe")
    except StoreUnavailable:
        return False
    return True


@pytest.mark.security_case("reading the registry's traffic")
def test_who_reads_the_registry_can_use_nothing_that_a_clerk_has_granted(
    signing: Counter, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Somebody with the registry's password reads all that nodes and clerks say to each other, and asks again.

    Refused: replies are sealed to the nodes of the queue and bound to their request; requests are signed.
    Evidence: no URL and no input's name of a reply in what passed, nor in any log, error or repr; a request that is
        asked again gets what only the node can open, a changed one nothing.
    """
    caplog.set_level(logging.DEBUG)
    started = signing.start()
    started.store.put(f"{started.prefix}/outputs/model", b"content")
    assert content(started.store, f"{started.prefix}/outputs/model") == b"content"
    passed = b"".join(signing.passed)
    assert b"X-Amz" not in passed
    assert "X-Amz" not in caplog.text
    question = signing.passed[0]
    again = signing.clerk.answer(question)
    assert b"http" not in again
    other = KeyRing(tmp_path / "other")
    introduce(other, [path.read_text().strip() for path in (signing.node.folder / "clerk").iterdir()], queue="")
    with pytest.raises(Refused, match="node key"):
        read_reply(again, message=question, queue=signing.queue, keys=other)
    changed = question.replace(b"outputs/model", b"outputs/other")
    with pytest.raises(Refused, match="signature"):
        read_reply(signing.clerk.answer(changed), message=changed, queue=signing.queue, keys=signing.node)


@pytest.mark.security_case("forged grant")
@pytest.mark.parametrize(
    "forger", ["a stranger", "in its name", "a sender", "another reply", "garbage", "a changed one"]
)
def test_a_node_takes_a_grant_from_a_clerk_that_it_trusts_and_for_what_it_has_asked(
    counter: Counter, forger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with the registry's password, a sender too, answers in the clerk's place, to have outputs sent away.

    Refused: a node takes a reply that a clerk trusted for the queue has signed, over the request; no sender is one.
    Evidence: nothing is granted by any of them: `StoreUnavailable`, which attempts wait out.
    """
    started = counter.start()
    true = counter.clerk

    def answer(question: bytes, *, within: timedelta) -> bytes:
        del within
        reply = true.answer(question)
        if forger == "garbage":
            return b"\x00" * 100
        if forger == "another reply":
            return counter.passed[1]
        if forger == "a changed one":
            return reply[:-1] + bytes([reply[-1] ^ 1])
        forged = evil.clerk.answer(question)
        if forger == "in its name":
            own, name = (keys.clerk().public.key_id.encode() for keys in (evil.clerk_keys, counter.clerk_keys))
            return forged.replace(own, name)
        return forged

    started.store.size(f"{started.prefix}/outputs/model")
    evil = open_counter(tmp_path / "evil", open_store(f"memory://{uuid.uuid4()}"))
    evil = replace_keys(evil, counter)
    if forger == "a sender":
        monkeypatch.setattr(evil.clerk_keys, "clerk", counter.sender.sender)
    store = counter.open_store(ask=answer).scoped(queue=counter.queue, experiment_id=started.lease.experiment_id)
    show_permit(store, started.opened.permit, attempt=started.lease.attempt, token=started.lease.token)
    assert set(try_all(store, f"{started.prefix}/outputs/model").values()) == {StoreUnavailable}


def replace_keys(evil: Counter, counter: Counter) -> Counter:
    """Let a stranger's clerk know the node's public keys, which are no secret."""
    lines = [path.read_text().strip() for path in sorted((counter.clerk_keys.folder / "node").glob("*.pub"))]
    lines += [path.read_text().strip() for path in sorted((counter.clerk_keys.folder / "trusted").glob("*.pub"))]
    introduce(evil.clerk_keys, lines, queue=counter.queue)
    evil.clerk._registry = counter.registry
    return evil


@pytest.mark.security_case("flood of requests for grants")
def test_a_clerk_bounds_what_it_reads_and_how_often_one_experiment_asks(tmp_path: Path) -> None:
    """A node floods the clerk, or sends it what is huge or nonsense.

    Refused: more than a mebibyte is not parsed, nonsense is answered with why, and one experiment has its pace.
    Evidence: each answer is small; of many requests of one experiment some are put off, and another one's is granted.
    """
    now = [0.0]
    pace = Pace(per_second=1, at_once=5, clock=lambda: now[0])
    counter = open_counter(tmp_path, open_store(f"memory://{uuid.uuid4()}"), pace=pace)
    for nonsense in (
        b"",
        b"{}",
        b"\n",
        b"[" * 100_000,
        b"x" * (MAX_REQUEST_BYTES + 1),
        b'{"key":1}\n{"queue":[]}',
        b"\xff",
    ):
        assert len(counter.clerk.answer(nonsense)) < 500
    assert b"allowed" in counter.clerk.answer(b"x" * (MAX_REQUEST_BYTES + 1))
    flooding, other = counter.start(), counter.start()
    outcomes = [grants(flooding.store, flooding.prefix) for _ in range(5)]
    assert outcomes == [True] * 5
    quick = counter.open_store().scoped(queue=counter.queue, experiment_id=flooding.lease.experiment_id)
    quick._within = timedelta(0)
    with pytest.raises(StoreUnavailable, match="too often"):
        quick.size(f"{flooding.prefix}/probe")
    assert grants(other.store, other.prefix)
    now[0] += 1
    assert grants(flooding.store, flooding.prefix)


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_nothing_that_a_clerk_logs_of_a_request_drives_a_terminal(
    counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """A request for a grant names a key, a queue and an address that hold escape sequences and further lines.

    Refused: with the request; in the clerk's log each of them is one line in which nothing acts.
    Evidence: the log's lines, of a stranger's request and of a trusted node's.
    Red before: the clerk's log had every byte of them.
    """
    evil = "\x1b]0;owned\x07\x1b[2J\n2026-01-01 [INFO] all is well\u202e"
    body = dict.fromkeys(("uri", "after", "content"), "") | {"envelope": "", "permit": None, "experiment_id": None}
    stranger = json.dumps({"wish": "read", "queue": evil, "attempt": 0, "token": 0, **body})
    counter.clerk.answer(json.dumps({"key": evil, "signature": ""}).encode() + b"\n" + stranger.encode())
    started = counter.start()
    with pytest.raises(ArtifactRefused):
        counter.open_store().scoped(queue=counter.queue, experiment_id=None).size("x")
    with suppress(ArtifactRefused):
        started.store._ask(Wish.READ, f"{started.prefix}/{evil}")
    lines = [record.getMessage() for record in caplog.records if record.name == "producers.clerk"]
    assert len(lines) >= 3
    assert all(line.isprintable() for line in lines), lines


@pytest.mark.security_case("a result without the spec")
@pytest.mark.parametrize(
    ("reason", "prepare", "is_written"),
    [
        (Reason.EXITED_ZERO, "", False),
        (Reason.EXITED_NONZERO, "with an exit code", False),
        (Reason.CANCELLED_BY_USER, "", False),
        (Reason.CANCELLED_BY_USER, "cancelled", True),
        (Reason.EXPIRED, "", False),
        (Reason.UNDECRYPTABLE, "", True),
        (Reason.ATTEMPTS_EXHAUSTED, "", True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_who_has_not_opened_the_spec_says_only_what_needs_no_spec(
    counter: Counter,
    reason: Reason,
    prepare: str,
    is_written: bool,  # noqa: FBT001
) -> None:
    """A node that takes a lease, but cannot open the message, writes that the experiment has succeeded.

    Refused: without the permit from inside the message a holder may say that nothing ran: it cannot be opened, its
        attempts are exhausted, or, where the registry says so too, it was cancelled or has expired.
    Evidence: the marker in the store, or none.
    """
    started = counter.start()
    started.store.show(None, attempt=0, token=0)
    if prepare == "cancelled":
        counter.registry.experiments.cancel(started.lease.experiment_id)
    marker = marker_of(started.lease, reason, exit_code=1 if prepare == "with an exit code" else None)
    if is_written:
        assert write_marker(started.store, marker) == marker
    else:
        with pytest.raises(ArtifactRefused):
            write_marker(started.store, marker)
    assert (read_marker(counter.whole, started.lease.experiment_id) == marker) is is_written


def test_what_was_cancelled_while_nobody_held_it_gets_its_marker(counter: Counter) -> None:
    message = counter.submit()
    experiment_id = message.header.experiment_id
    store = counter.open_store().scoped(queue=counter.queue, experiment_id=experiment_id, envelope=message.message)
    marker = marker_of(Lease(experiment_id=experiment_id, token=0, attempt=0), Reason.CANCELLED_BY_USER)
    with pytest.raises(Superseded):
        write_marker(store, marker)
    counter.registry.experiments.cancel(experiment_id)
    with pytest.raises(Superseded):
        write_marker(store, replace(marker, token=7))
    assert write_marker(store, marker) == marker


def test_a_lease_that_the_registry_has_forgotten_is_waited_for(counter: Counter) -> None:
    started = counter.start()
    counter.registry.forget()
    with pytest.raises(StoreUnavailable):
        started.store.put_if_absent(f"{started.prefix}/once", b"")


def test_a_node_sees_which_clerk_answers_and_that_results_are_written_once(counter: Counter) -> None:
    store = counter.open_store().scoped(queue=counter.queue, experiment_id=None)
    check_store(store)
    assert store.clerk == "clerk:1"
    for call in (lambda: store.put_if_absent(PROBE, b"content"), lambda: store.put_if_absent("other", b"")):
        with pytest.raises(ArtifactRefused):
            call()


@pytest.mark.security_case("Flood of requests for grants")
def test_many_objects_come_page_by_page(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node writes a million objects below its prefix, and has the clerk list them, again and again.

    Refused: a page costs the clerk a page, wherever in the list it lies.
    Evidence: how many objects it has looked at when the list has come whole.
    Red before: it read the list from its beginning for each page, for as long as that takes.
    """
    monkeypatch.setattr("producers.clerk.LISTED_AT_ONCE", 3)
    looked_at, store_list = list[str](), counter.whole.list

    def listed(prefix: str, **further: str) -> Iterator[StoredObject]:
        for found in store_list(prefix, **further):
            looked_at.append(found.key)
            yield found

    monkeypatch.setattr(counter.whole, "list", listed)
    started = counter.start()
    keys = [f"{started.prefix}/logs/{number}" for number in range(7)]
    for key in keys:
        counter.whole.put(key, b"1")
    assert [found.key for found in started.store.list(f"{started.prefix}/logs/")] == keys
    assert len(looked_at) == len(keys) + 2  # and of each page that is not the last one, one more


def test_a_file_that_one_request_cannot_take_is_refused_with_the_limit(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobqueue.storage.granted.MAX_UPLOAD_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    started = counter.start()
    with pytest.raises(ArtifactRefused, match="without credentials"):
        started.store.put(f"{started.prefix}/outputs/large", tmp_path / "large")


def url_of(store: GrantedStore, key: str) -> str:
    """Return the URL that a node gets to write a key."""
    return store._ask(Wish.WRITE, key).url


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read())


def put(url: str, data: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT", headers=headers), timeout=20).close()
