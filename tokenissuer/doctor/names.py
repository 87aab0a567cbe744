"""The registry's file held against the issuer's configuration: names, and what the registry is given to verify."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.registry_file import RegistryFile
from tokenissuer.doctor.trust import Trust, load_bundle, load_jwks
from tokenissuer.errors import ConfigurationError


def check_file(facts: Facts) -> Outcome:
    """Compare the registry's file with the issuer's configuration, and read the files it names."""
    file = facts.file
    if file is None:
        return Outcome(skipped="add --registry-config FILE, the registry's configuration file, to compare the two")
    found = list(file.findings())
    facts.registry_stops = file.asks_for_tokens and any(finding.severity is Severity.ERROR for finding in found)
    found += _name_findings(facts, file)
    found += _trust_findings(facts, file)
    return Outcome(found, str(file.path))


def _name_findings(facts: Facts, file: RegistryFile) -> Iterator[Finding]:
    options, path = facts.config.issuer, facts.config.path
    issuer, service = file.text("issuer"), file.text("service")
    if issuer and issuer != options.name:
        facts.names_differ = True
        yield Finding(
            Severity.ERROR,
            file.where("auth", "token", "issuer"),
            f"auth.token.issuer is {issuer!r}, and [issuer] name in {path} is {options.name!r}"
            f"{_difference(issuer, options.name)}: the registry refuses every token",
            f"write there: issuer: {json.dumps(options.name)} and restart the registry",
        )
    if service and service not in options.services:
        listed = ", ".join(map(repr, options.services))
        yield Finding(
            Severity.ERROR,
            file.where("auth", "token", "service"),
            f"auth.token.service is {service!r}, and [issuer] services in {path} has only {listed}"
            f"{_difference(service, options.services[0])}: no token is issued for this registry",
            f"write there: service: {json.dumps(options.services[0])} and restart the registry, "
            f"or add {json.dumps(service)} to [issuer] services",
        )


def _difference(found: str, expected: str) -> str:
    """Say how two texts differ that look the same."""
    if found.strip() == expected.strip():
        return " (they differ by blanks)"
    if found.rstrip("/") == expected.rstrip("/"):
        return " (they differ by a slash at the end)"
    if found.strip("\"' ") == expected.strip("\"' "):
        return " (they differ by quotes)"
    if found.casefold() == expected.casefold():
        return " (they differ by capital letters)"
    return ""


def _trust_findings(facts: Facts, file: RegistryFile) -> Iterator[Finding]:
    """Read bundle and JWK Set; errors there keep the registry from starting."""
    bundle, jwks, is_complete = [], None, True
    for key in ("rootcertbundle", "jwks"):
        if not (named := file.text(key)):
            continue
        where = file.where("auth", "token", key)
        path = _find(Path(named), file.path)
        if path is None:
            is_complete = False
            yield Finding(
                Severity.INFO,
                where,
                f"auth.token.{key} is {named}, which is not on this machine, and so it was not looked at",
                "run doctor where the registry runs, or put a copy of that file beside the registry's file",
            )
            continue
        if path.is_file() and not os.access(path, os.R_OK):
            is_complete = False
            yield Finding(
                Severity.WARNING,
                where,
                f"auth.token.{key}: you may not read {path}; if the registry's user may not either, it does not start",
                f"it holds nothing secret: chmod a+r {path}",
            )
            continue
        try:
            if key == "jwks":
                jwks = load_jwks(path)
            else:
                bundle = load_bundle(path)
        except ConfigurationError as error:
            facts.registry_stops, is_complete = True, False
            yield Finding(
                Severity.ERROR,
                where,
                f"auth.token.{key}: the registry does not start with it",
                str(error),
            )
    if is_complete and (bundle or jwks):
        facts.trust = Trust(tuple(bundle), jwks, file.algorithms)


def _find(named: Path, beside: Path) -> Path | None:
    """Return a file as the registry names it, or the file of that name beside its configuration.

    A registry in a container has other folders.
    """
    for path in (named, beside.parent / named, beside.parent / named.name):
        if path.exists():
            return path
    return None
