"""Inputs from the web: a node is not sent to what only it can reach, and not kept busy by who answers."""

import datetime as dt
import gzip
import hashlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from services.place import open_place
from services.redis import RedisServer

from jobqueue.artifacts import Artifact
from jobqueue.errors import ArtifactRefused, ExperimentFailed, InvalidSetting, NotFound, StoreUnavailable
from jobqueue.spec import parse_spec
from jobqueue.storage import Allowed, check_address, locate, open_store
from jobqueue.storage.hosts import is_public, parse_hosts
from workers.attempt.input_cache import InputCache
from workers.attempt.workspace import stage_in

pytestmark = pytest.mark.security
Answer = Callable[[BaseHTTPRequestHandler], None]
CONTENT = b"data " * 1000


class Server:
    """A web server on loopback that answers as it is told and counts who came."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[str] = []
        self.answers: dict[str, Answer] = {}
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append(self.path)
                outer.answers[self.path.partition("?")[0]](self)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                line, where = super().get_request()
                outer.connections += 1
                return (context.wrap_socket(line, server_side=True) if context else line), where

            def handle_error(self, *_: Any) -> None:
                pass

        self.listener = Listener(("127.0.0.1", 0), Handler)
        self.port = self.listener.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self.listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown()
        self.listener.server_close()


def text(content: bytes, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


def moved(location: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def drip(piece: bytes, header: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            request.wfile.write(header)
            while True:
                request.wfile.write(piece)
                time.sleep(0.05)

    return answer


@pytest.fixture
def plain() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's certificate, and one for `localhost` and one for another name, with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    for name in ("authority", "localhost", "other.example.org"):
        key = authority if name == "authority" else ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


def _server(certificates: Path, name: str) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem")
    return Server(context)


@pytest.fixture
def secure(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "authority.pem"))
    with _server(certificates, "localhost") as server:
        yield server


def read(url: str, *hosts: str, seconds: float = 60) -> bytes:
    allowed = Allowed(hosts=parse_hosts(hosts), within=dt.timedelta(seconds=seconds))
    place, key = locate(url, default=open_store("memory://"), allowed=allowed)
    return b"".join(place.get(key))


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Iterator[list[object]]:
    """Let every name lead to the first address, then to the second, and so on."""
    asked: list[object] = []

    def answer(host: object, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        address = answers[min(len(asked), len(answers)) - 1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", answer)
        yield asked


# The port of a listener on loopback stands where {port} is.
ELSEWHERE = [
    "http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "https://localhost:{port}/", "https://127.1:{port}/",
    "https://2130706433:{port}/", "https://0x7f000001:{port}/", "https://0177.0.0.1:{port}/", "https://0:{port}/",
    "https://0x7f.1:{port}/", "https://127.0.0.1.:{port}/", "https://[::1]:{port}/", "https://[::]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/", "https://[::ffff:7f00:1]:{port}/", "https://[64:ff9b::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/", "https://[fe80::1%25lo]:{port}/", "https://[fd00:ec2::254]:{port}/",
    "https://169.254.169.254/latest/meta-data/", "http://169.254.169.254/", "https://metadata.google.internal/",
    "https://good.example.org@127.0.0.1:{port}/", "https://user:good@good.example.org/",
    "https://127.0.0.1:{port}#@good.example.org/", "https://127.0.0.1:{port}\\@good.example.org/",
    "https://good.example.org:6379/", "https://good.example.org:{port}/", "https://good.example.org:99999/",
    "https://good.example.org.attacker.example/", "https://badgood.example.org/", "https://example.org/",
    "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/", "https://127\u30020\u30020\u30021:{port}/",
    "https://\uff47ood.example.org.example/", "https://\u0433ood.example.org/",
    "https://good.example.org\t.attacker.example/", "https://good.example.org\n:{port}/", "https://%31%32%37.0.0.1/",
    "https:///x", "https:good.example.org/x", "//good.example.org/x", "https://good.example.org../x",
    "gopher://127.0.0.1:{port}/_INFO", "ftp://good.example.org/x", "file:///etc/shadow", "file://localhost/etc/shadow",
    "data:text/plain,x", "https+unix:///var/run/docker.sock", "https://good.example.org/ü", "HTTP://good.example.org/",
]  # fmt: skip


@pytest.mark.security_case("SSRF to metadata and loopback")
@pytest.mark.parametrize("url", ELSEWHERE)
def test_an_address_that_nobody_allowed_is_refused_before_anything_is_connected(url: str, plain: Server) -> None:
    """Server-side request forgery by the address of an input, in the forms that parsers read differently.

    Refused: before a name is resolved or a connection is made, unless host and port are on the operator's list.
    Evidence: a listener on loopback counts no connection; the error names no user, password or signature.
    """
    with pytest.raises(ArtifactRefused) as refused:
        read(url.format(port=plain.port), "good.example.org", "*.wild.example.org")
    assert plain.connections == 0
    assert "user:good" not in str(refused.value)


@pytest.mark.security_case("SSRF to metadata and loopback")
@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "168.63.129.16",
        "169.254.169.254", "172.31.0.1", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1",
        "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1",
        "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1",
        "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1",
        "ff02::1",
    ],
)  # fmt: skip
def test_a_name_that_leads_to_an_address_of_nobodys_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name on the list whose owner points it at loopback, a private network, a metadata service or a way around IPv4.

    Refused: whatever one of its addresses is not of the public internet.
    Evidence: the error names the address; nothing is connected; the same with a public address beside it.
    """
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    assert not is_public(ipaddress.ip_address(address))
    with resolving(monkeypatch, address), pytest.raises(ArtifactRefused, match="leads to"):
        read("https://good.example.org/x", "good.example.org")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    both = [(socket.AF_INET, 1, 6, "", ("8.8.8.8", 443)), (family, 1, 6, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(ArtifactRefused, match="leads to"):
        read("https://good.example.org/x", "good.example.org")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "193.0.6.139", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.security_case("SSRF to metadata and loopback")
@pytest.mark.parametrize(
    "network", ["169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "64:ff9b::/96", "0.0.0.0/0", "168.63.129.16/32"]
)
def test_metadata_is_out_of_reach_whatever_the_list_says(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network on the operator's list that is too wide, or a metadata service itself.

    Refused: link-local, multicast and metadata addresses are never read from.
    Evidence: the refusal of an address within the listed network.
    """
    address = {"0.0.0.0/0": "169.254.169.254"}.get(network, str(ipaddress.ip_network(network)[-1]))
    with resolving(monkeypatch, address), pytest.raises(ArtifactRefused, match="leads to"):
        read("https://data.lab/x", f"data.lab={network}")


@pytest.mark.security_case("DNS rebinding")
def test_a_second_answer_of_the_name_server_changes_nothing(plain: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a public address when it is checked, loopback when it is connected to.

    Refused: a name is resolved once, and the connection goes to the address that was checked.
    Evidence: one question to the resolver; the connection is tried to the first answer; no connection on loopback.
    """
    tried: list[object] = []

    def connect(_: socket.socket, where: object) -> None:
        tried.append(where)
        raise ConnectionRefusedError

    with resolving(monkeypatch, "8.8.8.8", "127.0.0.1") as asked:
        monkeypatch.setattr(socket.socket, "connect", connect)
        with pytest.raises(StoreUnavailable):
            read(f"https://good.example.org:{plain.port}/", f"good.example.org:{plain.port}")
    assert asked == ["good.example.org"]
    assert tried == [("8.8.8.8", plain.port)]
    assert plain.connections == 0


@pytest.mark.security_case("SSRF by redirect")
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{other}/", "https://localhost:{other}/", "//127.0.0.1:{other}/", "http://[::1]:{other}/",
        "http://169.254.169.254/latest/meta-data/", "file:///etc/shadow", "s3://bucket/key", "gopher://127.0.0.1/",
        "http://localhost:{port}/data", "https://user@localhost:{port}/data", "https://localhost:{port}/loop", "",
        "http://[", "//[::1",
    ],
)  # fmt: skip
def test_a_redirect_leads_nowhere_that_the_address_could_not(location: str, secure: Server, plain: Server) -> None:
    """An allowed server that sends the node on: to loopback, metadata, another scheme, or round and round.

    Refused: each redirect is checked as the address itself was, and three are followed.
    Evidence: a second listener on loopback counts no connection; the first one at most four questions.
    """
    secure.answers["/"] = secure.answers["/loop"] = moved(location.format(port=secure.port, other=plain.port))
    secure.answers["/data"] = text(CONTENT)
    with pytest.raises(ArtifactRefused):
        read(f"https://localhost:{secure.port}/", f"localhost:{secure.port}=127.0.0.0/8")
    assert plain.connections == 0
    assert len(secure.seen) <= 4


def test_what_is_allowed_is_read_whole_by_way_of_redirects(secure: Server) -> None:
    secure.answers["/"] = moved("/second?signature=x")
    secure.answers["/second"] = text(CONTENT)
    assert read(f"https://localhost.:{secure.port}/", f"LOCALHOST:{secure.port}=127.0.0.0/8") == CONTENT
    assert secure.seen == ["/", "/second?signature=x"]


def test_a_host_without_tls_is_read_on_loopback_when_it_is_named_so(plain: Server) -> None:
    plain.answers["/"] = text(CONTENT)
    assert read(f"http://127.0.0.1:{plain.port}/", f"http://127.0.0.1:{plain.port}") == CONTENT


@pytest.mark.security_case("SSRF: certificates")
def test_a_server_without_a_sound_certificate_is_refused(
    certificates: Path, secure: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on the way who answers in the name of an allowed host, with a certificate of his own.

    Refused: the certificate has to be of that name and of an authority that the machine trusts; nothing turns that off.
    Evidence: no question is seen by the server with another name's certificate, nor by one of an unknown authority.
    """
    with _server(certificates, "other.example.org") as other, pytest.raises(ArtifactRefused, match="certificate"):
        read(f"https://localhost:{other.port}/", f"localhost:{other.port}=127.0.0.0/8")
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    with pytest.raises(ArtifactRefused, match="certificate"):
        read(f"https://localhost:{secure.port}/", f"localhost:{secure.port}=127.0.0.0/8")
    assert other.seen == secure.seen == []


@pytest.mark.security_case("SSRF: proxies")
def test_no_proxy_of_the_environment_is_asked(secure: Server, plain: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the worker's environment that would resolve names where nothing is checked.

    Refused: proxies are not used.
    Evidence: the content comes, and the listener that the variables name counts no connection.
    """
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{plain.port}")
    secure.answers["/"] = text(CONTENT)
    assert read(f"https://localhost:{secure.port}/", f"localhost:{secure.port}=127.0.0.0/8") == CONTENT
    assert plain.connections == 0


@pytest.mark.security_case("SSRF: slow and endless answers")
@pytest.mark.parametrize(
    "answer",
    [
        drip(b"x"), drip(b"x", b"HTTP/1.1 200 OK\r\nX: "), drip(b"HTTP/1.1 100 Continue\r\n\r\n", b""), drip(b"", b""),
        drip(b"1\r\nx\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        drip(b"x", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"),
        drip(b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
    ],
    ids=["body", "header", "continue", "silence", "chunks", "extension", "announced"],
)  # fmt: skip
def test_a_server_that_drips_is_left_after_the_time_limit(answer: Answer, secure: Server) -> None:
    """A server that sends a byte now and then, for ever, in the header or in the body.

    Refused: one input has so long to arrive in all (JOBQUEUE_INPUT_TIMEOUT), however often something comes.
    Evidence: the reading ends with an error that names the limit.
    """
    secure.answers["/"] = answer
    with pytest.raises(ArtifactRefused, match="within 1s"):
        read(f"https://localhost:{secure.port}/", f"localhost:{secure.port}=127.0.0.0/8", seconds=1)


@pytest.mark.security_case("SSRF: slow and endless answers")
def test_a_name_server_that_is_silent_is_left_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of an input is asked of a name server that its owner runs and that never answers.

    Refused: looking up its name is part of the time that one input has (JOBQUEUE_INPUT_TIMEOUT).
    Evidence: the reading ends with an error that names the limit while nobody has answered.
    Red before: the look-up had no limit but the resolver's own, for each redirect anew.
    """
    is_over, gave_up = threading.Event(), threading.Event()

    def answer(*_: object, **__: object) -> list[Any]:
        if not is_over.wait(60):
            gave_up.set()
        raise socket.gaierror(socket.EAI_AGAIN, "nobody answered")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    try:
        with pytest.raises(ArtifactRefused, match="within 1s"):
            read("https://good.example.org/x", "good.example.org", seconds=1)
        assert not gave_up.is_set()
    finally:
        is_over.set()


def stage(tmp_path: Path, artifact: Artifact, port: int, disk: str = "1MB") -> bytes:
    fields = {"image": "any", "command": "any", "inputs": {"data": artifact}, "disk": disk}
    staged = stage_in(
        parse_spec(fields),
        tmp_path / "attempt",
        store=open_store("memory://"),
        cache=InputCache(folder=tmp_path / "cache", size_bytes=1 << 20),
        allowed=Allowed(hosts=parse_hosts([f"localhost:{port}=127.0.0.0/8"])),
    )
    return staged.inputs["data"].read_bytes()


@pytest.mark.security_case("SSRF: slow and endless answers")
@pytest.mark.parametrize(("declared", "disk"), [(0, "100kB"), (5000, "1MB")])
def test_an_endless_answer_is_cut_at_what_was_declared_or_the_disk(
    declared: int, disk: str, secure: Server, tmp_path: Path
) -> None:
    """A server whose answer does not end, and one that has more than was declared.

    Refused: what is over the declared size, or over disk=, ends the reading.
    Evidence: the error of the input; nothing of it is left in the node's cache.
    """

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            while True:
                request.wfile.write(bytes(10_000))

    secure.answers["/"] = endless
    with pytest.raises(ArtifactRefused, match=r"input 'data': it (has more than the declared|does not fit)"):
        stage(tmp_path, Artifact(uri=f"https://localhost:{secure.port}/", size_bytes=declared), secure.port, disk)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "cache.lock"] == []


@pytest.mark.security_case("SSRF: slow and endless answers")
def test_inputs_of_unknown_size_share_the_disk(secure: Server, tmp_path: Path) -> None:
    """Many inputs whose size nobody has declared, each of them as large as the disk that was asked for.

    Refused: what has arrived counts, so that all inputs together are bounded by disk=.
    Evidence: the second of two is refused by its name, and does not fit in what the first has left.
    Red before: an input without a declared size counted as nothing.
    """
    secure.answers["/"] = text(bytes(600))
    uri = f"https://localhost:{secure.port}/"
    allowed = Allowed(hosts=parse_hosts([f"localhost:{secure.port}=127.0.0.0/8"]))
    inputs = {name: Artifact(uri=f"{uri}?{name}") for name in ("first", "second")}
    with pytest.raises(ArtifactRefused, match="input 'second': it does not fit in 400 B"):
        stage_in(
            parse_spec({"image": "any", "command": "any", "inputs": inputs, "disk": 1000}),
            tmp_path / "attempt",
            store=open_store("memory://"),
            cache=InputCache(folder=tmp_path / "cache", size_bytes=1 << 20),
            allowed=allowed,
        )


@pytest.mark.security_case("SSRF: wrong content")
def test_other_content_than_was_declared_is_refused_while_it_arrives(secure: Server, tmp_path: Path) -> None:
    """A server that has other bytes under the address than the submitter declared.

    Refused: sha256 and size are checked while it arrives.
    Evidence: the same address is read with the right digest, and refused with another or with another size.
    """
    secure.answers["/"] = text(CONTENT)
    uri, digest = f"https://localhost:{secure.port}/", hashlib.sha256(CONTENT).hexdigest()
    for wrong in (Artifact(uri=uri, sha256="0" * 64), Artifact(uri=uri, sha256=digest, size_bytes=6000)):
        with pytest.raises(ArtifactRefused, match="input 'data'"):
            stage(tmp_path, wrong, secure.port)
    assert stage(tmp_path, Artifact(uri=uri, sha256=digest, size_bytes=len(CONTENT)), secure.port) == CONTENT


@pytest.mark.security_case("SSRF: compressed bomb")
def test_what_arrives_compressed_stays_as_it_is(secure: Server, tmp_path: Path) -> None:
    """An answer of some kilobytes that says it is a compressed gigabyte.

    Refused: nothing is unpacked on the way: the bytes are taken as they are.
    Evidence: what lies on the node is the compressed content, and no compression was asked for.
    """
    bomb = gzip.compress(bytes(10 << 20))

    def answer(request: BaseHTTPRequestHandler) -> None:
        assert request.headers["Accept-Encoding"] == "identity"
        text(bomb, Content_Encoding="gzip")(request)

    secure.answers["/"] = answer
    assert stage(tmp_path, Artifact(uri=f"https://localhost:{secure.port}/"), secure.port) == bomb


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (403, ArtifactRefused), (500, StoreUnavailable), (429, StoreUnavailable)]
)
def test_what_a_server_refuses_is_told_without_the_signature(
    status: int, error: type[Exception], secure: Server
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    secure.answers["/x"] = answer
    with pytest.raises(error, match="/x") as raised:
        read(f"https://localhost:{secure.port}/x?signature=canary", f"localhost:{secure.port}=127.0.0.0/8")
    assert "canary" not in f"{raised.value} {raised.value!r}"


@pytest.mark.parametrize("announced", ["Transfer-Encoding: chunked", "Content-Length: 6000", "X: y"])
def test_an_answer_that_breaks_off_is_not_taken_for_the_whole(announced: str, secure: Server) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header(*announced.split(": "))
        request.end_headers()
        request.wfile.write(b"4\r\nhalf\r\n")

    secure.answers["/"] = answer
    with pytest.raises(StoreUnavailable):
        read(f"https://localhost:{secure.port}/", f"localhost:{secure.port}=127.0.0.0/8")


@pytest.mark.parametrize(
    "word",
    [
        "", "*", "a b", "https://", "ftp://host", "http://data.example.org", "http://10.0.0.1", "host:port",
        "user@host", "host/path", "1.2.3", "0x7f.1", "*.1.2.3.4", "10.0.0.1=10.0.0.0/8", "data.lab=",
        "data.lab=ten", "[::1",
    ],
)  # fmt: skip
def test_an_entry_that_is_no_host_is_a_wrong_setting(word: str) -> None:
    with pytest.raises(InvalidSetting, match="JOBQUEUE_INPUT_HOSTS"):
        parse_hosts([word])


@pytest.mark.security_case("SSRF: buckets of others")
def test_a_bucket_that_the_operator_did_not_name_is_not_read_with_the_nodes_rights() -> None:
    """An input in any bucket that the node's own credentials open: the backups, another team's data.

    Refused: only the store's own bucket and those of JOBQUEUE_INPUT_BUCKETS are read; the server is the operator's.
    Evidence: the error names bucket and setting; an address with another server in it is none.
    Red before: every bucket of the node's credentials could be read.
    """
    allowed = Allowed(endpoint="http://127.0.0.1:9", buckets=("experiments", "data-*"))
    for uri in ("s3://backups/key", "s3://experiments2/key", "s3://database/key"):
        with pytest.raises(ArtifactRefused, match=r"bucket .*JOBQUEUE_INPUT_BUCKETS"):
            locate(uri, default=open_store("memory://"), allowed=allowed)
    for uri in (
        "s3://experiments:9000/key",
        "s3://key@experiments/x",
        "s3://experiments/x?endpoint=http://a",
        "s3:///x",
    ):
        with pytest.raises(ArtifactRefused, match="not the address"):
            locate(uri, default=open_store("memory://"), allowed=allowed)
    assert locate("s3://data-1/key", default=open_store("memory://"), allowed=allowed)[1] == "key"


def test_an_input_from_an_allowed_host_reaches_the_experiment(
    redis_server: RedisServer, plain: Server, tmp_path: Path
) -> None:
    plain.answers["/data.csv"] = text(b"from the web")
    host = f"http://127.0.0.1:{plain.port}"
    with (
        open_place(
            tmp_path, broker=redis_server.url, registry=redis_server.url, engine=None, input_hosts=host
        ) as place,
        place.make_worker(),
    ):
        good = place.submit("cat /inputs/data", inputs={"data": f"{host}/data.csv?signature=x"})
        assert good.result(timeout=60) == {"exit_code": 0}
        assert list(good.logs()) == ["from the web"]
        with pytest.raises(ExperimentFailed, match="JOBQUEUE_INPUT_HOSTS does not name"):
            place.submit("true", inputs={"data": "http://127.0.0.1:1/x"}).result(timeout=60)


def test_an_address_with_a_signature_is_shown_without_it() -> None:
    artifact = Artifact(uri="https://data.example.org/x.tar.zst?signature=canary")
    assert repr(artifact).startswith("Artifact(uri='https://data.example.org/x.tar.zst?...', sha256=''")
    assert "canary" not in repr(artifact)
    assert artifact.is_tree


def test_what_could_be_read_somewhere_is_an_address_for_the_submitter() -> None:
    for uri in ("https://data.example.org/x?signature=1", "s3://any/key", "store:inputs/x"):
        check_address(uri)
