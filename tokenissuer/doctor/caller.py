"""One HTTP request as a registry's client sends it: no redirect, no proxy of this machine's environment, a deadline."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from tokenissuer.errors import TokenIssuerError
from tokenissuer.net import tls_context

#: Seconds that `doctor` waits for one answer. docker waits 15 for everything.
TIMEOUT: Final = 10
#: Bytes that `doctor` reads of an answer.
_MAX_BODY: Final = 256 * 1024
#: Seconds that a second look at a certificate may take.
_LOOK_TIMEOUT: Final = 3

# What nginx, Apache and Go answer to who speaks without TLS on a port with it.
_WANTS_TLS: Final = re.compile(rb"HTTPS (port|server)|SSL-enabled server port")

_WRONG_NAME: Final = {62, 64}
_UNKNOWN_AUTHORITY: Final = {2, 18, 19, 20, 21, 24}
_EXPIRED: Final = 10
_NOT_YET: Final = 9


class Unreachable(TokenIssuerError):
    """There is no HTTP answer.

    Args:
        fact: why, as the end of a sentence that begins with the URL.
        remedy: what to do.
    """

    def __init__(self, fact: str, remedy: str) -> None:
        self.fact = fact
        self.remedy = remedy
        super().__init__(f"{fact}; {remedy}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer.

    Args:
        status: its status.
        headers: by name in small letters.
        body: what was read of it.
        sent: when the request began, in seconds since 1970.
        seconds: until the answer was there.
        local: this end of the connection, address and port.
        certificate_end: when the server's certificate ends, in seconds since 1970; None without TLS.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    sent: float
    seconds: float
    local: tuple[str, int]
    certificate_end: float | None

    @property
    def moment(self) -> float:
        """When the server answered by this machine's clock, in seconds since 1970."""
        return self.sent + self.seconds / 2

    @property
    def clock(self) -> float | None:
        """What the server's own clock said then, to half a second; None if it does not say."""
        try:
            # Whole seconds: on average the clock was half a second further.
            return parsedate_to_datetime(self.headers["date"]).timestamp() + 0.5
        except (KeyError, ValueError, TypeError):
            return None

    @property
    def expects_tls(self) -> bool:
        """Whether it says that this port speaks TLS only."""
        return self.status == 400 and self.certificate_end is None and _WANTS_TLS.search(self.body) is not None

    @property
    def described(self) -> str:
        """Status, kind and sender, for people."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip()
        server = self.headers.get("server", "")
        what = {"text/html": "a web page", "application/json": "JSON", "": "nothing"}.get(kind, kind)
        return f"{self.status} with {what}{f' from {server}' if server else ''}"


class Caller:
    """Sends requests.

    Args:
        ca_file: the authorities to trust instead of the system's.

    Raises:
        ConfigurationError: if that file cannot be used.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        self._tls: Final = tls_context(ca_file)

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """Send one request.

        Args:
            method: GET or POST.
            url: where; http or https.
            headers: its headers.
            body: its body.
            chunked: whether the body goes in chunks, without a length.

        Raises:
            Unreachable: if there is no answer.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise Unreachable(f"it is no URL: {error}", "correct it") from None
        if parts.scheme not in ("http", "https") or not host:
            raise Unreachable("it is no http or https URL", "write it whole, such as https://registry.example.com")
        port = port or (443 if parts.scheme == "https" else 80)
        connection = (
            http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self._tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent, started = time.time(), time.monotonic()
        try:
            connection.connect()
            sock = connection.sock
            local = (str(sock.getsockname()[0]), int(sock.getsockname()[1]))
            certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
            end = str(certificate["notAfter"]) if certificate else ""
            connection.request(
                method, target, _pieces(body) if chunked and body else body, dict(headers or {}), encode_chunked=chunked
            )
            response = connection.getresponse()
            seconds = time.monotonic() - started
            named = {name.lower(): value for name, value in response.getheaders()}
            content = response.read(_MAX_BODY)
        except ssl.SSLCertVerificationError as error:
            raise self._distrusted(error, host, port) from None
        except TimeoutError as error:
            # Some servers wait for the rest of what is no HTTP.
            if parts.scheme == "https" and _speaks_plain_http(host, port):
                raise _no_tls(host, port) from None
            raise _unreachable(error, parts.scheme, host, port) from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise _unreachable(error, parts.scheme, host, port) from None
        finally:
            connection.close()
        return Answer(
            response.status, named, content, sent, seconds, local, ssl.cert_time_to_seconds(end) if end else None
        )

    def _distrusted(self, error: ssl.SSLCertVerificationError, host: str, port: int) -> Unreachable:
        """Say what is wrong with a certificate: the connection is made again only to look at it."""
        names, issuer, end = _seen(host, port)
        if error.verify_code in _WRONG_NAME:
            return Unreachable(
                f"its TLS certificate is for {names}, and clients connect to {host}",
                "use a certificate with that name, or an address with a name that the certificate has",
            )
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return Unreachable(
                f"its TLS certificate is from an authority that this machine does not trust ({issuer})",
                "send the whole chain (the server's certificate and the intermediate ones), or give the authority to "
                "every client and to doctor with --ca-file",
            )
        if error.verify_code == _EXPIRED:
            return Unreachable(f"its TLS certificate ended on {end}", "renew it, and reload the server")
        if error.verify_code == _NOT_YET:
            return Unreachable("its TLS certificate is not valid yet", "check the clocks")
        return Unreachable(f"its TLS certificate is refused: {error.verify_message}", "use another one")


def _pieces(body: bytes) -> Iterator[bytes]:
    """Return a body that has no length."""
    half = len(body) // 2
    yield body[:half]
    yield body[half:]


def _seen(host: str, port: int) -> tuple[str, str, str]:
    """Return names, issuer and end of a server's certificate, unverified: only to be shown."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=_LOOK_TIMEOUT)
        found = x509.load_pem_x509_certificate(pem.encode("ascii"))
    except (OSError, ValueError):
        return "other names", "unknown", "an unknown day"
    try:
        listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [
            *listed.get_values_for_type(x509.DNSName),
            *map(str, listed.get_values_for_type(x509.IPAddress)),
        ]
    except (x509.ExtensionNotFound, ValueError):
        names = []
    issuer = found.issuer.rfc4514_string() or "without a name"
    return ", ".join(names) or "no name", issuer, f"{found.not_valid_after_utc:%Y-%m-%d}"


def _no_tls(host: str, port: int) -> Unreachable:
    return Unreachable(
        f"port {port} of {host} speaks plain HTTP, without TLS", "write http:// in the URL, or put TLS in front of it"
    )


def _speaks_plain_http(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_LOOK_TIMEOUT)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _unreachable(error: Exception, scheme: str, host: str, port: int) -> Unreachable:
    reason = str(getattr(error, "reason", "") or "")
    if isinstance(error, ssl.SSLError) and reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return _no_tls(host, port)
    if isinstance(error, ssl.SSLError):
        return Unreachable(f"TLS fails: {reason or error}", "check the server's TLS settings")
    if isinstance(error, TimeoutError):
        return Unreachable(f"there is no answer within {TIMEOUT} s", "check firewalls and proxies on the way")
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"nothing listens on port {port} of {host}", "start it, or correct the address")
    if isinstance(error, UnicodeError) or type(error).__name__ == "gaierror":
        return Unreachable(f"the name {host} is not known here", "correct the name, or make it known (DNS, /etc/hosts)")
    if isinstance(error, (http.client.BadStatusLine, ConnectionResetError)) and scheme == "http":
        return Unreachable(
            f"port {port} of {host} does not answer HTTP",
            "if it speaks TLS, write https:// in the URL",
        )
    return Unreachable(f"there is no answer: {getattr(error, 'strerror', None) or error}", "correct the address")
