"""Who really asks, when proxies stand between: X-Forwarded-For, or RFC 7239.

Each proxy appends the address it was called from, so only what stands right of the last proxy we know was written by
somebody we trust. Everything further left may be the client's own invention.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenissuer.policy import IPAddress, IPNetwork

#: The word in `trusted_proxies` for peers that have no address: those of a Unix socket.
UNIX: Final = "unix"
X_FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = "Forwarded"

# RFC 7239, 4: elements between commas, pairs between semicolons; a quoted value may hold either.
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = r'(?:"(?:[^"\\]|\\.)*"|[^\s,;"]*)'
_PAIR: Final = re.compile(rf"({_TOKEN})=({_VALUE})")
_ELEMENT: Final = re.compile(rf"{_TOKEN}={_VALUE}(?:\s*;\s*{_TOKEN}={_VALUE})*")
_FORWARDED: Final = re.compile(rf"\s*{_ELEMENT.pattern}(?:\s*,\s*{_ELEMENT.pattern})*\s*")
# An address with an optional port, as RFC 7239, 6 and several proxies write it.
_NODE: Final = re.compile(r"\[(?P<v6>[^\]]+)\](?::\w+)?|(?P<v4>[0-9.]+)(?::\w+)?|(?P<bare>[0-9A-Fa-f:.]+)")


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The proxies whose word counts.

    Args:
        networks: their addresses.
        unix: whether peers without an address, those of a Unix socket, are proxies too.
        header: the one header that they write. Another, which they hand on as it came, could be anybody's.
    """

    networks: tuple[IPNetwork, ...] = ()
    unix: bool = False
    header: str = X_FORWARDED_FOR

    def client(self, environ: Mapping[str, Any]) -> IPAddress | None:
        """Return the address of who really asks; None if that cannot be told.

        Args:
            environ: the WSGI environment.
        """
        address = parse_address(environ.get("REMOTE_ADDR", ""))
        if not self._trusts(address):
            return address
        for node in self._nodes(environ):
            address = parse_address(node)
            if address is None or not self._trusts(address):
                break
        return address

    def overlooks(self, environ: Mapping[str, Any]) -> bool:
        """Whether somebody on this machine speaks for others, and is not trusted: all of them then have one address.

        Args:
            environ: the WSGI environment.
        """
        if not environ.get("HTTP_X_FORWARDED_FOR") and not environ.get("HTTP_FORWARDED"):
            return False
        address = parse_address(environ.get("REMOTE_ADDR", ""))
        return (address is None or address.is_loopback) and not self._trusts(address)

    def _trusts(self, address: IPAddress | None) -> bool:
        if address is None:
            return self.unix
        return any(address in network for network in self.networks)

    def _nodes(self, environ: Mapping[str, Any]) -> Iterator[str]:
        """Return what the header names, the nearest first."""
        text = environ.get("HTTP_" + self.header.upper().replace("-", "_"), "")
        if not text.strip():
            return
        if self.header == X_FORWARDED_FOR:
            yield from reversed(text.split(","))
        elif _FORWARDED.fullmatch(text):
            yield from map(_for, reversed(_ELEMENT.findall(text)))
        else:
            # A quote that a client opens and does not close would hide what the proxy appends.
            yield ""


#: Nobody's word counts but the connection's.
NO_PROXIES: Final = TrustedProxies()


def parse_address(text: str) -> IPAddress | None:
    """Read an address, with or without a port; None if it is none."""
    found = _NODE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        address = ipaddress.ip_address(found["v6"] or found["v4"] or found["bare"])
    except ValueError:
        return None
    # A socket for both versions shows an IPv4 client as ::ffff:192.0.2.1, which no IPv4 network in a rule would cover.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _for(element: str) -> str:
    """Return the node that an element of Forwarded names; empty if it names none, or several."""
    values = [value for name, value in _PAIR.findall(element) if name.lower() == "for"]
    if len(values) != 1:
        return ""
    (value,) = values
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else str(value)
