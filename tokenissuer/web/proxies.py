"""The client's address, when proxies are between: X-Forwarded-For, or RFC 7239.

Each proxy appends the address that it was called from. The client is the right-most address in the header that is not
in `trusted_proxies`; the client itself may have written everything to the left of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from tokenissuer.net import IPAddress, IPNetwork, parse_address, parse_network
from tokenissuer.options import option
from tokenissuer.web.browsers import check_origin

#: The word in `trusted_proxies` for peers without an address: those of a Unix socket.
UNIX: Final = "unix"
X_FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = "Forwarded"

# RFC 7239, 4: elements between commas, pairs between semicolons; a quoted value may hold either.
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = r'(?:"(?:[^"\\]|\\.)*"|[^\s,;"]*)'
_PAIR: Final = re.compile(rf"({_TOKEN})=({_VALUE})")
_ELEMENT: Final = re.compile(rf"{_TOKEN}={_VALUE}(?:\s*;\s*{_TOKEN}={_VALUE})*")
_FORWARDED: Final = re.compile(rf"\s*{_ELEMENT.pattern}(?:\s*,\s*{_ELEMENT.pattern})*\s*")


@dataclass(frozen=True, slots=True, eq=False)
class TrustedProxies:
    """The proxies in front of this server.

    Args:
        networks: their addresses.
        unix: whether peers without an address, those of a Unix socket, are proxies too.
        header: the one header that they write. They pass on any other as the client sent it.
    """

    networks: tuple[IPNetwork, ...] = ()
    unix: bool = False
    header: str = X_FORWARDED_FOR

    def client(self, environ: Mapping[str, Any]) -> IPAddress | None:
        """Return the client's address; None if it is unknown.

        Args:
            environ: the WSGI environment.
        """
        peer, header = environ.get("REMOTE_ADDR", ""), environ.get(self._key, "")
        # The same few addresses come again and again. A long header is not remembered: it would fill memory.
        return _remembered_client(self, peer, header) if len(header) < 100 else self._client(peer, header)

    def _client(self, peer: str, header: str) -> IPAddress | None:
        address = parse_address(peer)
        if not self.trusts(address):
            return address
        for node in self._nodes(header):
            address = parse_address(node)
            if address is None or not self.trusts(address):
                break
        return address

    @property
    def _key(self) -> str:
        return "HTTP_X_FORWARDED_FOR" if self.header == X_FORWARDED_FOR else "HTTP_FORWARDED"

    def overlooked(self, environ: Mapping[str, Any]) -> str:
        """Return a peer that seems to be a proxy and is not trusted: all its clients then have one address.

        Args:
            environ: the WSGI environment.

        Returns:
            What `trusted_proxies` would have to name; empty if there is no such peer.
        """
        if not environ.get("HTTP_X_FORWARDED_FOR") and not environ.get("HTTP_FORWARDED"):
            return ""
        address = parse_address(environ.get("REMOTE_ADDR", ""))
        is_inner = address is None or address.is_private or address.is_loopback
        return (UNIX if address is None else str(address)) if is_inner and not self.trusts(address) else ""

    def trusts(self, address: IPAddress | None) -> bool:
        """Whether a peer is believed what it says about clients.

        Args:
            address: the peer's; None for a Unix socket.
        """
        if address is None:
            return self.unix
        return any(address in network for network in self.networks)

    def _nodes(self, text: str) -> Iterator[str]:
        """Return the addresses in the header, the nearest first."""
        if not text.strip():
            return
        if self.header == X_FORWARDED_FOR:
            yield from reversed(text.split(","))
        elif _FORWARDED.fullmatch(text):
            yield from map(_for, reversed(_ELEMENT.findall(text)))
        else:
            # A quote that the client opens and does not close would hide what the proxy appends.
            yield ""


@lru_cache(maxsize=4096)
def _remembered_client(proxies: TrustedProxies, peer: str, header: str) -> IPAddress | None:
    return proxies._client(peer, header)


#: No proxies: the client is the peer of the connection.
NO_PROXIES: Final = TrustedProxies()


def _for(element: str) -> str:
    """Return the node that an element of Forwarded names; empty if it names none or several."""
    values = [value for name, value in _PAIR.findall(element) if name.lower() == "for"]
    if len(values) != 1:
        return ""
    (value,) = values
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else str(value)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The `[server]` table: the proxies between the clients and this server, and the browsers among the clients."""

    trusted_proxies: tuple[str, ...] = option(
        "addresses or networks of the proxies in front, or 'unix' for a Unix socket (default: none)", default=()
    )
    forwarded_header: Literal["X-Forwarded-For", "Forwarded"] = option(
        "the header in which these proxies name the client", default=X_FORWARDED_FOR
    )
    allowed_origins: tuple[str, ...] = option(
        'sites whose pages may ask from a browser, such as "https://ui.example.com" (default: none)', default=()
    )

    def proxies(self) -> TrustedProxies:
        """Return the trusted proxies.

        Raises:
            ValueError: if one is not an address or network.
        """
        networks = tuple(parse_network(text) for text in self.trusted_proxies if text != UNIX)
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("'trusted_proxies' covers every address; name only the proxies in front")
        return TrustedProxies(networks, UNIX in self.trusted_proxies, self.forwarded_header)

    def __post_init__(self) -> None:
        self.proxies()
        for origin in self.allowed_origins:
            check_origin(origin)
