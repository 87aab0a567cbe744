"""The example configurations: read as they are, and what their comments call a default is one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tokenissuer.config import Config, load_config
from tokenissuer.options import Secret
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.options import LdapOptions

CONF = Path(__file__).parents[2] / "conf"
EXAMPLES = {"openldap": "generic", "freeipa": "freeipa", "ad": "ad"}


def load(folder: Path, text: str) -> Config:
    """A configuration with its password file beside it."""
    (folder / "ldap.password").write_text("secret\n")
    path = folder / "tokenissuer.toml"
    path.write_text(text)
    return load_config(path)


def options_of(config: Config) -> LdapOptions:
    """The options of its one backend."""
    (backend,) = config.backends
    assert backend.cls is LdapBackend
    assert isinstance(backend.options, LdapOptions)
    return backend.options


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    """And its backend can be built."""
    config = load(tmp_path, (CONF / f"ldap-{name}.toml").read_text())
    options = options_of(config)
    assert options.directory == EXAMPLES[name]
    assert len(options.servers) == 2
    assert isinstance(options.bind_password, Secret)
    assert options.bind_password.reveal() == "secret"
    assert len(config.rules) == 3
    config.backends[0].build().close()
    assert (config.cache.success, config.cache.failure) == (60, 60)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_commented_out_default_is_the_default(tmp_path: Path, name: str) -> None:
    """With these comments taken off nothing changes."""
    text = (CONF / f"ldap-{name}.toml").read_text()
    plain = options_of(load(tmp_path, text))
    kept = ("allow_plaintext", "connect_timeout", "timeout", "pool_size", "filter", "name", "nested")
    pattern = re.compile(rf"^#({'|'.join(kept)}) = ", re.MULTILINE)
    is_search = name != "ad"
    assert len(pattern.findall(text)) == (9 if is_search else 7)
    said = options_of(load(tmp_path, pattern.sub(r"\1 = ", text)))
    preset = plain.preset
    assert (said.user.filter, said.user.name) == (preset.user_filter, preset.user_name)
    assert said.groups is not None
    assert said.groups == type(said.groups)(
        plain.groups.base if plain.groups else (),
        filter=preset.groups_filter if is_search else None,
        name=preset.groups_name,
        nested=preset.nested if is_search else None,
    )
    for key in ("allow_plaintext", "connect_timeout", "timeout", "pool_size"):
        assert getattr(said, key) == getattr(plain, key) == LdapOptions.__dataclass_fields__[key].default


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_other_ways_are_read_when_their_comments_are_taken_off(tmp_path: Path, name: str) -> None:
    """A CA file, StartTLS, groups from memberOf, and a login without an account that searches."""
    text = (CONF / f"ldap-{name}.toml").read_text()
    shutil.copy(CONF / f"ldap-{name}.toml", tmp_path)
    more = re.sub(r"^#(ca_file|attribute|starttls) = ", r"\1 = ", text, flags=re.MULTILINE)
    options = options_of(load(tmp_path, more.replace("ldaps://", "ldap://")))
    assert options.ca_file is not None
    assert options.starttls
    assert options.groups is not None
    assert options.groups.attribute == "memberOf"
    if "#bind_as" in text:
        direct = re.sub(r"^(bind_dn|bind_password_file) = .*\n", "", text, flags=re.MULTILINE)
        assert "{user}" in options_of(load(tmp_path, direct.replace("#bind_as", "bind_as"))).bind_as
