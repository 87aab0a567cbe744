"""The servers of a domain, as DNS names them: RFC 2782. Needs the package dnspython."""

from __future__ import annotations

import threading
import time
from typing import Final

import dns.exception
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from tokenissuer import Deadline
from tokenissuer_backends.ldap.failure import Unreachable
from tokenissuer_backends.ldap.options import Address

#: Seconds after which DNS is asked again, and after a failure.
REFRESH_INTERVAL: Final = 300.0
_RETRY_INTERVAL: Final = 10.0
#: Seconds for an answer of DNS.
_TIMEOUT: Final = 3.0


class Discovery:
    """Finds the servers of a domain, and remembers them.

    Args:
        domain: whose; no server outside it counts.
        starttls: whether `_ldap._tcp` is looked up, for StartTLS, and not `_ldaps._tcp`.
    """

    def __init__(self, domain: str, starttls: bool) -> None:
        self._domain: Final = domain
        self._scheme: Final = "ldap" if starttls else "ldaps"
        self._lock: Final = threading.Lock()
        self._found: tuple[Address, ...] = ()
        self._trouble = ""
        self._due = 0.0

    def addresses(self, deadline: Deadline) -> tuple[Address, ...]:
        """Return the addresses of the servers, in the order in which they are to be asked.

        Args:
            deadline: for the answer.

        Raises:
            Unreachable: if DNS does not tell and has not told before.
        """
        with self._lock:
            if time.monotonic() >= self._due:
                self._refresh(deadline.within(_TIMEOUT))
            if not self._found:
                raise Unreachable(self._trouble)
            return self._found

    def _refresh(self, deadline: Deadline) -> None:
        name = f"_{self._scheme}._tcp.{self._domain}"
        try:
            records: list[SRV] = list(dns.resolver.resolve(f"{name}.", "SRV", lifetime=deadline.remaining()))
        except (dns.exception.DNSException, OSError) as error:
            records, self._trouble = [], f"DNS has no servers at {name}: {type(error).__name__}"
        else:
            self._trouble = f"no server at {name} is in the domain {self._domain}"
        found = []
        for record in sorted(records, key=lambda record: (record.priority, -record.weight)):
            host = record.target.to_text(omit_final_dot=True).lower()
            # Answers of DNS can be forged, and anybody can have a certificate for a name of their own.
            if f".{host}".endswith(f".{self._domain}"):
                found.append(Address.parse(f"{self._scheme}://{host}:{record.port}"))
        self._due = time.monotonic() + (REFRESH_INTERVAL if found else _RETRY_INTERVAL)
        self._found = tuple(found) or self._found
