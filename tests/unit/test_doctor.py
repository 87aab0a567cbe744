"""The pure parts of `tokenissuer doctor`: keys as each version verifies, the registry's file, what is printed."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.cli import Run
from tests.support.keys import DAY, certificate_for
from tokenissuer.config import load_config
from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.doctor import clocks
from tokenissuer.doctor.caller import Answer, Caller, Unreachable
from tokenissuer.doctor.challenge import Challenge
from tokenissuer.doctor.clocks import check_clocks
from tokenissuer.doctor.examination import Check, Result, login_line, registry_url
from tokenissuer.doctor.examination import run as run_check
from tokenissuer.doctor.facts import Facts, Outcome
from tokenissuer.doctor.issuer import check_sources
from tokenissuer.doctor.names import check_file
from tokenissuer.doctor.probe import Arrival, claimed_through
from tokenissuer.doctor.registry_file import RegistryFile
from tokenissuer.doctor.report import PlainReport, TerminalReport
from tokenissuer.doctor.sources import slow_findings
from tokenissuer.doctor.trust import Trust, Version, load_bundle, load_jwks
from tokenissuer.errors import ConfigurationError
from tokenissuer.net import parse_address
from tokenissuer.signing.issuer import Issuer
from tokenissuer.signing.keys import KeyForm, PrivateKey, SigningKey, libtrust_id, thumbprint
from tokenissuer.web.probe import PROBE_VARIABLE, probe_arrival, sign_probe
from tokenissuer.web.proxies import NO_PROXIES, ServerOptions

NOW = time.time()


# ------------------------------------------------------------------------------------------------ as versions verify


def leading_zero() -> ec.EllipticCurvePrivateKey:
    """A key that 3.1 gives a wrong id: its x has only 31 octets."""
    number = 1
    while True:
        key = ec.derive_private_key(number, ec.SECP256R1())
        if key.public_key().public_numbers().x.bit_length() <= 248:
            return key
        number += 1


def signing_key(kind: str) -> SigningKey:
    """A key of a kind, with its own certificate."""
    makers: dict[str, Callable[[], PrivateKey]] = {
        "ec": lambda: ec.derive_private_key(7, ec.SECP256R1()),
        "zero": leading_zero,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }
    private = makers[kind]()
    return SigningKey(private, certificate_for(private))


V2, V30, V31 = Version.V2, Version.V30, Version.V31

#: Measured with tokens of the real programs: facts about header forms and registries.
ACCEPTED = [
    ("rsa", KeyForm.X5C, "bundle", {V2, V30, V31}),
    ("rsa", KeyForm.LIBTRUST, "bundle", {V2}),
    ("rsa", KeyForm.THUMBPRINT, "bundle", {V30, V31}),
    ("ec", KeyForm.X5C, "bundle", {V2, V30, V31}),
    ("ec", KeyForm.LIBTRUST, "bundle", {V2}),
    ("ec", KeyForm.THUMBPRINT, "bundle", {V31}),
    ("zero", KeyForm.X5C, "bundle", {V2, V30, V31}),
    ("zero", KeyForm.THUMBPRINT, "bundle", set()),
    ("rsa", KeyForm.X5C, "jwks-thumbprint", set()),
    ("ec", KeyForm.THUMBPRINT, "jwks-thumbprint", {V30, V31}),
    ("zero", KeyForm.THUMBPRINT, "jwks-thumbprint", {V30, V31}),
    ("ec", KeyForm.LIBTRUST, "jwks-thumbprint", set()),
    ("ec", KeyForm.LIBTRUST, "jwks-libtrust", {V30, V31}),
    ("ec", KeyForm.THUMBPRINT, "jwks-libtrust", set()),
    ("ec", KeyForm.X5C, "both", {V2, V30, V31}),
    ("ec", KeyForm.THUMBPRINT, "both", {V30, V31}),
]


@pytest.mark.parametrize(("kind", "form", "trusted", "accepting"), ACCEPTED)
def test_which_versions_accept_a_token(kind: str, form: KeyForm, trusted: str, accepting: set[Version]) -> None:
    """By the form of its header and what the registry is given."""
    key = signing_key(kind)
    public = key.private.public_key()
    jwks = {
        "jwks-thumbprint": {thumbprint(public): public},
        "both": {thumbprint(public): public},
        "jwks-libtrust": {libtrust_id(public): public},
    }.get(trusted)
    trust = Trust((key.certificate,) if trusted in ("bundle", "both") else (), jwks)
    refusals = trust.refusals(key.header(form), public, NOW)
    assert set(trust.versions) - set(refusals) == accepting
    assert all(refusals.values())


def test_an_authority_in_the_bundle_is_enough_for_a_certificate_in_the_token() -> None:
    """Not for a key id, and not if it has not signed it, has ended, or is no authority."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.derive_private_key(7, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])

    def signed(subject: ec.EllipticCurvePrivateKey, *, ca: bool, end: float = DAY) -> x509.Certificate:
        begin = certificate_for(subject, end=end)
        return (
            x509.CertificateBuilder(name, name, subject.public_key(), x509.random_serial_number())
            .not_valid_before(begin.not_valid_before_utc)
            .not_valid_after(begin.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .sign(ca_key, hashes.SHA256())
        )

    leaf = SigningKey(key, signed(key, ca=False))

    def refusals(root: x509.Certificate, form: KeyForm = KeyForm.X5C) -> set[Version]:
        return set(Trust((root,)).refusals(leaf.header(form), key.public_key(), NOW))

    everyone = {V2, V30, V31}
    assert refusals(signed(ca_key, ca=True)) == set()
    assert refusals(signed(ca_key, ca=True), KeyForm.LIBTRUST) == everyone
    assert refusals(signed(ca_key, ca=False)) == everyone
    assert refusals(signed(ca_key, ca=True, end=-3600)) == everyone
    assert refusals(certificate_for(ec.generate_private_key(ec.SECP256R1()))) == everyone


def test_what_else_stops_a_version() -> None:
    """An Ed25519 certificate in the bundle, an ended certificate in the token, the algorithms of 3.x."""
    key = signing_key("ec")
    header, public = key.header(KeyForm.X5C), key.private.public_key()
    other = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, other.public_key(), 1)
    builder = builder.not_valid_before(key.certificate.not_valid_before_utc)
    strange = builder.not_valid_after(key.certificate.not_valid_after_utc).sign(other, None)
    assert set(Trust((key.certificate, strange)).refusals(header, public, NOW)) == {V2}
    assert set(Trust((key.certificate,), None, ("RS256",)).refusals(header, public, NOW)) == {V30, V31}
    assert set(Trust((key.certificate,)).refusals(header, public, NOW + 2 * DAY)) == {V2, V30, V31}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x30\x03\x02\x01\x01", "has no certificate in it"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "has a public key and no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 in it is damaged"),
        (None, "cannot read"),
    ],
)
def test_a_bundle_with_which_no_registry_starts(tmp_path: Path, content: bytes | None, said: str) -> None:
    """It says what the file is instead."""
    path = tmp_path / "bundle"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        load_bundle(path)


def test_a_der_certificate_is_named_as_such(tmp_path: Path) -> None:
    """With the command that converts it."""
    path = tmp_path / "bundle"
    path.write_bytes(signing_key("ec").certificate.public_bytes(Encoding.DER))
    with pytest.raises(ConfigurationError, match="is a DER certificate; convert it: openssl x509 -inform DER"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("keys: []", "is not JSON"),
        ("-----BEGIN CERTIFICATE-----", "is PEM"),
        ("[]", "no list 'keys'"),
        ('{"kty": "EC"}', "no list 'keys'"),
        ('{"keys": []}', "no usable key"),
        ('{"keys": [1, {"kty": "oct"}, {"kty": "EC", "x": "a"}]}', "no usable key"),
        ('{"keys": [{"kty": "EC", "d": "secret"}]}', "has a private key in it"),
    ],
)
def test_a_jwk_set_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    """It names the file to copy."""
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        load_jwks(path)


def test_our_own_jwk_set_is_read(tmp_path: Path, key: SigningKey) -> None:
    """As `init` writes it."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(key.jwk_set()))
    assert load_jwks(path) == {key.thumbprint: key.private.public_key()}


# ------------------------------------------------------------------------------------------------ the registry's file

GOOD = """\
version: 0.1
http:
  addr: :5000
auth:
  token:
    realm: https://auth.example.com/token
    service: registry.example
    issuer: test-issuer
    rootcertbundle: {bundle}
"""


@pytest.fixture
def facts(set_up: Path) -> Facts:
    """A set-up in which nothing is wrong."""
    path = set_up / "registry.yml"
    path.write_text(GOOD.format(bundle=set_up / "auth.crt"))
    return Facts(load_config(set_up / "tokenissuer.toml"), Caller(), "", RegistryFile.load(path))


def changed(facts: Facts, old: str, new: str) -> list[Finding]:
    """What is found after one change of the registry's file."""
    assert facts.file is not None
    text = facts.file.path.read_text()
    assert old in text
    facts.file.path.write_text(text.replace(old, new, 1))
    facts.file = RegistryFile.load(facts.file.path)
    return list(check_file(facts).findings)


def test_a_file_in_which_nothing_is_wrong(facts: Facts) -> None:
    """Its certificates are read, and its address."""
    assert changed(facts, "version", "version") == []
    assert facts.trust is not None
    assert len(facts.trust.bundle) == 1
    assert facts.file is not None
    assert facts.file.url == "http://127.0.0.1:5000"
    assert not facts.registry_stops


@pytest.mark.parametrize(
    ("old", "new", "severity", "line", "said"),
    [
        ("    issuer: test-issuer", "    issuer: 'test-issuer '", "error", 8, "'test-issuer '"),
        ("    issuer: test-issuer", "    issuer: test-issuer/", "error", 8, "a slash at the end"),
        ("    issuer: test-issuer", "    issuer: \"'test-issuer'\"", "error", 8, "differ by quotes"),
        ("    issuer: test-issuer", "    issuer: Test-Issuer", "error", 8, "capital letters"),
        ("    service: registry.example", "    service: registry", "error", 7, "no token is issued for this registry"),
        ("    service: registry.example", "    service:", "error", 7, "is None and no text"),
        ("    service: registry.example", "    service: 1", "error", 7, "is 1 and no text"),
        ("    service:", "    services:", "error", 7, "unknown key 'services' in auth.token, and 'service' is missing"),
        ("    rootcertbundle:", "    rootcertbundel:", "error", 9, "'rootcertbundle' is missing"),
        ("    realm: https://auth.example.com/token\n", "", "error", 5, "the key 'realm' is missing"),
        ("    realm:", "    autoredirct: true\n    realm:", "warning", 6, "unknown key 'autoredirct'"),
        ("auth:\n  token:\n", "auth:\n  tokn:\n", "error", 5, "'tokn' is no kind of auth"),
        ("auth:\n  token:\n", "auth:\n", "error", 5, "'realm' stands directly below 'auth'"),
        ("auth:\n  token:\n", "token:\n", "error", 4, "'token' stands at the top"),
        ("auth:\n", "auht:\n", "error", 4, "the section 'auht' is read by no registry"),
        ("auth:\n  token:\n", "auth:\n  htpasswd:\n", "error", 5, "checks logins itself"),
        ("auth.crt", "nowhere.crt", "info", 9, "not on this machine"),
    ],
)
def test_each_mistake_in_the_file_is_one_finding(
    facts: Facts, old: str, new: str, severity: str, line: int, said: str
) -> None:
    """With file and line."""
    (found,) = changed(facts, old, new)
    assert found.severity == severity, found
    assert facts.file is not None
    assert found.subject == f"{facts.file.path}, line {line}", found
    assert said in found.fact, found
    assert found.remedy


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("text", "it has no keys"), ("", "it has no keys")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    """One line, as for our own."""
    path = tmp_path / "registry.yml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        RegistryFile.load(path)


def test_the_registrys_file_of_conf_has_no_mistake() -> None:
    """Every key in it is one that registries read."""
    file = RegistryFile.load(Path(__file__).parents[2] / "conf" / "gitlab-registry.yml")
    assert list(file.findings()) == []
    assert file.url == "http://127.0.0.1:5000"


def test_a_check_that_fails_on_the_way_is_a_finding() -> None:
    """What answers a moment ago may not answer now; the other checks go on."""

    def fail() -> Outcome:
        raise Unreachable("it is gone", "start it")

    outcome = run_check(Check("trust", fail)).outcome
    assert (outcome.severity, outcome.findings[0].fact) == (Severity.ERROR, "it is gone; start it")


def test_a_tag_in_yaml_makes_nothing_run(tmp_path: Path) -> None:
    """The file is data."""
    path = tmp_path / "registry.yml"
    path.write_text("!!python/object/apply:os.system ['touch /tmp/never']")
    with pytest.raises(ConfigurationError, match="not YAML"):
        RegistryFile.load(path)


# ------------------------------------------------------------------------------------------- challenge, URL, login line


def test_a_challenge_is_read() -> None:
    """Whatever the case of its words and the order."""
    text = 'bearer service="a \\"b\\"",Realm="https://x/token",scope="repository:a:pull",error="invalid_token"'
    assert Challenge.parse(text) == Challenge("https://x/token", 'a "b"', "invalid_token")


@pytest.mark.parametrize("text", ["", 'Basic realm="x"', 'Bearer service="x"', "Bearer"])
def test_what_is_no_challenge(text: str) -> None:
    """It shows what there is."""
    with pytest.raises(ValueError, match="expected: Bearer realm="):
        Challenge.parse(text)


@pytest.mark.parametrize(
    ("given", "url", "login"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000", "docker login 127.0.0.1:5000"),
        ("localhost", "http://localhost", "docker login localhost"),
        ("registry.example.com", "https://registry.example.com", "docker login registry.example.com"),
        ("https://registry.example.com:443/", "https://registry.example.com:443", "docker login registry.example.com"),
        ("https://registry.example.com/v2/", "https://registry.example.com", "docker login registry.example.com"),
        ("http://registry:80", "http://registry:80", "docker login registry:80"),
        ("[::1]:5000", "http://[::1]:5000", "docker login [::1]:5000"),
    ],
)
def test_the_registrys_url_and_the_login_line(given: str, url: str, login: str) -> None:
    """As docker takes them."""
    assert registry_url(given) == url
    assert login_line(url, "") == login
    assert login_line(url, "o'brien x") == login.replace("login ", "login -u 'o'\"'\"'brien x' ")


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://x:y", "https://[", "x:0"])
def test_what_is_no_registry(given: str) -> None:
    """Wrong usage is one line."""
    with pytest.raises(ConfigurationError, match="is no registry"):
        registry_url(given)


# --------------------------------------------------------------------------------------------------------- the probe


def environ(token: str, **more: str) -> dict[str, Any]:
    """A request with a probe."""
    return {
        "REQUEST_METHOD": "GET",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"x=y"),
        "REMOTE_ADDR": "127.0.0.1",
        PROBE_VARIABLE: token,
        **more,
    }


def test_a_probe_is_answered_with_what_arrived(key: SigningKey) -> None:
    """Of the Authorization header only the length."""
    issuer = Issuer("me", key)
    sent = environ(
        sign_probe(key, "me", "nonce", time.time()),
        HTTP_AUTHORIZATION="Basic c2VjcmV0",
        HTTP_X_FORWARDED_FOR="192.0.2.1",
        CONTENT_LENGTH="3",
        QUERY_STRING="a=b",
        PATH_INFO="/token",
    )
    proxies = ServerOptions(trusted_proxies=("127.0.0.1",)).proxies()
    arrived = probe_arrival(sent, issuer, proxies)
    assert arrived is not None
    assert "c2VjcmV0" not in str(arrived)
    assert {name: arrived[name] for name in ("nonce", "client", "authorization_length", "body_length")} == {
        "nonce": "nonce",
        "client": "192.0.2.1",
        "authorization_length": 14,
        "body_length": 3,
    }
    assert arrived["forwarded"] == {"X-Forwarded-For": "192.0.2.1"}


@pytest.mark.parametrize("wrong", ["garbage", "other-key", "other-issuer", "ended", "access-token", "none", "no-nonce"])
def test_any_other_probe_is_none(key: SigningKey, wrong: str) -> None:
    """Only the holder of the key gets an answer, and for a minute."""
    issuer, claims = Issuer("me", key), {"iss": "me", "aud": "tokenissuer doctor", "exp": int(NOW) + 30, "nonce": "x"}
    makers: dict[str, Callable[[], str]] = {
        "garbage": lambda: "x.y.z",
        "other-key": lambda: sign_probe(signing_key("ec"), "me", "n", time.time()),
        "other-issuer": lambda: sign_probe(key, "you", "n", time.time()),
        "ended": lambda: sign_probe(key, "me", "n", time.time() - 61),
        "access-token": lambda: issuer.issue("", "tokenissuer doctor", ()).text,
        "none": lambda: jwt.encode(claims, "", algorithm="none"),
        "no-nonce": lambda: jwt.encode({**claims, "nonce": None}, key.private, algorithm=key.algorithm),
    }
    assert probe_arrival(environ(makers[wrong]()), issuer, NO_PROXIES) is None


def arrived(header: str, peer: str = "127.0.0.1", port: str = "1", client: str = "192.0.2.66") -> Arrival:
    """What a claim of an address has become."""
    forwarded = {"X-Forwarded-For": header} if header else {}
    content = {"peer": peer, "peer_port": port, "client": client, "forwarded": forwarded}
    return Arrival(content, Answer(200, {}, b"", NOW, 0.0, ("127.0.0.1", 50000), None))


@pytest.mark.parametrize(
    ("arrival", "through"),
    [
        (arrived("192.0.2.66"), True),
        (arrived("192.0.2.66", peer=""), True),
        # Nothing between: this machine is a trusted proxy itself.
        (arrived("192.0.2.66", port="50000"), False),
        # The proxy has added where the request came from, which is trusted.
        (arrived("192.0.2.66, 127.0.0.1"), False),
        (arrived("198.51.100.1", client="198.51.100.1"), False),
        (arrived("", client="127.0.0.1"), False),
    ],
)
def test_when_a_client_can_choose_its_address(arrival: Arrival, through: bool) -> None:
    """Only where the proxy lets the header through."""
    assert claimed_through(arrival, ServerOptions(trusted_proxies=("127.0.0.1",)).proxies()) is through


def test_which_peers_are_trusted() -> None:
    """By the configuration, in both headers, and for a Unix socket."""
    named = ("10.0.0.0/8", "unix")
    for options in (ServerOptions(named), ServerOptions(named, forwarded_header="Forwarded")):
        proxies = options.proxies()
        assert [proxies.trusts(parse_address(peer)) for peer in ("10.1.1.1", "", "127.0.0.1")] == [True, True, False]


# --------------------------------------------------------------------------------------------------- clocks and times


def at(seconds: float) -> Answer:
    """A registry's answer by a clock that differs."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(NOW + seconds))
    return Answer(401, {"date": date}, b"", NOW, 0.0, ("", 0), None)


@pytest.mark.parametrize(
    ("seconds", "severity", "said"),
    [
        (0, "info", ""),
        (clocks.WARN - 1, "info", ""),
        (clocks.WARN + 3, "warning", "behind"),
        (-clocks.WARN - 3, "warning", "ahead of"),
        (clocks.FAIL - 3, "warning", "behind"),
        (clocks.FAIL + 3, "error", "seem to have ended"),
        (-clocks.FAIL - 3, "error", "seem not to be valid yet"),
    ],
)
def test_clocks_that_differ(facts: Facts, seconds: float, severity: str, said: str) -> None:
    """The issuer's is this machine's, unless the realm tells."""
    facts.registry, facts.answer = "http://127.0.0.1:5000", at(seconds)
    outcome = check_clocks(facts)
    assert outcome.severity == severity
    assert said in "".join(finding.fact for finding in outcome.findings)
    assert facts.clocks_differ is (severity == "error")


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026"])
def test_a_registry_that_does_not_say_what_time_it_is(facts: Facts, date: str) -> None:
    """That is skipped, and why is said."""
    assert check_clocks(facts).skipped == "no registry was asked"
    facts.registry = "http://127.0.0.1:5000"
    assert check_clocks(facts).skipped == "the registry did not answer"
    facts.answer = Answer(401, {"date": date} if date else {}, b"", NOW, 0.0, ("", 0), None)
    assert check_clocks(facts).skipped == "the registry did not say what time it is"


@pytest.mark.parametrize(("seconds", "severities"), [(1.9, []), (2.1, ["warning"]), (10.1, ["error"])])
def test_slow_answers(seconds: float, severities: list[str]) -> None:
    """docker gives a login 15 seconds."""
    assert [finding.severity for finding in slow_findings("x", "it answers", seconds)] == severities


def test_a_backend_that_hangs_or_breaks_does_not_end_it(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks go on."""
    backend = facts.config.backends[0].cls
    monkeypatch.setattr("tokenissuer.doctor.issuer._SOURCES_TIMEOUT", 0.05)
    monkeypatch.setattr(backend, "check", lambda self: time.sleep(1))
    (found,) = check_sources(facts, "").findings
    assert (found.severity, "no answer within" in found.fact) == (Severity.ERROR, True)
    monkeypatch.setattr("tokenissuer.doctor.issuer._SOURCES_TIMEOUT", 20)
    monkeypatch.setattr(backend, "check", lambda self: 1 / 0)
    (found,) = check_sources(facts, "").findings
    assert (found.severity, "ZeroDivisionError" in found.fact) == (Severity.ERROR, True)


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "http://127.0.0.1:99999/", "http://[", "http://127.0.0.1:1/"])
def test_where_there_is_no_answer(url: str) -> None:
    """Always with something to do."""
    with pytest.raises(Unreachable) as raised:
        Caller().ask("GET", url)
    assert raised.value.fact
    assert raised.value.remedy


# ------------------------------------------------------------------------------------------------------ what it prints

BAD = Finding(Severity.ERROR, "registry.yml, line 3", "it is 'x\x1b[2J\n'", "write y", 0.002)
RESULTS = [
    Result("configuration", Outcome(note="good"), 0.1),
    Result("trust", Outcome([BAD]), 0.1),
    Result("clocks", Outcome(skipped="no registry"), 0.1),
]


class Terminal(io.StringIO):
    """A terminal that shows UTF-8, or only ASCII."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_plain_lines() -> None:
    """One for each check or finding; nothing that a server has written moves the cursor."""
    out = io.StringIO()
    report = PlainReport(out)
    for result in RESULTS:
        report.add(result)
    report.end("docker login x", is_good=False)
    assert out.getvalue().splitlines() == [
        "ok: configuration: good",
        "error: registry.yml, line 3: it is 'x?[2J?' (2.0 ms); write y",
        "skipped: clocks: no registry",
        "When this is corrected, people log in with:",
        "docker login x",
    ]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    """A sign for each check, colours unless they are not wanted, and progress while it waits."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    report = TerminalReport(out)

    def slowly() -> Outcome:
        time.sleep(0.5)
        return Outcome(note="good")

    slow = Check("configuration", slowly)
    report.add(report.during(slow.title, lambda: run_check(slow)))
    report.add(RESULTS[1])
    report.end("docker login x", is_good=True)
    shown = out.getvalue()
    assert "configuration ... " in shown
    assert ("\x1b[32m✓\x1b[0m" in shown) is not bool(no_color)
    assert "✓" in shown
    assert "→ write y" in shown
    assert "\x1b[2J" not in shown
    assert shown.endswith("\ndocker login x\n")
    if no_color:
        assert "m✓" not in shown


def test_a_terminal_that_shows_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And cannot move its cursor."""
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    monkeypatch.setattr(out, "encoding", "ascii", raising=False)
    report = TerminalReport(out)
    report.add(report.during("x", lambda: RESULTS[1]))
    assert out.getvalue().isascii()
    assert "\x1b" not in out.getvalue()


def test_the_json_document(run: Run, set_up: Path) -> None:
    """One document, also when there is something wrong; nothing else on standard output."""
    code, out, err = run(
        "doctor", "--config", set_up / "tokenissuer.toml", "--json", "--registry", "http://127.0.0.1:1"
    )
    document = json.loads(out)
    assert (code, err, document["ok"]) == (1, "", False)
    assert [check["check"] for check in document["checks"]] == [
        *("configuration", "account sources", "tokens", "registry's file", "registry"),
        *("realm", "proxies", "clocks", "trust", "long tokens"),
    ]
    assert document["login"] == "docker login 127.0.0.1:1"
    assert set(document["checks"][0]["findings"][0] if document["checks"][0]["findings"] else {}) <= {
        *("severity", "subject", "fact", "remedy", "seconds"),
    }


def test_it_looks_at_files_as_check_does(run: Run, set_up: Path) -> None:
    """Others can read the key."""
    (set_up / "auth.key").chmod(0o644)
    code, out, _ = run("doctor", "--config", set_up / "tokenissuer.toml")
    assert code == 1
    assert f"error: {set_up / 'auth.key'}: others can read or change the private key" in out
    _, checked, _ = run("check", "--config", set_up / "tokenissuer.toml")
    assert checked.splitlines()[0] in out.splitlines()


def test_wrong_usage_is_one_line(run: Run, set_up: Path) -> None:
    """No file, no registry."""
    config = ("--config", set_up / "tokenissuer.toml")
    for arguments in (
        ("--registry-config", set_up / "nowhere.yml"),
        ("--registry", "ftp://x"),
        ("--ca-file", set_up / "nowhere.pem"),
    ):
        code, out, err = run("doctor", *config, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
