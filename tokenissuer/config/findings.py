"""What is wrong with a configuration, as far as its own files tell."""

from __future__ import annotations

import urllib.parse
from typing import Final

from tokenissuer.config.config import Config
from tokenissuer.diagnosis import Finding, Findings, Severity, control_findings, secret_findings
from tokenissuer.errors import ConfigurationError
from tokenissuer.net import is_inner_literal, is_loopback
from tokenissuer.options import secrets_in
from tokenissuer.policy.findings import rule_findings

#: Seconds: what a token allows cannot be taken back before it ends.
_LONG_LIFETIME: Final = 3600


def config_findings(config: Config, now: float) -> Findings:
    """Report on key, certificate, realm and rules.

    Args:
        config: the configuration.
        now: seconds since 1970.
    """
    try:
        key = config.load_key()
    except ConfigurationError as error:
        yield Finding(Severity.ERROR, "[signing]", str(error))
    else:
        yield from key.findings(str(config.signing.certificate), now)
        yield from _rotation_findings(config)
    yield from _file_findings(config)
    yield from _issuer_findings(config)
    yield from _rule_findings(config)
    yield from config.test_findings()


def _file_findings(config: Config) -> Findings:
    keys = config.rotation
    for key in (keys.key, keys.next_key, keys.previous_key):
        yield from secret_findings(key, "the private key, and so sign their own tokens")
    for secret in secrets_in([*(backend.options for backend in config.backends), config.throttle, config.refresh]):
        yield from secret_findings(secret, "the secret")
    for store in config.store_files():
        yield from secret_findings(store, "the sessions")
        if not store.parent.is_dir():
            yield Finding(
                Severity.ERROR,
                "[refresh.store]",
                f"there is no folder {store.parent}, so `serve` does not start",
                f"make it, writable by the user that serves: install -d -o tokenissuer -m 0700 {store.parent}",
            )
    # Backends look at their own files.
    for path in sorted({config.path, config.signing.certificate} | {file.parent for file in config.files()}):
        yield from control_findings(path)


def _rotation_findings(config: Config) -> Findings:
    try:
        unfinished = config.rotation.unfinished
    except ConfigurationError as error:
        yield Finding(Severity.WARNING, "[signing]", str(error))
        return
    if unfinished:
        yield Finding(
            Severity.WARNING,
            "[signing]",
            f"`tokenissuer {unfinished}` was ended before it had finished",
            "run `tokenissuer keys list`, which puts the keys in order",
        )


def _issuer_findings(config: Config) -> Findings:
    realm = urllib.parse.urlsplit(config.issuer.realm)
    if realm.scheme == "http" and not is_loopback(realm.hostname or ""):
        yield Finding(
            Severity.WARNING,
            "[issuer] realm",
            f"clients send their passwords to {config.issuer.realm} in clear text, and some refuse to",
            "put a proxy with TLS in front and use its https address",
        )
    if is_inner_literal(realm.hostname or ""):
        yield Finding(
            Severity.WARNING,
            "[issuer] realm",
            f"its host {realm.hostname} is a loopback or private address, which crane, Helm and oras refuse",
            "use a name, such as localhost",
        )
    if config.issuer.lifetime > _LONG_LIFETIME:
        yield Finding(
            Severity.WARNING,
            "[issuer] lifetime",
            f"a token is valid for {config.issuer.lifetime} seconds, whatever is revoked in that time",
            f"use at most {_LONG_LIFETIME}; a push outlives it only if one layer takes longer",
        )


def _rule_findings(config: Config) -> Findings:
    yield from rule_findings(config.rules)
    makers = [backend.name for backend in config.backends if backend.cls.users_make_groups]
    for rule in config.rules:
        subject = f"[[access]] {rule.number}"
        if makers and len(config.backends) > 1 and rule.groups and not rule.backends:
            yield Finding(
                Severity.WARNING,
                subject,
                f"a user of {makers[0]} who makes a group of one of these names is meant as well",
                f'say whose groups are meant: backends = ["{config.backends[0].name}"]',
            )
