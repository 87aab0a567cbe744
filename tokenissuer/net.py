"""Addresses, networks and HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_file

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# An address with an optional port, as RFC 7239, 6 and several proxies write it.
_NODE: Final = re.compile(r"\[(?P<v6>[^\]]+)\](?::\w+)?|(?P<v4>[0-9.]+)(?::\w+)?|(?P<bare>[0-9A-Fa-f:.]+)")

# Bits before an IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2).
_MAPPED_BITS: Final = 96

_USER: Final = re.compile(r"(?<=//).*@|^[^/]*@")

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class HostPort:
    """HOST:PORT; port 0 means any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Read HOST:PORT; an IPv6 address may be in brackets.

        Raises:
            ValueError: if the text has another form.
        """
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"'{text}' is not HOST:PORT such as 127.0.0.1:5001")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> IPAddress | None:
    """Read an address, with or without a port; None if the text is not an address."""
    found = _NODE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        address = ipaddress.ip_address(found["v6"] or found["v4"] or found["bare"])
    except ValueError:
        return None
    # A socket for both versions shows an IPv4 client as ::ffff:192.0.2.1, which no IPv4 network in a rule would cover.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_network(text: str) -> IPNetwork:
    """Read an address or a network in CIDR notation.

    Raises:
        ValueError: if the text is neither.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not an address or a network such as 192.0.2.0/24: {error}") from None
    # As `parse_address` reads addresses: none would ever be in this network.
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def shown_url(url: str) -> str:
    """Return a URL for a message, without a user and a password that somebody has written into it."""
    return _USER.sub("***@", url)


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return how to verify a server's certificate.

    Args:
        ca_file: certificates to trust instead of the system's, PEM.

    Raises:
        ConfigurationError: if they cannot be read, or there is none.
    """
    if ca_file is None:
        return ssl.create_default_context()
    # Texts between the certificates may be in any encoding, and `cadata` takes ASCII only.
    certificates = b"\n".join(_CERTIFICATE.findall(read_file(ca_file, "'ca_file'"))).decode("ascii")
    try:
        # Without any text, Python would trust the system's certificates.
        return ssl.create_default_context(cadata=certificates or " ")
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(f"'ca_file': {ca_file} has no PEM certificate") from None


def is_loopback(host: str) -> bool:
    """Whether a host name or address literal means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_inner_literal(host: str) -> bool:
    """Whether a host is an address, not a name, that means this machine or an inner network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_link_local
