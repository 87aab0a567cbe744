"""The command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Run, failed
from tests.support.machine import free_port
from tokenissuer.cli import init
from tokenissuer.cli.init import SetUp
from tokenissuer.config import load_config
from tokenissuer.signing.keys import KeyType, PrivateKey, generate_private_key, load_signing_key
from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions
from tokenissuer_backends.htpasswd import hash as htpasswd_hash

FILES = {
    "tokenissuer.toml": 0o644,
    "auth.key": 0o400,
    "auth.crt": 0o644,
    "jwks.json": 0o644,
    "users.htpasswd": 0o600,
    "registry.yml": 0o644,
}


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """New hashes at the lowest cost; and no configuration but the one named."""
    monkeypatch.setattr(htpasswd_hash, "BCRYPT_COST", 4)
    monkeypatch.delenv("TOKENISSUER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def password_of(out: str) -> str:
    (password,) = re.findall(r"password: (\S+)", out)
    return str(password)


def test_init_writes_a_set_up_that_check_approves(run: Run, tmp_path: Path) -> None:
    """Every file with its mode whatever the umask, and the password shown logs in."""
    folder = tmp_path / "new" / "set-up"
    before = os.umask(0o077)
    try:
        code, out, err = run("init", folder, "--account", "alice", "--realm", "https://auth.example.com/token")
    finally:
        os.umask(before)
    assert (code, err) == (0, "")
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == FILES
    backend = HtpasswdBackend(HtpasswdOptions(folder / "users.htpasswd"))
    assert backend.authenticate("alice", password_of(out)).name == "alice"
    key = load_signing_key(folder / "auth.key", folder / "auth.crt")
    assert json.loads((folder / "jwks.json").read_text()) == key.jwk_set()
    written = "".join(path.read_text() for path in folder.iterdir())
    assert password_of(out) not in written
    # Only because hashes are made cheap here.
    _, out, _ = run("check", "--config", folder / "tokenissuer.toml")
    assert [line for line in out.splitlines() if "cost 4" not in line] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["file", "folder", "dangling-link"])
def test_init_overwrites_nothing(run: Run, tmp_path: Path, name: str, kind: str) -> None:
    """Not one file of it, and then it writes none of the others either."""
    path = tmp_path / name
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere" / "else")
    failed(run("init", tmp_path), str(path), "nothing is overwritten")
    assert list(tmp_path.iterdir()) == [path]
    if kind == "file":
        assert path.read_text() == "mine"


@pytest.mark.parametrize("account", ["a:b", "#a", " a"])
def test_init_leaves_nothing_behind_when_it_fails_at_the_end(run: Run, tmp_path: Path, account: str) -> None:
    """Neither files nor the folders it made for them."""
    failed(run("init", tmp_path / "a" / "b" / "c", "--account", account), "account name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(len(FILES)))
def test_init_leaves_nothing_behind_when_the_disk_is_full(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever file it is at, and even if that one was begun."""
    chmods = 0
    real = os.fchmod

    def full(descriptor: int, mode: int) -> None:
        nonlocal chmods
        chmods += 1
        if chmods > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", full)
    failed(run("init", tmp_path / "new" / "folder"), "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_init_keeps_what_others_have_in_the_folder(run: Run, tmp_path: Path) -> None:
    """A folder that was there before stays, with everything in it, also when it fails."""
    (tmp_path / "mine").write_text("mine")
    failed(run("init", tmp_path, "--account", "a:b"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert run("init", tmp_path)[0] == 0
    assert (tmp_path / "mine").read_text() == "mine"


NAMES = {
    "plain": "plain",
    "quotes": 'it\'s "quoted"',
    "backslashes": "a\\b\\n\\u0041\\",
    "dollars": "$issuer ${realm} $$",
    "braces": "{account} {{}} %s",
    "comment": "a # b",
    "yaml": "a: [b, c]",
    "toml": "\"\"\"'''=",
    "umlauts": "\N{LATIN SMALL LETTER U WITH DIAERESIS}ml\N{LATIN SMALL LETTER A WITH DIAERESIS}ut",
    "beyond-the-basic-plane": "\N{SPOUTING WHALE}",
    "right-to-left": "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}",
    "spaces": "a  b",
    "number": "007",
    "truth": "true",
}


def yaml_string(text: str, key: str) -> str:
    """The value of a key in double quotes, which YAML reads as JSON does."""
    (value,) = re.findall(rf"^    {key}: (\".*\")$", text, re.MULTILINE)
    return str(json.loads(value))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_init_writes_any_printable_name_into_toml_and_yaml(run: Run, tmp_path: Path, name: str) -> None:
    """Letter by letter, in both files."""
    folder = tmp_path / name.replace("/", "-")
    account = name.replace(":", "-").strip("#")
    code, _, err = run("init", folder, "--issuer", name, "--service", name, "--account", account)
    assert (code, err) == (0, "")
    config = load_config(folder / "tokenissuer.toml")
    assert (config.issuer.name, config.issuer.services) == (name, (name,))
    assert config.rules[0].accounts.exact == {account}
    registry = (folder / "registry.yml").read_text(encoding="utf-8")
    assert yaml_string(registry, "service") == name
    assert yaml_string(registry, "issuer") == name
    assert yaml_string(registry, "rootcertbundle") == str(folder / "auth.crt")
    # The commented line must be right as well once its sign is taken away.
    text = (folder / "tokenissuer.toml").read_text(encoding="utf-8").replace("#key_forms", "key_forms")
    assert tomllib.loads(text)["signing"]["key_forms"] == {name: "thumbprint"}


@pytest.mark.parametrize("option", ["--issuer", "--service", "--account", "--realm"])
@pytest.mark.parametrize(
    "value", ["", "a\nb", "a\tb", "a\x00", "a\x7f", "a\x85", "\x1b[0m", "a\u2028b", "\udcff", "\ufffe"], ids=ascii
)
def test_init_refuses_names_that_cannot_be_written(run: Run, tmp_path: Path, option: str, value: str) -> None:
    """As wrong usage, before anything is made."""
    code, out, err = run("init", tmp_path / "new", option, value)
    assert (code, out) == (2, "")
    assert f"argument {option}" in err
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_folder_whose_name_would_break_a_file(run: Run, tmp_path: Path) -> None:
    """It stands in a comment of registry.yml."""
    failed(run("init", tmp_path / "a\nb"), "control character")
    assert list(tmp_path.iterdir()) == []


def test_init_says_where_it_cannot_write(run: Run, tmp_path: Path) -> None:
    """A file in the folder's place is one line."""
    (tmp_path / "file").write_text("")
    failed(run("init", tmp_path / "file"), "file")
    failed(run("init", tmp_path / "file" / "below"), "file")


def test_init_prints_commands_that_can_be_copied(run: Run, tmp_path: Path) -> None:
    """Also from a folder with a space."""
    folder = tmp_path / "my folder"
    _, out, _ = run("init", folder)
    (serve,) = re.findall(r"tokenissuer serve .*", out)
    assert shlex.split(serve) == ["tokenissuer", "serve", "--config", str(folder / "tokenissuer.toml")]
    assert out.isascii()


def test_init_makes_another_password_each_time(run: Run, tmp_path: Path) -> None:
    """Long, random, and of letters no shell needs quotes for."""
    passwords = {password_of(run("init", tmp_path / str(number))[1]) for number in range(5)}
    assert len(passwords) == 5
    assert all(re.fullmatch("[A-Za-z0-9]{20,}", password) for password in passwords)


def test_init_makes_rsa_keys_when_asked(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other option; the size is the key module's."""
    asked: list[KeyType] = []

    def generate(kind: KeyType) -> PrivateKey:
        asked.append(kind)
        return generate_private_key(KeyType.EC)

    monkeypatch.setattr(init, "generate_private_key", generate)
    assert run("init", tmp_path / "a", "--key-type", "rsa")[0] == 0
    assert asked == [KeyType.RSA]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no-command"),
        pytest.param(["nonsense"], id="unknown-command"),
        pytest.param(["check", "--nonsense"], id="unknown-option"),
        pytest.param(["passwd"], id="missing-argument"),
        pytest.param(["init", "a", "b"], id="too-many"),
        pytest.param(["init", "--key-type", "dsa"], id="key-type"),
        pytest.param(["init", "--realm", "auth.example.com"], id="realm"),
        pytest.param(["serve", "--listen", "nonsense"], id="listen"),
        pytest.param(["serve", "--listen", "127.0.0.1:65536"], id="port"),
        pytest.param(["serve", "--listen", "127.0.0.1:" + "9" * 5000], id="long-port"),
        pytest.param(["serve", "--threads", "0"], id="no-threads"),
        pytest.param(["serve", "--threads", "-1"], id="negative-threads"),
        pytest.param(["serve", "--log-level", "loud"], id="log-level"),
        pytest.param(["quickstart", "--listen", "x"], id="quickstart"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: list[str]) -> None:
    """And a line that says how it is used."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: tokenissuer")


@pytest.mark.parametrize("command", ["quickstart", "init", "serve", "check", "passwd"])
def test_every_command_has_help(run: Run, command: str) -> None:
    """And the program lists it."""
    assert run(command, "--help")[0] == 0
    code, out, _ = run("--help")
    assert code == 0
    assert re.search(rf"^    {command} +\w", out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["check"], ["serve"], ["passwd", "bob"]])
@pytest.mark.parametrize("content", [None, "nonsense = [", "[issuer]\nname = 5\n", b"\xff\xfe", b"a = 1\0"])
def test_a_configuration_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], content: str | bytes | None
) -> None:
    """For every command that needs one, with the file's name."""
    path = tmp_path / "other.toml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    failed(run(*arguments, "--config", path), str(path))
    failed(run("--config", path, *arguments), str(path))


def test_without_any_configuration_all_places_are_named(run: Run) -> None:
    """And how to make one."""
    failed(run("check"), "--config FILE", "./tokenissuer.toml", "/etc/tokenissuer/tokenissuer.toml", "tokenissuer init")


def test_the_configuration_is_found_in_order(
    run: Run, set_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Option, environment, working folder."""
    monkeypatch.chdir(set_up)
    assert run("check")[0] == 0
    monkeypatch.setenv("TOKENISSUER_CONFIG", str(tmp_path / "from-environment"))
    failed(run("check"), "from-environment")
    failed(run("check", "--config", "from-option"), "from-option")


def test_check_says_that_all_is_well(run: Run, set_up: Path) -> None:
    """In one line, with exit code 0."""
    config = set_up / "tokenissuer.toml"
    assert run("check", "--config", config) == (0, f"ok: {config}: nothing to correct\n", "")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def broken_line(folder: Path) -> None:
    (folder / "users.htpasswd").write_text("alice:planted-word\n")


FINDINGS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "key-mode": (lambda f: (f / "auth.key").chmod(0o644), "error: ", "chmod o-rwx,g-w"),
    "password-file-mode": (lambda f: (f / "users.htpasswd").chmod(0o644), "error: ", "chmod o-rwx,g-w"),
    "missing-key": (lambda f: (f / "auth.key").unlink(), "error: [signing]: ", "No such file"),
    "missing-password-file": (
        lambda f: (f / "users.htpasswd").unlink(),
        "error: [[backends]]: backend 'htpasswd': ",
        "No such file",
    ),
    "broken-line": (broken_line, "warning: ", "line 1"),
    "plain-http": (
        lambda f: edit(f / "tokenissuer.toml", "https://", "http://"),
        "warning: [issuer] realm: ",
        "put a proxy with TLS in front",
    ),
    "literal": (
        lambda f: edit(f / "tokenissuer.toml", "https://auth.example.com", "https://192.168.1.5"),
        "warning: [issuer] realm: ",
        "use a name",
    ),
    "long-lifetime": (
        lambda f: edit(f / "tokenissuer.toml", "[signing]", "lifetime = 7200\n[signing]"),
        "warning: [issuer] lifetime: ",
        "use at most 3600",
    ),
    "push-without-pull": (
        lambda f: edit(f / "tokenissuer.toml", '["pull", "push"]', '["push"]'),
        "warning: [[access]] 1: ",
        'use actions = ["pull", "push"]',
    ),
    "everyone-pushes": (
        lambda f: edit(f / "tokenissuer.toml", "authenticated = true", "everyone = true"),
        "warning: [[access]] 1: ",
        "use authenticated = true",
    ),
    "only-denials": (
        lambda f: edit(f / "tokenissuer.toml", 'actions = ["pull', 'effect = "deny"\nactions = ["pull'),
        "warning: [[access]]: ",
        "add a rule",
    ),
}


@pytest.mark.parametrize(("harm", "begins", "says"), FINDINGS.values(), ids=FINDINGS)
def test_check_names_what_is_wrong_and_what_to_do(
    run: Run, set_up: Path, harm: Callable[[Path], object], begins: str, says: str
) -> None:
    """One line for each finding, and exit code 1."""
    harm(set_up)
    code, out, err = run("check", "--config", set_up / "tokenissuer.toml")
    assert (code, err, out.count("\n")) == (1, "", 1)
    assert out.startswith(begins)
    assert says in out
    assert "planted-word" not in out


def test_check_tells_everything_at_once(run: Run, set_up: Path) -> None:
    """One thing that is wrong hides no other."""
    (set_up / "auth.crt").write_text("")
    (set_up / "users.htpasswd").chmod(0o666)
    edit(set_up / "tokenissuer.toml", "https://", "http://")
    code, out, _ = run("check", "--config", set_up / "tokenissuer.toml")
    assert (code, out.count("\n")) == (1, 3)


@pytest.mark.parametrize("text", ["new-word\n", "new-word", "new-word\r\n", "new-word\nnext line\n"])
def test_passwd_takes_the_first_line_of_standard_input(
    run: Run, set_up: Path, typed: Callable[[str | bytes], None], text: str
) -> None:
    """Without its end, and never shows it."""
    for name in ("alice", "bob"):
        typed(text)
        code, out, err = run("passwd", name, "--config", set_up / "tokenissuer.toml")
        assert (code, err) == (0, "")
        assert f"'{name}'" in out
        assert "new-word" not in out
        backend = HtpasswdBackend(HtpasswdOptions(set_up / "users.htpasswd"))
        assert backend.authenticate(name, "new-word").name == name


def test_passwd_needs_a_backend_that_keeps_passwords(
    run: Run, set_up: Path, typed: Callable[[str | bytes], None]
) -> None:
    """And says so before it asks for one."""
    typed("")
    failed(run("passwd", "alice", "--backend", "ldap", "--config", set_up / "tokenissuer.toml"), "'ldap'")


def test_a_set_up_is_whole_before_its_password_is_shown(tmp_path: Path) -> None:
    """What `write` returns logs in at once."""
    set_up = SetUp(tmp_path / "new", account="bob")
    password = set_up.write()
    backend = HtpasswdBackend(HtpasswdOptions(tmp_path / "new" / "users.htpasswd"))
    assert backend.authenticate("bob", password).name == "bob"


def test_an_error_is_one_line_whatever_the_configuration_holds(run: Run, set_up: Path) -> None:
    """A key with a line break in its name cannot forge a second line."""
    config = set_up / "tokenissuer.toml"
    config.write_text('"a\\nb" = 1\n' + config.read_text())
    failed(run("check", "--config", config), "a?b")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look with another user's eyes")
def test_check_looks_with_the_eyes_of_the_user_who_serves(run: Run, set_up: Path, open_folder: Path) -> None:
    """A file that root can read may stop `serve`."""
    set_up = Path(shutil.copytree(set_up, open_folder / "set-up"))
    set_up.chmod(0o755)
    check = ("check", "--config", set_up / "tokenissuer.toml", "--user")
    code, out, _ = run(*check, "nobody")
    assert code == 1
    key = set_up / "auth.key"
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    assert f"error: {key}: the user nobody cannot read it; run: chgrp {group} {key} && chmod 640 {key}" in out
    set_up.chmod(0o700)
    code, out, _ = run(*check, "nobody")
    (only,) = [line for line in out.splitlines() if "nobody" in line]
    assert f"error: {set_up}: the user nobody cannot enter this folder" in only
    assert f"chmod a+x {set_up}" in only
    code, _, err = run(*check, "no-such-user")
    assert (code, "there is no user 'no-such-user'" in err) == (1, True)
    assert run(*check, "root")[0] == 0


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of /var/lib/tokenissuer."""
    folder = tmp_path / "state"
    monkeypatch.setattr(init, "_STATE_FOLDER", folder)
    return folder


@pytest.mark.parametrize("purpose", ["systemd", "apache"])
def test_init_for_a_service_lets_its_user_read_and_change_nothing(
    run: Run, tmp_path: Path, state_folder: Path, purpose: str
) -> None:
    """And keep refresh tokens in a folder of its own; `check` with that user's eyes approves."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    tmp_path.chmod(0o755)
    folder = tmp_path / "new" / "etc"
    before = os.umask(0o077)
    try:
        code, out, err = run(
            "init", folder, "--for", purpose, "--user", "nobody", "--realm", "https://r.example.com/jwt/auth"
        )
    finally:
        os.umask(before)
    assert (code, err) == (0, "")
    entry = pwd.getpwnam("nobody")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o755, 0o755]
    if purpose == "systemd":
        # The lines of the unit that are another's.
        group = grp.getgrgid(entry.pw_gid).gr_name
        for line in ("User=nobody", f"Group={group}", f"serve --config {folder / 'tokenissuer.toml'}"):
            assert re.search(f"in tokenissuer.service, write .*{re.escape(line)}\n", out)
    for name in ("auth.key", "users.htpasswd"):
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, entry.pw_gid, 0o640)
    status = state_folder.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (entry.pw_uid, 0o700)
    config = load_config(folder / "tokenissuer.toml")
    assert config.store_files() == (state_folder / "refresh.sqlite3",)
    assert config.server.trusted_proxies == (("127.0.0.1", "::1") if purpose == "systemd" else ())
    assert (folder / "tokenissuer.wsgi").exists() is (purpose == "apache")
    assert 'rootdirectory: "/var/lib/docker-registry"' in (folder / "registry.yml").read_text()


def test_init_for_a_container_gives_everything_to_its_user(run: Run, tmp_path: Path) -> None:
    """`passwd` and `keys` run as this user too; nginx is the gateway of the network."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    folder = tmp_path / "etc"
    assert run("init", folder, "--for", "container")[0] == 0
    assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {65532}
    assert load_config(folder / "tokenissuer.toml").server.trusted_proxies == ("172.31.250.1",)


def test_init_for_a_container_gives_away_nothing_that_was_there(run: Run, tmp_path: Path) -> None:
    """Neither files nor what links lead to, nor somebody else's folder."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    victim, folder = tmp_path / "victim", tmp_path / "etc"
    victim.write_text("")
    folder.mkdir()
    (folder / "link").symlink_to(victim)
    (folder / "keep").write_text("")
    failed(run("init", folder, "--for", "container"), "belongs to another user", "install -d -o 65532")
    os.chown(folder, 65532, 65532)
    assert run("init", folder, "--for", "container")[0] == 0
    assert (victim.stat().st_uid, (folder / "keep").stat().st_uid) == (0, 0)
    assert (folder / "auth.key").stat().st_uid == 65532


def test_init_for_a_user_that_does_not_exist_says_how_to_make_it(run: Run, tmp_path: Path) -> None:
    """And leaves nothing behind."""
    folder = tmp_path / "etc"
    failed(run("init", folder, "--for", "systemd", "--user", "no-such-user"), "useradd --system", "no-such-user")
    assert not folder.exists()


def test_a_key_type_that_does_not_exist_is_named_with_those_that_do(run: Run) -> None:
    """Not by the name of a class."""
    code, _, err = run("init", "--key-type", "dsa")
    assert code == 2
    assert "invalid choice: 'dsa' (choose from 'ec', 'rsa')" in err


def test_the_hints_of_keys_name_the_key_file_that_was_named(run: Run, set_up: Path) -> None:
    """They can be copied."""
    arguments = ("--key", set_up / "auth.key", "--config", set_up / "tokenissuer.toml")
    for command in (["add"], ["switch", "--unproven"]):
        code, out, _ = run("keys", *command, *arguments)
        assert code == 0
        assert f" --config {set_up / 'tokenissuer.toml'} --key {set_up / 'auth.key'}" in out


def test_a_stolen_key_is_retired_at_once(run: Run, set_up: Path) -> None:
    """Its tokens are valid still; the refusal names the option, and the command says what is left to do."""
    config = ("--config", set_up / "tokenissuer.toml")
    for command in (["add"], ["switch", "--unproven"]):
        assert run("keys", *command, *config)[0] == 0
    failed(run("keys", "retire", *config), "are valid until", "keys retire --now")
    code, out, err = run("keys", "retire", "--now", *config)
    assert (code, err) == (0, "")
    assert "restart it now" in out
    assert "no hurry" not in out
    assert not (set_up / "auth.key.previous").exists()
    assert [line.split()[0] for line in run("keys", "list", *config)[1].splitlines()] == ["signs"]


def test_quickstart_refuses_one_address_for_both(run: Run) -> None:
    """Rather than wait until the second cannot listen."""
    failed(run("quickstart", "--listen", "127.0.0.1:5999", "--registry-listen", "127.0.0.1:5999"), "are both")


def test_quickstart_names_an_address_that_it_cannot_have(run: Run, tmp_path: Path) -> None:
    """As `serve` does, with the option that has it."""
    failed(run("quickstart", tmp_path / "x", "--listen", "a..b:5001"), "cannot listen on a..b:5001", "--listen")
    failed(run("quickstart", tmp_path / "x", "--registry-listen", "a..b:5000"), "--registry-listen with another port")
    assert not (tmp_path / "x").exists()


def test_quickstart_says_how_to_go_on_in_a_folder_that_was_moved(run: Run, tmp_path: Path) -> None:
    """The registry's file has whole paths in it; the command that is shown mends it."""
    old, new = tmp_path / "old", tmp_path / "new's"
    arguments = ("--listen", f"127.0.0.1:{free_port()}", "--registry-listen", f"127.0.0.1:{free_port()}")
    assert run("init", old, "--realm", f"http://localhost:{arguments[1].rpartition(':')[2]}/token")[0] == 0
    old.rename(new)
    code, _, err = run("quickstart", new, *arguments)
    assert code == 1
    assert "the folder has been moved" in err
    subprocess.run(err.partition("names: ")[2], shell=True, check=True)
    assert str(old) not in (new / "registry.yml").read_text()
    assert f'"{new}/auth.crt"' in (new / "registry.yml").read_text()
