"""The issuer by itself: its files, its account sources, its tokens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Final

from tokenissuer.config import Config, config_findings
from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.permissions import user_findings
from tokenissuer.doctor.sources import slow_findings, source_findings
from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.scope import Access
from tokenissuer.signing.issuer import MAX_SIZE

#: Seconds that all account sources together may take.
_SOURCES_TIMEOUT: Final = 60
#: Seconds: the upload of one layer may take this long, and its token must last.
_SHORT_LIFETIME: Final = 900
#: Characters of a header that the strictest common servers take: uWSGI's buffer, some load balancers.
_SMALL_HEADER: Final = 4096

_HEADER_NAME: Final = len("Authorization: Bearer ")


def check_configuration(facts: Facts) -> Outcome:
    """Look at configuration, key, certificate, rules and permissions, as `tokenissuer check` does."""
    config = facts.config
    found = [*config_findings(config, time.time()), *user_findings(config, None)]
    try:
        facts.key = config.load_key()
        facts.key.expiry(time.time())
    except ConfigurationError:
        # It is among the findings.
        facts.issuer_stops = True
    return Outcome(found, str(config.path))


def check_sources(facts: Facts, account: str) -> Outcome:
    """Ask every account source, and measure.

    Args:
        facts: what is known.
        account: the name to find; empty for none.
    """
    config = facts.config
    results: queue.SimpleQueue[list[Finding] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            results.put(list(source_findings(config, None, account or None)))
        except Exception as error:
            results.put(error)

    started = time.monotonic()
    # A plug-in may hang: the rest is looked at in any case.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = results.get(timeout=_SOURCES_TIMEOUT)
    except queue.Empty:
        found = TokenIssuerError(f"no answer within {_SOURCES_TIMEOUT} s")
    if isinstance(found, Exception):
        text = str(found) if isinstance(found, TokenIssuerError) else f"a defect of the backend: {type(found).__name__}"
        return Outcome(
            [Finding(Severity.ERROR, "[[backends]]", text, "ask the backends one by one: take the others out")]
        )
    steps = [finding.seconds for finding in found if finding.subject == account and finding.seconds is not None]
    if account and not any(finding.severity is Severity.ERROR for finding in found):
        found = [*found, *slow_findings(account, "the account is found", sum(steps))]
    return Outcome(found, f"{_named(config)} in {time.monotonic() - started:.1f} s")


def check_tokens(facts: Facts) -> Outcome:
    """Look at the lifetime and the size of tokens."""
    config = facts.config
    if facts.key is None:
        return Outcome(skipped="there is no usable key")
    issuer, service, lifetime = facts.issuer(), facts.service, config.issuer.lifetime
    usual = Access("repository", "team/application", frozenset({"pull", "push"}))
    size = _HEADER_NAME + len(issuer.issue("somebody@example.com", service, (usual,)).text)
    return Outcome(
        list(_token_findings(config, size, lifetime)),
        f"valid for {lifetime} s; {size} characters with one repository, at most {config.issuer.max_size}",
    )


def _token_findings(config: Config, size: int, lifetime: int) -> Iterator[Finding]:
    if lifetime < _SHORT_LIFETIME:
        yield Finding(
            Severity.WARNING,
            "[issuer] lifetime",
            f"a token is valid for {lifetime} s (expected: at least {_SHORT_LIFETIME}); a push fails with "
            f'"unauthorized" if one layer takes longer: at 10 Mbit/s, a layer of more than {lifetime * 10 // 8} MB',
            f"write in {config.path}: lifetime = {_SHORT_LIFETIME}",
        )
    if config.issuer.max_size > MAX_SIZE:
        yield Finding(
            Severity.WARNING,
            "[issuer] max_size",
            f"a token may have {config.issuer.max_size} characters, and proxies take headers up to 8 KiB by default "
            f"(expected: at most {MAX_SIZE})",
            f"take max_size out of {config.path}, or allow longer headers in every proxy before the registry",
        )
    if size > _SMALL_HEADER:
        yield Finding(
            Severity.WARNING,
            str(config.signing.certificate),
            f"with this certificate a token for one repository makes a header of {size} characters, and some servers "
            f"take only {_SMALL_HEADER}",
            "use an EC key (tokenissuer keys add --key-type ec), or a certificate with fewer extensions",
        )


def _named(config: Config) -> str:
    return ", ".join(backend.name for backend in config.backends)
