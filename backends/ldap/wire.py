"""One connection to one server: everything that touches ldap3, which has no types, or a socket.

ldap3 only writes and reads the messages. Connections, TLS and time are handled here: the library has no deadline for a
whole answer, resolves names without one, and verifies certificates in its own way.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import ldap3

from tokenissuer import Deadline, tls_context
from tokenissuer_backends.ldap import ppolicy
from tokenissuer_backends.ldap.failure import DirectoryFailure, Incomplete, Misconfigured, Refused, Unreachable
from tokenissuer_backends.ldap.filter import EVERYTHING
from tokenissuer_backends.ldap.options import Address

_log: Final = logging.getLogger("tokenissuer.backends.ldap")

_RANGE: Final = ";range="
# OpenSSL's codes of a certificate whose authority it does not know, and of an answer that is no TLS.
_UNKNOWN_AUTHORITY: Final = (2, 18, 19, 20, 21)
_NO_TLS: Final = ("UNEXPECTED_EOF_WHILE_READING", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_START_TLS: Final = "1.3.6.1.4.1.1466.20037"
_WHO_AM_I: Final = "1.3.6.1.4.1.4203.1.11.3"

# Result codes: https://www.rfc-editor.org/rfc/rfc4511#appendix-A.2
_SUCCESS: Final = 0
_SIZE_LIMIT: Final = 4
#: Besides wrong credentials (49): 389-ds says 53 for an inactive account and 19 after too many tries.
_REFUSALS: Final = frozenset({19, 32, 34, 48, 49, 50, 53})
#: The server requires more protection than the connection has.
_NEEDS_PROTECTION: Final = frozenset({8, 13})
_MISTAKES: Final = {
    10: "it refers to another server, and referrals are never followed; use that server, or another base",
    11: "it would have to read too many entries; index the attributes of the filter",
    12: "it does not know a control that the search needs",
    16: "an attribute of the filter does not exist",
    17: "an attribute of the filter does not exist",
    18: "an attribute of the filter cannot be compared like this",
    21: "a value of the filter cannot be one of its attribute",
    32: "it has no such base, or does not show it to this account",
    34: "the base is not a distinguished name",
    50: "the account that searches has no permission there",
    87: "the filter cannot be understood",
}

#: An unbind request: RFC 4511, 4.3. The library sends none after a failure.
_UNBIND: Final = bytes.fromhex("3008 0204 7fffffff 4200")
#: Seconds that a server may take to accept the end of a connection.
_UNBIND_SECONDS: Final = 0.1
#: Bytes of an answer; an account in ten thousand groups needs one megabyte.
_MAX_ANSWER: Final = 4 * 1024 * 1024
_MAX_DIAGNOSTIC: Final = 200
_AD_DATA: Final = re.compile(r"\bdata ([0-9a-f]{1,8})\b", re.ASCII)
_AD_MEANINGS: Final = {
    "525": "no such user",
    "52e": "wrong password",
    "530": "not at this hour",
    "531": "not from this machine",
    "532": "the password has expired",
    "533": "the account is disabled",
    "701": "the account has expired",
    "773": "the password must be changed",
    "775": "the account is locked",
}


#: What the library's exceptions mean. Their own texts may quote what was sent.
_MEANINGS: Final = {
    "LDAPSessionTerminatedByServerError": "the server ended the connection",
    "LDAPSocketReceiveError": "the connection broke, or no answer came in time",
    "LDAPSocketSendError": "the connection broke",
    "LDAPSocketOpenError": "the connection is closed",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that a search found.

    Args:
        dn: its distinguished name.
        attributes: names in lower case → values.
    """

    dn: str
    attributes: Mapping[str, tuple[bytes, ...]]

    def texts(self, attribute: str) -> tuple[str, ...]:
        """Return an attribute's values; none if the entry does not have or show it.

        Raises:
            Misconfigured: if a value is not text.
        """
        try:
            return tuple(value.decode("utf-8") for value in self.attributes.get(attribute.lower(), ()))
        except UnicodeDecodeError:
            raise Misconfigured(f"the attribute '{attribute}' of {self.dn} is not text") from None


class Trust:
    """The certificates that TLS trusts. There is no way to trust everybody.

    Args:
        ca_file: PEM file; None for the system's.
        name: what certificates must be for, if that is not the host as the configuration names it.

    Raises:
        ConfigurationError: if the file cannot be used.
    """

    def __init__(self, ca_file: Path | None, name: str = "") -> None:
        context = tls_context(ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _TlsSocket
        self._context: Final = context
        self._name: Final = name

    def wrap(self, plain: _PlainSocket, host: str, deadline: Deadline) -> _TlsSocket:
        """Start TLS on a connection, and verify that the other end is this host.

        Raises:
            OSError: if either fails.
        """
        plain.settimeout(deadline.remaining())
        # For an address literal this is a comparison with the certificate's IP addresses.
        wrapped = self._context.wrap_socket(plain, server_hostname=self._name or host)
        try:
            if not isinstance(wrapped, _TlsSocket):
                raise OSError("the connection is not protected")  # nothing later checks this again
            wrapped.allow(deadline)
        except OSError:
            wrapped.close()
            raise
        return wrapped


class _Timed(socket.socket):
    """A socket with a deadline and a maximum size for a whole answer, not for each part of it."""

    _deadline: Deadline
    _budget: int

    def allow(self, deadline: Deadline) -> None:
        """Set the deadline and the size of the next answer."""
        self._deadline = deadline
        self._budget = _MAX_ANSWER
        self.settimeout(deadline.remaining())

    def recv(self, size: int = 4096, flags: int = 0) -> bytes:
        """Receive data.

        Raises:
            OSError: after the deadline, or if the answer is too large.
        """
        self.settimeout(self._deadline.remaining())
        data = super().recv(size, flags)
        self._budget -= len(data)
        if self._budget < 0:
            raise OSError(errno.EMSGSIZE, f"the answer has more than {_MAX_ANSWER} bytes")
        return data

    def shutdown(self, how: int) -> None:
        """End the connection, and send an unbind first: without it servers go on with a search."""
        with contextlib.suppress(OSError):
            self.settimeout(_UNBIND_SECONDS)
            self.sendall(_UNBIND)
        super().shutdown(how)


class _PlainSocket(_Timed):
    pass


class _TlsSocket(_Timed, ssl.SSLSocket):
    pass


class Session:
    """A connection to one server, for one thread at a time. It closes itself after any failure.

    Args:
        socket_: connected.
        address: the server's.
    """

    def __init__(self, socket_: _PlainSocket | _TlsSocket, address: Address) -> None:
        self.address: Final = address
        self._connection: Final = _adopt(socket_, address)

    @classmethod
    def open(cls, address: Address, trust: Trust, starttls: bool, deadline: Deadline) -> Self:
        """Connect.

        Args:
            address: the server's.
            trust: the certificates that TLS trusts.
            starttls: whether to start TLS on a plain connection.
            deadline: for everything.

        Raises:
            Unreachable: if that fails, or the other end has no valid certificate.
        """
        try:
            socket_ = _connect(address, deadline)
        except OSError as error:
            raise Unreachable(f"cannot connect: {_describe(error)}") from None
        try:
            if address.tls:
                return cls(_secured(trust, socket_, address, deadline), address)
            session = cls(socket_, address)
        except BaseException:
            socket_.close()
            raise
        if starttls:
            session._start_tls(trust, deadline)
        return session

    @property
    def tls_version(self) -> str:
        """The TLS version; empty for plain text."""
        socket_ = self._connection.socket
        return (socket_.version() or "") if isinstance(socket_, ssl.SSLSocket) else ""

    def bind(self, dn: str, password: str, deadline: Deadline) -> ppolicy.PasswordState:
        """Log in.

        Args:
            dn: as whom; never empty.
            password: never empty.
            deadline: for the answer.

        Raises:
            Refused: if the directory refuses.
            Misconfigured: if the connection is not protected enough for this server.
            Unreachable: if the server does not answer.
        """
        # Either one empty is an anonymous bind, which many servers let succeed: RFC 4513, 5.1.2.
        if not dn or not password:
            raise Refused("the name or the password is empty")
        connection = self._connection
        # Bytes, because the library rewrites text by SASLprep and refuses some.
        connection.user, connection.password = dn, password.encode("utf-8")
        connection.authentication = ldap3.SIMPLE
        try:
            result = self._ask(lambda: connection.bind(False, [(ppolicy.CONTROL, False, None)]), deadline)
        finally:
            connection.password = connection.request = None
        try:
            state = ppolicy.read(_controls(result))
        except ValueError as error:
            # Nobody knows whether the password may be used. Not an outage: only a right password might cause one.
            state = ppolicy.PasswordState(str(error))
        code = result["result"]
        if result["type"] == "bindResponse" and code == _SUCCESS:
            return state
        self.close()
        diagnostic = _diagnostic(result, password)
        if code in _REFUSALS and result["type"] == "bindResponse":
            data = _AD_DATA.search(str(result.get("message") or ""))
            reason = f"bind result {code}{f': {state.objection}' if state.objection else ''}{diagnostic}"
            raise Refused(reason, code=code, data=data[1] if data else "")
        if code in _NEEDS_PROTECTION:
            raise Misconfigured(f"it requires a better protected connection (result {code}); use ldaps:// or starttls")
        raise Unreachable(f"bind result {code}{diagnostic}")

    def search(
        self,
        base: str,
        filter_: str,
        attributes: Iterable[str],
        deadline: Deadline,
        *,
        limit: int = 0,
        below: bool = True,
    ) -> tuple[Entry, ...]:
        """Find entries.

        Args:
            base: where to search.
            filter_: which entries.
            attributes: which of their attributes.
            deadline: for everything.
            limit: the most entries; 0 for as many as the server returns.
            below: whether to search everything below the base; else only the base.

        Raises:
            Incomplete: if there are more than the limit, or than the server returns.
            Misconfigured: if the server does not understand base or filter.
            Unreachable: if it does not answer.
        """
        found = self._find(base, filter_, list(attributes), deadline, limit=limit, below=below)
        return tuple(self._complete(entry, deadline) for entry in found)

    def ping(self, base: str, deadline: Deadline) -> None:
        """Prove that the server answers, whatever it says.

        Args:
            base: what is read: a server may answer about itself while its data hangs.
            deadline: for the answer.

        Raises:
            Unreachable: if it does not.
        """
        self._ask(lambda: self._connection.search(base, EVERYTHING, ldap3.BASE, attributes=["1.1"]), deadline)

    def identity(self, deadline: Deadline) -> str:
        """Ask the server which account the connection is logged in as: RFC 4532.

        Raises:
            Misconfigured: if it does not tell.
            Refused: if it is logged in as nobody.
            Unreachable: if it does not answer.
        """
        result = self._ask(lambda: self._connection.extended(_WHO_AM_I), deadline)
        value = result.get("responseValue")
        if result["result"] != _SUCCESS:
            raise Misconfigured("it does not support 'Who am I?' (RFC 4532)")
        if not value:
            raise Refused("the bind has logged nobody in")
        return bytes(value).decode("utf-8", "replace")

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it, as far as is known."""
        return not self._connection.closed

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has arrived unasked, such as an end of the connection: after that it cannot be used."""
        socket_ = self._connection.socket
        if self._connection.closed or socket_ is None:
            return False
        poll = select.poll()  # unlike select(), it takes any number of a descriptor
        poll.register(socket_, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the connection."""
        connection = self._connection
        connection.password = None
        connection.strategy.close()

    def __repr__(self) -> str:
        return f"Session({self.address.url})"

    def _ask(self, question: Callable[[], object], deadline: Deadline) -> dict[str, Any]:
        """Ask, and return the result message."""
        try:
            self._connection.socket.allow(deadline)
            question()
            result = self._connection.result
            if not isinstance(result, dict):
                raise TypeError("no result")
        except Exception as error:
            # Not only the library's own: after a broken answer it raises KeyError, IndexError, struct.error, …
            self.close()
            raise Unreachable(_describe(error)) from None
        return result

    def _start_tls(self, trust: Trust, deadline: Deadline) -> None:
        result = self._ask(lambda: self._connection.extended(_START_TLS), deadline)
        if result["result"] != _SUCCESS or result["type"] != "extendedResp":
            self.close()
            raise Unreachable(f"it cannot start TLS (result {result['result']}){_diagnostic(result, '')}")
        plain = self._connection.socket
        try:
            self._connection.socket = _secured(trust, plain, self.address, deadline)
        except Unreachable:
            self.close()
            raise
        self._connection.tls_started = True

    def _find(
        self, base: str, filter_: str, attributes: list[str], deadline: Deadline, *, limit: int, below: bool
    ) -> list[Entry]:
        connection = self._connection
        result = self._ask(
            lambda: connection.search(
                base,
                filter_,
                ldap3.SUBTREE if below else ldap3.BASE,
                dereference_aliases=ldap3.DEREF_NEVER,
                attributes=attributes,
                size_limit=limit,
                time_limit=math.ceil(deadline.remaining()),
            ),
            deadline,
        )
        code = result["result"]
        if code != _SUCCESS or result["type"] != "searchResDone":
            diagnostic = _diagnostic(result, "")
            if code == _SIZE_LIMIT:
                raise Incomplete(
                    f"it has more entries below {base} than it returns (size limit, result {code}){diagnostic}"
                )
            if code in _MISTAKES:
                raise Misconfigured(f"a search below {base} ended with result {code}: {_MISTAKES[code]}{diagnostic}")
            self.close()
            raise Unreachable(f"search result {code}{diagnostic}")
        # References to other servers are entries of another type.
        found = [entry for entry in connection.response if entry["type"] == "searchResEntry"]
        return [_entry(raw) for raw in found]

    def _complete(self, entry: Entry, deadline: Deadline) -> Entry:
        """Fetch the rest of long attributes, which Active Directory returns in parts: MS-ADTS 3.1.1.3.1.3.3."""
        whole = {key: values for key, values in entry.attributes.items() if _RANGE not in key}
        for key in entry.attributes.keys() - whole.keys():
            attribute, _, bounds = key.partition(_RANGE)
            values = entry.attributes[key]
            while not bounds.endswith("-*"):
                bounds, more = self._part(entry.dn, attribute, len(values), deadline)
                values += more
            whole[attribute] = values
        return Entry(entry.dn, whole)

    def _part(self, dn: str, attribute: str, first: int, deadline: Deadline) -> tuple[str, tuple[bytes, ...]]:
        found = self._find(dn, EVERYTHING, [f"{attribute}{_RANGE}{first}-*"], deadline, limit=0, below=False)
        for entry in found:
            for key, values in entry.attributes.items():
                if key.startswith(f"{attribute}{_RANGE}") and values:
                    return key.partition(_RANGE)[2], values
        raise Misconfigured(f"it returned only {first} values of the attribute '{attribute}' of {dn}")


def _adopt(socket_: _PlainSocket | _TlsSocket, address: Address) -> Any:
    """Give a connected socket to the library, so that it does not open one itself."""
    server = ldap3.Server(address.url, get_info=ldap3.NONE, allowed_referral_hosts=[])
    connection = ldap3.Connection(
        server,
        client_strategy=ldap3.SYNC,
        authentication=ldap3.ANONYMOUS,
        auto_referrals=False,  # else it would send our password to another server
        auto_range=False,
        auto_escape=False,
        check_names=False,
        read_only=True,
        return_empty_attributes=False,
        raise_exceptions=False,
    )
    # A bind on a closed connection would open a new one, without TLS.
    connection.open = connection.strategy.open = _never
    connection.socket = socket_
    connection.closed = False
    connection.listening = True
    connection.strategy._outstanding = {}
    return connection


def _never(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("the connection is closed")


def _connect(address: Address, deadline: Deadline) -> _PlainSocket:
    """Connect to the first of the host's addresses that answers."""
    found = _resolve(address.host, address.port, deadline)
    trouble: OSError = OSError(f"{address.host} has no address")
    for number, (family, kind, protocol, _, target) in enumerate(found):
        socket_ = _PlainSocket(family, kind, protocol)
        try:
            socket_.settimeout(deadline.share(len(found) - number).remaining())
            socket_.connect(target)
            # Else TLS 1.3 waits 40 ms: the client sends the last message of the handshake and the first after it.
            socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            socket_.allow(deadline)
        except OSError as error:
            socket_.close()
            trouble = error
        else:
            return socket_
    raise trouble


def _resolve(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """Find a host's addresses before the deadline: the system's resolver may take longer than any login."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        pass
    found: list[tuple[Any, ...]] = []
    trouble: list[OSError] = []

    def resolve() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            trouble.append(error)

    thread = threading.Thread(target=resolve, name=f"resolve {host}", daemon=True)
    thread.start()
    thread.join(deadline.remaining())
    if trouble:
        raise trouble[0]
    if thread.is_alive() or not found:
        raise TimeoutError(f"resolving {host} timed out")
    return found


def _secured(trust: Trust, plain: _PlainSocket, address: Address, deadline: Deadline) -> _TlsSocket:
    try:
        return trust.wrap(plain, address.host, deadline)
    except (OSError, ValueError) as error:
        plain.close()
        raise Unreachable(f"no TLS: {_describe(error)}") from None


def _entry(raw: Mapping[str, Any]) -> Entry:
    try:
        dn = bytes(raw["raw_dn"]).decode("utf-8")
    except UnicodeDecodeError:
        raise Misconfigured("the name of an entry is not UTF-8") from None
    attributes = {str(name).lower(): tuple(values or ()) for name, values in raw["raw_attributes"].items()}
    return Entry(dn, attributes)


def _controls(result: Mapping[str, Any]) -> dict[str, bytes]:
    return {kind: control["value"] or b"" for kind, control in (result.get("controls") or {}).items()}


def _diagnostic(result: Mapping[str, Any], password: str) -> str:
    """Return what the server says, for the log; nothing if it repeats the password."""
    text = str(result.get("message") or "")
    if match := _AD_DATA.search(text):
        return f": data {match[1]} ({_AD_MEANINGS.get(match[1], 'see Windows error codes')})"
    if not text or (password and password in text):
        return ""
    return f": {text[:_MAX_DIAGNOSTIC]}"


def _describe(error: BaseException) -> str:
    """Say what went wrong, from texts that cannot have a secret."""
    if type(error).__name__ in _MEANINGS:
        # ldap3 makes such a class from its own and the one it caught, such as SSLError. It is an instance of both, but
        # lacks the attributes of the second.
        return _MEANINGS[type(error).__name__]
    if isinstance(error, ssl.SSLCertVerificationError):
        if "mismatch" in error.verify_message:
            remedy = "; 'server_name' is for servers that are named by address"
        elif error.verify_code in _UNKNOWN_AUTHORITY:
            remedy = "; set 'ca_file' to the certificate of the authority that has signed it"
        else:
            remedy = ""
        return f"the certificate is not trusted: {error.verify_message.rstrip('.')}{remedy}"
    if isinstance(error, ssl.SSLError):
        if error.reason in _NO_TLS:
            return f"TLS failed: {error.reason}; this port may speak no TLS (then use ldap:// with starttls = true)"
        return f"TLS failed: {error.reason or error.strerror or 'the other end does not speak it'}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or (str(error) if not error.args[1:] else type(error).__name__)
    if isinstance(error, DirectoryFailure):
        return error.reason
    return type(error).__name__
