"""Every registry remembers what was submitted, once, and finds it again."""

from dataclasses import replace

import pytest
from services.registries import SUCCESS, found_ids, granted, make_submission, registered

from jobqueue.errors import IdempotencyMismatch, NotFound
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import State
from jobqueue.registry.base import (
    Registry,
)


def test_a_registered_experiment_is_queued_and_complete(registry: Registry) -> None:
    submission = registered(registry, name="nightly \u00e9", labels={"a": "1"}, spec_digest="d1", idempotency_key="k")
    record = registry.experiments.get(submission.id)
    assert record.submission == submission
    assert (record.state, record.attempt, record.token, record.worker_id) == (State.QUEUED, 0, 0, None)
    assert (record.history, record.started_at, record.finished_at, record.is_cancelled) == ((), None, None, False)


def test_registering_again_changes_nothing(registry: Registry) -> None:
    submission = registered(registry, spec_digest="d1")
    lease = granted(registry, submission).lease
    assert registry.experiments.register(submission) == [submission.id]
    assert registry.experiments.get(submission.id).token == lease.token
    with pytest.raises(IdempotencyMismatch):
        registry.experiments.register(replace(submission, spec_digest="d2"))


def test_an_idempotency_key_leads_to_the_first_submission_of_its_project(registry: Registry) -> None:
    key = make_experiment_id()
    first = registered(registry, idempotency_key=key, spec_digest="d1")
    again = make_submission(idempotency_key=key, spec_digest="d1")
    assert registry.experiments.register(again) == [first.id]
    with pytest.raises(NotFound):
        registry.experiments.get(again.id)
    with pytest.raises(IdempotencyMismatch, match=first.id):
        registry.experiments.register(make_submission(idempotency_key=key, spec_digest="d2"))
    registered(registry, idempotency_key=key, spec_digest="d2", project="other")


def test_many_are_registered_in_one_step_or_none_is(registry: Registry) -> None:
    key = make_experiment_id()
    first, second = make_submission(), make_submission(idempotency_key=key, spec_digest="d1")
    same, other = (make_submission(idempotency_key=key, spec_digest=digest) for digest in ("d1", "d2"))
    with pytest.raises(IdempotencyMismatch, match=second.id):
        registry.experiments.register(first, second, other)
    assert registry.experiments.states([first.id, second.id, other.id]) == {}
    assert registry.experiments.register(first, second, same, first) == [first.id, second.id, second.id, first.id]
    assert set(registry.experiments.states([first.id, second.id, same.id])) == {first.id, second.id}
    with pytest.raises(IdempotencyMismatch, match=second.id):
        registry.experiments.register(make_submission(), other)
    assert registry.experiments.register() == []


def test_the_message_goes_with_the_end_and_only_get_has_it(registry: Registry) -> None:
    submission = registered(registry)
    (found,) = registry.experiments.find(prefix=submission.id)
    assert found.submission.message == b""
    assert registry.experiments.get(submission.id).submission.message == submission.message
    lease = granted(registry, submission).lease
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    assert registry.experiments.get(submission.id).submission.message == b""


def test_an_unknown_experiment_is_an_error(registry: Registry) -> None:
    unknown = make_experiment_id()
    with pytest.raises(NotFound, match=unknown):
        registry.experiments.get(unknown)
    with pytest.raises(NotFound, match=unknown):
        registry.experiments.cancel(unknown)


def test_states_tells_of_the_known_ones_only(registry: Registry) -> None:
    queued, running = registered(registry), registered(registry)
    registry.leases.advance(granted(registry, running).lease, State.RUNNING)
    asked = [queued.id, make_experiment_id(), running.id]
    assert registry.experiments.states(asked) == {queued.id: State.QUEUED, running.id: State.RUNNING}
    assert registry.experiments.states([]) == {}


def test_find_lists_the_newest_first_by_project_name_and_prefix(registry: Registry) -> None:
    project, name = make_experiment_id(), make_experiment_id()
    ids = sorted(make_experiment_id() for _ in range(4))
    for index, experiment_id in enumerate(ids):
        registered(registry, id=experiment_id, project=project, name=name if index % 2 else "")
    other = registered(registry, name=name)
    assert found_ids(registry, project=project) == ids[::-1]
    assert found_ids(registry, project=project, limit=2) == [ids[3], ids[2]]
    assert found_ids(registry, project=project, name=name) == [ids[3], ids[1]]
    assert found_ids(registry, name=name) == sorted([ids[1], ids[3], other.id], reverse=True)
    assert found_ids(registry, prefix=ids[2]) == [ids[2]]
    assert found_ids(registry, prefix=ids[2], name=name) == []
    assert set(ids) <= set(found_ids(registry, prefix="exp-", limit=10**6))
    assert found_ids(registry, prefix="exp-zzz") == []
    assert found_ids(registry, limit=3) == sorted(found_ids(registry, limit=10**6), reverse=True)[:3]
