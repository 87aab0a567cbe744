"""Servers that DNS names, asked of a name server of the test's own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import dns.message
import dns.resolver
import dns.rrset
import pytest

import tokenissuer_backends.ldap.discovery
import tokenissuer_backends.ldap.wire
from tests.support.ldap import FakeDirectory
from tokenissuer.accounts.limit import Deadline
from tokenissuer.diagnosis import Severity
from tokenissuer.errors import BackendUnavailable
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.discovery import Discovery
from tokenissuer_backends.ldap.failure import Unreachable
from tokenissuer_backends.ldap.options import LdapOptions, UserOptions


class NameServer:
    """Answers with the records that a test gives it, or with nothing."""

    def __init__(self) -> None:
        self.records: list[str] = []
        self.asked: list[str] = []
        self.is_silent = False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End it."""
        # close() alone does not wake the thread that waits.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.socket.close()

    def _answer(self) -> None:
        while data := self.socket.recvfrom(4096):
            packet, client = data
            if not packet:
                return
            question = dns.message.from_wire(packet)
            name = question.question[0].name
            self.asked.append(name.to_text())
            response = dns.message.make_response(question)
            if self.records:
                response.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *self.records))
            if not self.is_silent:
                self.socket.sendto(response.to_wire(), client)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """A name server that the process asks instead of the system's."""
    server = NameServer()
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], server.socket.getsockname()[1]
    monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
    yield server
    server.close()


def found(discovery: Discovery) -> list[str]:
    """The addresses, as URLs."""
    return [address.url for address in discovery.addresses(Deadline.after(5))]


def test_servers_come_in_the_order_of_dns(names: NameServer) -> None:
    """By priority, then by weight; and those outside the domain not at all."""
    names.records = [
        "10 5 389 light.corp.example.com.",
        "10 50 389 Heavy.corp.example.com.",
        "5 0 3890 first.corp.example.com.",
        "0 0 389 evil.example.net.",
        "0 0 389 notcorp.example.com.",
    ]
    assert found(Discovery("corp.example.com", starttls=True)) == [
        "ldap://first.corp.example.com:3890",
        "ldap://heavy.corp.example.com:389",
        "ldap://light.corp.example.com:389",
    ]
    assert names.asked == ["_ldap._tcp.corp.example.com."]
    names.records = ["0 0 636 dc1.corp.example.com."]
    assert found(Discovery("corp.example.com", starttls=False)) == ["ldaps://dc1.corp.example.com:636"]
    assert names.asked[1:] == ["_ldaps._tcp.corp.example.com."]


def test_what_dns_has_told_stays_while_it_is_silent(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of DNS is none of the directory."""
    monkeypatch.setattr(tokenissuer_backends.ldap.discovery, "REFRESH_INTERVAL", 0.0)
    monkeypatch.setattr(tokenissuer_backends.ldap.discovery, "_TIMEOUT", 0.3)
    names.records = ["0 0 636 dc1.corp.example.com."]
    discovery = Discovery("corp.example.com", starttls=False)
    before = found(discovery)
    names.is_silent = True
    assert found(discovery) == before
    asked = len(names.asked)
    assert found(discovery) == before
    assert len(names.asked) == asked


@pytest.mark.parametrize("records", [[], ["0 0 636 evil.example.net."]], ids=["none", "elsewhere"])
def test_a_domain_without_servers_is_an_outage_that_check_explains(names: NameServer, records: list[str]) -> None:
    """Nobody is asked instead."""
    names.records = records
    with pytest.raises(Unreachable, match=r"_ldaps\._tcp\.corp\.example\.com"):
        found(Discovery("corp.example.com", starttls=False))
    backend = LdapBackend(LdapOptions(("srv://corp.example.com",), UserOptions("dc=test")))
    with pytest.raises(BackendUnavailable, match=r"_ldaps\._tcp"):
        backend.authenticate("alice", "right")
    (finding,) = [each for each in backend.diagnose() if each.severity is Severity.ERROR]
    assert "_ldaps._tcp.corp.example.com" in finding.fact
    backend.close()


def test_people_log_in_at_a_server_that_dns_names(
    names: NameServer, new_directory: Callable[..., FakeDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at the next one, when the first is gone."""
    monkeypatch.setattr(tokenissuer_backends.ldap.wire.Session, "_start_tls", lambda *_: None)
    first, second = new_directory(), new_directory()
    names.records = [
        f"{priority} 0 {each.listener.getsockname()[1]} localhost." for priority, each in enumerate((first, second))
    ]
    backend = LdapBackend(LdapOptions(("srv://localhost",), UserOptions("dc=test"), starttls=True))
    assert backend.authenticate("alice", "right").name == "alice"
    assert not second.requests
    first.close()
    assert backend.authenticate("alice", "right").name == "alice"
    assert second.requests
    backend.close()
