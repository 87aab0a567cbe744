"""All checks in their order: each sees what the earlier ones have found, so that one cause is told once."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.clocks import check_clocks
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.issuer import check_configuration, check_sources, check_tokens
from tokenissuer.doctor.names import check_file
from tokenissuer.doctor.proxies import check_proxies
from tokenissuer.doctor.realm import check_realm
from tokenissuer.doctor.registry import check_registry
from tokenissuer.doctor.trial import check_long_token, check_trust
from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.net import is_loopback


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Args:
        title: what it looks at.
        run: looks.
    """

    title: str
    run: Callable[[], Outcome]


@dataclass(frozen=True, slots=True)
class Result:
    """A check that has ended.

    Args:
        title: what it looked at.
        outcome: what it found.
        seconds: how long it took.
    """

    title: str
    outcome: Outcome
    seconds: float

    @property
    def state(self) -> str:
        """`ok`, `warning`, `error`, or `skipped`."""
        if self.outcome.severity is not Severity.INFO:
            return str(self.outcome.severity)
        return "skipped" if self.outcome.skipped else "ok"


def checks(facts: Facts, account: str) -> Iterator[Check]:
    """Return the checks, in their order.

    Args:
        facts: what is known; they add to it.
        account: a name to be found by the account sources; empty for none.
    """
    yield Check("configuration", lambda: check_configuration(facts))
    yield Check("account sources", lambda: check_sources(facts, account))
    yield Check("tokens", lambda: check_tokens(facts))
    yield Check("registry's file", lambda: check_file(facts))
    yield Check("registry", lambda: check_registry(facts))
    yield Check("realm", lambda: check_realm(facts))
    yield Check("proxies", lambda: check_proxies(facts))
    yield Check("clocks", lambda: check_clocks(facts))
    yield Check("trust", lambda: check_trust(facts))
    yield Check("long tokens", lambda: check_long_token(facts))


def run(check: Check) -> Result:
    """Run one check, and measure."""
    started = time.monotonic()
    try:
        outcome = check.run()
    except TokenIssuerError as error:
        # What answered a moment ago does so no more: the other checks are worth their while all the same.
        outcome = Outcome([Finding(Severity.ERROR, check.title, str(error), "run doctor again")])
    return Result(check.title, outcome, time.monotonic() - started)


def login_line(registry: str, account: str) -> str:
    """Return the command with which people log in; empty if the registry is not known.

    Args:
        registry: its URL.
        account: who logs in; empty for a question.
    """
    if not registry:
        return ""
    parts = urlsplit(registry)
    usual: Final = {"http": 80, "https": 443}
    # Without a port docker would take an address of digits and dots for one with port 443, whatever the scheme.
    host = (
        parts.netloc if parts.port != usual[parts.scheme] or parts.scheme == "http" else parts.netloc.rpartition(":")[0]
    )
    name = f"-u {shlex.quote(account)} " if account else ""
    return f"docker login {name}{host}"


def registry_url(text: str) -> str:
    """Return the URL of a registry as docker would find it; empty for an empty text.

    Args:
        text: the URL, or only the name and port as in `docker login`.

    Raises:
        ConfigurationError: if it is neither.
    """
    if not text:
        return ""
    url = text if "://" in text else f"//{text}"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.scheme in ("", "http", "https") and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"'{text}' is no registry; use its URL, such as https://registry.example.com")
    scheme = parts.scheme or ("http" if is_loopback(parts.hostname or "") else "https")
    return f"{scheme}://{parts.netloc}"
