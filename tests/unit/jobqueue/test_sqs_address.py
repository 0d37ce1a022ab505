"""What the URL of an SQS broker may say."""

import sys
from datetime import timedelta

import pytest

from jobqueue.brokers import open_broker
from jobqueue.brokers.sqs_address import SqsAddress, parse_address
from jobqueue.errors import InvalidSetting


def test_an_installation_without_what_sqs_needs_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'jobqueue\[sqs\]'"):
        open_broker("sqs://", lease=timedelta(seconds=60))


def test_without_a_host_it_is_amazons_own() -> None:
    assert parse_address("sqs://") == SqsAddress()
    address = parse_address("sqs://?region=eu-west-1&prefix=lab-")
    assert (address.endpoint, address.region, address.prefix) == ("", "eu-west-1", "lab-")


def test_another_server_is_reached_over_tls_unless_it_is_said_otherwise() -> None:
    assert parse_address("sqs://sqs.example.org").endpoint == "https://sqs.example.org"
    assert parse_address("sqs://127.0.0.1:4566?tls=false").endpoint == "http://127.0.0.1:4566"


def test_keys_are_unquoted_and_never_shown() -> None:
    address = parse_address("sqs://AKIA:se%2Fc%2Bret@host")
    assert (address.key, address.secret) == ("AKIA", "se/c+ret")
    assert "AKIA" not in repr(address)
    assert "ret" not in repr(address)


def test_times_are_durations_within_what_sqs_allows() -> None:
    address = parse_address("sqs://?wait=1s&hold=2h")
    assert (address.wait, address.hold) == (timedelta(seconds=1), timedelta(hours=2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("?wait=21s", "20s"),
        ("?hold=12h", "11h"),
        ("?hold=0s", "11h"),
        ("?wait=soon", "soon"),
        ("?tls=maybe", "tls"),
        ("?regoin=x", "regoin"),
        (":hunter3/x", "%2F"),
    ],
)
def test_what_it_may_not_say_is_told_without_its_password(options: str, told: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        parse_address(f"sqs://key:hunter2@host{options}")
    assert told in str(refused.value)
    assert "hunter" not in str(refused.value).removesuffix(told)
