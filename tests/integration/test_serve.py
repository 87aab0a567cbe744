"""What the person who runs the issuer does: keys, password files, starting and stopping."""

from __future__ import annotations

import base64
import http.client
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Sites

pytestmark = pytest.mark.integration

NewClient = Callable[[], "Client"]
NewImage = Callable[[], "Image"]


def claims(token: str) -> dict[str, Any]:
    """What a token says, its signature unchecked: the registries of the other tests check it."""
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


@pytest.fixture(params=[2, 3], ids=["registry2", "registry3"])
def generation(request: pytest.FixtureRequest) -> int:
    """The two generations of the registry."""
    number: int = request.param
    return number


def test_what_init_writes_serves_unchanged(
    own_sites: Sites, new_client: NewClient, new_image: NewImage, generation: int
) -> None:
    """Folder, password and registry.yml of `init` work together as they are."""
    issuer = own_sites.new_issuer("fresh")
    issuer.start()
    site = own_sites.registry(issuer, generation)
    client = new_client()
    client.login(site.registry, "alice", issuer.passwords["alice"]).succeeded()
    reference = site.reference(site.repository("alice"))
    client.push(new_image(), reference).succeeded()
    client.skopeo("delete", "--tls-verify=false", f"docker://{reference}").succeeded()


def test_a_pair_made_with_openssl_drops_in_unchanged(
    own_sites: Sites, new_client: NewClient, new_image: NewImage, host: Host, generation: int
) -> None:
    """The command that many an installation was set up with."""
    issuer = own_sites.new_issuer("openssl")
    key, certificate = issuer.folder / "auth.key", issuer.folder / "auth.crt"
    key.unlink()
    certificate.unlink()
    host.run(
        *(host.program("openssl", "install openssl"), "req", "-new", "-newkey", "rsa:4096"),
        *("-subj", "/CN=gitlab-issuer", "-nodes", "-x509", "-days", "365"),
        *("-keyout", str(key), "-out", str(certificate)),
    ).succeeded()
    issuer.start()
    site = own_sites.registry(issuer, generation)
    client = new_client()
    client.login(site.registry, "alice", issuer.passwords["alice"]).succeeded()
    client.push(new_image(), site.reference(site.repository("alice"))).succeeded()


@pytest.mark.parametrize(
    ("option", "scheme"),
    [("-B", "$2y$"), ("-m", "$apr1$"), ("-2", "$5$"), ("-5", "$6$"), ("-s", "{SHA}")],
    ids=["bcrypt", "md5", "sha256", "sha512", "sha1"],
)
def test_accounts_made_by_apaches_own_htpasswd_program_log_in(
    own_sites: Sites, host: Host, option: str, scheme: str
) -> None:
    """Every kind of line the program writes that is not plain crypt or plain text."""
    htpasswd = host.program("htpasswd", "install apache2-utils")
    issuer = own_sites.new_issuer("apache")
    users = issuer.folder / "users.htpasswd"
    users.unlink()
    made = host.run(htpasswd, "-c", "-i", option, str(users), "alice", stdin="correct horse")
    if made.code == 2:
        pytest.skip(f"this htpasswd program knows no {option}")
    made.succeeded()
    assert users.read_text().startswith(f"alice:{scheme}")
    issuer.start()
    assert issuer.ask(user="alice", password="correct horse").status == 200
    assert issuer.ask(user="alice", password="correct horses").status == 401


def test_a_changed_password_file_takes_effect_while_serving(own_sites: Sites, host: Host) -> None:
    """A new account, a new password and a removed account need no restart."""
    issuer = own_sites.new_issuer("changing")
    issuer.start()
    issuer.set_password("dave", "first")
    assert host.wait_until(lambda: issuer.ask(user="dave", password="first").status == 200)
    issuer.set_password("dave", "second")
    assert host.wait_until(lambda: issuer.ask(user="dave", password="first").status == 401)
    assert issuer.ask(user="dave", password="second").status == 200
    users = issuer.folder / "users.htpasswd"
    users.write_text("".join(line for line in users.read_text().splitlines(True) if not line.startswith("dave:")))
    assert host.wait_until(lambda: issuer.ask(user="dave", password="second").status == 401)
    assert issuer.ask(user="alice").status == 200


def test_a_bad_line_in_the_password_file_stops_nobody(own_sites: Sites, host: Host) -> None:
    """The log names file and line, and nothing of what the line holds."""
    issuer = own_sites.new_issuer("breaking")
    server = issuer.start()
    users = issuer.folder / "users.htpasswd"
    good = users.read_text()
    users.write_text(f"{good}# a note\nplanted-and-not-a-line\n")
    line = len(good.splitlines()) + 2
    assert host.wait_until(lambda: issuer.ask(user="alice").status != 200 or "users.htpasswd" in server.output())
    assert issuer.ask(user="alice").status == 200
    reports = [text for text in server.output().splitlines() if "users.htpasswd" in text]
    assert reports, server.output()
    assert str(line) in reports[0]
    assert "planted" not in server.output()


def test_passwords_are_not_in_what_serve_writes(own_sites: Sites) -> None:
    """Neither right ones nor wrong ones, nor the tokens handed out."""
    issuer = own_sites.new_issuer("silent")
    server = issuer.start()
    token = issuer.token("repository:alice/app:pull", user="alice")
    assert issuer.ask(user="alice", password="planted-wrong-one").status == 401
    for secret in (issuer.passwords["alice"], "planted-wrong-one", token):
        assert secret not in server.output()


def test_a_form_sent_in_chunks_is_read(own_sites: Sites) -> None:
    """Podman and skopeo send forms without a Content-Length."""
    issuer = own_sites.new_issuer("chunks")
    issuer.start()
    form = {"grant_type": "password", "service": "container_registry", "client_id": "containers/image"}
    account = {"username": "alice", "password": issuer.passwords["alice"], "scope": "repository:alice/app:pull"}
    encoded = urlencode({**form, **account}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", issuer.port, timeout=20)
    try:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        chunks = (encoded[start : start + 20] for start in range(0, len(encoded), 20))
        connection.request("POST", "/token", body=chunks, headers=headers, encode_chunked=True)
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 200, answer
    assert claims(answer["access_token"])["access"] == [
        {"type": "repository", "name": "alice/app", "actions": ["pull"]}
    ]


def test_answers_to_many_at_once_are_not_mixed_up(own_sites: Sites) -> None:
    """Every thread hands out the token of the one who asked."""
    issuer = own_sites.new_issuer("busy")
    for user in ("bob", "carol"):
        issuer.set_password(user, f"password of {user}")
    issuer.start()
    askers = ["alice", "bob", "carol", None] * 5
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: issuer.ask(user=user), askers))
    assert [answer.status for answer in answers] == [200] * len(askers)
    assert [claims(answer.json()["token"])["sub"] for answer in answers] == [user or "" for user in askers]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_serve_cleanly(own_sites: Sites, host: Host, number: signal.Signals) -> None:
    """Exit code 0, no traceback, and the port is free again."""
    issuer = own_sites.new_issuer("ending")
    server = issuer.start()
    server.send(number)
    assert server.wait() == 0
    assert "Traceback" not in server.output()
    assert host.is_free(issuer.port)


def test_a_taken_port_is_one_clear_line(own_sites: Sites, host: Host) -> None:
    """It names the address, and there is no traceback."""
    port = host.taken_port()
    refused = host.run(*own_sites.new_issuer("late").command(port))
    assert refused.code == 1, str(refused)
    assert len(refused.stderr.splitlines()) == 1, str(refused)
    assert str(port) in refused.stderr


def test_the_configuration_is_found_through_the_environment(own_sites: Sites, host: Host) -> None:
    """`check` without --config finds what $TOKENISSUER_CONFIG names."""
    issuer = own_sites.new_issuer("found")
    host.run(host.tokenissuer(), "check", env={"TOKENISSUER_CONFIG": str(issuer.config)}).succeeded()
    missing = host.run(host.tokenissuer(), "check", env={"TOKENISSUER_CONFIG": str(issuer.folder / "none.toml")})
    assert "none.toml" in missing.failed()
    assert "Traceback" not in missing.failed()
