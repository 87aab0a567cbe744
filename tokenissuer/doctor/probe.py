"""Probes: requests to the realm that only this very instance answers with what arrived."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from tokenissuer.doctor.caller import Answer, Caller
from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.keys import SigningKey
from tokenissuer.web.probe import PROBE_HEADER, sign_probe
from tokenissuer.web.proxies import X_FORWARDED_FOR, TrustedProxies

#: Characters of a long header: with its name it is below the 8 KiB that proxies take by default.
LONG_HEADER: Final = 8000
#: Characters of a long query: that of an image copied from many others.
LONG_QUERY: Final = 6000
# An address that nobody has (RFC 5737): what a client might claim.
_CLAIMED: Final = "192.0.2.66"

_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
# No credentials: nobody has this name, and a probe is answered before they are looked at.
_AUTHORIZATION: Final = "Basic ZG9jdG9yOm5vIHBhc3N3b3Jk"


class Unanswered(TokenIssuerError):
    """A probe came back with something else.

    Args:
        answer: what.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.described)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What arrived of a probe.

    Args:
        content: the answer's members, see `tokenissuer.web.probe`.
        answer: the answer itself.
    """

    content: Mapping[str, Any]
    answer: Answer

    @property
    def clock_difference(self) -> float:
        """Seconds by which the issuer's clock is ahead of this machine's."""
        return float(self.content["time"]) - self.answer.moment

    @property
    def forwarded(self) -> Mapping[str, str]:
        """The headers with which proxies name clients."""
        found: Mapping[str, str] = self.content["forwarded"]
        return found

    @property
    def is_proxied(self) -> bool:
        """Whether something stands between; False if that cannot be told."""
        peer, port = self.content["peer"], self.content["peer_port"]
        if not peer:
            return True
        address, local_port = self.answer.local
        return (
            bool(port.isdigit()) and port != "0" and (peer, int(port)) != (address.removeprefix("::ffff:"), local_port)
        )


class Prober:
    """Sends probes to one realm.

    Args:
        caller: sends.
        key: the issuer's key.
        issuer: its name.
        realm: where to.
        service: a registry that the issuer serves: a realm that ends elsewhere may answer with a token for it.
    """

    def __init__(self, caller: Caller, key: SigningKey, issuer: str, realm: str, service: str) -> None:
        self._caller: Final = caller
        self._key: Final = key
        self._issuer: Final = issuer
        self._realm: Final = realm
        self._service: Final = service

    def plain(self) -> Arrival:
        """Send a GET, as a client that has not logged in does."""
        return self._send("GET", {})

    def authorized(self) -> Arrival:
        """Send a GET with an Authorization header."""
        return self._send("GET", {"Authorization": _AUTHORIZATION})

    def post(self, *, chunked: bool = False) -> Arrival:
        """Send a form, as containerd and BuildKit do; in chunks, as podman and skopeo do."""
        return self._send("POST", _FORM, chunked=chunked)

    def long_header(self) -> Arrival:
        """Send a long Authorization header: a password may be a JWT."""
        return self._send("GET", {"Authorization": f"Basic {'A' * (LONG_HEADER - 6)}"})

    def long_query(self) -> Arrival:
        """Send a long query."""
        return self._send("GET", {}, more={"client_id": "x" * LONG_QUERY})

    def claiming(self, header: str) -> Arrival:
        """Send a header in which a client claims an address that is not its own.

        Args:
            header: the name of the header.
        """
        return self._send("GET", {header: _CLAIMED if header == X_FORWARDED_FOR else f"for={_CLAIMED}"})

    def token(self, service: str) -> Answer:
        """Ask for a token as a client that has not logged in.

        Args:
            service: the registry that it is for.

        Raises:
            Unreachable: if there is no answer.
        """
        return self._caller.ask("GET", f"{self._realm}?{urlencode({'service': service})}")

    def _send(
        self, method: str, headers: Mapping[str, str], *, more: Mapping[str, str] | None = None, chunked: bool = False
    ) -> Arrival:
        """Send one probe.

        Raises:
            Unreachable: if there is no answer.
            Unanswered: if the answer is no answer to a probe.
        """
        nonce = secrets.token_urlsafe(16)
        sent = {PROBE_HEADER: sign_probe(self._key, self._issuer, nonce, time.time()), **headers}
        body, query = None, {"service": self._service, **(more or {})}
        url = f"{self._realm}?{urlencode(query)}"
        if method == "POST":
            url, body = self._realm, urlencode({**query, "grant_type": "password"}).encode()
        answer = self._caller.ask(method, url, sent, body, chunked=chunked)
        try:
            content = json.loads(answer.body)
            is_ours = answer.status == 200 and content["nonce"] == nonce
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise Unanswered(answer)
        if method == "POST" and content["body_length"] != len(body or b""):
            raise Unanswered(answer)
        return Arrival(content, answer)


def claimed_through(arrival: Arrival, proxies: TrustedProxies) -> bool:
    """Whether a client can choose its own address.

    It is only judged where the connection does not come from a trusted address itself: such a client is a proxy, and
    is believed.

    Args:
        arrival: of a probe that claims an address.
        proxies: the trusted proxies.
    """
    if arrival.content["client"] != _CLAIMED or not arrival.is_proxied:
        return False
    header = arrival.forwarded.get(proxies.header, "")
    before = header.rpartition(_CLAIMED)[2]
    # What the proxy has appended is the address that it saw, which is trusted: else the walk would have ended there.
    return "," not in before
