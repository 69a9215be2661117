"""Which addresses an endpoint that a tenant gave may lead to.

A host is resolved, and every address that it answers with is checked: only public unicast addresses pass, whatever
they are wrapped in (IPv4 in IPv6, 6to4, NAT64, Teredo, ISATAP). One bad address among good ones refuses the host. The
operator's allow-list (hosts, host:port, networks) is the one exception. A check at save tells a person early; the one
that protects is the proxy's, at connect: it goes to the address that was checked and to no other.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from schemas.errors import LakehouseError, Retry

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], list[str]]
"""Addresses of a host, as text; raises OSError if it has none."""

_V6_PUBLIC = ipaddress.ip_network("2000::/3")
_V4_IN_V6 = (
    # (network, bit at which the IPv4 address begins, counted from the left)
    (ipaddress.ip_network("::ffff:0:0/96"), 96),
    (ipaddress.ip_network("::ffff:0:0:0/96"), 96),
    (ipaddress.ip_network("::/96"), 96),
    (ipaddress.ip_network("64:ff9b::/96"), 96),
    (ipaddress.ip_network("2002::/16"), 16),
)
# Not all of these are private in every Python: said here, it does not depend on the version.
_REFUSED = tuple(
    ipaddress.ip_network(n)
    for n in (
        "0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
        "64:ff9b:1::/48", "2001::/23", "2001:db8::/32", "3fff::/20",
    )
)  # fmt: skip
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*", re.I)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*")


class EgressError(LakehouseError):
    """An endpoint leads where a tenant's endpoint must not, or to no address at all."""

    retry = Retry.MANUAL


def system_resolver(host: str, port: int) -> list[str]:
    """What the machine's resolver answers."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Allowed:
    """The operator's allow-list, parsed."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Allowed:
        """Parse hosts, `host:port`, addresses and networks as CIDR.

        Raises:
            ValueError: an entry is none of these; it is named.
        """
        hosts, networks = set(), []
        for entry in entries:
            text = entry.strip()
            try:
                networks.append(ipaddress.ip_network(text.strip("[]")))
                continue
            except ValueError:
                pass
            host, port = _host_port(text)
            if host is None or not _NAME.fullmatch(host):
                raise ValueError(f"{entry!r} is no host, host:port or network (10.1.0.0/16 has no host bits set)")
            hosts.add((host, port))
        return cls(frozenset(hosts), tuple(networks))

    def host(self, host: str, port: int) -> bool:
        return bool({(host, port), (host, None)} & self.hosts)

    def address(self, address: Address) -> bool:
        return any(address in network for network in self.networks if network.version == address.version)


def _host_port(text: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None
    if not host or parts.username or parts.path or parts.query:
        return None, None
    return host.lower().rstrip("."), port


def forbidden(address: Address) -> str | None:
    """Why a tenant's endpoint must not lead to this address, in a word or two; None for a public one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "link-local"
        bits = int(address)
        begin = next((b for network, b in _V4_IN_V6 if bits > 1 and address in network), None)
        if begin is not None:
            return forbidden(ipaddress.IPv4Address(bits >> (96 - begin) & 0xFFFFFFFF))
        isatap = (bits >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE)
        if isatap and (why := forbidden(ipaddress.IPv4Address(bits & 0xFFFFFFFF))):
            return why
    return _why(address)


def _why(address: Address) -> str | None:
    for name in ("loopback", "unspecified", "link_local", "multicast", "private", "reserved"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    if isinstance(address, ipaddress.IPv6Address) and address not in _V6_PUBLIC:
        return "not public"
    if any(address in network for network in _REFUSED if network.version == address.version):
        return "not public"
    return None


class Guard:
    """Checks hosts against the rules and the operator's allow-list. Holds no state; safe to share."""

    def __init__(self, allow: Iterable[str] = (), resolver: Resolver = system_resolver) -> None:
        try:
            self.allowed = Allowed.parse(allow)
        except ValueError as error:
            raise EgressError(f"egress.allow (LAKEHOUSE_EGRESS__ALLOW): {error}") from None
        self._resolver = resolver

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses that may be connected to, each checked.

        Raises:
            EgressError: the name is odd, has no address, or one of its addresses is not public.
        """
        name = host.strip("[]").lower().rstrip(".")
        where = f"endpoint {host}:{port}"
        try:
            literal: Address | None = ipaddress.ip_address(name)
        except ValueError:
            literal = None
        if literal is None and (_NUMERIC.fullmatch(name) or not _NAME.fullmatch(name)):
            raise EgressError(
                f"{where}: is no host name", "Write a name in ASCII (punycode), or an address as 203.0.113.7."
            )
        try:
            answers = [name] if literal is not None else self._resolver(name, port)
        except (OSError, UnicodeError) as error:
            raise EgressError(
                f"{where}: its name has no address: {error}", "Check the name.", retry=Retry.TIMED
            ) from error
        if not answers:
            raise EgressError(f"{where}: its name has no address", "Check the name.", retry=Retry.TIMED)
        for answer in answers:
            address = ipaddress.ip_address(answer)
            why = forbidden(address)
            if why and not (self.allowed.host(name, port) or self.allowed.address(address)):
                raise EgressError(
                    f"{where}: leads to {address}, which is {why}; a tenant's endpoint must be public",
                    "If it is meant to be reached, the operator lists it in egress.allow (LAKEHOUSE_EGRESS__ALLOW).",
                )
        return answers

    def check_url(self, url: str) -> tuple[str, int]:
        """Host and port of an endpoint, checked as a person saves it.

        Raises:
            EgressError: not https (or http to what the operator allows), with credentials, or not public.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise EgressError("the endpoint is no URL", "Write https://host:port.") from None
        if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
            raise EgressError(f"endpoint {host or ''}: must look like https://host:port", "Only http and https.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise EgressError(f"endpoint {host}: must not hold credentials or a query", "Give keys in a file.")
        port = port or (443 if parts.scheme == "https" else 80)
        addresses = self.resolve(host, port)
        trusted = self.allowed.host(host.lower().rstrip("."), port) or all(
            self.allowed.address(ipaddress.ip_address(a)) for a in addresses
        )
        if parts.scheme == "http" and not trusted:
            raise EgressError(f"endpoint {host}:{port}: must be https", "Plain http only where egress.allow says so.")
        return host.lower().rstrip("."), port
