"""`tokenissuer keys`: one signing key after another, without a push refused."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

from tokenissuer.config import Config, find_config, load_config
from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.issuer import Issuer
from tokenissuer.keyring import Keyring, key_type_of, kid_of, moment
from tokenissuer.keys import KeyType, load_private_key
from tokenissuer.trial import prove_trust

#: Where systemd shows services their credentials: copies, made when the service starts.
_CREDENTIALS: Final = Path("/run/credentials")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=["list", "add", "switch", "retire", "authority"],
        help="show the keys; make the next one; sign with it; take the one before out; make an authority, once, so "
        "that registries need no more certificates",
    )
    parser.add_argument("--registry", action="append", default=[], metavar="URL", help="switch: prove that it is ready")
    parser.add_argument("--unproven", action="store_true", help="switch: without that proof")
    parser.add_argument("--key-type", type=KeyType, choices=list(KeyType), help="add: else as the one in use")
    parser.add_argument("--authority-key", type=Path, metavar="FILE", help="add: else authority.key, if it is there")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file, where [signing] key names a copy of it")


def run(arguments: argparse.Namespace) -> int:
    """list the signing keys, add the next one, switch to it, retire the one before"""
    config = load_config(find_config(arguments.config))
    keyring = Keyring(_key_file(config, arguments.key), config.signing.certificate, config.signing.key)
    {"list": _list, "add": _add, "switch": _switch, "retire": _retire, "authority": _authority}[arguments.action](
        config, keyring, arguments
    )
    return 0


def _key_file(config: Config, given: Path | None) -> Path:
    path = given or config.signing.key
    if _CREDENTIALS in path.parents:
        raise TokenIssuerError(
            f"{path} is a copy that systemd makes when the service starts; name the file it is made of "
            "(LoadCredential= in the unit) with --key"
        )
    return path


def _list(config: Config, keyring: Keyring, arguments: argparse.Namespace) -> None:
    for entry in keyring.entries():
        print(f"{entry.state:<9}  {entry.until:%Y-%m-%d}  {entry.kind:<5}  {entry.kid}".rstrip())


def _add(config: Config, keyring: Keyring, arguments: argparse.Namespace) -> None:
    authority_key = arguments.authority_key
    if authority_key is None and keyring.authority_key.exists():
        authority_key = keyring.authority_key
    if authority_key is None and keyring.has_authority(config.issuer.name):
        raise TokenIssuerError(
            f"{keyring.certificate} has an authority, but its key is not at {keyring.authority_key}; "
            "name it with --authority-key"
        )
    key_type = arguments.key_type or key_type_of(load_private_key(keyring.key))
    certificate = keyring.add(config.issuer.name, key_type, authority_key, time.time())
    print(f"Made the next key, {keyring.next_key}: {kid_of(certificate)}")
    print(f"Its certificate, until {certificate.not_valid_after_utc:%Y-%m-%d}, is in {keyring.certificate} now.")
    if keyring.jwks.exists():
        print(f"{keyring.jwks} has it too.")
    print("Nothing is signed with it yet. Now:")
    if authority_key is None:
        print(
            f"1. Give every registry {keyring.certificate} (auth.token.rootcertbundle; or the JWK Set, "
            "auth.token.jwks) and restart it: only then it reads them. Of several registries behind one address "
            "restart one after the other, and nobody notices."
        )
    else:
        print(
            "1. Registries that have the authority's certificate need nothing. Those that have the JWK Set "
            "(auth.token.jwks) need the new one, and a restart."
        )
    print("2. tokenissuer keys switch --registry URL   (with the URL of each registry, to prove that it is ready)")


def _switch(config: Config, keyring: Keyring, arguments: argparse.Namespace) -> None:
    if bool(arguments.registry) == arguments.unproven:
        raise TokenIssuerError(
            "say --registry URL for each registry, to prove that it takes the next key, or --unproven"
        )
    key = keyring.next()
    issuer = Issuer(config.issuer.name, key, config.issuer.lifetime, config.key_forms())
    for registry in arguments.registry:
        prove_trust(registry, issuer, config.issuer.services)
        print(f"{registry} takes tokens of the next key.")
    keyring.switch(time.time())
    print(f"Tokens are signed with {key.thumbprint} now; running servers follow within seconds.")
    if keyring.used != keyring.key:
        print("The service has a copy of the key: systemctl restart tokenissuer")
    end = moment(keyring.last_token_ends(config.issuer.lifetime))
    print(f"Tokens signed before stay good. After {end}: tokenissuer keys retire")


def _retire(config: Config, keyring: Keyring, arguments: argparse.Namespace) -> None:
    for path in keyring.retire(config.issuer.lifetime, time.time()):
        print(f"{path} is gone, and its certificate is no longer in {keyring.certificate}.")
    print("Registries stop trusting it when they are given that file and restart; there is no hurry.")


def _authority(config: Config, keyring: Keyring, arguments: argparse.Namespace) -> None:
    if all(form != "x5c" for form in (config.key_forms().get(name, "x5c") for name in config.issuer.services)):
        raise ConfigurationError("an authority helps only where tokens carry a certificate: [signing.key_forms] x5c")
    certificate = keyring.add_authority(config.issuer.name, time.time())
    print(f"Made an authority, {keyring.authority_key}, until {certificate.not_valid_after_utc:%Y-%m-%d}.")
    print(f"Its certificate is in {keyring.certificate} now.")
    print("Give every registry that file (auth.token.rootcertbundle) and restart it, this one last time. From then on")
    print("`keys add` and `keys switch` need nothing of the registries.")
    print(
        f"{keyring.authority_key} can make keys that registries trust: keep it off this machine if you can, and name it"
    )
    print("with --authority-key when you need it.")
