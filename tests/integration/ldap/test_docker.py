"""`docker login`, push and pull with accounts of a real directory, at a real registry."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt
import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Image, Issuer, Site, Sites
    from tests.integration.ldap.conftest import Slapd

pytestmark = pytest.mark.integration

CONF = Path(__file__).parents[3] / "conf"

ACCESS = """
[cache]
success = 5
failure = 5

[[access]]
groups = ["developers"]
repositories = ["team/**"]
actions = ["pull", "push"]

[[access]]
groups = ["CN=ops, OU=Groups, DC=example, DC=test"]
repositories = ["ops/**"]
actions = ["pull", "push"]

[[access]]
authenticated = true
repositories = ["team/**"]
actions = ["pull"]
"""


def backend_table(slapd: Slapd, folder: Path) -> str:
    """The backend of the example for OpenLDAP, with the addresses and names of this directory."""
    (folder / "ldap.password").write_text("reader-secret\n")
    text = (CONF / "ldap-openldap.toml").read_text()
    table = text[text.index("[[backends]]") : text.index("[[access]]")].replace("dc=com", "dc=test")
    table = re.sub(r"^servers = .*$", f'servers = ["ldaps://127.0.0.1:1", "{slapd.tls}"]', table, flags=re.MULTILINE)
    return re.sub(r"^#ca_file = .*$", f'ca_file = "{slapd.certificates.ca}"', table, flags=re.MULTILINE)


@pytest.fixture
def directory(new_slapd: Callable[..., Slapd]) -> Slapd:
    """A directory whose groups a test may change."""
    return new_slapd()


@pytest.fixture
def issuer(directory: Slapd, own_sites: Sites) -> Issuer:
    """What `init` made for a password file, switched to the directory by its configuration alone."""
    issuer = own_sites.new_issuer("ldap")
    issuer.drop_tables("backends")
    issuer.set_access(backend_table(directory, issuer.folder) + ACCESS)
    issuer.passwords = {user: f"pw-{user}" for user in ("alice", "bob", "carol", "erin", "victim")}
    issuer.start()
    return issuer


@pytest.fixture
def ldap_site(issuer: Issuer, own_sites: Sites) -> Site:
    """A registry that trusts this issuer."""
    return own_sites.registry(issuer, 2)


def test_groups_of_the_directory_decide_what_is_pushed_and_pulled(
    ldap_site: Site, new_client: Callable[[], Client], new_image: Callable[[], Image], tmp_path: Path
) -> None:
    """alice is a developer, carol is in ops, erin in neither."""
    clients = {}
    for user in ("alice", "carol", "erin"):
        clients[user] = new_client()
        clients[user].login(ldap_site.registry, user, f"pw-{user}").succeeded()
    image, reference = new_image(), ldap_site.reference(ldap_site.repository("team"))
    clients["alice"].push(image, reference).succeeded()
    for user in ("alice", "carol", "erin"):
        clients[user].pull(reference, tmp_path / user).succeeded()
        assert image.is_in(tmp_path / user)
    for user in ("carol", "erin"):
        assert "denied" in clients[user].push(image, reference).failed()
    operations = ldap_site.reference(ldap_site.repository("ops"))
    clients["carol"].push(image, operations).succeeded()
    assert "denied" in clients["erin"].push(image, operations).failed()
    assert "denied" in clients["alice"].push(image, operations).failed()


def test_wrong_passwords_are_refused_and_cost_one_bind(
    ldap_site: Site, directory: Slapd, new_client: Callable[[], Client], new_image: Callable[[], Image]
) -> None:
    """A login that has gone stale does not lock its account, although every layer tries it."""
    client = new_client()
    assert "wrong user name or password" in client.login(ldap_site.registry, "victim", "stale").failed()
    for _ in range(3):
        client.login(ldap_site.registry, "victim", "stale").failed()
    assert directory.failures("victim") <= 2
    client.login(ldap_site.registry, "victim", "pw-victim").succeeded()


def test_who_leaves_a_group_loses_its_rights_when_cache_and_token_end(
    ldap_site: Site, directory: Slapd, issuer: Issuer
) -> None:
    """Here the memory is five seconds; tokens given before live on until they end."""

    def pushes() -> bool:
        answer = issuer.ask("repository:team/app:pull,push", user="alice")
        assert answer.status == 200
        return "push" in str(answer.json()["scope"])

    assert pushes()
    directory.change(
        "ldapmodify",
        "dn: cn=Developers,ou=groups,dc=example,dc=test\nchangetype: modify\ndelete: member\n"
        "member: uid=alice,ou=people,dc=example,dc=test\n",
    )
    end = time.monotonic() + 7
    while pushes():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_an_identity_token_ends_with_the_password_and_survives_an_outage(
    ldap_site: Site, directory: Slapd, new_client: Callable[[], Client], new_image: Callable[[], Image]
) -> None:
    """Docker keeps a refresh token; the directory is asked about the account each time, without a password."""
    client, image = new_client(), new_image()
    client.login(ldap_site.registry, "alice", "pw-alice").succeeded()
    assert client.stored_logins()[ldap_site.registry]["identitytoken"]
    client.push(image, ldap_site.reference(ldap_site.repository("team"))).succeeded()
    with directory.gone():
        client.push(image, ldap_site.reference(ldap_site.repository("team"))).failed()
    client.push(image, ldap_site.reference(ldap_site.repository("team"))).succeeded()
    directory.change(
        "ldapmodify",
        "dn: uid=alice,ou=people,dc=example,dc=test\nchangetype: modify\nreplace: userPassword\nuserPassword: new\n",
    )
    client.push(image, ldap_site.reference(ldap_site.repository("team"))).failed()
    client.login(ldap_site.registry, "alice", "new").succeeded()
    client.push(image, ldap_site.reference(ldap_site.repository("team"))).succeeded()


def test_an_outage_is_503_with_retry_after_and_other_accounts_are_served_at_once(
    directory: Slapd, own_sites: Sites
) -> None:
    """A chain of a password file and a directory that hangs: four threads, and twelve requests for the directory."""
    issuer = own_sites.new_issuer("chain")
    issuer.set_access(backend_table(directory, issuer.folder) + ACCESS)
    # Little work per password: every name is first looked for in the password file.
    hashed = bcrypt.hashpw(issuer.first_password.encode(), bcrypt.gensalt(4)).decode()
    (issuer.folder / "users.htpasswd").write_text(f"alice:{hashed}\n")
    issuer.passwords |= {user: f"pw-{user}" for user in ("bob", "carol", "dave", "erin")}
    issuer.start()
    scope = "repository:team/app:pull"
    assert issuer.ask(scope, user="alice").status == 200  # the password file's alice
    statuses: list[tuple[int, bool]] = []

    def ask(number: int) -> None:
        answer = issuer.ask(scope, user="carol", password=f"{number}")
        statuses.append((answer.status, "retry-after" in answer.headers))

    assert issuer.ask(scope, user="bob").status == 200  # the directory's, remembered from here on
    with directory.hanging():
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        started = time.monotonic()
        assert issuer.ask(scope, user="alice").status == 200
        assert issuer.ask(scope, user="bob").status == 200
        assert time.monotonic() - started < 2
        for thread in threads:
            thread.join()
    assert statuses == [(503, True)] * 12
    with directory.gone():
        assert issuer.ask(scope, user="carol", password="another").status == 503
    assert issuer.ask(scope, user="carol").status == 200
    assert issuer.ask(scope, user="carol", password="wrong").status == 401


def test_check_shows_servers_and_an_account_without_a_password(issuer: Issuer, directory: Slapd) -> None:
    """Every step with its time; a server that is down is a finding."""
    from tests.integration.conftest import tokenissuer

    shown = tokenissuer("check", "--config", str(issuer.config), "--account", "Alice").failed()
    assert re.search(r"ldaps://127\.0\.0\.1:1: connect: cannot connect: Connection refused \([0-9.]+ ms\)", shown)
    for wanted in (
        f"{directory.tls}: connect: TLSv1.3, certificate and host name are verified",
        f"{directory.tls}: log in: cn=reader,ou=services,dc=example,dc=test",
        f"{directory.tls}: read the base ou=people,dc=example,dc=test: good",
        "find the entry: uid=alice,ou=people,dc=example,dc=test",
        "account name: alice (from 'uid')",
        "3 groups: developers, posix, unique",
    ):
        assert wanted in shown, shown
    assert "no such account" in tokenissuer("check", "--config", str(issuer.config), "--account", "nobody").failed()


def test_no_secret_is_in_the_log(issuer: Issuer) -> None:
    """Everything at its most talkative: passwords right and wrong, of people and of the account that searches."""
    assert issuer.server is not None
    for password in ("pw-alice", "planted-secret"):
        issuer.ask("repository:team/app:pull", user="alice", password=password)
    log = issuer.server.output()
    assert "alice" in log
    for secret in ("planted-secret", "pw-alice", "reader-secret"):
        assert secret not in log
    assert json.dumps("planted-secret") not in log
