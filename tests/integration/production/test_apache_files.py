"""Password and group files, read by a real Apache and by the backend: who gets in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Server, answers, request
from tests.support.http import basic
from tests.support.machine import free_port
from tokenissuer.errors import InvalidCredentials
from tokenissuer_backends.htpasswd import HtpasswdBackend, HtpasswdOptions

SHA = "{SHA}nU4eI71bcnBGqeO0t9tXvY1u5oQ="  # pass
BCRYPT = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"  # U*U*

APACHE = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
Listen 127.0.0.1:{port}
Mutex file:{folder}
ErrorLog {folder}/error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authn_file_module {modules}/mod_authn_file.so
LoadModule auth_basic_module {modules}/mod_auth_basic.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule authz_groupfile_module {modules}/mod_authz_groupfile.so
LoadModule alias_module {modules}/mod_alias.so
{user}
{places}
"""

PLACE = """
Alias /{number} {folder}/page
<Location /{number}>
    AuthType Basic
    AuthName x
    AuthUserFile {folder}/{number}.users
    AuthGroupFile {folder}/{number}.groups
    {require}
</Location>
"""

#: What is in the password file, and whom Apache lets in with the password `pass` (`U*U*` for bcrypt).
PASSWORDS = {
    "plain": f"alice:{SHA}\n",
    "crlf": f"alice:{SHA}\r\n",
    "blanks around": f"  alice:{SHA}\t \n",
    "indented comment": f"   # of the team\nalice:{SHA}\n",
    "blank line of blanks": f"  \t \nalice:{SHA}\n",
    "no end": f"alice:{SHA}",
    "more fields": f"alice:{SHA}:Alice:x\n",
    "bcrypt": f"alice:{BCRYPT}\n",
    "first of two": f"alice:{SHA}\nalice:*\n",
    "second of two": f"alice:*\nalice:{SHA}\n",
    "locked": f"alice:!{SHA}\n",
    "no hash": "alice:\n",
    "bad line before": f"x\nbob:damaged\n:\nalice:{SHA}\n",
    "bad line behind": f"alice:{SHA}\nx\nbob:$2y$\n",
    "continued": f"alice:\\\n{SHA}\n",
    "eaten by the line before": f"bob:{SHA}\\\nalice:{SHA}\n",
    "blank before the hash": f"alice: {SHA}\n",
    "blank behind the name": f"alice :{SHA}\n",
    "capitals": f"Alice:{SHA}\n",
    "not utf-8 elsewhere": f"b\udcf6b:{SHA}\nalice:{SHA}\n",
    "yescrypt": "alice:$y$j9T$AAt9R641xPvCI9nXw1HHW/$Zas69zg/3kvqV/JTxfnctL10NeakiaXPc0buJCBJvu3\n",
}

#: What is in the group file: is alice in `dev`?
GROUPS = {
    "one": "dev: alice bob\n",
    "last": "dev: bob alice",
    "crlf": "dev: bob alice\r\n",
    "blanks around": "   dev: alice  \n",
    "indented comment": "  # dev: alice\n",
    "quoted": 'dev: "bob" "alice"\n',
    "single quotes": "dev: 'alice'\n",
    "quoted together": 'dev: "alice bob"\n',
    "continued": "dev: bob \\\n  carol \\\n  alice\n",
    "on two lines": "dev: bob\ndev: alice\n",
    "another group": "ops: alice\n",
    "beginning of a name": "dev: alic alicee\n",
    "capitals": "dev: Alice\n",
    "no blank": "dev:alice\n",
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Every file of the tables above, where Apache's user can read it."""
    with tempfile.TemporaryDirectory(prefix="apache-") as name:
        fill(Path(name))
        yield Path(name)


def fill(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "page").mkdir()
    (folder / "page" / "index.html").write_text("in")
    for number, text in enumerate(PASSWORDS.values()):
        (folder / f"{number}.users").write_bytes(text.encode("utf-8", "surrogateescape"))
        (folder / f"{number}.groups").write_text("")
    for number, text in enumerate(GROUPS.values(), len(PASSWORDS)):
        (folder / f"{number}.users").write_text(f"alice:{SHA}\n")
        (folder / f"{number}.groups").write_bytes(text.encode())


@pytest.fixture(scope="module")
def apache(folder: Path) -> Iterator[str]:
    """A real Apache with one place for each file."""
    program = shutil.which("apache2", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("no apache2 program: install apache2")
    port = free_port()
    places = "".join(
        PLACE.format(
            folder=folder,
            number=number,
            require="Require valid-user" if number < len(PASSWORDS) else "Require group dev",
        )
        for number in range(len(PASSWORDS) + len(GROUPS))
    )
    user = "User www-data\nGroup www-data"
    text = APACHE.format(folder=folder, port=port, places=places, user=user, modules="/usr/lib/apache2/modules")
    (folder / "apache.conf").write_text(text)
    server = Server("apache", [program, "-f", str(folder / "apache.conf"), "-DFOREGROUND"], folder / "apache.log")
    url = f"http://127.0.0.1:{port}"
    try:
        server.wait_for(answers(f"{url}/0/index.html", 401))
        yield url
    finally:
        server.stop()


def is_let_in(apache: str, number: int, password: str) -> bool:
    headers = {"Authorization": basic("alice", password)}
    return request("GET", f"{apache}/{number}/index.html", headers).status == 200


def lets_in(backend: HtpasswdBackend, password: str) -> bool:
    try:
        backend.authenticate("alice", password)
    except InvalidCredentials:
        return False
    return True


@pytest.mark.parametrize("name", PASSWORDS)
def test_who_gets_in_with_apache_gets_in_here_and_nobody_else(apache: str, folder: Path, name: str) -> None:
    """Whatever editors and other programs have done to the file."""
    number, password = list(PASSWORDS).index(name), "U*U*" if name == "bcrypt" else "pass"
    by_apache = is_let_in(apache, number, password)
    assert lets_in(HtpasswdBackend(HtpasswdOptions(folder / f"{number}.users")), password) is by_apache


@pytest.mark.parametrize("name", GROUPS)
def test_who_is_a_member_for_apache_is_one_here(apache: str, folder: Path, name: str) -> None:
    """A denial for the group depends on it."""
    number = len(PASSWORDS) + list(GROUPS).index(name)
    by_apache = is_let_in(apache, number, "pass")
    backend = HtpasswdBackend(HtpasswdOptions(folder / f"{number}.users", folder / f"{number}.groups"))
    assert ("dev" in backend.authenticate("alice", "pass").groups) is by_apache
