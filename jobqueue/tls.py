"""What servers' certificates are checked with, and what this side shows of itself; both travel as options of a URL.

`JOBQUEUE_TLS_CA`, `_CERT` and `_KEY` are added to every URL with TLS that names none of its own, in the spelling that
Celery's users know: `rediss://host?ssl_ca_certs=/etc/ca.pem`. Nothing here switches a check off, and no URL may.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote

from jobqueue.errors import InvalidSetting

if TYPE_CHECKING:
    import ssl

TLS_HINT: Final = (
    "the server's certificate is not trusted here: is JOBQUEUE_TLS_CA the file of the CA that signed it, "
    "does it hold the name of the host in the URL, and is it still valid?"
)
_OPTIONS: Final = {"ssl_ca_certs": "ca", "ssl_certfile": "cert", "ssl_keyfile": "key"}
_REQUIRED: Final = {"ssl_cert_reqs": ("required", "cert_required"), "ssl_check_hostname": ("true", "yes", "1")}
_SCHEMES: Final = ("amqps", "rediss", "sqs", "https")
# As OpenSSL, botocore and the library of S3 say it.
_REFUSALS: Final = ("certificate verify failed", "SSL validation failed", "InvalidCertificate(")


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Files, by their paths; empty: the CAs of this machine, nothing to show.

    Attributes:
        ca: the CAs that servers' certificates are checked with, in PEM.
        cert: what is shown to servers that ask for one, in PEM.
        key: its private key, in PEM; empty where `cert` holds both.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""

    def options(self, *, prefix: str = "") -> dict[str, str]:
        """Return what is set, as the libraries call it: `ca_certs`, `certfile`, `keyfile`, each after `prefix`."""
        named = {"ca_certs": self.ca, "certfile": self.cert, "keyfile": self.key}
        return {prefix + name: path for name, path in named.items() if path}


def with_certificates(url: str, given: Certificates) -> str:
    """Return a URL, or several separated by `;`, that names these files wherever it has TLS and names none."""
    return ";".join(_with_certificates(each, given) for each in url.split(";"))


def split_certificates(url: str) -> tuple[str, Certificates]:
    """Return a URL without what it says of TLS, and the files that it names: those of the last, where it names several.

    Raises:
        InvalidSetting: it switches a check off, or a file is not there.
    """
    parts = [_split(each) for each in url.split(";")]
    files = Certificates(**parts[-1][1])
    for path in filter(None, (files.ca, files.cert, files.key)):
        _require_readable(path)
    return ";".join(plain for plain, _ in parts), files


def make_context(files: Certificates) -> "ssl.SSLContext":
    """Return what a connection of the standard library is checked with."""
    import ssl

    context = ssl.create_default_context(cafile=files.ca or None)
    if files.cert:
        context.load_cert_chain(files.cert, files.key or None)
    return context


def hint_of(error: BaseException) -> str | None:
    """Return what to do about an error of a connection that a certificate is the reason of; None for another one."""
    return TLS_HINT if any(refusal in str(error) for refusal in _REFUSALS) else None


def _with_certificates(url: str, given: Certificates) -> str:
    if not url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        return url
    query = _parts(url)[1]
    there = dict(parse_qsl(query))
    missing = {
        option: path
        for option, name in _OPTIONS.items()
        if (path := getattr(given, name)) and not (option in there or (name != "ca" and "ssl_certfile" in there))
    }
    added = "&".join(f"{option}={quote(path)}" for option, path in missing.items())
    return url + ("&" if query else "?") + added if added else url


def _split(url: str) -> tuple[str, dict[str, str]]:
    plain, query = _parts(url)
    kept = [pair for pair in query.split("&") if pair and not pair.startswith("ssl_")]
    options = {name: value for name, value in parse_qsl(query, keep_blank_values=True) if name.startswith("ssl_")}
    for name, value in options.items():
        if name in _REQUIRED and value.lower() not in _REQUIRED[name]:
            raise InvalidSetting(
                f"{name}={value[:40]} in a URL would have any server believed to be the right one",
                hint="take it out; JOBQUEUE_TLS_CA names the CA of servers whose certificate nobody else has signed",
            )
        if name not in _REQUIRED and name not in _OPTIONS:
            raise InvalidSetting(f"{name[:40]} is no option of a URL here", hint=f"use {', '.join(_OPTIONS)}")
    files = {_OPTIONS[name]: value for name, value in options.items() if name in _OPTIONS}
    return plain + ("?" + "&".join(kept) if kept else ""), files


def _parts(url: str) -> tuple[str, str]:
    """Return what stands before the query, and the query; a secret before the host may hold anything."""
    head, mark, query = url.rpartition("?")
    return (head, query) if mark and "@" not in query else (url, "")


def _require_readable(path: str) -> None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise InvalidSetting(
            f"a certificate's file cannot be read: {path}: {error.strerror}",
            hint="JOBQUEUE_TLS_CA, JOBQUEUE_TLS_CERT and JOBQUEUE_TLS_KEY name files in PEM",
        ) from None
