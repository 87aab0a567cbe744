"""`tokenissuer doctor`: each thing that stops people is done to a whole set-up, and it names this and nothing else."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.doctor_cases import ISSUER, SERVICE, Case, make_case, with_clock
from tests.integration.production.conftest import Production
from tests.support.ldap import READER, READER_PASSWORD, SEARCH, FakeDirectory, Message, hanging
from tests.support.tls import Authority, certificate, make_authority, new_key, pem
from tokenissuer.signing.keys import load_private_key, private_pem

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Issuer, Sites

pytestmark = pytest.mark.integration

BOTH = pytest.mark.parametrize("generation", [2, 3], ids=["registry2", "registry3"])


@pytest.fixture(scope="session")
def template(sites: Sites) -> Issuer:
    """What `init` makes."""
    return sites.new_issuer("doctor")


@pytest.fixture
def case(host: Host, template: Issuer, tmp_path: Path) -> Iterator[Case]:
    """A set-up in which nothing is wrong; nothing runs yet."""
    with ExitStack() as stack:
        yield make_case(host, template, tmp_path, stack)


@BOTH
def test_it_finds_nothing_where_nothing_is_wrong(case: Case, generation: int, new_client: Callable[[], Client]) -> None:
    """Its last line is the command with which people log in, and they do."""
    case.start(generation)
    found = case.doctor("--account", "alice")
    found.is_only()
    assert {check["state"] for check in found.document["checks"]} == {"ok"}
    _, command, *arguments, registry = found.document["login"].split()
    assert (command, arguments, registry) == ("login", ["-u", "alice"], case.address)
    client = new_client()
    client.login(registry, "alice", case.issuer.first_password).succeeded()
    printed = case.host.run(
        case.host.tokenissuer(), "doctor", "--config", str(case.issuer.config), "--registry", registry
    )
    assert printed.succeeded().splitlines()[-1] == f"docker login {case.address}"
    assert "\x1b" not in printed.stdout


# ------------------------------------------------------------------------------------------------- B1: untrusted key


@BOTH
def test_b1_the_bundle_has_another_certificate(case: Case, generation: int) -> None:
    """As after `init` in a new folder, with the registry's old file."""
    case.bundle.write_bytes(pem(certificate(new_key())))
    case.start(generation)
    key = "the certificate in the token is neither in the bundle nor signed by one that is"
    said = (
        "error",
        f"{case.registry_file}, line ",
        key,
        "CN=test authority",
        f"copy {case.issuer.folder}/auth.crt to {case.bundle}",
    )
    case.doctor().is_only(said)


def test_b1_without_the_registrys_file_it_says_what_is_left(case: Case) -> None:
    """It has excluded the service and the clocks."""
    case.bundle.write_bytes(pem(certificate(new_key())))
    case.start(2)
    said = (
        "error",
        case.address,
        f"another issuer name than '{ISSUER}', or does not trust the key",
        "--registry-config",
    )
    case.doctor(file=False).is_only(said)


def test_b1_a_key_id_alone_and_only_the_authority_in_the_bundle(case: Case) -> None:
    """With the certificate in the token the same bundle is enough: nothing is said about that."""
    authority_key, key = new_key(), new_key()
    authority = certificate(authority_key)
    leaf = certificate(key, authority_key)
    (case.issuer.folder / "auth.key").chmod(0o600)
    (case.issuer.folder / "auth.key").write_bytes(private_pem(key))
    (case.issuer.folder / "auth.crt").write_bytes(pem(leaf, authority))
    case.bundle.write_bytes(pem(authority))
    case.start(2)
    case.doctor().is_only()
    with case.issuer.config.open("a") as config:
        config.write(f'\n[signing.key_forms]\n{SERVICE} = "libtrust"\n')
    assert case.host.wait_until(lambda: "x5c" not in header_of(case))
    said = ("error", "line ", "2.x", "no key there has the id", f"take '{SERVICE}' out of [signing.key_forms]")
    case.doctor().is_only(said)


def test_b1_the_thumbprint_for_a_registry_2(case: Case) -> None:
    """It knows only libtrust's ids, and 3.0 has another id for every EC key."""
    with case.issuer.config.open("a") as config:
        config.write(f'\n[signing.key_forms]\n{SERVICE} = "thumbprint"\n')
    case.start(2)
    case.doctor().is_only(
        ("error", "registries 2.x and 3.0 refuse", "no key there has the id", "a wrong id", f"take '{SERVICE}' out"),
    )


def test_b1_the_thumbprint_for_a_registry_2_without_its_file(case: Case) -> None:
    """The other forms are tried on it."""
    with case.issuer.config.open("a") as config:
        config.write(f'\n[signing.key_forms]\n{SERVICE} = "thumbprint"\n')
    case.start(2)
    case.doctor(file=False).is_only(
        ("error", case.address, "accepts one that names its key in the form 'x5c'", f'"{SERVICE}" = "x5c"'),
    )


def test_b1_a_certificate_in_the_token_and_a_registry_with_a_jwk_set_only(case: Case) -> None:
    """It needs the key's id instead."""
    case.trust_jwks()
    case.start(3)
    said = (
        "error",
        "auth.crt",
        "held against a rootcertbundle only",
        "[signing.key_forms]",
        f'"{SERVICE}" = "thumbprint"',
    )
    case.doctor().is_only(said)


def test_b1_the_jwk_set_has_another_key(case: Case, own_sites: Sites) -> None:
    """It names the ids that are there."""
    other = own_sites.new_issuer("other")
    with case.issuer.config.open("a") as config:
        config.write(f'\n[signing.key_forms]\n{SERVICE} = "thumbprint"\n')
    case.trust_jwks(other.folder / "jwks.json")
    case.start(3)
    case.doctor().is_only(("error", "registries 3.0 and 3.1 refuse", "no key there has the id", "jwks.json"))


def header_of(case: Case) -> str:
    """The header of a token that the issuer gives."""
    answer = case.issuer.ask()
    assert answer.status == 200, answer
    part = str(answer.json()["token"]).split(".")[0]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


# ------------------------------------------------------------------------------------------ B2, B3: names that differ


@pytest.mark.parametrize(
    ("written", "value", "difference"),
    [
        (f'"{ISSUER} "', f"{ISSUER} ", "they differ by blanks"),
        (f"{ISSUER}/", f"{ISSUER}/", "they differ by a slash at the end"),
        (f"'\"{ISSUER}\"'", f'"{ISSUER}"', "they differ by quotes"),
        ("GitLab-Issuer", "GitLab-Issuer", "they differ by capital letters"),
        ("other", "other", "the registry refuses every token"),
    ],
    ids=["blank", "slash", "quotes", "capitals", "another"],
)
def test_b2_the_issuers_name_differs(case: Case, written: str, value: str, difference: str) -> None:
    """Both are shown so that a blank can be seen."""
    case.edit(f"issuer: {ISSUER}", f"issuer: {written}")
    case.start(2 if value == "other" else 3)
    line = case.registry_file.read_text().split("    issuer:")[0].count("\n") + 1
    said = (f"{case.registry_file}, line {line}", repr(value), repr(ISSUER), difference, f'issuer: "{ISSUER}"')
    case.doctor().is_only(("error", *said))


@pytest.mark.parametrize("file", [True, False], ids=["with-file", "without-file"])
def test_b3_the_service_is_not_served(case: Case, file: bool) -> None:
    """It is compared with [issuer] services."""
    case.edit(f"service: {SERVICE}", "service: container-registry")
    case.start(2)
    said = ("error", "'container-registry'", f"'{SERVICE}'", "[issuer] services", f"{case.issuer.config}")
    case.doctor(file=file).is_only(said)


# ------------------------------------------------------------------------------------------------------ B4: the realm


def test_b4_nothing_listens_at_the_realm(case: Case) -> None:
    """The issuer is not started."""
    case.start_registry(2)
    said = ("error", case.issuer.realm, f"nothing listens on port {case.issuer.port} of localhost", "start it")
    case.doctor().is_only(said)


def test_b4_the_registry_sends_clients_to_another_port(case: Case) -> None:
    """The registry's side is corrected, because the issuer's is the one that is known here."""
    other = f"http://localhost:{case.host.free_port()}/token"
    case.edit(f"realm: {case.issuer.realm}", f"realm: {other}")
    case.start(3)
    line = case.registry_file.read_text().split("    realm:")[0].count("\n") + 1
    said = (other, "nothing listens", case.issuer.realm, f"{case.registry_file}, line {line}", "restart the registry")
    case.doctor().is_only(("error", *said))


def test_b4_the_realm_has_a_path_that_is_not_served(case: Case) -> None:
    """404 by tokenissuer itself."""
    other = case.issuer.realm.replace("/token", "/tokens")
    case.edit(f"realm: {case.issuer.realm}", f"realm: {other}")
    case.start(2)
    case.doctor().is_only(("error", other, "404", "no page /tokens", f"realm: {case.issuer.realm}"))


def test_b4_a_proxy_does_not_pass_the_path_on(case: Case) -> None:
    """404 by nginx."""
    port = case.host.free_port()
    case.nginx(f"server {{ listen 127.0.0.1:{port}; location / {{ return 404; }} }}")
    case.send_clients_to(f"http://localhost:{port}/token")
    case.start(2)
    said = (
        "error",
        f":{port}/token",
        "no such page: 404 with a web page from nginx",
        "pass this path on to tokenissuer",
    )
    case.doctor().is_only(said)


def test_b4_a_proxy_changes_the_path(case: Case) -> None:
    """The issuer says which path has arrived."""
    realm = case.front("rewrite ^ /changed break;")
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(("error", realm, "a tokenissuer answers 404", "/changed", "without changing it"))


def test_b4_a_proxy_has_nothing_behind_it(case: Case) -> None:
    """502."""
    realm = case.front(to=case.host.free_port())
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(("error", realm, "the proxy does not reach tokenissuer: 502", "upstream"))


def test_b4_the_realm_redirects(case: Case) -> None:
    """As a proxy does that wants TLS."""
    port = case.host.free_port()
    case.nginx(f"server {{ listen 127.0.0.1:{port}; return 301 https://auth.example.com$request_uri; }}")
    case.send_clients_to(f"http://localhost:{port}/token")
    case.start(2)
    case.doctor().is_only(("error", f":{port}/token", "redirects to https://auth.example.com", "as realm"))


def test_b4_another_token_server_is_there(case: Case, own_sites: Sites) -> None:
    """Its tokens say whose they are."""
    other = own_sites.new_issuer("other")
    other.config.write_text(other.config.read_text().replace(f'name = "{ISSUER}"', 'name = "someone-else"'))
    other.start()
    case.send_clients_to(other.realm)
    case.start(2)
    said = ("error", other.realm, "another token server answers", "'someone-else'", f"'{ISSUER}'")
    case.doctor().is_only(said)


def test_b4_a_tokenissuer_with_another_key_is_there(case: Case, own_sites: Sites) -> None:
    """As when one of two instances has kept old files. What the registry trusts is still right."""
    other = own_sites.new_issuer("other")
    other.start()
    case.send_clients_to(other.realm)
    case.start(2)
    case.doctor().is_only(("error", other.realm, "signs there with another key", "the same key file"))


def test_b4_the_realm_speaks_plain_http(case: Case) -> None:
    """And is written with https."""
    case.send_clients_to(case.issuer.realm.replace("http:", "https:"))
    case.start(2)
    said = (
        "error",
        f"https://localhost:{case.issuer.port}/token",
        "speaks plain HTTP, without TLS",
        "http:// in the URL",
    )
    case.doctor().is_only(said)


def test_b4_the_realm_speaks_tls(case: Case, tmp_path: Path) -> None:
    """And is written with http."""
    realm = case.front(tls=make_authority(tmp_path / "tls"))
    case.send_clients_to(realm.replace("https:", "http:"))
    case.start(2)
    said = ("error", realm.replace("https:", "http:"), "this port speaks TLS", "write https://")
    case.doctor().is_only(said)


def test_b4_the_registry_speaks_tls(case: Case, tmp_path: Path) -> None:
    """And is named without a scheme, which on this machine means http."""
    authority, port = make_authority(tmp_path / "tls"), case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {authority.server_certificate}; "
        f"ssl_certificate_key {authority.server_key}; location / {{ proxy_pass http://{case.address}; }} }}"
    )
    case.start(2)
    said = ("error", "this port speaks TLS", f"write --registry https://localhost:{port}")
    case.doctor(registry=f"localhost:{port}").is_only(said)


def test_a_proxy_before_the_registry_names_another_port(case: Case) -> None:
    """The registry's file says where it listens."""
    port = case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{case.host.free_port()}; }} }}"
    )
    case.start(2)
    line = case.registry_file.read_text().split("addr:")[0].count("\n") + 1
    said = (f"{case.registry_file}, line {line}: it listens on {case.address}", "does the proxy's upstream name that")
    case.doctor(registry=f"http://127.0.0.1:{port}").is_only(("error", "the proxy cannot reach the registry", *said))


def test_b4_the_registry_has_tls_and_the_realm_has_not(case: Case, tmp_path: Path) -> None:
    """Several clients refuse that."""
    authority, port = make_authority(tmp_path / "tls"), case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {authority.server_certificate}; "
        f"ssl_certificate_key {authority.server_key}; location / {{ proxy_pass http://{case.address}; }} }}"
    )
    case.start(3)
    found = case.doctor("--ca-file", str(authority.certificate), registry=f"https://localhost:{port}")
    found.is_only(("error", case.issuer.realm, "it has no TLS, and the registry has", "crane, Helm, oras"))
    assert found.document["login"] == f"docker login localhost:{port}"


def test_b4_clients_elsewhere_are_sent_to_themselves(case: Case) -> None:
    """The registry has a name that others use, the realm is localhost."""
    host = socket.gethostname()
    with case.issuer.config.open() as config:
        assert "localhost" in config.read()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        pytest.skip(f"this machine does not know its own name {host}")
    if address.startswith("127."):
        address = "127.0.0.1"
    case.edit(f"addr: 127.0.0.1:{case.port}", f"addr: :{case.port}")
    case.start(2)
    said = ("error", case.issuer.realm, "on other machines are sent to themselves", "[issuer] realm")
    tls = ("warning", host, "docker refuses a registry without TLS", "insecure-registries")
    case.doctor(registry=f"http://{host}:{case.port}").is_only(tls, said)


@pytest.mark.parametrize("trouble", ["name", "authority", "ended"])
def test_b4_the_realms_certificate_is_wrong(case: Case, tmp_path: Path, trouble: str) -> None:
    """It says what the certificate is for, whose it is, when it ended."""
    names, days = (("auth.example.com",) if trouble == "name" else ()), (-0.5 if trouble == "ended" else 400)
    authority = make_authority(tmp_path / "tls", *names, days=days)
    realm = case.front(tls=authority)
    case.send_clients_to(realm)
    case.start(2)
    said = {
        "name": ("its TLS certificate is for auth.example.com, and clients connect to localhost",),
        "authority": ("from an authority that this machine does not trust (CN=test authority)", "--ca-file"),
        "ended": ("its TLS certificate ended on ", "renew it"),
    }[trouble]
    more = [] if trouble == "authority" else ["--ca-file", str(authority.certificate)]
    case.doctor(*more).is_only(("error", realm, *said))


def test_a_registry_that_cannot_be_reached(case: Case) -> None:
    """The issuer is looked at all the same."""
    case.serve()
    found = case.doctor()
    found.is_only(("error", case.address, f"nothing listens on port {case.port} of 127.0.0.1", "start it"))
    states = {check["check"]: check["state"] for check in found.document["checks"]}
    assert (states["realm"], states["proxies"], states["clocks"]) == ("ok", "ok", "skipped")


# ----------------------------------------------------------------------------------------------------- B5: the clocks


@pytest.mark.parametrize(("seconds", "direction"), [(130, "130 s ahead of"), (-1100, "1100 s behind")])
def test_b5_the_issuers_clock_is_wrong(case: Case, seconds: int, direction: str) -> None:
    """The registry really refuses these tokens; `doctor` runs on the issuer's machine."""
    case.serve(*with_clock(seconds))
    case.start_registry(2)
    direction = re.sub(r"\d+", r"", direction)
    case.doctor(before=with_clock(seconds)).is_only(("error", "clocks", direction, "the registry refuses tokens"))


def test_b5_the_clocks_differ_a_little(case: Case) -> None:
    """Tokens are accepted still. `doctor` may run on a third machine."""
    case.serve(*with_clock(20))
    case.start_registry(3)
    case.doctor().is_only(("warning", "clocks", "ahead of the registry's", "at more than 60 s"))


# ------------------------------------------------------------------------------------------- B6, B16: lifetime, sizes


def test_b6_tokens_are_short_lived(case: Case) -> None:
    """A push of a large layer would fail."""
    case.edit_issuer("lifetime = 900", "lifetime = 300")
    case.start(2)
    case.doctor().is_only(("warning", "[issuer] lifetime", "300 s (expected: at least 900)", "lifetime = 900"))


def test_b16_a_proxy_before_the_registry_takes_short_headers_only(case: Case) -> None:
    """A short token is accepted."""
    port = case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port}; large_client_header_buffers 4 4k; "
        f"location / {{ proxy_pass http://{case.address}; proxy_set_header Host $http_host; }} }}"
    )
    case.start(3)
    said = ("warning", f"127.0.0.1:{port}", "characters is refused (400", "a short one is accepted", "4 64k")
    case.doctor(registry=f"http://127.0.0.1:{port}").is_only(said)


def test_b16_a_proxy_before_the_issuer_takes_short_requests_only(case: Case) -> None:
    """Both kinds of long request are one finding."""
    port = case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port}; large_client_header_buffers 4 4k; location / {{ "
        f"proxy_set_header X-Forwarded-For $remote_addr; proxy_pass http://127.0.0.1:{case.issuer.port}; }} }}"
    )
    realm = f"http://localhost:{port}/token"
    case.send_clients_to(realm)
    case.start(2)
    said = ("warning", realm, "Authorization with 8000 characters: 400", "a query with 6000: 414", "4 64k")
    case.doctor().is_only(said)


def test_b16_tokens_may_be_longer_than_proxies_take(case: Case) -> None:
    """The limit was raised."""
    case.edit_issuer("lifetime = 900", "lifetime = 900\nmax_size = 20000")
    case.start(2)
    case.doctor().is_only(("warning", "[issuer] max_size", "20000 characters", "8 KiB", "max_size"))


# --------------------------------------------------------------------------------------------- B8, B9: account sources


def test_b8_an_account_that_nobody_knows(case: Case) -> None:
    """Found without its password."""
    case.start(2)
    case.doctor("--account", "nobody").is_only(("error", "nobody", "the name is not in the password file"))


def test_b8_an_account_that_is_locked(case: Case) -> None:
    """As `usermod --lock` and other programs write it."""
    users = case.issuer.folder / "users.htpasswd"
    users.write_text(users.read_text() + "bob:!$2b$12$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu\n")
    case.start(2)
    case.doctor().is_only(("warning", "htpasswd", "'bob'", "it is locked; to unlock it"))


class TlsDirectory(FakeDirectory):
    """A directory behind TLS."""

    def __init__(self, authority: Authority, search: Callable[[Message], Iterable[bytes]]) -> None:
        self.authority = authority
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(authority.server_certificate, authority.server_key)
        super().__init__({SEARCH: search})

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            super()._converse(self.tls.wrap_socket(connection, server_side=True))


def slowly(message: Message) -> Iterator[bytes]:
    """Find alice, and take more than two seconds for it."""
    time.sleep(2.3)
    yield message.entry("uid=alice,dc=test", uid=["alice"])
    yield message.result(0)


@pytest.fixture
def use_directory(case: Case, tmp_path: Path) -> Iterator[Callable[[Callable[[Message], Iterable[bytes]]], None]]:
    """Puts a directory in the place of the password file."""
    authority = make_authority(tmp_path / "directory")
    with ExitStack() as stack:

        def use(search: Callable[[Message], Iterable[bytes]]) -> None:
            directory = TlsDirectory(authority, search)
            stack.callback(directory.close)
            case.issuer.drop_tables("backends")
            secret = case.issuer.folder / "secret"
            secret.write_text(READER_PASSWORD)
            secret.chmod(0o600)
            with case.issuer.config.open("a") as config:
                config.write(
                    f'\n[[backends]]\ntype = "ldap"\nservers = ["{directory.url.replace("ldap:", "ldaps:")}"]\n'
                    f'bind_dn = "{READER}"\nbind_password_file = "secret"\nca_file = "{authority.certificate}"\n'
                    f'[backends.user]\nbase = "dc=test"\n'
                )

        yield use


def test_b9_the_directory_is_slow(
    case: Case, use_directory: Callable[[Callable[[Message], Iterable[bytes]]], None]
) -> None:
    """It answers, and logins take long."""
    use_directory(slowly)
    case.start(2)
    case.doctor().is_only(("warning", "backend 'ldap'", "only after 2.", "expected: at most 2 s"))


def test_b9_the_directory_hangs(
    case: Case, use_directory: Callable[[Callable[[Message], Iterable[bytes]]], None]
) -> None:
    """It is down for this purpose; the rest is looked at all the same."""
    use_directory(hanging)
    case.start(2)
    found = case.doctor()
    states = {check["check"]: check["state"] for check in found.document["checks"]}
    assert {check for check, state in states.items() if state != "ok"} == {"account sources"}
    assert states["account sources"] == "error"
    # The server is named once.
    first, second = found.complaints
    assert "127.0.0.1" in first["subject"], found
    assert second["fact"] == "it does not answer, see above", found


# ---------------------------------------------------------------------------- B11, B12, B13: files, dates and restarts


@pytest.mark.parametrize("content", ["empty", "der", "public-key", "private-key", "text", "damaged"])
def test_b11_the_registry_does_not_start_with_its_bundle(case: Case, content: str) -> None:
    """That it does not answer then is no second finding."""
    key = new_key()
    made = certificate(key)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    written, said = {
        "empty": (b"\n", "is empty"),
        "der": (
            made.public_bytes(serialization.Encoding.DER),
            "is a DER certificate; convert it: openssl x509 -inform",
        ),
        "public-key": (public, "has a public key and no certificate"),
        "private-key": (private_pem(key), "has a private key and no certificate"),
        "text": (b"put the certificate here", "has no certificate in it"),
        "damaged": (pem(made).replace(b"M", b"N", 3), "is damaged"),
    }[content]
    case.bundle.write_bytes(written)
    case.serve()
    refused = case.host.start(
        "registry", case.host.program("docker-registry", "install it"), "serve", str(case.registry_file)
    )
    assert refused.wait() != 0
    case.doctor().is_only(("error", f"{case.registry_file}, line ", "does not start with it", str(case.bundle), said))


def test_b11_a_bundle_that_is_not_on_this_machine(case: Case) -> None:
    """As with a registry in a container: it is said, and is no finding. A copy beside the file is looked at."""
    case.start(2)
    case.edit(str(case.bundle), "/etc/registry-in-a-container/auth.pem")
    found = case.doctor()
    found.is_only()
    assert "run doctor where the registry runs" in str(found.document)
    (case.issuer.folder / "auth.pem").write_bytes(pem(certificate(new_key())))
    # The registry that runs has its right file still.
    infos = [each for check in case.doctor().document["checks"] for each in check["findings"]]
    assert any("neither in the bundle" in each["fact"] for each in infos), infos


def test_b12_the_signing_certificate_ends_soon(case: Case) -> None:
    """It still works."""
    private = load_private_key(case.issuer.folder / "auth.key")
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    short = pem(certificate(private, days=10.5))
    (case.issuer.folder / "auth.crt").write_bytes(short)
    case.bundle.write_bytes(short)
    case.start(3)
    case.doctor().is_only(("warning", "auth.crt", "the certificate ends in 10 days", "tokenissuer keys add"))


def test_b12_the_signing_certificate_has_ended(case: Case) -> None:
    """The issuer does not start with it: that it does not answer is no second finding."""
    private = load_private_key(case.issuer.folder / "auth.key")
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    (case.issuer.folder / "auth.crt").write_bytes(pem(certificate(private, days=-0.5)))
    case.start_registry(2)
    said = ("error", "auth.crt", "the certificate ended on", "no registry accepts its tokens", "tokenissuer keys add")
    case.doctor().is_only(said)


@BOTH
def test_b12_what_is_said_of_an_ended_certificate_mends_it(case: Case, generation: int) -> None:
    """The next key, its certificate to the registry, a restart, the switch with a proof."""
    private = load_private_key(case.issuer.folder / "auth.key")
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    (case.issuer.folder / "auth.crt").write_bytes(pem(certificate(private, days=-0.5)))
    keys = (case.host.tokenissuer(), "keys", "--config", str(case.issuer.config))
    case.host.run(*keys, "add").succeeded()
    case.bundle.write_bytes((case.issuer.folder / "auth.crt").read_bytes())
    case.start_registry(generation)
    case.host.run(*keys, "switch", "--registry", f"http://{case.address}").succeeded()
    case.serve()
    case.doctor().is_only()


def test_b12_the_realms_certificate_ends_soon(case: Case, tmp_path: Path) -> None:
    """TLS."""
    authority = make_authority(tmp_path / "tls", days=3.5)
    realm = case.front(tls=authority)
    case.send_clients_to(realm)
    case.start(2)
    said = ("warning", realm, "its TLS certificate ends in 3 days (expected: at least 14)", "renew it now")
    case.doctor("--ca-file", str(authority.certificate)).is_only(said)


@BOTH
def test_b13_the_registry_was_not_restarted(case: Case, generation: int) -> None:
    """Its file is right now, and it runs with the one that was there before."""
    right = case.bundle.read_bytes()
    case.bundle.write_bytes(pem(certificate(new_key())))
    case.start(generation)
    case.bundle.write_bytes(right)
    said = ("error", case.address, "it refuses a fresh token, which it would accept by", "restart the registry")
    case.doctor().is_only(said)


@BOTH
@pytest.mark.parametrize("file", [True, False], ids=["with-file", "without-file"])
def test_b13_the_registry_was_not_restarted_after_its_certificate_was_renewed(
    case: Case, generation: int, file: bool
) -> None:
    """The key is the same, so the registry accepts its id alone: that is no reason to change the configuration."""
    case.start(generation)
    private = load_private_key(case.issuer.folder / "auth.key")
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    before = header_of(case)
    for path in (case.issuer.folder / "auth.crt", case.bundle):
        path.write_bytes(pem(certificate(private)))
    assert case.host.wait_until(lambda: header_of(case) != before)
    said = "which it would accept by" if file else "it knows the key and not this certificate"
    case.doctor(file=file).is_only(("error", case.address, said, "restart the registry"))


def test_b13_the_registry_was_not_restarted_after_its_names_changed(case: Case) -> None:
    """The challenge shows the old service, the file has the right one."""
    case.edit(f"service: {SERVICE}", "service: old")
    case.start(2)
    case.edit("service: old", f"service: {SERVICE}")
    case.doctor().is_only(("error", case.address, "'old'", f"says '{SERVICE}'", "restart the registry"))


def test_b13_one_of_several_registries_has_the_old_file(case: Case) -> None:
    """Behind one address, in turn."""
    right, first = case.bundle.read_bytes(), case.port
    case.start(2)
    case.bundle.write_bytes(pem(certificate(new_key())))
    case.port = case.host.free_port()
    case.edit(f"addr: 127.0.0.1:{first}", f"addr: 127.0.0.1:{case.port}")
    case.start_registry(2)
    case.bundle.write_bytes(right)
    port = case.host.free_port()
    case.nginx(
        f"upstream both {{ server 127.0.0.1:{first}; server 127.0.0.1:{case.port}; }}"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://both; }} }}"
    )
    said = ("error", f"127.0.0.1:{port}", "of 5 tries with a fresh token are refused", "several registries")
    case.doctor(registry=f"http://127.0.0.1:{port}").is_only(said)


# -------------------------------------------------------------------------------------- B17: keys that nobody reads


def test_b17_the_token_section_is_at_the_wrong_level(case: Case) -> None:
    """The registry starts, and asks nobody for anything."""
    text = case.registry_file.read_text()
    head, _, token = text.partition("auth:\n  token:\n")
    case.registry_file.write_text(f"{head}token:\n" + re.sub(r"(?m)^ {4}", "  ", token))
    case.serve()
    case.start_registry(2, status=200)
    case.doctor().is_only(("error", "line ", "'token' stands at the top", "put it below auth:"))
    said = ("error", f"{case.address}/v2/", "it asks for no token: everybody may pull, push and delete", "auth: token:")
    case.doctor(file=False).is_only(said)


def test_b17_keys_directly_below_auth(case: Case) -> None:
    """Without `token:` between; no registry starts."""
    case.edit("auth:\n  token:\n", "auth:\n")
    case.serve()
    case.doctor(registry=None).is_only(
        ("error", "line ", "'realm' stands directly below 'auth'", "put token: between them"),
    )


@pytest.mark.parametrize(
    ("old", "new", "severity", "said"),
    [
        ("    issuer:", "    isuer:", "error", "unknown key 'isuer' in auth.token, and 'issuer' is missing"),
        ("    rootcertbundle:", "    rootCertBundle:", "error", "'rootcertbundle' is missing"),
        ("    issuer:", "    autoredirct: true\n    issuer:", "warning", "did you mean 'autoredirect'?"),
        (f"service: {SERVICE}", "service: 5000", "error", "auth.token.service is 5000 and no text"),
    ],
    ids=["typing-error", "capitals", "unknown", "number"],
)
def test_b17_keys_that_no_registry_reads(case: Case, old: str, new: str, severity: str, said: str) -> None:
    """With the line."""
    case.edit(old, new)
    case.serve()
    if severity == "warning":
        case.start_registry(2)
    case.doctor().is_only((severity, f"{case.registry_file}, line ", said))


def front_of_both(case: Case, generation: int, *lines: str) -> str:
    """Registry and issuer under one name, at the path to which a registry with autoredirect sends its clients."""
    port = case.host.free_port()
    case.nginx(
        f"server {{ listen 127.0.0.1:{port}; proxy_set_header Host $http_host; "
        f"proxy_set_header X-Forwarded-For $remote_addr; {' '.join(lines)} "
        f"location / {{ proxy_pass http://{case.address}; }} "
        f"location /auth/token {{ proxy_pass http://127.0.0.1:{case.issuer.port}; }} }}"
    )
    case.edit("    issuer:", "    autoredirect: true\n    issuer:")
    case.start(generation)
    return f"http://127.0.0.1:{port}"


def test_autoredirect_is_no_difference(case: Case) -> None:
    """The registry makes the realm from the address that its clients use; the issuer serves that path."""
    registry = front_of_both(case, 3, "proxy_set_header X-Forwarded-Proto $scheme;")
    found = case.doctor(registry=registry)
    found.is_only()
    assert f"{registry}/auth/token" in str(found.document)


def test_b4_autoredirect_without_the_scheme(case: Case) -> None:
    """A registry 2.x supposes https in any case, 3.x unless the proxy says otherwise."""
    registry = front_of_both(case, 2)
    realm = registry.replace("http:", "https:") + "/auth/token"
    case.doctor(registry=registry).is_only(("error", realm, "speaks plain HTTP", "autoredirect", "X-Forwarded-Proto"))


def test_only_the_registrys_realm_works(case: Case) -> None:
    """Nothing listens at the one of the configuration: it is tried before it is said to work."""
    realm, dead = case.front(), f"http://localhost:{case.host.free_port()}/token"
    case.edit(f"realm: {case.issuer.realm}", f"realm: {realm}")
    case.edit_issuer(case.issuer.realm, dead)
    case.start(2)
    said = ("warning", realm, dead, "only the first works", "nothing listens on port", f'realm = "{realm}"')
    case.doctor().is_only(said)


def test_both_realms_work(case: Case) -> None:
    """A proxy is there, and the issuer's own configuration does not know it."""
    realm = case.front()
    case.edit(f"realm: {case.issuer.realm}", f"realm: {realm}")
    case.start(2)
    case.doctor().is_only(("warning", realm, "[issuer] realm", case.issuer.realm, "both work", f'realm = "{realm}"'))


# ------------------------------------------------------------------------------- B19, B20, B21: what proxies do to it


def trust(case: Case, *proxies: str) -> None:
    """Change which proxies are trusted."""
    text = case.issuer.config.read_text()
    listed = ", ".join(f'"{each}"' for each in proxies)
    case.issuer.config.write_text(re.sub(r"(?m)^trusted_proxies = .*$", f"trusted_proxies = [{listed}]", text))


def test_b19_the_proxy_is_not_trusted(case: Case) -> None:
    """All its clients count as one."""
    trust(case)
    realm = case.front()
    case.send_clients_to(realm)
    case.start(2)
    said = ("warning", "trusted_proxies", "127.0.0.1 names its clients (X-Forwarded-For: 127.0.0.1)", 'add "127.0.0.1"')
    case.doctor().is_only(said)


def test_b19_the_proxy_names_its_clients_in_another_header(case: Case) -> None:
    """Forwarded, and [server] forwarded_header is the usual one."""
    realm = case.front('proxy_set_header Forwarded "for=$remote_addr";', 'proxy_set_header X-Forwarded-For "";')
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(("warning", "forwarded_header", "in Forwarded, and", 'forwarded_header = "Forwarded"'))


def test_b19_the_proxy_does_not_name_its_clients(case: Case) -> None:
    """It takes the header out, so nobody can choose an address, and nobody has one."""
    realm = case.front('proxy_set_header X-Forwarded-For "";')
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(
        ("warning", "trusted_proxies", "does not name its clients", "proxy_set_header X-Forwarded-For")
    )


def test_b19_a_client_can_choose_its_address(case: Case) -> None:
    """The proxy is trusted, and passes the header on as it comes."""
    realm = case.front("proxy_set_header Host $http_host;")
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(("error", "trusted_proxies", "a client can choose its own address", "$remote_addr"))


def test_b19_a_proxy_that_adds_to_the_header_is_good(case: Case) -> None:
    """What it adds comes last. This client is at a trusted address itself, so that it is believed is no finding."""
    realm = case.front("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;")
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only()


@pytest.mark.parametrize("status", [405, 403])
def test_b21_a_proxy_refuses_post(case: Case, status: int) -> None:
    """Half of all clients use it."""
    named = "proxy_set_header X-Forwarded-For $remote_addr;"
    realm = case.front(named, realm_lines=[f"if ($request_method = POST) {{ return {status}; }}"])
    case.send_clients_to(realm)
    case.start(2)
    case.doctor().is_only(
        ("error", realm, f"POST does not arrive: {status} with a web page from nginx", "allow GET and POST"),
    )


def test_b20_a_proxy_refuses_chunks(case: Case) -> None:
    """411, as mod_wsgi and old proxies answer."""
    realm = case.front(
        "proxy_set_header X-Forwarded-For $remote_addr;",
        realm_lines=["if ($http_transfer_encoding) { return 411; }"],
    )
    case.send_clients_to(realm)
    case.start(2)
    said = ("warning", realm, "a form in chunks does not arrive: 411", "podman, skopeo", "WSGIChunkedRequest On")
    case.doctor().is_only(said)


def test_a_proxy_keeps_the_authorization(case: Case) -> None:
    """As Apache does unless it is told otherwise."""
    realm = case.front('proxy_set_header Authorization "";', "proxy_set_header X-Forwarded-For $remote_addr;")
    case.send_clients_to(realm)
    case.start(2)
    said = (
        "error",
        realm,
        "the header Authorization does not arrive",
        "everybody is nobody",
        "WSGIPassAuthorization On",
    )
    case.doctor().is_only(said)


def test_a_proxy_takes_unknown_headers_out(case: Case) -> None:
    """It is still this instance: the token says so. Nothing else can be tried, and that is said."""
    realm = case.front('proxy_set_header X-Tokenissuer-Probe "";', "proxy_set_header X-Forwarded-For $remote_addr;")
    case.send_clients_to(realm)
    case.start(2)
    found = case.doctor()
    found.is_only()
    assert "takes unknown headers out" in str(found.document)


# ------------------------------------------------------------------------------------------- the set-ups of conf/


def production(case: Case, tmp_path: Path) -> Production:
    """Puts together what production has, with a TLS certificate that lasts."""
    made = Production(tmp_path, case.stack, case.host, cast("Sites", None))
    made.authority = cast("Any", make_authority(tmp_path / "long-tls"))
    return made


@BOTH
def test_the_nginx_of_conf(case: Case, tmp_path: Path, generation: int, new_client: Callable[[], Client]) -> None:
    """Registry and issuer under one name: nothing to say, and the last line logs in."""
    port, made = case.host.free_port(), production(case, tmp_path)
    case.send_clients_to(f"https://127.0.0.1:{port}/jwt/auth")
    # crane and Helm refuse an address; that is told, and right.
    case.start(generation)
    places = {
        "server 127.0.0.1:5000 ": f"server {case.address} ",
        "server 127.0.0.1:5001 ": f"server 127.0.0.1:{case.issuer.port} ",
    }
    front = made.nginx(case.issuer, port, made.nginx_site("nginx.conf", port, places))
    trust(case, "127.0.0.1")
    address = ("warning", "[issuer] realm", "is a loopback or private address, which crane, Helm and oras refuse")
    found = case.doctor("--ca-file", str(made.authority.certificate), registry=f"https://{front.address}")
    found.is_only(address)
    client = new_client()
    client.env["SSL_CERT_FILE"] = str(made.authority.certificate)
    assert found.document["login"] == f"docker login {front.address}"
    client.login(front.address, "alice", case.issuer.first_password).succeeded()


def test_the_apache_of_conf(case: Case, tmp_path: Path) -> None:
    """In mod_wsgi there is no proxy; without WSGIPassAuthorization every password is lost."""
    port, made = case.host.free_port(), production(case, tmp_path)
    case.send_clients_to(f"https://127.0.0.1:{port}/jwt/auth")
    trust(case)
    case.start_registry(2)
    front = made.apache(case.issuer, port, case.address)
    address = ("warning", "[issuer] realm", "is a loopback or private address, which crane, Helm and oras refuse")
    ca_file = ("--ca-file", str(made.authority.certificate))
    case.doctor(*ca_file, registry=f"https://{front.address}").is_only(address)
    (site,) = case.issuer.folder.parent.glob("site.conf")
    case.edit("WSGIPassAuthorization On", "WSGIPassAuthorization Off", site)
    case.edit("WSGIChunkedRequest On", "WSGIChunkedRequest Off", site)
    assert front.server is not None
    front.server.send(signal.SIGHUP)

    def has_restarted() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return front.ask(user="alice", password="wrong").status == 200
        return False

    assert case.host.wait_until(has_restarted)
    case.doctor(*ca_file, registry=f"https://{front.address}").is_only(
        address,
        ("error", "the header Authorization does not arrive", "WSGIPassAuthorization On"),
        ("warning", "a form in chunks does not arrive: 411", "WSGIChunkedRequest On"),
    )


# ------------------------------------------------------------------------------------------- the pictures in the manual

MANUAL = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def on_a_terminal(case: Case) -> str:
    """What `doctor` shows on a terminal without colours, with the places of the manual in it."""
    program = case.host.program("script", "install bsdutils")
    command = [case.host.tokenissuer(), "doctor", "--config", str(case.issuer.config), "--registry", case.address]
    command += ["--registry-config", str(case.registry_file), "--account", "alice"]
    ran = case.host.run(
        program, "-qec", shlex.join(command), "/dev/null", env={"TERM": "xterm", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    )
    # Python has read each carriage return as the end of a line; progress stands behind some.
    text = re.sub(r"\n\x1b\[K(?:  [^\n]* \.\.\. \d+ s)?", "", ran.stdout)
    for place, shown in (
        (str(case.issuer.folder), "set-up"),
        (f":{case.port}", ":5000"),
        (f":{case.issuer.port}", ":5001"),
    ):
        text = text.replace(place, shown)
    # What differs from one run to the next.
    text = re.sub(r"\d+\.\d+ (m?s)\b", r"0.1 \1", text)
    text = re.sub(r"after \d+ ms", "after 2 ms", text)
    return re.sub(r"\d{3,4} characters", "1132 characters", text)


def test_the_pictures_in_the_manual_are_what_is_shown(case: Case) -> None:
    """One of a healthy set-up, and one with a blank too many in the issuer's name."""
    case.start()
    healthy = on_a_terminal(case)
    case.edit(f"issuer: {ISSUER}", f'issuer: "{ISSUER} "')
    broken = on_a_terminal(case)
    if os.environ.get("UPDATE_PICTURES"):
        new = iter((healthy, broken))
        page = re.sub(
            r"(```text\n)✓ configuration.*?(?=```)",
            lambda found: found[1] + next(new),
            MANUAL.read_text(),
            flags=re.DOTALL,
        )
        MANUAL.write_text(page)
    shown = re.findall(r"```text\n(✓ configuration.*?)```", MANUAL.read_text(), re.DOTALL)
    assert [healthy, broken] == shown
