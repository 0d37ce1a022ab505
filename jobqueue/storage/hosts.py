"""Which hosts inputs may be read from, and which of the addresses that a name leads to.

An experiment names the address and a node reads it, so that the node could be sent to what only it can reach: the
address at which a cloud hands out credentials, a database on loopback, the machines beside it. Hence nothing is read
from a host that the operator has not named, and names lead to public addresses only, unless the operator says where.

The entries of the list:

    data.example.org               https, port 443; any of its addresses must be a public one
    *.example.org                  each name below example.org, not that itself
    data.example.org:8443          at this port instead
    10.1.2.3, [fd00::5]:8443       an address instead of a name, public or not
    data.lab=10.1.0.0/16           a name that may lead into this network, and nowhere else
    http://127.0.0.1:8000          without TLS: for tests, on loopback alone
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from jobqueue.errors import ArtifactRefused, InvalidSetting

SETTING: Final = "JOBQUEUE_INPUT_HOSTS"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS: Final = {"https": 443, "http": 80}
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
# A last part that is a number makes an IPv4 address of the whole, in forms that nobody writes in good faith.
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_USER: Final = re.compile(r"//[^/]*@")

# Not left to `ipaddress.is_global`, which has called some of these public in one version of Python and not in another.
_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
# Nobody's data lies here, whatever the list says: link-local, multicast, where clouds tell machines their secrets.
_NEVER: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "100.100.100.200/32",
        "192.0.0.0/24", "::/128", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32",
        "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Host:
    """One entry of the list.

    Attributes:
        name: in lower case and ASCII, without a trailing dot; with `*.` in front for all below it; or an address.
        port: the only one.
        scheme: `https`; `http` for loopback.
        network: where it may lead; None for anywhere public.
    """

    name: str
    port: int
    scheme: str = "https"
    network: Network | None = None

    def covers(self, target: "Target") -> bool:
        """Tell whether a target is meant by this entry."""
        if (self.scheme, self.port) != (target.scheme, target.port):
            return False
        if self.name.startswith("*."):
            return target.name.endswith(self.name[1:]) and target.address is None
        return self.name == target.name

    def allows(self, address: Address) -> bool:
        """Tell whether the name may lead to an address."""
        if any(address in network for network in _NEVER):
            return False
        return address in self.network if self.network else is_public(address)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a URL leads: scheme, host in its plain form, port, and what is asked for there."""

    scheme: str
    name: str
    port: int
    path: str

    @property
    def address(self) -> Address | None:
        """The address that the host is, if it is no name."""
        return _address(self.name)

    @property
    def shown(self) -> str:
        """The URL as it may be told to anybody: without what may be a signature."""
        return f"{self.origin}{self.path.partition('?')[0]}"[:300]

    @property
    def origin(self) -> str:
        """Scheme, host and, unless it is the usual one, port."""
        host = f"[{self.name}]" if ":" in self.name else self.name
        return f"{self.scheme}://{host}" + ("" if _PORTS[self.scheme] == self.port else f":{self.port}")


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the internet, of no machine's or network's own."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return False
    return not any(address in network for network in (*_SPECIAL, *_NEVER))


def parse_target(url: str) -> Target:
    """Return where a URL leads.

    Raises:
        ArtifactRefused: it is none, or has a user, a fragment, or a host in a form that can be misread.
    """
    parts = _split(url)
    # The parser drops line ends and tabs without a word.
    is_plain = all(" " < letter != "\x7f" for letter in url) and (parts.path + parts.query).isascii()
    if parts.scheme not in _PORTS or not is_plain:
        raise _refused(url, "is no web address", "use https://host/path, with other characters as %xx")
    if "@" in parts.netloc or "\\" in url or parts.fragment:
        raise _refused(url, "has a user, a fragment or a backslash", "use https://host/path")
    try:
        name, port = _plain(parts.hostname or ""), parts.port
    except ValueError:
        raise _refused(url, "has no sound host and port", "use https://host/path") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, name=name, port=_PORTS[parts.scheme] if port is None else port, path=path)


def parse_hosts(words: Iterable[str]) -> tuple[Host, ...]:
    """Return the entries of a list.

    Raises:
        InvalidSetting: one of them is none.
    """
    return tuple(_parse_host(word) for word in words)


def find_host(target: Target, hosts: Sequence[Host]) -> Host:
    """Return the entry that allows a target.

    Raises:
        ArtifactRefused: none does.
    """
    for host in hosts:
        if host.covers(target):
            return host
    raise ArtifactRefused(
        f"this node reads nothing from {target.origin}, which its {SETTING} does not name",
        hint="upload it, or ask the node's operator",
    )


def _parse_host(word: str) -> Host:
    text, is_bound, network = word.partition("=")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https", text
    parts = _split(f"//{rest}")
    is_wild = rest.startswith("*.")
    try:
        name = _plain((parts.hostname or "").removeprefix("*."))
        port = _PORTS[scheme] if parts.port is None else parts.port
        bounds = ipaddress.ip_network(network) if is_bound else None
    except (ValueError, KeyError):
        raise _unusable(word) from None
    address = _address(name)
    if parts.path or parts.query or "@" in rest or (is_wild and address) or (address and bounds):
        raise _unusable(word)
    if address:
        bounds = ipaddress.ip_network(address)
    if scheme == "http" and not (address and address.is_loopback):
        raise InvalidSetting(f"{SETTING}: {word!r:.200} is not on loopback", hint="without TLS only loopback is read")
    return Host(name=f"*.{name}" if is_wild else name, port=port, scheme=scheme, network=bounds)


def _unusable(word: str) -> InvalidSetting:
    return InvalidSetting(
        f"{SETTING}: {word!r:.200} is no host", hint="use data.example.org, *.example.org or host:port"
    )


def _plain(host: str) -> str:
    """Return a host in its one form.

    Raises:
        ValueError: it has none.
    """
    if "%" in host:
        raise ValueError(host)
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    plain = host if host.isascii() else host.encode("idna").decode()
    name = plain.lower().removesuffix(".")
    if _NUMERIC.fullmatch(name):
        return str(ipaddress.IPv4Address(name))
    if not _NAME.fullmatch(name):
        raise ValueError(host)
    return name


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _refused(url: str, fault: str, hint: str) -> ArtifactRefused:
    shown = _USER.sub("//", url.partition("?")[0].partition("#")[0])
    return ArtifactRefused(f"{shown!r:.200} {fault}", hint=hint)
