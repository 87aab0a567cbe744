"""The running registry: whether it answers, and asks for tokens as the issuer's configuration expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.doctor.caller import Answer, Unreachable
from tokenissuer.doctor.challenge import Challenge
from tokenissuer.doctor.facts import Facts, Outcome, origin
from tokenissuer.net import is_loopback
from tokenissuer.options import near_match

#: Days before a TLS certificate ends: renewal programs have renewed it by then.
_TLS_DAYS: Final = 14

_DAY: Final = 86400


def check_registry(facts: Facts) -> Outcome:
    """Ask the registry without a token, and compare its challenge."""
    url = facts.registry
    if not url:
        return Outcome(skipped="add --registry URL, the registry's address, to try it")
    try:
        answer = facts.caller.ask("GET", f"{url}/v2/")
    except Unreachable as error:
        facts.failed.add(origin(url))
        if facts.registry_stops:
            return Outcome(skipped=f"{url}: {error.fact}; the registry does not start with its file, see above")
        return Outcome([Finding(Severity.ERROR, url, error.fact, error.remedy)])
    facts.answer = answer
    found = [*certificate_findings(url, answer), *_address_findings(url)]
    try:
        facts.challenge = _challenge(answer)
    except ValueError as error:
        if facts.file is not None and not facts.file.asks_for_tokens:
            return Outcome(found, skipped=f"{url}/v2/: {error}, as its file says, see above")
        return Outcome([*found, _no_challenge(facts, url, answer, str(error))])
    return Outcome([*found, *_service_findings(facts, facts.challenge)], f"{url} asks for a token from {facts.realm}")


def _challenge(answer: Answer) -> Challenge:
    """Read the challenge.

    Raises:
        ValueError: if there is none; the text says what there is.
    """
    if answer.status == 200:
        raise ValueError("it asks for no token: everybody may pull, push and delete")
    if answer.status != 401:
        raise ValueError(f"no registry answers like this: {answer.described}")
    return Challenge.parse(answer.headers.get("www-authenticate", ""))


def _no_challenge(facts: Facts, url: str, answer: Answer, why: str) -> Finding:
    subject = f"{url}/v2/"
    if answer.status == 200:
        remedy = f"add auth: token: to {facts.file_name}, and restart the registry"
        if facts.file:
            remedy = (
                f"{facts.file.path} has auth: token:, so it was started with another file: restart it with this one"
            )
        return Finding(Severity.ERROR, subject, why, remedy)
    if 300 <= answer.status < 400:
        return Finding(
            Severity.ERROR,
            subject,
            f"it redirects to {answer.headers.get('location')}",
            "use that address as --registry",
        )
    if answer.status == 401:
        return Finding(
            Severity.ERROR,
            subject,
            f"it does not send clients to a token server: {why}",
            f"replace what is below auth: in {facts.file_name} by token:, and let no proxy before it ask for passwords",
        )
    if answer.status in (502, 503, 504):
        remedy = "start it"
        if facts.file is not None and facts.file.address:
            where = facts.file.where("http", "addr")
            remedy = f"{where}: it listens on {facts.file.address}; does the proxy's upstream name that? Then start it"
        return Finding(Severity.ERROR, subject, f"the proxy cannot reach the registry: {answer.described}", remedy)
    if answer.expects_tls:
        return Finding(
            Severity.ERROR,
            subject,
            "this port speaks TLS, and it was asked without",
            f"write --registry {url.replace('http://', 'https://', 1)}",
        )
    return Finding(
        Severity.ERROR, subject, why, "name the registry's address with --registry, and pass /v2/ on to the registry"
    )


def _service_findings(facts: Facts, challenge: Challenge) -> Findings:
    options = facts.config.issuer
    if challenge.service in options.services:
        return
    in_file = facts.file.text("service") if facts.file else ""
    if in_file == challenge.service:
        # It is told where the file is compared.
        return
    listed = ", ".join(map(repr, options.services))
    fact = (
        f"its service is {challenge.service!r}, and [issuer] services in {facts.config.path} has only {listed}: "
        "no token is issued for this registry"
    )
    if in_file:
        where = facts.file.where("auth", "token", "service") if facts.file else ""
        yield Finding(Severity.ERROR, facts.registry, f"{fact}; {where} says {in_file!r}", "restart the registry")
        return
    yield Finding(
        Severity.ERROR,
        facts.registry,
        f"{fact}; {near_match(challenge.service, options.services)}",
        f"write in {facts.file_name}: service: {options.services[0]} and restart the registry, "
        f"or add '{challenge.service}' to [issuer] services in {facts.config.path}",
    )


def certificate_findings(url: str, answer: Answer) -> Iterator[Finding]:
    """Report on a TLS certificate that soon ends.

    Args:
        url: of the server.
        answer: from it.
    """
    if answer.certificate_end is not None and (left := answer.certificate_end - answer.sent) < _TLS_DAYS * _DAY:
        yield Finding(
            Severity.WARNING,
            url,
            f"its TLS certificate ends in {int(left // _DAY)} days (expected: at least {_TLS_DAYS})",
            "renew it now, and reload the server",
        )


def _address_findings(url: str) -> Iterator[Finding]:
    scheme, address = origin(url)
    if scheme == "http" and not is_loopback(urlsplit(url).hostname or ""):
        yield Finding(
            Severity.WARNING,
            url,
            "docker refuses a registry without TLS, unless its address begins with 127.",
            f"put a proxy with TLS in front, or add {address} to insecure-registries of every docker engine",
        )
