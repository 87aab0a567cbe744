"""Account sources: whether they answer, how fast, and what they know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tokenissuer.accounts.backend import Backend, Listing
from tokenissuer.config import Config
from tokenissuer.diagnosis import Finding, Findings, Severity, Stopwatch
from tokenissuer.errors import BackendUnavailable, ConfigurationError
from tokenissuer.policy.findings import allowance_findings, name_findings, path_findings

#: Seconds from which an answer of an account source is slow.
SLOW: Final = 2
#: Seconds from which it is so slow that logins fail.
TOO_SLOW: Final = 10


def source_findings(config: Config, repository: str | None = None, account: str | None = None) -> Findings:
    """Report on every backend, and on the names in rules that no backend knows.

    Args:
        config: names the backends.
        repository: say what they know about it.
        account: say how they find it.
    """
    found_by: list[list[Finding]] = []
    listings: dict[str, Listing | None] = {}
    may_grant = False
    for backend_config in config.backends:
        try:
            backend = backend_config.build()
        except ConfigurationError as error:
            yield Finding(Severity.ERROR, "[[backends]]", str(error))
            listings[backend_config.name] = None
            may_grant = True  # for all that is known
            continue
        try:
            may_grant = may_grant or backend.may_grant
            listing = listings[backend_config.name] = backend.listing()
            told = list(backend.diagnose())
            yield from told
            if listing:
                yield from listing.findings(backend_config.name)
            readiness = list(_readiness(backend_config.name, backend, told))
            yield from readiness
            told += readiness
            if repository is not None:
                yield from backend.diagnose(repository=repository)
            if account is not None:
                found_by.append([each for each in backend.diagnose(account=account) if not _is_told(each.fact, told)])
        finally:
            backend.close()
    yield from _account_findings(found_by)
    yield from allowance_findings(config.rules, may_grant=may_grant)
    yield from name_findings(config.rules, listings)
    accounts = frozenset[str]().union(*(listing.accounts for listing in listings.values() if listing))
    yield from path_findings(config.rules, accounts)


def _account_findings(found_by: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
    # That one backend does not know a name is an error only if no other knows it.
    is_known = any(found and not any(_is_error(finding) for finding in found) for found in found_by)
    for found in found_by:
        for finding in found:
            yield replace(finding, severity=Severity.INFO) if is_known and _is_error(finding) else finding


def _is_error(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _is_told(text: str, told: Sequence[Finding]) -> bool:
    """Whether the fault that a text ends with is among the errors: one that is down repeats it."""
    return any(_is_error(each) and text.endswith(each.fact.rpartition(": ")[2]) for each in told)


def _readiness(name: str, backend: Backend, told: Sequence[Finding]) -> Findings:
    subject, watch = f"backend '{name}'", Stopwatch()
    try:
        backend.check()
    except BackendUnavailable as error:
        reason = (
            "it does not answer, see above" if _is_told(error.reason, told) else f"it does not answer: {error.reason}"
        )
        yield Finding(Severity.ERROR, subject, reason, "until it does, logins are answered with 503")
    else:
        yield from slow_findings(subject, "it answers", watch.lap())


def slow_findings(subject: str, what: str, seconds: float) -> Findings:
    """Report on what takes so long that logins fail.

    Args:
        subject: what is slow.
        what: what it does, as a sentence.
        seconds: how long that took.
    """
    if seconds > SLOW:
        yield Finding(
            Severity.ERROR if seconds > TOO_SLOW else Severity.WARNING,
            subject,
            f"{what} only after {seconds:.1f} s (expected: at most {SLOW} s); docker gives a login 15 s",
            "ask a nearer or less busy server, give it an index for what is searched, or search less",
        )
