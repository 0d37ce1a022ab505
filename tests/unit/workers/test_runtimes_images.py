"""Images: pinned, refused or to be tried again, by what an engine says of them."""

from pathlib import Path

import pytest

from jobqueue.errors import DiskFull, ImagePullFailed, ImageRefused
from workers.attempt.runtimes.image_pulls import classify, find_disk
from workers.attempt.runtimes.images import pin


@pytest.mark.parametrize(
    ("name", "digests", "expected"),
    [
        ("repo:1", ["other@sha256:1", "repo@sha256:2"], "repo@sha256:2"),
        ("127.0.0.1:5000/repo", ["127.0.0.1:5000/repo@sha256:2"], "127.0.0.1:5000/repo@sha256:2"),
        ("127.0.0.1:5000/repo:tag", ["127.0.0.1:5000/repo@sha256:2"], "127.0.0.1:5000/repo@sha256:2"),
        ("repo@sha256:2", ["repo@sha256:2"], "repo@sha256:2"),
        ("repo:1", ["other@sha256:1"], "sha256:id"),
        ("repo:1", None, "sha256:id"),
        ("sha256:id", ["repo@sha256:2"], "sha256:id"),
    ],
)
def test_an_image_is_pinned_by_the_digest_of_its_own_repository(
    name: str, digests: list[str] | None, expected: str
) -> None:
    assert pin(name, {"Id": "sha256:id", "RepoDigests": digests, "Config": None}).pinned == expected


def test_the_volumes_of_an_image_are_kept() -> None:
    seen = {"Id": "sha256:id", "RepoDigests": [], "Config": {"Volumes": {"/data": {}, "/cache": {}}}}
    assert pin("repo", seen).volumes == ("/cache", "/data")


@pytest.mark.parametrize(
    "words",
    [
        "manifest for 127.0.0.1:5000/nosuch:1 not found: manifest unknown: manifest unknown",
        "pull access denied for nosuch, repository does not exist or may require 'docker login': denied: requested",
        "Head https://registry/v2/x/manifests/1: unauthorized: authentication required",
        "no basic auth credentials",
        "invalid reference format: repository name must be lowercase",
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        "denied: requested access to the resource is denied",
    ],
)
def test_what_later_cannot_help_is_refused(words: str) -> None:
    assert isinstance(classify("image", words), ImageRefused)


@pytest.mark.parametrize(
    "words",
    [
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
        'Get "https://registry/v2/": dial tcp 10.0.0.1:443: connect: connection refused',
        "received unexpected HTTP status: 503 Service Unavailable",
        "toomanyrequests: You have reached your pull rate limit",
        "net/http: TLS handshake timeout",
        "unexpected EOF",
    ],
)
def test_what_may_work_later_has_failed_for_now(words: str) -> None:
    assert isinstance(classify("image", words), ImagePullFailed)


@pytest.mark.parametrize("status", [401, 403, 404, 502])
def test_whoever_submits_is_not_told_what_a_server_of_the_nodes_own_answered(status: int) -> None:
    page = "<html>\nadmin token: 12345\n</html>"
    words = f"error parsing HTTP {status} response body: invalid character '<' looking for beginning of value: {page!r}"
    for said in (words, words.replace("\\n", "\n")):
        error = classify("127.0.0.1:8080/any:1", said)
        assert error.message.endswith(f"error parsing HTTP {status} response body")


@pytest.mark.parametrize(
    "words", ["write /var/lib/docker/tmp/x: no space left on device", "mkdir /var/lib/docker/x: disk quota exceeded"]
)
def test_a_full_disk_is_neither_the_images_nor_the_registrys_fault(words: str) -> None:
    assert isinstance(classify("image", words), DiskFull)


def test_the_disk_of_an_engine_is_looked_at_where_it_is_this_machines(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_disk("unix:///run/docker.sock", str(tmp_path)) == tmp_path
    assert find_disk("tcp://elsewhere:2376", str(tmp_path)) is None
    for nowhere in ("", str(tmp_path / "nowhere"), str(tmp_path / "file" / "below")):
        assert find_disk("unix:///run/docker.sock", nowhere) is None
