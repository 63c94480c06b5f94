"""Who the client is: the connection's other end, or what trusted proxies say of it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.conf import HttpConf
from api.limits.client import identify, split_forwarded

PLAIN = HttpConf()
TRUSTING = HttpConf(forwarded=True, trusted_proxies=["127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48", "unix"])
RFC = HttpConf(forwarded=True, forwarded_headers=["Forwarded"])


def xff(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode()) for value in values]


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"forwarded", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", None),
        (None, None),
    ],
)
def test_peer(peer: str | None, client: str | None) -> None:
    assert identify(peer, xff("198.51.100.1"), PLAIN) == client


@pytest.mark.parametrize(
    ("peer", "values", "client"),
    [
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1"], "198.51.100.1"),
        ("", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:ffff::5", ["198.51.100.1"], "198.51.100.1"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # spoofed by a peer that is nobody
        ("testclient", ["198.51.100.1"], "testclient"),
        ("127.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # the left one is the client's own invention
        ("127.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["1.1.1.1, 198.51.100.1, 10.1.2.3"], "198.51.100.1"),
        ("127.0.0.1", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),  # a client inside
        ("127.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("127.0.0.1", ["2001:db8::7"], "2001:db8::/64"),
        ("127.0.0.1", ["[2001:db8::7]:80"], "2001:db8::/64"),
        ("127.0.0.1", ["[2001:db8::7]"], "2001:db8::/64"),
        ("127.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["198.51.100.1, unknown"], "127.0.0.1"),  # nobody is skipped
        ("127.0.0.1", ["198.51.100.1, garbage, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["[2001:db8::7"], "127.0.0.1"),
        ("127.0.0.1", ["[198.51.100.1]"], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1:99x"], "127.0.0.1"),
        ("127.0.0.1", [" \t, ,"], "127.0.0.1"),
        (None, ["unknown"], None),
        (None, [], None),
    ],
)
def test_x_forwarded_for(peer: str | None, values: list[str], client: str | None) -> None:
    assert identify(peer, xff(*values), TRUSTING) == client


def test_unix_only_where_trusted() -> None:
    conf = HttpConf(forwarded=True, trusted_proxies=["127.0.0.1"])
    assert identify(None, xff("198.51.100.1"), conf) is None


def test_the_first_header_that_is_present_counts() -> None:
    both = [*forwarded("for=198.51.100.2"), *xff("198.51.100.1")]
    assert identify("127.0.0.1", both, TRUSTING) == "198.51.100.1"
    assert identify("127.0.0.1", both, HttpConf(forwarded=True, forwarded_headers=["Forwarded", "X-Forwarded-For"])) == "198.51.100.2"
    # A header that cannot be read does not open the way to the next, which a client may have written.
    assert identify("127.0.0.1", [*forwarded("for=198.51.100.2"), *xff("junk")], TRUSTING) == "127.0.0.1"
    assert (
        identify("127.0.0.1", [(b"X-Real-IP", b"198.51.100.3")], HttpConf(forwarded=True, forwarded_headers=["x-real-ip"]))
        == "198.51.100.3"
    )


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["for=192.0.2.43"], "192.0.2.43"),
        (['For="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::/64"),
        (["for=192.0.2.60;proto=http;by=203.0.113.43"], "192.0.2.60"),
        (["proto=https; for=192.0.2.60 ;host=example.org"], "192.0.2.60"),
        (["for=192.0.2.43, for=198.51.100.17"], "198.51.100.17"),
        (["for=192.0.2.43, , for=127.0.0.1,"], "192.0.2.43"),
        (["for=192.0.2.43", "for=198.51.100.17"], "198.51.100.17"),
        (['for="192.0.2.43:_port"'], "192.0.2.43"),
        (['for="1\\92.0.2.43"'], "192.0.2.43"),
        (["for=192.0.2.43:80"], "192.0.2.43"),
        (["for=_hidden"], "127.0.0.1"),
        (["for=unknown"], "127.0.0.1"),
        (['for="_gazonk"; proto=http'], "127.0.0.1"),
        (["proto=http"], "127.0.0.1"),
        (["for=192.0.2.1;for=192.0.2.2"], "127.0.0.1"),
        (['for="192.0.2.1'], "127.0.0.1"),
        (['host="a, for=192.0.2.1"; for=192.0.2.2'], "192.0.2.2"),
        # A quote that the client left open does not swallow what the proxy wrote behind it.
        (['for=192.0.2.1;x="', 'for="[2001:db8::1]"'], "2001:db8::/64"),
        (['for=192.0.2.1;x=", for="[2001:db8::1]"'], "127.0.0.1"),
        (["for=192.0.2.1 by=x"], "127.0.0.1"),
        (["for = 192.0.2.1"], "127.0.0.1"),
    ],
)
def test_forwarded(values: list[str], client: str) -> None:
    assert identify("127.0.0.1", forwarded(*values), RFC) == client


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
texts = st.one_of(st.text(alphabet=st.characters(max_codepoint=255), max_size=60), st.text(alphabet='for=";,\\[]:.1a _%', max_size=60))


def expected(address: IPv4Address | IPv6Address) -> str:
    address = getattr(address, "ipv4_mapped", None) or address
    return str(address) if address.version == 4 else str(IPv6Network((address, 64), strict=False))


@given(texts, addresses)
def test_nothing_left_of_the_proxy_matters(spoof: str, address: IPv4Address | IPv6Address) -> None:
    conf = HttpConf(forwarded=True, trusted_proxies=["unix"])
    spoof = spoof.encode("latin-1", "replace").decode("latin-1")
    node = str(address) if address.version == 4 else f"[{address}]:80"
    line = [(b"x-forwarded-for", f"{spoof}, {node}".encode("latin-1"))]
    assert identify(None, line, conf) == expected(address)
    lines = forwarded(spoof, f'for="{node}";proto=https')
    assert identify(None, lines, RFC) == expected(address)
    # In one line with the proxy's element a broken one may take the proxy's with it, but nothing made up becomes the client.
    joined = identify(None, forwarded(f'{spoof}, for="{node}"'), RFC)
    assert joined in (expected(address), None)


@given(st.lists(texts, max_size=4), st.one_of(st.none(), addresses.map(str), st.text(max_size=20)))
def test_garbage_is_safe(values: list[str], peer: str | None) -> None:
    for conf in (PLAIN, TRUSTING, RFC):
        for make in (lambda *v: [(b"x-forwarded-for", x.encode("latin-1", "replace")) for x in v], forwarded):
            found = identify(peer, make(*(v.encode("latin-1", "replace").decode("latin-1") for v in values)), conf)
            if found is not None and found != peer:
                ip_address(found.removesuffix("/64"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["for", "by", "host", "proto"]), st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126))),
        min_size=1,
    )
)
def test_quoting_round_trip(pairs: list[tuple[str, str]]) -> None:
    unique = dict(pairs)
    text = ";".join(key + '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for key, value in unique.items())
    assert split_forwarded(text) == [unique.get("for", "")]
