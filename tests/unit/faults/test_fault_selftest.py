"""What the self-test of the fault suite demands of its trials."""

from faults.selftest import TRIALS, Row, make_rows

from jobqueue.unprotected import Protection

NOTHING: frozenset[str] = frozenset()


def test_every_protection_has_a_trial() -> None:
    # The other one is no protection: by it the suite turns the registry's clock.
    assert set(TRIALS) == set(Protection) - {Protection.TRUE_TIME}


def test_a_protection_is_to_be_green_when_it_is_on_and_red_for_its_own_reason_when_it_is_off() -> None:
    good = Row(name="guard", on=NOTHING, off=frozenset({"I2"}), evidence="I2 exp-1: two attempts lived at once")
    bad = [
        Row(name="guard", on=NOTHING, off=NOTHING),
        Row(name="guard", on=frozenset({"void"}), off=frozenset({"I2"})),
        Row(name="guard", on=NOTHING, off=frozenset({"I13"})),
    ]
    assert good.is_as_demanded
    assert not any(row.is_as_demanded for row in bad)
    lines = make_rows([good, *bad])
    assert lines[1].split()[:3] == ["guard", "green", "I2"]
    assert [line.endswith("not as demanded") for line in lines[1:]] == [False, True, True, True]
