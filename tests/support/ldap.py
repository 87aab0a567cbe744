"""An LDAP server for tests that does what no real one does: broken answers, referrals, a byte now and then."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

BIND, UNBIND, SEARCH, EXTENDED = 0x60, 0x42, 0x63, 0x77
READER, READER_PASSWORD = "cn=reader,dc=test", "reader-secret"


def tlv(tag: int, content: bytes) -> bytes:
    """One BER element."""
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def take(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element's tag and content, and the rest."""
    size, start = data[1], 2
    if size > 127:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(data[2:start], "big")
    return data[0], data[start : start + size], data[start + size :]


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """All elements."""
    found = []
    while data:
        tag, content, data = take(data)
        found.append((tag, content))
    return found


@dataclass(frozen=True)
class Message:
    """A request, as far as tests look at it."""

    number: int
    kind: int
    body: bytes

    @property
    def name(self) -> str:
        """The DN of a bind, the base of a search, the object identifier of an extended request."""
        fields = elements(self.body)
        return fields[1 if self.kind == BIND else 0][1].decode()

    @property
    def password(self) -> bytes:
        """The password of a bind."""
        return elements(self.body)[2][1]

    @property
    def filter(self) -> bytes:
        """The filter of a search, as it is on the wire."""
        tag, content = elements(self.body)[6]
        return tlv(tag, content)

    @property
    def attributes(self) -> list[str]:
        """The attributes a search asks for."""
        return [content.decode() for _, content in elements(elements(self.body)[7][1])]

    def reply(self, kind: int, body: bytes, controls: bytes = b"") -> bytes:
        """A response to it."""
        more = tlv(0xA0, controls) if controls else b""
        return tlv(0x30, tlv(0x02, self.number.to_bytes(4, "big")) + tlv(kind, body) + more)

    def result(self, code: int, text: str = "", controls: bytes = b"", referral: str = "") -> bytes:
        """The result that this kind of request ends with."""
        body = tlv(0x0A, bytes([code])) + tlv(0x04, b"") + tlv(0x04, text.encode())
        if referral:
            body += tlv(0xA3, tlv(0x04, referral.encode()))
        return self.reply({BIND: 0x61, SEARCH: 0x65, EXTENDED: 0x78}[self.kind], body, controls)

    def entry(self, dn: str, **attributes: Iterable[str | bytes]) -> bytes:
        """An entry that a search has found."""
        return self.entry_of(dn, attributes)

    def entry_of(self, dn: str, attributes: dict[str, Iterable[str | bytes]]) -> bytes:
        """An entry that a search has found, with attributes of any name."""
        listed = b""
        for name, values in attributes.items():
            octets = (value if isinstance(value, bytes) else value.encode() for value in values)
            listed += tlv(0x30, tlv(0x04, name.encode()) + tlv(0x31, b"".join(tlv(0x04, value) for value in octets)))
        return self.reply(0x64, tlv(0x04, dn.encode()) + tlv(0x30, listed))

    def reference(self, url: str) -> bytes:
        """A continuation reference among the results of a search."""
        return self.reply(0x73, tlv(0x04, url.encode()))


def control(oid: str, value: bytes) -> bytes:
    """A response control."""
    return tlv(0x30, tlv(0x04, oid.encode()) + tlv(0x04, value))


class Hang(Exception):
    """Answer nothing from now on."""


class Hangup(Exception):
    """End the connection."""


Answer = Callable[[Message], Iterable[bytes]]


def hanging(message: Message) -> Iterable[bytes]:
    """An answer that never comes."""
    raise Hang


def ending(message: Message) -> Iterable[bytes]:
    """The end of the connection for an answer."""
    raise Hangup


@dataclass
class FakeDirectory:
    """One entry, alice, and whatever `special` says of a kind of request."""

    special: dict[int, Answer] = field(default_factory=dict)
    seconds_per_byte: float = 0.0
    greeting: bytes = b""
    entries: dict[str, dict[str, Iterable[str | bytes]]] = field(
        default_factory=lambda: {"uid=alice,dc=test": {"uid": ["alice"]}}
    )
    requests: list[Message] = field(default_factory=list)
    connections: int = 0
    unbinds: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ldap://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def binds(self) -> list[str]:
        """Who has tried to log in, apart from the account that searches."""
        return [message.name for message in self.requests if message.kind == BIND and message.name != READER]

    @property
    def searches(self) -> list[Message]:
        """What was searched."""
        return [message for message in self.requests if message.kind == SEARCH]

    def answer(self, message: Message) -> Iterable[bytes]:
        """What a directory would say: the password of everybody is `right`."""
        if special := self.special.get(message.kind):
            yield from special(message)
        elif message.kind == BIND:
            right = message.password in (b"right", READER_PASSWORD.encode())
            yield message.result(0 if right else 49)
        elif message.kind == SEARCH:
            for dn, attributes in self.entries.items():
                if message.name in ("dc=test", dn):
                    yield message.entry_of(dn, attributes)
            yield message.result(0)
        else:
            yield message.result(2)

    def close_connections(self) -> None:
        """End all connections, as a restart does."""
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self.is_over.set()
        # shutdown() wakes the thread that accepts; close() alone does not.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.close_connections()

    def _listen(self) -> None:
        while not self.is_over.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections += 1
                self.open.add(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError, Hangup, IndexError, ValueError):
                if self.greeting:
                    self._send(connection, self.greeting)
                data = b""
                while received := connection.recv(65536):
                    data += received
                    while len(data) > 2 and len(data) >= len(tlv(*take(data)[:2])):
                        _, content, data = take(data)
                        self._respond(connection, content)
        finally:
            with self.lock:
                self.open.discard(connection)

    def _respond(self, connection: socket.socket, content: bytes) -> None:
        (_, number), (kind, body), *_ = elements(content)
        message = Message(int.from_bytes(number, "big"), kind, body)
        with self.lock:
            if kind == UNBIND:
                # It asks for nothing, and ends every connection.
                self.unbinds += 1
                raise Hangup
            self.requests.append(message)
        try:
            for part in self.answer(message):
                self._send(connection, part)
        except Hang:
            self.is_over.wait(60)
            raise Hangup from None

    def _send(self, connection: socket.socket, part: bytes) -> None:
        if not self.seconds_per_byte:
            connection.sendall(part)
            return
        for octet in part:
            connection.sendall(bytes([octet]))
            if self.is_over.wait(self.seconds_per_byte):
                raise Hangup
