"""`tokenissuer keys`: rotation of the signing key, without refusing a push."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Final

from tokenissuer.config import Config, find_config, load_config
from tokenissuer.doctor.trial import prove_trust
from tokenissuer.errors import TokenIssuerError
from tokenissuer.signing.keys import KeyType, load_private_key
from tokenissuer.signing.rotation import Rotation, key_type_of, kid_of, moment

#: Where systemd puts a service's credentials: copies, made when the service starts.
_CREDENTIALS: Final = Path("/run/credentials")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=["list", "add", "switch", "retire"],
        help="show the keys; make the next key; sign with it; remove the previous key",
    )
    parser.add_argument("--next", action="store_true", help="retire: the next key, which has signed nothing")
    parser.add_argument(
        "--now", action="store_true", help="retire: although tokens of the previous key are valid still; it was stolen"
    )
    parser.add_argument(
        "--registry", action="append", default=[], metavar="URL", help="switch: prove that this registry is ready"
    )
    parser.add_argument("--unproven", action="store_true", help="switch: without this proof")
    parser.add_argument(
        "--key-type",
        choices=[str(key_type) for key_type in KeyType],
        help="add: the kind of key (default: as the key in use)",
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file, if [signing] key names a copy of it")


def run(arguments: argparse.Namespace) -> int:
    """list the signing keys, add the next one, switch to it, retire the previous one"""
    config = load_config(find_config(arguments.config))
    rotation = Rotation(_key_file(config, arguments.key), config.signing.certificate, config.signing.key)
    {"list": _list, "add": _add, "switch": _switch, "retire": _retire}[arguments.action](config, rotation, arguments)
    return 0


def _key_file(config: Config, given: Path | None) -> Path:
    path = given or config.signing.key
    if _CREDENTIALS in path.parents:
        raise TokenIssuerError(
            f"{path} is a copy that systemd makes when the service starts; name the original file "
            "(LoadCredential= in the unit) with --key"
        )
    return path


def _files(arguments: argparse.Namespace) -> str:
    """Return the options that name files, for the command to give next."""
    named = {"--config": arguments.config, "--key": arguments.key}
    return "".join(f" {option} {shlex.quote(str(path))}" for option, path in named.items() if path)


def _list(config: Config, rotation: Rotation, arguments: argparse.Namespace) -> None:
    rotation.mend()
    for entry in rotation.entries():
        print(f"{entry.state:<9}  {entry.until:%Y-%m-%d}  {entry.kind:<5}  {entry.kid}".rstrip())


def _add(config: Config, rotation: Rotation, arguments: argparse.Namespace) -> None:
    key_type = KeyType(arguments.key_type) if arguments.key_type else key_type_of(load_private_key(rotation.key))
    certificate = rotation.add(config.issuer.name, key_type, time.time())
    print(f"Made the next key, {rotation.next_key}: {kid_of(certificate)}")
    print(f"Its certificate, valid until {certificate.not_valid_after_utc:%Y-%m-%d}, is in {rotation.certificate} now.")
    if rotation.jwks.exists():
        print(f"{rotation.jwks} has it too.")
    print("The key signs nothing yet. Next steps:")
    print(
        f"1. Give every registry {rotation.certificate} (auth.token.rootcertbundle; or the JWK Set, "
        "auth.token.jwks) and restart it: registries read it only at their start. If several registries share one "
        "address, restart one after the other, and nobody notices."
    )
    print(
        f"2. tokenissuer keys switch --registry URL{_files(arguments)}   (with the URL of each registry, to prove "
        "that it is ready)"
    )


def _switch(config: Config, rotation: Rotation, arguments: argparse.Namespace) -> None:
    if bool(arguments.registry) == arguments.unproven:
        raise TokenIssuerError(
            "add --registry URL for each registry, to prove that it accepts the next key, or --unproven"
        )
    key = rotation.next()
    issuer = config.make_issuer(key)
    for registry in arguments.registry:
        prove_trust(registry, issuer, config.issuer.services)
        print(f"{registry} accepts tokens of the next key.")
    rotation.switch(time.time())
    print(f"Tokens are signed with {key.thumbprint} now; running servers reload within seconds.")
    if rotation.used != rotation.key:
        print("The service has a copy of the key; restart it: systemctl restart tokenissuer")
    end = moment(rotation.last_token_ends(config.issuer.lifetime))
    print(f"Tokens signed before stay valid. After {end}: tokenissuer keys retire{_files(arguments)}")


def _retire(config: Config, rotation: Rotation, arguments: argparse.Namespace) -> None:
    now = time.time()
    end = 0.0 if arguments.next else rotation.last_token_ends(config.issuer.lifetime)
    if arguments.next:
        path = rotation.drop_next()
    else:
        path = rotation.retire(config.issuer.lifetime, now, at_once=arguments.now)
    print(f"Removed {path}, and its certificate from {rotation.certificate}.")
    if now < end:
        print("Give every registry that file and restart it now: until then it accepts this key, for whoever has it.")
        print("Then it refuses tokens of this key. Clients ask for new ones; a push or pull under way may fail once.")
        return
    print("Registries stop trusting it when they get that file and restart; there is no hurry.")
