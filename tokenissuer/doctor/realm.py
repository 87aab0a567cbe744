"""The realm: whether clients reach it, and whether it ends at this very instance."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import jwt

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.caller import Answer, Unreachable
from tokenissuer.doctor.facts import Facts, Outcome, origin
from tokenissuer.doctor.probe import Prober, Unanswered
from tokenissuer.doctor.registry import certificate_findings
from tokenissuer.net import is_loopback
from tokenissuer.signing.keys import SigningKey

_HEADER_STRIPPED = "the proxy takes unknown headers out, so what else it does was not tried"


def check_realm(facts: Facts) -> Outcome:
    """Send a probe to where the registry sends its clients."""
    realm = facts.realm
    if facts.key is None or facts.issuer_stops:
        return Outcome(skipped="the issuer does not start with its files, see above")
    if facts.challenge is not None and origin(realm) in facts.failed:
        return Outcome(skipped=f"{realm} is the same server, see above")
    scheme = list(_scheme_findings(facts, realm))
    found = list(scheme)
    prober = _prober(facts, facts.key, realm)
    try:
        arrival = prober.plain()
    except Unreachable as error:
        if origin(realm) in facts.failed:
            return Outcome(found, skipped=f"{realm} is the same server, see above")
        facts.failed.add(origin(realm))
        return Outcome([*found, _wrong(facts, realm, error.fact, error.remedy)])
    except Unanswered as error:
        fact, remedy = _elsewhere(error.answer, facts, facts.key)
        if fact == _HEADER_STRIPPED:
            facts.prober = prober
            return Outcome([*found, Finding(Severity.INFO, realm, fact)], f"{realm} ends at this instance")
        return Outcome([*found, _wrong(facts, realm, fact, remedy)])
    facts.prober, facts.arrival = prober, arrival
    redirects = facts.file is not None and facts.file.redirects
    found += certificate_findings(realm, arrival.answer)
    if realm != facts.config.issuer.realm and not redirects and not scheme:
        found.append(
            Finding(
                Severity.WARNING,
                realm,
                f"the registry sends clients there, and [issuer] realm in {facts.config.path} is "
                f"{facts.config.issuer.realm}; {_second(facts, facts.key)}",
                f'write in {facts.config.path}: realm = "{realm}"',
            )
        )
    return Outcome(found, f"{realm} ends at this instance, after {arrival.answer.seconds * 1000:.0f} ms")


def _prober(facts: Facts, key: SigningKey, realm: str) -> Prober:
    return Prober(facts.caller, key, facts.config.issuer.name, realm, facts.config.issuer.services[0])


def _second(facts: Facts, key: SigningKey) -> str:
    """Say whether the realm of the configuration works, where the registry sends its clients to another."""
    try:
        _prober(facts, key, facts.config.issuer.realm).plain()
    except Unreachable as error:
        trouble = error.fact
    except Unanswered as error:
        fact, _ = _elsewhere(error.answer, facts, key)
        trouble = "" if fact == _HEADER_STRIPPED else fact
    else:
        trouble = ""
    if trouble:
        return f"only the first works: tokenissuer tells others the second, and {trouble}"
    return "both work, but tokenissuer tells others the second"


def _wrong(facts: Facts, realm: str, fact: str, remedy: str) -> Finding:
    """Say what is wrong with the realm, and where to correct it: if the two sides differ, the registry's is wrong."""
    expected = facts.config.issuer.realm
    if realm == expected:
        return Finding(Severity.ERROR, realm, f"clients are sent there, and {fact}", remedy)
    where = facts.file_name
    if facts.file is not None and facts.file.redirects:
        return Finding(
            Severity.ERROR,
            realm,
            f"the registry makes this address from the one that its clients use (autoredirect), and {fact}",
            "pass Host and X-Forwarded-Proto on to the registry (2.x supposes https in any case), and this path to "
            "tokenissuer; or take autoredirect out "
            f"({facts.file.where('auth', 'token', 'autoredirect')})",
        )
    if facts.file is not None:
        where = facts.file.where("auth", "token", "realm")
        if facts.file.text("realm") == expected:
            remedy = f"{where} is right, so the registry was started with another file, or before that: restart it"
            return Finding(Severity.ERROR, realm, f"the registry sends clients there, and {fact}", remedy)
    return Finding(
        Severity.ERROR,
        realm,
        f"the registry sends clients there, and {fact}; [issuer] realm in {facts.config.path} is {expected}",
        f"write in {where}: realm: {expected} and restart the registry",
    )


def _scheme_findings(facts: Facts, realm: str) -> Iterator[Finding]:
    registry, there = urlsplit(facts.registry), urlsplit(realm)
    place = (
        f"write an address that clients reach into [issuer] realm in {facts.config.path}, and into {facts.file_name}"
    )
    if facts.challenge is None:
        return
    if is_loopback(there.hostname or "") and not is_loopback(registry.hostname or ""):
        yield Finding(
            Severity.ERROR,
            realm,
            f"clients of {facts.registry} on other machines are sent to themselves",
            place,
        )
    elif registry.scheme == "https" and there.scheme == "http" and is_loopback(there.hostname or ""):
        # Of other hosts the check of the configuration tells.
        yield Finding(
            Severity.ERROR,
            realm,
            f"it has no TLS, and the registry has ({facts.registry}): crane, Helm, oras and regctl refuse that",
            f"put the realm behind TLS too, and {place}",
        )
    elif (
        "." in (registry.hostname or "")
        and "." not in (there.hostname or ".")
        and not is_loopback(there.hostname or "")
    ):
        yield Finding(
            Severity.WARNING,
            realm,
            f"{there.hostname} is a name of an inner network, and clients of {facts.registry} may not know it",
            place,
        )


def _elsewhere(answer: Answer, facts: Facts, key: SigningKey) -> tuple[str, str]:
    """Say what answered in place of this instance, and what to do."""
    body = _json(answer)
    if 300 <= answer.status < 400:
        location = answer.headers.get("location", "nowhere")
        return f"it redirects to {location}, which clients do not follow with a form", f"use {location} as realm"
    if isinstance(token := body.get("token") or body.get("access_token"), str):
        return _other_issuer(token, facts, key)
    message = str(body.get("error_description", ""))
    if answer.status == 404 and "the token server has no page" in message:
        return (
            f"a tokenissuer answers 404: {message}",
            "pass the path on as clients send it, without changing it, or send clients to the path that is served",
        )
    if answer.expects_tls:
        return "this port speaks TLS, and clients come without it", "write https:// in the URL"
    if answer.status in (502, 503, 504):
        return f"the proxy does not reach tokenissuer: {answer.described}", "start it, or correct the proxy's upstream"
    if answer.status in (401, 403):
        who = "another token server" if "errors" in body else "a proxy"
        return (
            f"{who} refuses before tokenissuer is asked: {answer.described}",
            "let requests to the realm through without a login of their own",
        )
    if answer.status == 404:
        return (
            f"there is no such page: {answer.described}",
            "pass this path on to tokenissuer in the proxy, or correct the path of the realm",
        )
    return (
        f"something else than tokenissuer answers: {answer.described}",
        "send this path to tokenissuer in the proxy, or correct the realm",
    )


def _other_issuer(token: str, facts: Facts, key: SigningKey) -> tuple[str, str]:
    """Say whose token this is."""
    name = facts.config.issuer.name
    try:
        claims = jwt.decode(
            token,
            key.private.public_key(),
            algorithms=[key.algorithm],
            options={"verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
    except jwt.InvalidTokenError:
        parts = _decoded(token)
        if parts.get("iss") == name:
            return (
                f"a tokenissuer signs there with another key, {parts.get('kid')}; [signing] key in "
                f"{facts.config.path} is {key.thumbprint}",
                "give all instances the same key file, and restart the one that answers there",
            )
        return (
            f"another token server answers: its tokens are from {parts.get('iss')!r}, and [issuer] name in "
            f"{facts.config.path} is {name!r}",
            "correct the address, or name that server's configuration with --config",
        )
    if claims.get("iss") != name:
        return (
            f"the tokenissuer that runs there calls itself {claims.get('iss')!r}, and [issuer] name in "
            f"{facts.config.path} is {name!r}",
            "start it with this configuration, or name its own with --config",
        )
    return _HEADER_STRIPPED, ""


def _json(answer: Answer) -> dict[str, Any]:
    try:
        body = json.loads(answer.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _decoded(token: str) -> dict[str, Any]:
    """Return issuer and key id of a token that is not verified: only to be shown."""
    found: dict[str, Any] = {}
    for part in token.split(".")[:2]:
        try:
            found |= json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except (ValueError, TypeError):
            continue
    return {"iss": found.get("iss", ""), "kid": found.get("kid", "")}
