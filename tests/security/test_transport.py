"""Every server is checked before a word is said to it: its authority, its name, its time; and shown a certificate."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from pathlib import Path

import pytest
from services.certificates import Authority
from services.place import open_place
from services.secured import HOST, OTHER_HOST, SecuredServers, open_secured, show_certificate
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.rabbitmq_management import parse_management
from jobqueue.brokers.redis_server import RedisServer
from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting, Unavailable
from jobqueue.registry import open_registry
from jobqueue.storage import open_store

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LEASE = timedelta(seconds=10)
LONG = timedelta(seconds=60)
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
SCHEMES = {"rabbitmq": "amqps", "management": "https", "redis": "rediss", "registry": "rediss", "events": "rediss"}
SCHEMES |= {"sqs": "https", "s3": "https"}


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory,
    share: Callable[[str, AbstractContextManager[SecuredServers]], AbstractContextManager[SecuredServers]],
) -> Iterator[SecuredServers]:
    with share("secured", open_secured(tmp_path_factory.mktemp("secured"))) as servers:
        yield servers


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def settings_of(kind: str, where: str, **files: Path) -> Settings:
    urls = {
        "rabbitmq": {"broker_url": f"amqps://guest:guest@{where}//"},
        "management": {
            "broker_url": f"amqps://guest:guest@{where}//",
            "management_url": f"https://guest:guest@{where}",
        },
        "redis": {"broker_url": f"rediss://{where}/0"},
        "registry": {"registry_url": f"rediss://{where}/0"},
        "events": {"events_url": f"rediss://{where}/0"},
        "sqs": {"broker_url": f"sqs://testing:testing@{where}?region=us-east-1&wait=1s"},
        "s3": {"storage_url": "s3://nothing", "storage_endpoint": f"https://{where}"},
    }[kind]
    return Settings(**{**urls, **{name: str(path) for name, path in files.items()}})


def ask(kind: str, settings: Settings) -> object:
    """Ask a server something; whatever is wrong is raised as this project's error."""
    if kind in ("rabbitmq", "redis", "sqs"):
        with closing(open_broker(settings.broker, lease=LEASE)) as broker:
            return broker.queues.exists("nothing")
    if kind == "management":
        return parse_management(settings.broker, settings.management_url).waiting()
    if kind == "registry":
        with closing(open_registry(settings.registry)) as registry:
            return list(registry.workers.present())
    if kind == "events":
        server = RedisServer(settings.events)
        with closing(server), server.translated() as client:
            return client.ping()
    return open_store(settings.storage, endpoint=settings.store_endpoint).size("nothing")


def told(kind: str, settings: Settings) -> str:
    """Return with what error a server is not spoken to; empty where it answers."""
    try:
        ask(kind, settings)
    except Unavailable as error:
        return str(error)
    return ""


def require_distrust(kind: str, settings: Settings) -> None:
    """Require that a server is not spoken to, and that the error says why, once it has come in time."""

    def is_distrusted() -> bool:
        error = told(kind, settings)
        assert error, "it was spoken to"
        return "JOBQUEUE_TLS_CA" in error

    wait_until(is_distrusted, what=f"what to look at in: {told(kind, settings)}", within=LONG)


def files_of(secured: SecuredServers) -> dict[str, Path]:
    return {"tls_ca": secured.authority.ca, "tls_cert": secured.client.cert, "tls_key": secured.client.key}


def make_bucket(secured: SecuredServers, name: str) -> str:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"https://{HOST}:{secured.ports['https']}",
        region_name="us-east-1",
        verify=str(secured.authority.ca),
    )
    with closing(client):
        client.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.mark.parametrize("kind", sorted(set(SCHEMES) - {"management"}))
def test_a_server_that_the_authority_has_signed_for_answers(secured: SecuredServers, kind: str) -> None:
    if kind == "s3":
        make_bucket(secured, "nothing")
    settings = settings_of(kind, f"{HOST}:{secured.ports[SCHEMES[kind]]}", **files_of(secured))
    wait_until(lambda: not told(kind, settings), what="an answer", within=LONG)


@pytest.mark.security_case("TLS: unknown authority")
@pytest.mark.parametrize("kind", sorted(set(SCHEMES) - {"management"}))
def test_a_server_of_an_unknown_authority_is_not_spoken_to(secured: SecuredServers, kind: str, tmp_path: Path) -> None:
    """Somebody between a client and a server shows a certificate that he has signed himself.

    Refused: no connection to RabbitMQ, Redis, SQS or S3; the error says what to look at.
    Evidence: real servers, with the authority of another one and with this machine's; the error's class and hint.
    """
    where = f"{HOST}:{secured.ports[SCHEMES[kind]]}"
    other = {**files_of(secured), "tls_ca": Authority(tmp_path, "other").ca}
    for files in ({}, other):
        require_distrust(kind, settings_of(kind, where, **files))


@pytest.mark.security_case("TLS: wrong host name")
@pytest.mark.parametrize("kind", sorted(set(SCHEMES) - {"management"}))
def test_a_server_with_the_certificate_of_another_host_is_not_spoken_to(secured: SecuredServers, kind: str) -> None:
    """A server with a sound certificate for another name takes the place of the right one.

    Refused: no connection, though the authority is the right one.
    Evidence: the same real server by an address that its certificate does not hold.
    """
    require_distrust(kind, settings_of(kind, f"{OTHER_HOST}:{secured.ports[SCHEMES[kind]]}", **files_of(secured)))


@pytest.mark.security_case("TLS: expired certificate")
@pytest.mark.parametrize("kind", sorted(SCHEMES))
def test_a_server_whose_certificate_has_expired_is_not_spoken_to(kind: str, tmp_path: Path) -> None:
    """A certificate that has ended, perhaps because its key was lost, is shown again.

    Refused: no connection to any kind of server, RabbitMQ's HTTP API among them.
    Evidence: a listener with a certificate of the right authority and address that ended yesterday.
    """
    authority = Authority(tmp_path)
    late = authority.issue("late", addresses=(HOST,), days=-1)
    with show_certificate(late) as port:
        require_distrust(kind, settings_of(kind, f"{HOST}:{port}", tls_ca=authority.ca))


@pytest.mark.security_case("TLS: no client certificate")
@pytest.mark.parametrize("kind", ["rabbitmq", "redis", "registry", "events"])
def test_a_client_without_a_certificate_is_not_let_in(secured: SecuredServers, kind: str, tmp_path: Path) -> None:
    """Somebody who has only a password connects to a server that asks for certificates.

    Refused: by RabbitMQ and by Redis, without a certificate and with one of another authority.
    Evidence: real servers, to which the same connection with the right certificate is let in.
    """
    where = f"{HOST}:{secured.ports[SCHEMES[kind]]}"
    stranger = Authority(tmp_path).issue("client")
    for files in ({}, {"tls_cert": stranger.cert, "tls_key": stranger.key}):
        with pytest.raises(Unavailable):
            ask(kind, settings_of(kind, where, tls_ca=secured.authority.ca, **files))


@pytest.mark.security_case("TLS: checks switched off")
@pytest.mark.parametrize("kind", sorted(SCHEMES))
@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_no_url_switches_the_checks_off(kind: str, option: str) -> None:
    """The URL of a server asks for no check of its certificate, as copied from a page that helps with errors.

    Refused: the setting itself; nothing connects.
    Evidence: the error, for every kind of server.
    Red before: the registry and the embedded clients took `ssl_cert_reqs=none` from a URL and believed any server.
    """
    settings = settings_of(kind, f"{HOST}:1").model_dump(exclude_unset=True)
    name = {"s3": "storage_endpoint", "registry": "registry_url", "events": "events_url"}.get(kind, "broker_url")
    url = settings[name]
    changed = Settings(**{**settings, name: f"{url}{'&' if '?' in url else '?'}{option}"})
    with pytest.raises(InvalidSetting, match=option.partition("=")[0]):
        ask(kind, changed)


@pytest.mark.security_case("TLS: from end to end")
def test_an_experiment_runs_with_tls_on_every_line(
    secured: SecuredServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that goes over the network of a site is read by somebody.

    Refused: broker, registry and store are spoken to with TLS only; the first two are shown a certificate.
    Evidence: an experiment runs from its submission to its outputs over RabbitMQ, Redis and S3 that listen with TLS.
    """
    bucket = make_bucket(secured, "site")
    urls = {
        "broker": f"amqps://guest:guest@{HOST}:{secured.ports['amqps']}//",
        "registry": f"rediss://{HOST}:{secured.ports['rediss']}/0",
        "storage_url": bucket,
        "storage_endpoint": f"https://{HOST}:{secured.ports['https']}",
    }
    files = {name: str(path) for name, path in files_of(secured).items()}
    with open_place(tmp_path, engine=None, **urls, **files) as place, place.make_worker():
        experiment = place.submit("echo hello; mkdir -p outputs; echo 42 > outputs/answer")
        assert experiment.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
        assert list(experiment.logs()) == ["hello"]
        assert experiment.outputs.read_bytes("outputs/answer") == b"42\n"
