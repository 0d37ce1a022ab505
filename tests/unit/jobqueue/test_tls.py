"""Certificates travel as options of a URL, and no URL switches a check off."""

from pathlib import Path

import pytest

from jobqueue.brokers.links import tls_options
from jobqueue.brokers.sqs_address import parse_address
from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting
from jobqueue.tls import Certificates, split_certificates, with_certificates

URLS = ["amqps://u:p@a:5671//", "rediss://:p@h/1", "sqs://k:s@h?region=eu", "https://h:9000"]
PLAIN = ["amqp://h", "redis://h/0", "redis+socket:///s?virtual_host=1", "http://h:9000", ""]


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    for name in ("c a&=;", "cert", "key"):
        (tmp_path / name).touch()
    return Certificates(ca=str(tmp_path / "c a&=;"), cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))


@pytest.mark.parametrize("url", [*URLS, "amqps://a//;amqps://b//"])
def test_what_is_added_to_a_url_is_found_in_it_again(files: Certificates, url: str) -> None:
    assert split_certificates(with_certificates(url, files)) == (url, files)


@pytest.mark.parametrize("url", PLAIN)
def test_nothing_is_added_where_there_is_no_tls(files: Certificates, url: str) -> None:
    assert with_certificates(url, files) == url


def test_a_url_keeps_what_it_names_itself(files: Certificates, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    given = with_certificates(f"rediss://h?ssl_ca_certs={other}", files)
    assert split_certificates(given)[1] == Certificates(ca=str(other), cert=files.cert, key=files.key)
    # A certificate with its key in one file is not mixed with another's key.
    given = with_certificates(f"rediss://h?ssl_certfile={other}", files)
    assert split_certificates(given)[1] == Certificates(ca=files.ca, cert=str(other))


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "option", ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_OPTIONAL", "ssl_check_hostname=false", "ssl_check_hostname=",
               "ssl_ciphers=NULL", "ssl_ca_data=x"]
)  # fmt: skip
def test_no_url_switches_a_check_off(url: str, option: str) -> None:
    with pytest.raises(InvalidSetting, match=option.partition("=")[0]):
        split_certificates(f"{url}{'&' if '?' in url else '?'}{option}")


def test_a_check_that_is_asked_for_is_no_fault() -> None:
    url = "rediss://h/0?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=true"
    assert split_certificates(url) == ("rediss://h/0", Certificates())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=f"{tmp_path}/ca.pem: No such file"):
        split_certificates(with_certificates("rediss://h", Certificates(ca=str(tmp_path / "ca.pem"))))


def test_a_password_with_a_question_mark_stays_whole(files: Certificates) -> None:
    url = "sqs://key:se?ssl_cert_reqs=none@h"
    assert split_certificates(url) == (url, Certificates())
    assert split_certificates(with_certificates(url, files)) == (url, files)


def test_the_settings_reach_every_server(files: Certificates) -> None:
    settings = Settings(
        broker_url="amqps://h//",
        registry_url="rediss://h",
        storage_endpoint="https://h",
        tls_ca=files.ca,
        tls_cert=files.cert,
        tls_key=files.key,
    )
    for url in (settings.broker, settings.registry, settings.events, settings.store_endpoint):
        assert split_certificates(url)[1] == files
    assert Settings(broker_url="rediss://h", tls_ca=files.ca).registry.endswith("ca_certs=" + files.ca.replace(
        " ", "%20").replace("&", "%26").replace("=", "%3D").replace(";", "%3B"))  # fmt: skip


def test_a_broker_is_checked_with_them(files: Certificates) -> None:
    options = tls_options(with_certificates("amqps://h//", files))
    assert options is not None
    assert (options["ca_certs"], options["certfile"], options["keyfile"]) == (files.ca, files.cert, files.key)
    assert parse_address(with_certificates("sqs://h", files)).certificates == files
