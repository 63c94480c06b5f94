"""Who a client is: the address of the connection's other end, or what a trusted proxy says of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from api.conf import HttpConf

Address = IPv4Address | IPv6Address
Headers = Iterable[tuple[bytes, bytes]]
UNIX = "unix"

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Unquoted values may hold what strictly has to be quoted, since proxies write for=192.0.2.1:4711.
PAIR = re.compile(rf'[ \t]*({TOKEN})=(?:"((?:[^"\\]|\\.)*)"|([!#$%&\'*+.^_`|~0-9A-Za-z:\[\]-]+))[ \t]*')
PORT = re.compile(r":(?:[0-9]{1,5}|_[A-Za-z0-9._-]+)")


def identify(peer: str | None, headers: Headers, conf: HttpConf) -> str | None:
    """The client's name for the limits: an IPv4 address or an IPv6 /64 network; ``None`` if nothing tells it.

    ``peer`` is the connection's other end, nothing for a Unix socket; ``headers`` are raw, with lower-case names. Forwarding headers
    count only if the peer is a trusted proxy, and of several the first in the TOML's order that is present. Its hops are read from the
    right, where our own proxies write, up to the first that is not a trusted proxy: what stands left of that is hearsay. A hop that
    cannot be read ends the search too, and the request counts as the last proxy's own.
    """
    known = read_address(peer or "")
    if not conf.forwarded or not trusts(conf, known, peer):
        return name_peer(peer)
    for address in read_hops(headers, conf.forwarded_headers):
        if address is None:
            break
        known = address
        if not trusts(conf, known, str(known)):
            break
    return name(known) if known else peer or None


@functools.lru_cache(1024)
def name_peer(peer: str | None) -> str | None:
    known = read_address(peer or "")
    return name(known) if known else peer or None


def name(address: Address) -> str:
    """A household or a server has a /64 of IPv6 to itself, so single addresses of it would be no limit at all."""
    return str(address) if isinstance(address, IPv4Address) else str(IPv6Network((int(address) >> 64 << 64, 64)))


@functools.lru_cache(1024)
def read_address(text: str) -> Address | None:
    """An address without port. IPv4 in IPv6's clothes is IPv4; zones are dropped."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def trusts(conf: HttpConf, address: Address | None, peer: str | None) -> bool:
    if not peer:
        return UNIX in conf.trusted_proxies
    return address is not None and within(address, tuple(conf.trusted_proxies))


@functools.lru_cache(1024)
def within(address: Address, networks: tuple[str, ...]) -> bool:
    return any(address in ip_network(text, strict=False) for text in networks if text != UNIX)


def read_hops(headers: Headers, names: Iterable[str]) -> Iterator[Address | None]:
    """The addresses in the first of the named headers that is present, nearest first; ``None`` is one that cannot be read."""
    lines = list(headers)
    for header in names:
        wanted = header.lower().encode("latin-1", "replace")
        values = [value.decode("latin-1") for key, value in lines if key.lower() == wanted]
        if values:
            split = split_forwarded if wanted == b"forwarded" else split_list
            # Line by line: a quote that a client left open in its own line cannot swallow what a proxy wrote in the next.
            for value in reversed(values):
                yield from map(read_node, reversed(split(value)))
            return


def split_list(value: str) -> list[str]:
    """``X-Forwarded-For`` and the like."""
    return [part for part in re.split(r"[ \t]*,[ \t]*", value.strip(" \t")) if part]


def split_forwarded(value: str) -> list[str]:
    """The ``for`` of each element of a ``Forwarded`` line (RFC 7239, section 4), empty where there is none.

    A line that breaks the grammar anywhere says nothing at all: no part of it can be told from what a client made up.
    """
    found: list[dict[str, str]] = [{}]
    position = 0
    while position < len(value):
        if pair := PAIR.match(value, position):
            key, quoted, plain = pair[1].lower(), pair[2], pair[3]
            if key in found[-1]:
                return [""]
            found[-1][key] = re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain
            position = pair.end()
        if position < len(value):
            if value[position] == ",":
                found.append({})
            elif value[position] not in "; \t":
                return [""]
            position += 1
    return [element.get("for", "") for element in found if element]


def read_node(text: str) -> Address | None:
    """The address of a node such as ``192.0.2.1:4711``, ``[2001:db8::1]:80`` or ``2001:db8::1``; not of "unknown" and "_hidden"."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host:
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        port = ":" + port
    return read_address(host) if not port or PORT.fullmatch(port) else None
