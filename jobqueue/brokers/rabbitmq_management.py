"""RabbitMQ's HTTP API: all queues and what waits in them in one request, which AMQP cannot tell."""

import base64
import http.client
import json
import urllib.request
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from jobqueue.errors import BrokerUnavailable, InvalidSetting
from jobqueue.tls import Certificates, hint_of, make_context, split_certificates

_ANSWER_SECONDS: Final = 5.0
_PORTS: Final = {"amqp": ("http", 15672), "amqps": ("https", 15671)}
# Totals only: what else the API knows of each queue costs the broker a hundred times as much.
_QUERY: Final = "disable_stats=true&enable_queue_totals=true"


@dataclass(frozen=True, kw_only=True)
class Management:
    """The HTTP API of one broker.

    Attributes:
        url: without a user.
        user, password: to ask with.
        virtual_host: whose queues.
        certificates: what its own is checked with, and what is shown to it.
    """

    url: str
    user: str
    password: str = field(repr=False)
    virtual_host: str
    certificates: Certificates = field(default_factory=Certificates)

    def waiting(self) -> dict[str, int]:
        """Return how many messages wait in each queue, as of some seconds ago.

        Raises:
            BrokerUnavailable: it does not answer, or refuses.
        """
        address = f"{self.url}/api/queues/{quote(self.virtual_host, safe='')}?{_QUERY}"
        secret = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(address, headers={"Authorization": f"Basic {secret}"})  # noqa: S310 - see parse
        # The broker is asked without the proxies of this machine, too.
        secured = urllib.request.HTTPSHandler(context=make_context(self.certificates))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secured)
        try:
            with opener.open(request, timeout=_ANSWER_SECONDS) as answer:
                return {found["name"]: int(found.get("messages_ready", 0)) for found in json.load(answer)}
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError) as error:
            told = f"RabbitMQ's HTTP API at {self.url} does not answer: {error}"
            raise BrokerUnavailable(told, hint=hint_of(error)) from None


def parse_management(broker_url: str, url: str = "") -> Management:
    """Return the HTTP API that belongs to a broker.

    Args:
        broker_url: its user and virtual host are the API's where `url` names no other; of several servers the first.
        url: `http[s]://[user:password@]host[:port]`; empty: the broker's host, port 15672 (15671 with TLS).

    Raises:
        InvalidSetting: `url` is no address of that kind.
    """
    plain, certificates = split_certificates(broker_url)
    broker = urlsplit(plain.split(";", maxsplit=1)[0])
    scheme, port = _PORTS[broker.scheme]
    try:
        given = urlsplit(url or f"{scheme}://{_bracketed(broker.hostname or '127.0.0.1')}:{port}")
        is_sound = given.scheme in ("http", "https") and given.hostname
        at = f":{given.port}" if given.port else ""
    except ValueError:
        is_sound = ""
    if not is_sound:
        raise InvalidSetting(
            "the URL of RabbitMQ's HTTP API cannot be used", hint="write it as http://user:password@host:15672"
        )
    named = given if given.username else broker
    return Management(
        url=f"{given.scheme}://{_bracketed(given.hostname or '')}{at}{given.path.rstrip('/')}",
        user=unquote(named.username or "guest"),
        password=unquote(named.password or "guest"),
        virtual_host=unquote(broker.path[1:]) or "/",
        certificates=certificates,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
