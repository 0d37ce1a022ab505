"""Every registry tells its time."""

from datetime import UTC, datetime, timedelta

from jobqueue.registry.base import Registry


def test_ping_answers_with_the_registrys_own_aware_time(registry: Registry) -> None:
    before = datetime.now(UTC)
    told = registry.ping()
    assert before - timedelta(seconds=1) <= told <= datetime.now(UTC) + timedelta(seconds=1)
    assert told <= registry.ping()
