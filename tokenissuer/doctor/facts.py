"""What the checks have found out so far: each reads what earlier ones have left, so that one cause is told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tokenissuer.config import Config
from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.caller import Answer, Caller
from tokenissuer.doctor.challenge import Challenge
from tokenissuer.doctor.probe import Arrival, Prober
from tokenissuer.doctor.registry_file import RegistryFile
from tokenissuer.doctor.trust import Trust
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import SigningKey


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check has to say.

    Args:
        findings: what it found.
        note: what is good, for who reads on.
        skipped: why it could not be tried; empty if it was.
    """

    findings: Sequence[Finding] = ()
    note: str = ""
    skipped: str = ""

    @property
    def severity(self) -> Severity:
        """The worst of its findings."""
        found = {finding.severity for finding in self.findings}
        return next((each for each in (Severity.ERROR, Severity.WARNING) if each in found), Severity.INFO)


@dataclass(slots=True)
class Facts:
    """What is known.

    Args:
        config: the issuer's configuration.
        caller: sends requests.
        registry: the registry's URL; empty if it is not known.
        file: the registry's configuration file; None if it is not given.
        key: the issuer's key; None if it cannot be used.
        issuer_stops: whether the issuer cannot start with its files.
        registry_stops: whether the registry cannot start with its files.
        names_differ: whether the registry's file has another issuer name.
        trust: what the registry is given to verify tokens; None if it is not known.
        failed: servers that cannot be reached, scheme, host and port.
        answer: of the registry to who has no token; None if there is none.
        challenge: in this answer.
        prober: sends probes to the realm.
        arrival: the first probe's; None if the realm does not end here, or it cannot be told.
        clocks_differ: whether the clocks explain that a token is refused.
        is_trusted: whether the registry has accepted a token.
    """

    config: Config
    caller: Caller
    registry: str = ""
    file: RegistryFile | None = None
    key: SigningKey | None = None
    issuer_stops: bool = False
    registry_stops: bool = False
    names_differ: bool = False
    trust: Trust | None = None
    failed: set[tuple[str, str]] = field(default_factory=set)
    answer: Answer | None = None
    challenge: Challenge | None = None
    prober: Prober | None = None
    arrival: Arrival | None = None
    clocks_differ: bool = False
    is_trusted: bool = False

    @property
    def service(self) -> str:
        """The registry's name: as it says itself, else as its file does, else the issuer's first."""
        if self.challenge is not None:
            return self.challenge.service
        return (self.file.text("service") if self.file else "") or self.config.issuer.services[0]

    @property
    def realm(self) -> str:
        """Where clients are sent: as the registry says, else its file, else the issuer's configuration."""
        if self.challenge is not None:
            return self.challenge.realm
        in_file = self.file.text("realm") if self.file and not self.file.redirects else ""
        return in_file or self.config.issuer.realm

    @property
    def file_name(self) -> str:
        """The registry's configuration file, for messages."""
        return str(self.file.path) if self.file else "the registry's configuration file"

    def issuer(self) -> Issuer:
        """Return an issuer like the one that runs.

        Raises:
            ValueError: if there is no usable key.
        """
        if self.key is None:
            raise ValueError("no key")
        return self.config.make_issuer(self.key)


def origin(url: str) -> tuple[str, str]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return (parts.scheme, parts.netloc)
