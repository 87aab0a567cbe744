"""A fresh token tried on the registry, and held against the files that the registry is given."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor.caller import Answer, Caller, Unreachable
from tokenissuer.doctor.challenge import Challenge
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.trust import describe
from tokenissuer.errors import TokenIssuerError
from tokenissuer.scope import MAX_SCOPES, Access
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import KeyForm, SigningKey

#: How often a token is tried: there may be several registries behind one address.
TIMES: Final = 5
# Statuses with which servers refuse a long header.
_TOO_LONG: Final = (400, 413, 414, 431, 494)

_NAME_LENGTH: Final = 250

_LONGER_HEADERS: Final = (
    "allow longer headers in the proxy before the registry: nginx: large_client_header_buffers 4 64k; "
    "Apache: LimitRequestFieldSize 65536"
)


def check_trust(facts: Facts) -> Outcome:
    """Hold key and certificate against the registry's files, and try a fresh token on the registry."""
    if facts.key is None or facts.issuer_stops:
        return Outcome(skipped="the issuer does not start with its files, see above")
    on_paper = list(_paper_findings(facts, facts.key))
    if facts.challenge is None:
        note = "the registry's files accept the key" if facts.trust else ""
        skipped = "" if on_paper or note else "there is no registry to try a token on"
        return Outcome(on_paper, note, skipped)
    token, trouble = _fresh(facts, facts.issuer())
    if trouble is not None:
        return Outcome([*on_paper, trouble])
    try:
        answers = [_try(facts.caller, facts.registry, token) for _ in range(TIMES)]
    except Unreachable as error:
        return Outcome([*on_paper, Finding(Severity.ERROR, facts.registry, error.fact, error.remedy)])
    refused = [answer for answer in answers if answer.status != 200]
    if not refused:
        facts.is_trusted = True
        # Versions that are not used may refuse it.
        infos = [replace(finding, severity=Severity.INFO) for finding in on_paper]
        return Outcome(infos, f"{facts.registry} accepts a fresh token")
    if on_paper and not _explained(facts):
        # Not all versions refuse it, and this one does.
        return Outcome([replace(finding, severity=Severity.ERROR) for finding in on_paper])
    return Outcome([*on_paper, *_refusal_findings(facts, refused)], skipped=_explained(facts))


def _paper_findings(facts: Facts, key: SigningKey) -> Iterator[Finding]:
    """Report on versions of the registry that refuse tokens of this key."""
    if facts.trust is None or facts.file is None:
        return
    form = facts.config.key_forms().get(facts.service, KeyForm.X5C)
    refusals = facts.trust.refusals(key.header(form), key.private.public_key(), time.time())
    if not refusals:
        return
    trusted = "rootcertbundle" if facts.trust.bundle else "jwks"
    versions = " and ".join(refusals)
    reasons = "; ".join(sorted(set(refusals.values())))
    listed = "; ".join(map(describe, facts.trust.bundle))
    has = f" (there: {listed})" if listed else ""
    yield Finding(
        Severity.ERROR if len(refusals) == len(facts.trust.versions) else Severity.WARNING,
        facts.file.where("auth", "token", trusted),
        f"registries {versions} refuse tokens of {facts.config.signing.certificate} (key {key.thumbprint}): "
        f"{reasons}{has}",
        _trust_remedy(facts, key, form, trusted),
    )


def _trust_remedy(facts: Facts, key: SigningKey, form: KeyForm, trusted: str) -> str:
    """Name the change with which every version accepts tokens."""
    assert facts.trust is not None
    config = facts.config
    for other in KeyForm:
        header = key.header(other)
        if other is not form and not facts.trust.refusals(header, key.private.public_key(), time.time()):
            if other is KeyForm.X5C:
                return f"take '{facts.service}' out of [signing.key_forms] in {config.path}"
            return f'write in {config.path}, below [signing.key_forms]: {json.dumps(facts.service)} = "{other}"'
    file = config.rotation.jwks if trusted == "jwks" else config.signing.certificate
    named = facts.file.text(trusted) if facts.file else "the file"
    return f"copy {file} to {named} (auth.token.{trusted}), and restart the registry"


def _fresh(facts: Facts, issuer: Issuer) -> tuple[str, Finding | None]:
    """Return a token as a client gets it; one of our own where the realm gives none for this registry."""
    own = issuer.issue("", facts.service, ()).text
    if facts.prober is None or facts.service not in facts.config.issuer.services:
        return own, None
    try:
        answer = facts.prober.token(facts.service)
        body = json.loads(answer.body)
        if answer.status == 200:
            return str(body["token"]), None
        said = str(body.get("error_description", ""))
    except Unreachable as error:
        said = error.fact
    except (ValueError, KeyError, AttributeError):
        said = answer.described
    return "", Finding(
        Severity.ERROR,
        facts.realm,
        f"no token is issued for {facts.service!r}: {said}",
        "the log of tokenissuer says why",
    )


def _try(caller: Caller, registry: str, token: str) -> Answer:
    return caller.ask("GET", f"{registry}/v2/", {"Authorization": f"Bearer {token}"})


def _explained(facts: Facts) -> str:
    """Say why a refusal is no surprise; empty if it is one."""
    if facts.clocks_differ or facts.names_differ or facts.registry_stops:
        return f"{facts.registry} refuses a fresh token, because of what is told above"
    return ""


def _refusal_findings(facts: Facts, refused: Sequence[Answer]) -> Iterator[Finding]:
    if _explained(facts):
        return
    answer = refused[0]
    subject = facts.registry
    if answer.status in _TOO_LONG:
        yield Finding(
            Severity.ERROR, subject, f"a request with a token is refused: {answer.described}", _LONGER_HEADERS
        )
        return
    if answer.status != 401:
        yield Finding(Severity.ERROR, subject, f"a request with a token is answered {answer.described}", "see its log")
        return
    if len(refused) < TIMES:
        yield Finding(
            Severity.ERROR,
            subject,
            f"{len(refused)} of {TIMES} tries with a fresh token are refused: several registries are behind this "
            "address, and not all trust the key",
            "give all the same files, and restart them one after the other",
        )
        return
    # First what the files say: a registry that has not been restarted may accept another form for a while.
    if facts.trust is not None and facts.file is not None:
        yield Finding(
            Severity.ERROR,
            subject,
            f"it refuses a fresh token, which it would accept by {facts.file.path} and the files named there as they "
            "are now: registries read them only when they start",
            "restart the registry; in a container, look whether it has these very files",
        )
    elif form := _accepted_form(facts):
        yield _form_finding(facts, form)
    else:
        name = facts.config.issuer.name
        yield Finding(
            Severity.ERROR,
            subject,
            f"it refuses a fresh token: it has another issuer name than {name!r}, or does not trust the key "
            f"{facts.issuer().key.thumbprint}; its log names the cause",
            "run again with --registry-config FILE, which shows the cause; registries read files only at their start",
        )


def _form_finding(facts: Facts, form: KeyForm) -> Finding:
    """Report that the registry accepts the key, if a token names it in another way."""
    in_toml = f'write in {facts.config.path}, below [signing.key_forms]: {json.dumps(facts.service)} = "{form}"'
    if facts.config.key_forms().get(facts.service, KeyForm.X5C) is not KeyForm.X5C:
        return Finding(
            Severity.ERROR,
            facts.registry,
            f"it refuses a fresh token, and accepts one that names its key in the form '{form}'",
            in_toml,
        )
    return Finding(
        Severity.ERROR,
        facts.registry,
        f"it refuses a fresh token: it knows the key and not this certificate (it accepts the form '{form}')",
        f"if the certificate was renewed, give it {facts.config.signing.certificate} (auth.token.rootcertbundle) and "
        f"restart the registry; only if it has nothing but a JWK Set (auth.token.jwks), {in_toml}",
    )


def _accepted_form(facts: Facts) -> KeyForm | None:
    """Return another way to name the key that the running registry accepts; None if it accepts none."""
    used = facts.config.key_forms().get(facts.service, KeyForm.X5C)
    for form in KeyForm:
        if form is not used and facts.key is not None:
            issuer = facts.config.make_issuer(facts.key, {facts.service: form})
            if _try(facts.caller, facts.registry, issuer.issue("", facts.service, ()).text).status == 200:
                return form
    return None


def check_long_token(facts: Facts) -> Outcome:
    """Try the longest token that the issuer makes: proxies before the registry may refuse its header."""
    if not facts.is_trusted:
        return Outcome(skipped="the registry accepts no token, or none was tried")
    issuer = facts.issuer()
    # No actions: it allows nothing.
    wanted = tuple(
        Access("repository", f"doctor/{number:02d}{'x' * _NAME_LENGTH}"[:_NAME_LENGTH], frozenset())
        for number in range(MAX_SCOPES)
    )
    token = issuer.issue("doctor", facts.service, issuer.fitting("doctor", facts.service, wanted)).text
    try:
        answer = _try(facts.caller, facts.registry, token)
    except Unreachable as error:
        what = error.fact
    else:
        if answer.status == 200:
            return Outcome(note=f"{facts.registry} accepts a token of {len(token)} characters")
        what = answer.described
    return Outcome(
        [
            Finding(
                Severity.WARNING,
                facts.registry,
                f"a token of {len(token)} characters is refused ({what}), and a short one is accepted; images copied "
                f"from many others get such tokens (expected: up to {facts.config.issuer.max_size} characters)",
                f"{_LONGER_HEADERS}; or lower [issuer] max_size in {facts.config.path}",
            )
        ]
    )


def prove_trust(registry: str, issuer: Issuer, services: Sequence[str]) -> None:
    """Prove that a registry accepts the tokens of an issuer: it is asked with tokens that allow nothing.

    Args:
        registry: its URL.
        issuer: signs, with the key in question.
        services: the services of the issuer.

    Raises:
        TokenIssuerError: if it does not, or does not answer.
    """
    caller, registry = Caller(), registry.rstrip("/")
    try:
        answer = caller.ask("GET", f"{registry}/v2/")
        try:
            challenge = Challenge.parse(answer.headers.get("www-authenticate", "") if answer.status == 401 else "")
        except ValueError:
            raise TokenIssuerError(
                f"{registry} is not a registry that asks for tokens: /v2/ answered {answer.status}"
            ) from None
        if challenge.service not in services:
            raise TokenIssuerError(
                f"{registry}: its service is '{challenge.service}', and [issuer] services has only "
                f"{', '.join(services)}"
            )
        tries = [_try(caller, registry, issuer.issue("", challenge.service, ()).text) for _ in range(TIMES)]
    except Unreachable as error:
        raise TokenIssuerError(f"{registry} does not answer: {error}") from None
    for answer in tries:
        if answer.status != 200:
            raise TokenIssuerError(
                f"{registry} does not accept tokens of this key: it answered {answer.status}; give it the certificate "
                "file (auth.token.rootcertbundle) or the JWK Set (auth.token.jwks), and restart it"
            )
