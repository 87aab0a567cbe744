"""The configuration file: every mistake is named with its table, its key, and what was meant."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenissuer.config import config_findings, find_config, load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.policy import Caller
from tokenissuer.scope import Access
from tokenissuer.signing.issuer import check_realm

Refused = Callable[[str], str]

ISSUER = """\
[issuer]
name = "test-issuer"
services = ["registry.example"]
realm = "https://auth.example.com/token"
"""
SIGNING = """\
[signing]
key = "auth.key"
certificate = "auth.crt"
"""
BACKEND = """\
[[backends]]
type = "htpasswd"
path = "users.htpasswd"
"""
RULE = """\
[[access]]
authenticated = true
repositories = ["team/**"]
actions = ["pull"]
"""
GOOD = ISSUER + SIGNING + BACKEND + RULE


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """The one line in which a configuration is refused, without the file's name."""

    def of(text: str) -> str:
        path = tmp_path / "tokenissuer.toml"
        path.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        said = str(caught.value)
        assert said.startswith(f"{path}: ")
        assert "\n" not in said
        return said.removeprefix(f"{path}: ")

    return of


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "the table [issuer] is missing", id="empty"),
        pytest.param(SIGNING + BACKEND, "the table [issuer] is missing", id="no-issuer"),
        pytest.param(ISSUER + BACKEND, "the table [signing] is missing", id="no-signing"),
        pytest.param(ISSUER + SIGNING + RULE, "no backend is configured; add a [[backends]] table", id="no-backend"),
        pytest.param("backends = []\n" + ISSUER + SIGNING, "no backend is configured", id="empty-backends"),
        pytest.param("x = 1\n" + GOOD, "unknown table [x]; known: ", id="unknown-table"),
        pytest.param(GOOD + "[isuer]\n", "unknown table [isuer]; did you mean 'issuer'?", id="near-table"),
        pytest.param(GOOD + "[acess]\n", "unknown table [acess]; did you mean 'access'?", id="near-access"),
        pytest.param("issuer = 1\n" + SIGNING, "'issuer' must be a table: write [issuer]", id="issuer-no-table"),
        pytest.param("[[issuer]]\n" + SIGNING, "'issuer' must be a table", id="issuer-a-list"),
        pytest.param(
            replaced("[[backends]]", "[backends]"),
            "'backends' must be a list of tables: write [[backends]]",
            id="table",
        ),
        pytest.param(replaced("[[access]]", "[access]"), "'access' must be a list of tables", id="access-a-table"),
        pytest.param("access = [1]\n" + ISSUER + SIGNING + BACKEND, "'access' must be a list", id="access-of-numbers"),
    ],
)
def test_tables_that_are_missing_or_unknown_are_named(refused: Refused, text: str, says: str) -> None:
    """With the table that was meant."""
    assert says in refused(text)


def test_a_mistake_in_a_rule_names_its_line(refused: Refused) -> None:
    """Of many rules one is found by its line."""
    text = GOOD + '[[access]]\nauthenticated = true\nrepositories = ["a"]\nactions = ["pul"]\n'
    line = text.rpartition("[[access]]")[0].count("\n") + 1
    assert f"line {line}, [[access]] 2: " in refused(text)


@pytest.mark.parametrize("name", ["access", "backends"])
def test_the_first_of_several_tables_written_as_one_is_named(refused: Refused, name: str) -> None:
    """TOML's own message names the second."""
    text = replaced(f"[[{name}]]", f"[{name}]") + f"[[{name}]]\n"
    line = text.partition(f"[{name}]")[0].count("\n") + 1
    assert f"write [[{name}]] each time (line {line})" in refused(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param('name = "test-issuer"\n', "", "[issuer]: the key 'name' is missing", id="no-name"),
        pytest.param(
            'services = ["registry.example"]\n', "", "[issuer]: the key 'services' is missing", id="no-services"
        ),
        pytest.param('realm = "https://auth.example.com/token"\n', "", "[issuer]: the key 'realm' is", id="no-realm"),
        pytest.param('name = "test-issuer"', 'nmae = "x"', "unknown key 'nmae'; did you mean 'name'?", id="near-name"),
        pytest.param('"test-issuer"', "5", "[issuer]: 'name': found 5, expected a string", id="name-a-number"),
        pytest.param('"test-issuer"', "[]", "[issuer]: 'name': found a list, expected a string", id="name-a-list"),
        pytest.param('"test-issuer"', '""', "[issuer]: 'name' is empty", id="name-empty"),
        pytest.param('["registry.example"]', '"registry.example"', "expected a list in square", id="services-a-string"),
        pytest.param('["registry.example"]', "[5]", "'services' item 1: found 5, expected a string", id="service-5"),
        pytest.param('["registry.example"]', "[]", "'services' needs at least one name", id="no-service"),
        pytest.param('["registry.example"]', '["a", ""]', "'services' needs at least one name", id="empty-service"),
        pytest.param("[signing]", "lifetime = 59\n[signing]", "'lifetime' is 59", id="short-lifetime"),
        pytest.param("[signing]", "lifetime = -1\n[signing]", "'lifetime' is -1", id="negative-lifetime"),
        pytest.param("[signing]", 'lifetime = "900"\n[signing]', "found the string '900'", id="lifetime-a-string"),
        pytest.param(
            "[signing]", "lifetime = 900.0\n[signing]", "found 900.0, expected a whole", id="lifetime-a-float"
        ),
        pytest.param("[signing]", "lifetime = true\n[signing]", "found true, expected a whole", id="lifetime-true"),
        pytest.param("[signing]", "lifetime = 1979-05-27\n[signing]", "found date", id="lifetime-a-date"),
        pytest.param('key = "auth.key"\n', "", "[signing]: the key 'key' is missing", id="no-key"),
        pytest.param('key = "auth.key"', 'key = ""', "[signing]: 'key': the path is empty", id="empty-key"),
        pytest.param('key = "auth.key"', 'key = "a\\u0000"', "[signing]: 'key'", id="nul-in-a-path"),
        pytest.param('key = "auth.key"', "key = 5", "'key': found 5, expected a string", id="key-a-number"),
        pytest.param('certificate = "', 'certificat = "', "did you mean 'certificate'?", id="near-certificate"),
        pytest.param(
            "[[backends]]",
            'key_forms = { "other" = "x5c" }\n[[backends]]',
            "[signing.key_forms]: the service 'other' is not in [issuer] services",
            id="key-form-of-another-service",
        ),
        pytest.param(
            "[[backends]]",
            'key_forms = { "registry.example" = "jwk" }\n[[backends]]',
            "found the string 'jwk', expected one of 'x5c', 'thumbprint', 'libtrust'",
            id="unknown-key-form",
        ),
        pytest.param("[[backends]]", "key_forms = 5\n[[backends]]", "found 5, expected a table", id="key-forms-5"),
        pytest.param('type = "htpasswd"\n', "", "[[backends]] 1: the key 'type' is missing", id="no-type"),
        pytest.param('type = "htpasswd"', "type = 5", "[[backends]] 1: the key 'type' is missing", id="type-a-number"),
        pytest.param(
            'type = "htpasswd"', 'type = "htpaswd"', "type 'htpaswd'; did you mean 'htpasswd'?", id="near-type"
        ),
        pytest.param('path = "users', 'pth = "users', "[[backends]] 1 (htpasswd): unknown key 'pth'", id="near-path"),
        pytest.param('path = "users.htpasswd"\n', "", "(htpasswd): the key 'path' is missing", id="no-path"),
        pytest.param('type = "htpasswd"', 'type = "htpasswd"\nname = ""', "'name' must be a string", id="empty-title"),
        pytest.param("[[access]]", BACKEND + "[[access]]", "two backends are called 'htpasswd'", id="same-name-twice"),
        pytest.param("authenticated = true\n", "", "[[access]] 1: the rule applies to nobody", id="for-nobody"),
        pytest.param(
            "authenticated = true", "authenticated = false", "the rule applies to nobody", id="not-for-anybody"
        ),
        pytest.param("authenticated = true", "accounts = []", "the rule applies to nobody", id="for-no-accounts"),
        pytest.param("authenticated = true", 'authenticated = "yes"', "expected true or false", id="yes"),
        pytest.param("authenticated = true", "authenticated = 1", "found 1, expected true or false", id="one"),
        pytest.param("authenticated = true", 'accounts = "alice"', "expected a list in square", id="accounts-a-string"),
        pytest.param("authenticated = true", 'everybody = "x"', "unknown key 'everybody'", id="near-everyone"),
        pytest.param('repositories = ["team/**"]\n', "", "the rule names no resource", id="about-nothing"),
        pytest.param('repositories = ["team/**"]', "catalog = true", "'actions' needs 'repositories'", id="catalog"),
        pytest.param('actions = ["pull"]', "", "the key 'actions' is missing", id="no-actions"),
        pytest.param('actions = ["pull"]', "actions = []", "'actions' is empty, so the", id="empty-actions"),
        pytest.param('actions = ["pull"]', 'actions = ["pul"]', "'pul'; did you mean 'pull'?", id="near-pull"),
        pytest.param('actions = ["pull"]', 'actions = ["write"]', "unknown action 'write'; known:", id="write"),
        pytest.param('actions = ["pull"]', 'actions = "pull"', "expected a list in square", id="actions-a-string"),
        pytest.param('["team/**"]', '["Team/**"]', "[[access]] 1: the repository pattern 'Team/**'", id="upper-case"),
        pytest.param('["team/**"]', '["team**"]', "'**' must stand alone between slashes", id="glued-stars"),
        pytest.param('["team/**"]', '["/team"]', "begins or ends with a slash", id="slash-first"),
        pytest.param('["team/**"]', '[""]', "a repository pattern is empty", id="empty-pattern"),
        pytest.param('["team/**"]', '["{user}/**"]', "has '{user}' in it", id="unknown-placeholder"),
        pytest.param('["pull"]', '["pull"]\nservices = ["other"]', "the service 'other' is not in", id="other-service"),
        pytest.param('["pull"]', '["pull"]\nnetworks = ["10.0.0.1/8"]', "'10.0.0.1/8' is not an", id="host-bits"),
        pytest.param('["pull"]', '["pull"]\nnetworks = ["x"]', "'x' is not an address or a network", id="no-network"),
        pytest.param('["pull"]', '["pull"]\nnetworks = [""]', "'' is not an address or a network", id="empty-network"),
        pytest.param('["pull"]', '["pull"]\nnetworks = ["10.0.0.0/33"]', "is not an address", id="long-mask"),
        pytest.param('["pull"]', '["pull"]\nnetworks = []', "'networks' is empty", id="empty-networks"),
        pytest.param('["pull"]', '["pull"]\nservices = []', "'services' is empty", id="empty-services"),
        pytest.param('["pull"]', '["pull"]\neffect = "forbid"', "expected one of 'allow', 'deny'", id="unknown-effect"),
        pytest.param('["pull"]', '["pull"]\neffect = true', "found true, expected one of", id="effect-true"),
        pytest.param('["pull"]', '["pull"]\ndeny = true', "[[access]] 1: unknown key 'deny'", id="deny-true"),
    ],
)
def test_keys_that_are_missing_unknown_or_mistyped_are_named(refused: Refused, old: str, new: str, says: str) -> None:
    """With the value found and what is expected."""
    assert says in refused(replaced(old, new))


def test_a_mistake_in_a_later_table_is_named_by_its_number(refused: Refused) -> None:
    """Counted from one, as people count."""
    assert "[[access]] 3: " in refused(GOOD + RULE + RULE.replace("actions", "action"))
    assert "[[backends]] 2 " in refused(GOOD + BACKEND.replace("path", 'name = "b"\npth'))


@pytest.mark.parametrize("text", ["nonsense", "[issuer", "a = ", "a = 1\na = 2", "a = '\n'", "\x00"])
def test_what_is_no_toml_is_said_in_one_line(refused: Refused, text: str) -> None:
    """With the place, and without the text: a secret may stand there."""
    assert "not TOML" in refused(text)


@pytest.mark.parametrize("kind", ["missing", "folder", "not-utf-8"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    """In one line."""
    path = tmp_path / "tokenissuer.toml"
    if kind == "folder":
        path.mkdir()
    if kind == "not-utf-8":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


REALMS = {
    "https://auth.example.com/token": True,
    "http://localhost:5001/token": True,
    "https://auth.example.com": True,
    "https://[2001:db8::1]:5001/token": True,
    "https://auth.example.com/a/b/token/": True,
    "": False,
    "/token": False,
    "auth.example.com/token": False,
    "ftp://auth.example.com/token": False,
    "https:///token": False,
    "https://": False,
    "https://auth.example.com:0/token": False,
    "https://auth.example.com:x/token": False,
    "https://auth.example.com:99999/token": False,
    "https://[::1/token": False,
    "https://auth.example.com/token?x=1": False,
    "https://auth.example.com/token?": False,
    "https://auth.example.com/token#x": False,
    "https://auth.example.com/token#": False,
    "https://bob@auth.example.com/token": False,
    "https://bob:pw@auth.example.com/token": False,
    "https://auth.example.com/to ken": False,
    "https://auth.example.com/token\n": False,
    'https://auth.example.com/"': False,
    "https://auth.example.com/\\": False,
}


@pytest.mark.parametrize(("realm", "good"), REALMS.items(), ids=map(ascii, REALMS))
def test_a_realm_is_a_whole_address_that_every_client_can_use(realm: str, good: bool) -> None:
    """Absolute, without user, query or fragment, which some clients lose."""
    if good:
        check_realm(realm)
    else:
        with pytest.raises(ValueError, match="'realm' is"):
            check_realm(realm)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the working folder; absolute ones stay."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "c.toml").write_text(replaced('"auth.crt"', '"/etc/auth.crt"'))
    monkeypatch.chdir(folder)
    config = load_config(Path("c.toml"))
    assert config.signing.key == folder / "auth.key"
    assert config.signing.certificate == Path("/etc/auth.crt")
    assert config.backends[0].options.path == folder / "users.htpasswd"


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    """A token lives a quarter of an hour; a rule allows, everywhere."""
    (tmp_path / "c.toml").write_text(GOOD)
    config = load_config(tmp_path / "c.toml")
    assert config.issuer.lifetime == 900
    assert config.key_forms() == {}
    (rule,) = config.rules
    assert not (rule.deny)
    assert not (rule.services)
    assert not (rule.networks)
    assert not (rule.catalog)
    assert not (rule.everyone)


def test_a_star_in_a_rule_is_the_three_actions(tmp_path: Path) -> None:
    """And never a star in a token."""
    (tmp_path / "c.toml").write_text(replaced('["pull"]', '["*"]'))
    (rule,) = load_config(tmp_path / "c.toml").rules
    access = Access("repository", "team/a", frozenset({"pull"}))
    assert rule.actions_on(Caller(None, "registry.example", None), access) == frozenset()
    assert rule.actions == {"pull", "push", "delete"}


def test_configurations_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one given, the environment's, the working folder's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOKENISSUER_CONFIG", raising=False)
    with pytest.raises(ConfigurationError, match="no configuration found"):
        find_config(None)
    (tmp_path / "tokenissuer.toml").write_text("")
    assert find_config(None) == Path("tokenissuer.toml")
    monkeypatch.setenv("TOKENISSUER_CONFIG", "/a")
    assert find_config(None) == Path("/a")
    assert find_config(Path("/b")) == Path("/b")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        pytest.param(lambda f: (f / "auth.key").unlink(), "cannot read the private key", id="no-key"),
        pytest.param(lambda f: (f / "auth.crt").write_text(""), "no PEM certificate", id="no-certificate"),
        pytest.param(
            lambda f: (f / "users.htpasswd").unlink(), "backend 'htpasswd': cannot read", id="no-password-file"
        ),
    ],
)
def test_nothing_is_built_with_a_part_that_cannot_be_used(set_up: Path, harm: Callable[[Path], Any], says: str) -> None:
    """The start ends in one line."""
    config = load_config(set_up / "tokenissuer.toml")
    config.build().close()
    harm(set_up)
    with pytest.raises(ConfigurationError, match=says):
        config.build()


@pytest.mark.parametrize("years", [-1, 11])
def test_nothing_is_built_with_a_certificate_out_of_its_time(
    set_up: Path, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stop every registry."""
    now = time.time() + years * 365 * 86400
    monkeypatch.setattr(time, "time", lambda: now)
    config = load_config(set_up / "tokenissuer.toml")
    with pytest.raises(ConfigurationError, match=r"auth\.crt: the certificate (ended|begins only) on"):
        config.build()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('authenticated = true\nbackends = ["htpaswd"]', "no backend is called 'htpaswd'; did you mean 'htpasswd'?"),
        ("authenticated = true\nbackends = []", "'backends' is empty"),
        ('everyone = true\nbackends = ["htpasswd"]', "everyone = true for who has none"),
        ('accounts = [""]', "'accounts' has an empty name"),
        ('groups = ["", "x"]', "'groups' has an empty name"),
    ],
)
def test_a_rule_that_would_be_for_nobody_is_refused(refused: Refused, rule: str, says: str) -> None:
    """Least of all does a denial protect nothing."""
    assert says in refused(f'{GOOD}\n[[access]]\n{rule}\nrepositories = ["x"]\nactions = ["pull"]\n')


def test_a_group_that_users_of_another_backend_can_make_is_named(set_up: Path) -> None:
    """Unless the rule says whose group it means."""
    gitlab = '[[backends]]\ntype = "gitlab"\nurl = "https://gitlab.example.com"\n'
    rule = '[[access]]\ngroups = ["dev"]\nrepositories = ["x"]\nactions = ["pull"]\n'
    path = set_up / "tokenissuer.toml"
    for more, is_warned in (("", True), ('backends = ["htpasswd"]\n', False)):
        path.write_text(f"{GOOD}{gitlab}{rule}{more}")
        found = [str(finding) for finding in config_findings(load_config(path), 0)]
        assert any("who makes a group" in finding for finding in found) is is_warned


@pytest.mark.parametrize(
    ("rule", "htpasswd", "gitlab"),
    [
        ("authenticated = true", "", ""),
        ('groups = ["dev", "Ops"]', "Ops dev", "Ops dev"),
        ('groups = ["dev"]\nbackends = ["gitlab"]', "", "dev"),
        ('effect = "deny"\ngroups = ["dev"]', "dev", "dev"),
        ('authenticated = true\nexcept_groups = ["dev"]', "dev", "dev"),
        ('effect = "deny"\nauthenticated = true\nrepositories = ["{group}/**"]', "others deny", "others deny"),
        ('effect = "deny"\ngroups = ["x", "d*"]', "x others deny", "x others deny"),
        ('effect = "deny"\nauthenticated = true\nexcept_groups = ["d*"]', "others", "others"),
        ('authenticated = true\nexcept_groups = ["d*"]', "others deny", "others deny"),
        ('groups = ["d*"]', "others", "others"),
        ('accounts = ["x"]\nrepositories = ["{group}/**"]\nbackends = ["gitlab"]', "", "others"),
        ('groups = ["dev"]\nrepositories = ["{group}/**"]', "dev", "dev"),
    ],
)
def test_a_backend_knows_which_groups_rules_ask_for(set_up: Path, rule: str, htpasswd: str, gitlab: str) -> None:
    """It need not find others, unless a pattern or `{group}` may mean any; then one that is missing may deny."""
    repositories = "" if "repositories" in rule else 'repositories = ["x"]\n'
    more = '[[backends]]\ntype = "gitlab"\nurl = "https://gitlab.example.com"\n'
    path = set_up / "tokenissuer.toml"
    path.write_text(f'{GOOD}{more}[[access]]\n{rule}\n{repositories}actions = ["pull"]\n')
    config = load_config(path)
    for name, wanted in (("htpasswd", htpasswd), ("gitlab", gitlab)):
        found = config.groups_wanted(name)
        words = [*sorted(found.named), *(["others"] if found.others else []), *(["deny"] if found.others_deny else [])]
        assert " ".join(words) == wanted
