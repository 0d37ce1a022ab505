"""A granted store raises what every store raises, whoever is away; and says of a lost lease that it is lost."""

import shutil
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from services.clerk import Counter, open_counter

from jobqueue.errors import InvalidSetting, InvalidSpec, RegistryUnavailable, StoreUnavailable, Superseded
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.storage import open_store, show_permit
from jobqueue.storage.granted import GrantedStore
from workers.attempt.logs import LogWriter


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    return open_counter(tmp_path, open_store(f"memory://{uuid.uuid4()}"))


def refuse(*_: Any, **__: Any) -> bytes | None:
    raise RegistryUnavailable("the registry does not answer")


@pytest.mark.parametrize(
    ("ask", "told"),
    [(lambda *_, **__: None, "no clerk"), (refuse, "the registry does not answer")],
    ids=["clerk", "registry"],
)
def test_a_clerk_that_does_not_answer_is_a_store_that_does_not(counter: Counter, ask: Any, told: str) -> None:
    store = counter.open_store(ask=ask).scoped(queue=counter.queue, experiment_id=None)
    for call in (
        lambda: store.size("key"),
        lambda: store.get("key"),
        lambda: store.put("key", b""),
        lambda: store.put_if_absent("key", b""),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreUnavailable, match=told):
            call()


@pytest.mark.parametrize(
    "reply",
    [
        {"verdict": "of a newer version"},
        {"verdict": "granted", "objects": [["key", "many"]]},
        {"verdict": "granted", "objects": 1},
        {"verdict": "granted", "further": 1},
        {},
        [],
    ],
    ids=str,
)
def test_a_clerk_of_another_version_is_a_store_that_does_not_answer(
    counter: Counter, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobqueue.grants.vars", lambda _: reply, raising=False)
    store = counter.open_store().scoped(queue=counter.queue, experiment_id=None)
    with pytest.raises(StoreUnavailable, match="of another version"):
        store.size("key")


def test_a_node_without_a_key_of_its_own_is_told_how_to_make_one(counter: Counter, tmp_path: Path) -> None:
    store = GrantedStore(counter.ask, KeyRing(tmp_path / "nothing"), queue=counter.queue)
    with pytest.raises(StoreUnavailable, match="no key to sign") as raised:
        store.size("key")
    assert "keys new node" in raised.value.hint


@pytest.mark.parametrize(
    "harm",
    [
        lambda keys: (keys / "node" / "bad.pub").write_text("no key"),
        lambda keys: (keys / "trusted" / "bad.pub").write_text("no key"),
        lambda keys: (keys / "clerk" / "bad.pub").write_text("no key"),
        lambda keys: shutil.rmtree(keys / "clerk"),
    ],
    ids=["node", "trusted", "clerk", "no clerk"],
)
def test_a_node_is_told_of_keys_in_disorder_at_the_clerk_and_not_where_they_lie(
    counter: Counter, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    started = counter.start()
    harm(counter.clerk_keys.folder)
    with pytest.raises(StoreUnavailable, match="where the clerk runs") as raised:
        started.store.size(f"{started.prefix}/outputs/model")
    assert str(counter.clerk_keys.folder) not in str(raised.value)
    assert str(counter.clerk_keys.folder) in caplog.text


def test_a_store_for_workers_is_none_for_anybody_else(counter: Counter) -> None:
    granted = counter.open_store()
    assert open_store("granted:", granted=granted) is granted
    with pytest.raises(InvalidSetting, match="the store itself"):
        open_store("granted:")


def test_what_was_submitted_without_a_permit_is_refused_before_it_runs_for_nothing(counter: Counter) -> None:
    started = counter.start()
    show_permit(counter.whole, None, attempt=1, token=1)
    with pytest.raises(InvalidSpec, match="submit it with a current client"):
        show_permit(started.store, None, attempt=1, token=1)


def test_the_log_of_a_superseded_attempt_ends_with_that_and_keeps_nobody_waiting(counter: Counter) -> None:
    started = counter.start()
    logs = LogWriter(
        started.lease,
        store=started.store,
        prefix=started.prefix,
        live=counter.registry.live_logs,
        limit_bytes=1000,
        on_progress=lambda _: None,
    )
    counter.registry.leases.release(started.lease, Outcome(reason=Reason.WORKER_LOST), delay=timedelta(0))
    logs.write("stdout", b"line\n")
    with pytest.raises(Superseded):
        logs.close()
