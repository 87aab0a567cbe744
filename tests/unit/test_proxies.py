"""Whose word about the client's address counts: the spoof matrix."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict
from pathlib import Path

import pytest

from tokenissuer.config import load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.net import parse_address
from tokenissuer.web.proxies import NO_PROXIES, TrustedProxies

NETWORKS = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "2001:db8:aaaa::/48", "::1/128")))
X_FORWARDED_FOR = TrustedProxies(NETWORKS)
FORWARDED = TrustedProxies(NETWORKS, header="Forwarded")
BY_SOCKET = TrustedProxies(unix=True)


def client(proxies: TrustedProxies, peer: str, x_forwarded_for: str | None = None, forwarded: str | None = None) -> str:
    """The address that counts, as text; empty if unknown."""
    environ = {"REMOTE_ADDR": peer}
    if x_forwarded_for is not None:
        environ["HTTP_X_FORWARDED_FOR"] = x_forwarded_for
    if forwarded is not None:
        environ["HTTP_FORWARDED"] = forwarded
    return str(proxies.client(environ) or "")


@pytest.mark.parametrize("proxies", [NO_PROXIES, X_FORWARDED_FOR, FORWARDED, BY_SOCKET])
def test_a_stranger_is_who_the_connection_says(proxies: TrustedProxies) -> None:
    """No header counts that a client sent directly."""
    for claim in ("10.1.1.1", "127.0.0.1", "::1", "192.0.2.9, 10.0.0.1"):
        assert client(proxies, "198.51.100.7", claim, f"for={claim}") == "198.51.100.7"


def test_without_trusted_proxies_even_this_machine_is_not_believed() -> None:
    """Nothing is trusted by default."""
    assert client(NO_PROXIES, "127.0.0.1", "192.0.2.1", "for=192.0.2.1") == "127.0.0.1"
    assert client(NO_PROXIES, "", "192.0.2.1", "for=192.0.2.1") == ""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "10.0.0.1"),
        ("", "10.0.0.1"),
        ("  ", "10.0.0.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:51234", "192.0.2.1"),
        ("[2001:db8::1]:51234", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        # What a client invented stands to the left.
        ("203.0.113.5, 192.0.2.1", "192.0.2.1"),
        ("10.9.9.9, 192.0.2.1", "192.0.2.1"),
        ("127.0.0.1,::1,192.0.2.1", "192.0.2.1"),
        # A chain of our own proxies is passed over.
        ("203.0.113.5, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("192.0.2.1, 2001:db8:aaaa::5, 10.0.0.2", "192.0.2.1"),
        # A request that began within our networks.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # What cannot be read is unknown, never what stands beyond it.
        ("192.0.2.1, unknown", ""),
        ("192.0.2.1, ", ""),
        ("192.0.2.1,,10.0.0.2", ""),
        ("192.0.2.1, 300.1.1.1", ""),
        ("192.0.2.1 10.0.0.1", ""),
        ("192.0.2.1, for=10.0.0.2", ""),
        ("192.0.2.1, 0x0a000001", ""),
        ("192.0.2.1, \u0661\u0660.0.0.1", ""),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(header: str | None, expected: str) -> None:
    """Up to the first address that is not a proxy of ours."""
    assert client(X_FORWARDED_FOR, "10.0.0.1", header) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "10.0.0.1"),
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=192.0.2.1;proto=https;by=10.0.0.1", "192.0.2.1"),
        ('proto=https; for="192.0.2.1:51234"', "192.0.2.1"),
        ('for="[2001:db8::1]:51234"', "2001:db8::1"),
        ("for=203.0.113.5, for=192.0.2.1", "192.0.2.1"),
        ("for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
        ('for="a, b", for=192.0.2.1', "192.0.2.1"),
        (r'for="a\", b", for=192.0.2.1', "192.0.2.1"),
        ("for=192.0.2.1, for=unknown", ""),
        ("for=192.0.2.1, for=_hidden", ""),
        ("for=192.0.2.1, by=10.0.0.2", ""),
        ("for=192.0.2.1, for=10.0.0.2;for=10.0.0.3", ""),
        # A quote left open, to swallow what the proxy appends.
        ('for="192.0.2.1";x=", for=203.0.113.5', ""),
        ('for=192.0.2.1;x=", for="[2001:db8::1]"', ""),
        ('for=", for=203.0.113.5', ""),
    ],
)
def test_forwarded_is_read_from_the_right(header: str | None, expected: str) -> None:
    """By the grammar of RFC 7239; what breaks it is unknown."""
    assert client(FORWARDED, "10.0.0.1", forwarded=header) == expected


def test_only_the_configured_header_counts() -> None:
    """A proxy hands on the other one as the client sent it."""
    assert client(X_FORWARDED_FOR, "10.0.0.1", "192.0.2.1", "for=203.0.113.5") == "192.0.2.1"
    assert client(X_FORWARDED_FOR, "10.0.0.1", None, "for=203.0.113.5") == "10.0.0.1"
    assert client(FORWARDED, "10.0.0.1", "203.0.113.5", "for=192.0.2.1") == "192.0.2.1"
    assert client(FORWARDED, "10.0.0.1", "203.0.113.5", None) == "10.0.0.1"


def test_a_unix_socket_is_believed_where_that_is_said() -> None:
    """Its peers have no address to be told by."""
    assert client(BY_SOCKET, "", "203.0.113.5, 192.0.2.1") == "192.0.2.1"
    assert client(BY_SOCKET, "192.0.2.7", "203.0.113.5") == "192.0.2.7"
    assert client(X_FORWARDED_FOR, "", "192.0.2.1") == ""


@pytest.mark.parametrize("proxies", [X_FORWARDED_FOR, FORWARDED])
def test_a_long_header_costs_little(proxies: TrustedProxies) -> None:
    """Whatever a client makes of it (a quadratic reader would take minutes)."""
    for piece in ("10.0.0.1,", "for=a;", 'for="', "for=a, ", " ", ",", '\\"', "a=" * 2 + "b"):
        client(proxies, "10.0.0.1", piece * (120_000 // len(piece)), piece * (120_000 // len(piece)))


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "1.2.3.4.5", "[1.2.3.4", "1.2.3.4:", "fe80::1%eth0", "/24"])
def test_what_is_no_address_is_none(text: str) -> None:
    """No guess is made."""
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('trusted_proxies = ["localhost"]', "localhost"),
        ('trusted_proxies = ["10.0.0.1/8"]', "10.0.0.1/8"),
        ('trusted_proxies = ["0.0.0.0/0"]', "trusted_proxies"),
        ('trusted_proxies = ["::/0"]', "trusted_proxies"),
        ('forwarded_header = "X-Real-IP"', "X-Forwarded-For"),
    ],
)
def test_proxies_that_cannot_be_meant_are_refused(set_up: Path, line: str, complaint: str) -> None:
    """At start, with the place."""
    path = set_up / "tokenissuer.toml"
    path.write_text(f"[server]\n{line}\n{path.read_text()}")
    with pytest.raises(ConfigurationError, match=r"\[server\]") as caught:
        load_config(path)
    assert complaint in str(caught.value)


def test_proxies_are_read_from_the_configuration(set_up: Path) -> None:
    """Networks, the word unix and the header."""
    path = set_up / "tokenissuer.toml"
    assert asdict(load_config(path).server.proxies()) == asdict(NO_PROXIES)
    path.write_text(
        f'[server]\ntrusted_proxies = ["10.0.0.0/8", "unix"]\nforwarded_header = "Forwarded"\n{path.read_text()}'
    )
    expected = TrustedProxies((ipaddress.ip_network("10.0.0.0/8"),), unix=True, header="Forwarded")
    assert asdict(load_config(path).server.proxies()) == asdict(expected)
