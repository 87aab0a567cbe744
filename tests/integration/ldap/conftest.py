"""A real directory for tests: OpenLDAP's slapd as a plain process on 127.0.0.1, with data for every case."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.machine import free_port, wait_until
from tokenissuer.config import load_config
from tokenissuer.options import Secret
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.options import GroupOptions, LdapOptions, UserOptions

CONF = Path(__file__).parents[3] / "conf"
SBIN = "/usr/sbin:/usr/local/libexec:/sbin"
SUFFIX = "dc=example,dc=test"
PEOPLE = f"ou=people,{SUFFIX}"
GROUPS = f"ou=groups,{SUFFIX}"
READER = f"cn=reader,ou=services,{SUFFIX}"
READER_PASSWORD = "reader-secret"
ADMIN = f"cn=admin,{SUFFIX}"
ADMIN_PASSWORD = "admin-secret"

CONFIGURATION = """
include   /etc/ldap/schema/core.schema
include   /etc/ldap/schema/cosine.schema
include   /etc/ldap/schema/inetorgperson.schema
include   /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload ppolicy
moduleload back_monitor
pidfile   {folder}/slapd.pid
argsfile  {folder}/slapd.args
loglevel  none
threads   16
sizelimit 500
{more}
TLSCACertificateFile    {certificates}/ca.pem
TLSCertificateFile      {certificates}/{certificate}.pem
TLSCertificateKeyFile   {certificates}/{certificate}.key

database  mdb
suffix    "{suffix}"
rootdn    "{admin}"
rootpw    {admin_password}
directory {folder}/db
maxsize   104857600
index objectClass,uid,mail,cn,member,memberUid,memberOf eq

overlay memberof
memberof-group-oc groupOfNames
memberof-member-ad member
memberof-memberof-ad memberOf
memberof-refint true

overlay ppolicy
ppolicy_default "cn=default,ou=policies,{suffix}"
ppolicy_use_lockout

access to attrs=userPassword by self write by anonymous auth by * none
access to dn.exact="ou=people,{suffix}" attrs=entry by dn.exact="{reader}" read by users search
access to * by dn.exact="{reader}" read by self read by anonymous auth by * none

database  monitor
access to * by dn.exact="{admin}" read
"""


def person(uid: str, cn: str = "", dn: str = "", **more: str) -> str:
    """The LDIF of an account whose password is pw-<uid>."""
    lines = [f"dn: {dn or f'uid={uid},{PEOPLE}'}", "objectClass: inetOrgPerson", f"cn: {cn or uid}", "sn: x"]
    lines += [f"uid: {uid}", f"userPassword: pw-{uid}", *(f"{key}: {value}" for key, value in more.items())]
    return "\n".join(lines)


def base_data() -> str:
    """Everything that can be loaded offline: the only way to set what the password policy keeps for itself."""
    tree = [
        f"dn: {SUFFIX}\nobjectClass: organization\nobjectClass: dcObject\no: example\ndc: example",
        *(
            f"dn: ou={unit},{SUFFIX}\nobjectClass: organizationalUnit\nou: {unit}"
            for unit in ("people", "groups", "other", "services", "policies")
        ),
        f"dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\n"
        f"userPassword: {READER_PASSWORD}",
        f"dn: cn=default,ou=policies,{SUFFIX}\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\ncn: default\n"
        "pwdAttribute: userPassword",
        f"dn: cn=changing,ou=policies,{SUFFIX}\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\ncn: changing\n"
        "pwdAttribute: userPassword\npwdMustChange: TRUE",
        f"dn: cn=strict,ou=policies,{SUFFIX}\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\ncn: strict\n"
        "pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 5",
        f"dn: cn=aging,ou=policies,{SUFFIX}\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\ncn: aging\n"
        "pwdAttribute: userPassword\npwdMaxAge: 3600\npwdGraceAuthNLimit: 2\npwdExpireWarning: 3600",
    ]
    aging = {"pwdPolicySubentry": f"cn=aging,ou=policies,{SUFFIX}"}
    strict = {"pwdPolicySubentry": f"cn=strict,ou=policies,{SUFFIX}"}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d%H%M%SZ")
    people = [
        person("alice", pwdChangedTime="20240101000000Z"),
        *(person(uid) for uid in ("bob", "carol", "dave", "erin", "nobody-in-groups")),
        person("Mixed"),
        person("jürgen"),
        person("jsmith", "Smith, John", rf"cn=Smith\, John+uid=jsmith,{PEOPLE}"),
        person("paren", "Paren (x)*", f"cn=Paren (x)*,{PEOPLE}"),
        person("dup", "one", f"cn=one,{PEOPLE}"),
        person("dup", "two", f"cn=two,{PEOPLE}"),
        person("triple", "t1", f"cn=t1,{PEOPLE}"),
        person("triple", "t2", f"cn=t2,{PEOPLE}"),
        person("triple", "t3", f"cn=t3,{PEOPLE}"),
        person("two").replace("uid: two\n", "uid: two\nuid: second\n"),
        person("victim", **strict),
        person("locked", pwdAccountLockedTime="000001010000Z", **strict),
        person("locked-awhile", pwdAccountLockedTime=now, **strict),
        person("grace", pwdChangedTime="20200101000000Z", **aging),
        person("expiring", pwdChangedTime=now, **aging),
        person("reset", pwdReset="TRUE", pwdPolicySubentry=f"cn=changing,ou=policies,{SUFFIX}"),
        f"dn: cn=nameless,{PEOPLE}\nobjectClass: person\ncn: nameless\nsn: x\nuserPassword: pw-nameless",
    ]
    referral = f"dn: ou=elsewhere,{SUFFIX}\nobjectClass: referral\nobjectClass: extensibleObject\nou: elsewhere\n"
    referral += "ref: ldap://127.0.0.1:1/ou=elsewhere,dc=example,dc=test"
    return "\n\n".join([*tree, *people, referral]) + "\n"


def group_data() -> str:
    """The groups: they are added online, because only then memberOf is filled."""

    def names(cn: str, *members: str, unit: str = "groups") -> str:
        listed = "\n".join(f"member: {member}" for member in members)
        return f"dn: cn={cn},ou={unit},{SUFFIX}\nobjectClass: groupOfNames\ncn: {cn.replace(chr(92), '')}\n{listed}"

    def user(uid: str) -> str:
        return f"uid={uid},{PEOPLE}"

    return (
        "\n\n".join(
            [
                names("Developers", user("alice"), user("bob")),
                names("ops", user("carol"), f"cn=Developers,{GROUPS}"),
                names("all-staff", f"cn=ops,{GROUPS}"),
                names("loop-a", user("dave"), f"cn=loop-b,{GROUPS}"),
                names("loop-b", f"cn=loop-a,{GROUPS}"),
                names(r"Comma\, Inc", user("erin"), rf"cn=Smith\, John+uid=jsmith,{PEOPLE}"),
                names("parens", f"cn=Paren (x)*,{PEOPLE}"),
                names("Developers", user("carol"), unit="other"),
                # A group with a user's name: nobody in it may get what that user has.
                names("alice", user("bob")),
                f"dn: cn=unique,{GROUPS}\nobjectClass: groupOfUniqueNames\ncn: unique\nuniqueMember: {user('alice')}",
                f"dn: cn=posix,{GROUPS}\nobjectClass: posixGroup\ncn: posix\ngidNumber: 1\nmemberUid: alice\n"
                "memberUid: Mixed",
            ]
        )
        + "\n"
    )


def environment() -> dict[str, str]:
    """The little a program needs: no ~/.ldaprc and no LDAPTLS_ variable of this machine's user."""
    return {"PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}", "LANG": "C.UTF-8", "LDAPNOINIT": "1"}


def slapd_program(name: str) -> str:
    """The program, or the end of the test with the reason why it cannot be had."""
    found = shutil.which(name, path=environment()["PATH"])
    if found is None:
        pytest.skip(f"no {name} program: install Debian's slapd and ldap-utils")
    return found


def run_program(*command: str, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """Run a program to its end, and return what it printed; fails if it fails."""
    done = subprocess.run(
        command, input=stdin.encode(), capture_output=True, env=env or environment(), timeout=120, check=False
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        pytest.fail(f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout.decode()


def start_listening(command: list[str], log: Path, places: list[tuple[str, int]]) -> subprocess.Popen[bytes]:
    """Start a server, and return when it listens at all these places."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    end = time.monotonic() + 60
    for place in places:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(place, 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
                pytest.fail(f"{command[0]} does not start:\n{log.read_text()}")
            time.sleep(0.01)
    return process


class Certificates:
    """A CA that the tests trust, one they do not, and server certificates good and bad."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.datetime.now(datetime.UTC)
        localhost = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        authority, rogue = self._authority("ca"), self._authority("rogue")
        self._server("server", authority, localhost)
        self._server("untrusted", rogue, localhost)
        self._server("elsewhere", authority, [x509.DNSName("other.example")])
        self._server("expired", authority, localhost, days=-1)

    @property
    def ca(self) -> Path:
        """The CA to trust."""
        return self.folder / "ca.pem"

    def _authority(self, name: str) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Lab {name}")])
        builder = self._builder(subject, subject, key, 10).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        self._write(name, builder.sign(key, hashes.SHA256()), key)
        return subject, key

    def _server(
        self,
        name: str,
        authority: tuple[x509.Name, ec.EllipticCurvePrivateKey],
        names: list[x509.GeneralName],
        days: int = 10,
    ) -> None:
        issuer, issuer_key = authority
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        builder = self._builder(subject, issuer, key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        self._write(name, builder.sign(issuer_key, hashes.SHA256()), key)

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - datetime.timedelta(days=30))
            .not_valid_after(self.now + datetime.timedelta(days=days))
        )

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


@dataclass
class Slapd:
    """One slapd with the data above."""

    folder: Path
    certificates: Certificates
    certificate: str = "server"
    more: str = ""
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def plain(self) -> str:
        """Its address without TLS at the beginning."""
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls(self) -> str:
        """Its address with TLS."""
        return f"ldaps://127.0.0.1:{self.tls_port}"

    def load(self) -> None:
        """Make the database."""
        (self.folder / "db").mkdir(parents=True)
        text = CONFIGURATION.format(
            folder=self.folder,
            certificates=self.certificates.folder,
            certificate=self.certificate,
            more=self.more,
            suffix=SUFFIX,
            admin=ADMIN,
            admin_password=ADMIN_PASSWORD,
            reader=READER,
        )
        (self.folder / "slapd.conf").write_text(text)
        (self.folder / "base.ldif").write_text(base_data())
        self._run("slapadd", "-q", "-f", str(self.folder / "slapd.conf"), "-l", str(self.folder / "base.ldif"))

    def start(self) -> None:
        """Run it, and return when it answers."""
        urls = f"{self.plain} {self.tls}"
        command = [slapd_program("slapd"), "-d", "0", "-f", str(self.folder / "slapd.conf"), "-h", urls]
        places = [("127.0.0.1", self.port), ("127.0.0.1", self.tls_port)]
        self.process = start_listening(command, self.folder / "slapd.log", places)

    def add_groups(self) -> None:
        """Add the groups online."""
        self.change("ldapadd", group_data())

    def change(self, program: str, ldif: str) -> None:
        """Run ldapadd or ldapmodify as the administrator."""
        self._run(program, "-x", "-H", self.plain, "-D", ADMIN, "-w", ADMIN_PASSWORD, stdin=ldif)

    def failures(self, uid: str) -> int:
        """How many wrong passwords the directory has counted for an account."""
        found = self._run(
            *("ldapsearch", "-x", "-LLL", "-H", self.plain, "-D", ADMIN, "-w", ADMIN_PASSWORD),
            *("-b", PEOPLE, f"(uid={uid})", "pwdFailureTime"),
        )
        return found.count("pwdFailureTime:")

    def binds(self) -> int:
        """How many binds it has seen, told by its monitor; the question's own not among them."""
        found = self._run(
            *("ldapsearch", "-x", "-LLL", "-H", self.plain, "-D", ADMIN, "-w", ADMIN_PASSWORD),
            *("-b", "cn=Bind,cn=Operations,cn=Monitor", "-s", "base", "monitorOpInitiated"),
        )
        return int(found.partition("monitorOpInitiated: ")[2].split()[0])

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it accept connections and answer nothing."""
        self.send(signal.SIGSTOP)
        # On a busy machine its threads go on for a moment.
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        assert wait_until(lambda: all(") T " in (task / "stat").read_text() for task in tasks.iterdir()))
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Let it be down for a while."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def _run(self, name: str, *arguments: str, stdin: str = "") -> str:
        return run_program(slapd_program(name), *arguments, stdin=stdin)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates good and bad."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def slapd(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Slapd]:
    """A directory that stays up for all tests, and whose data no test changes."""
    server = Slapd(tmp_path_factory.mktemp("slapd"), certificates)
    try:
        server.load()
        server.start()
        server.add_groups()
        yield server
    finally:
        server.stop()


@pytest.fixture
def new_slapd(tmp_path: Path, certificates: Certificates) -> Iterator[Callable[..., Slapd]]:
    """Makes directories of a test's own, running."""
    with contextlib.ExitStack() as stack:
        made = 0

        def make(**fields: Any) -> Slapd:
            nonlocal made
            made += 1
            server = Slapd(tmp_path / f"slapd-{made}", certificates, **fields)
            stack.callback(server.stop)
            server.load()
            server.start()
            server.add_groups()
            return server

        yield make


@pytest.fixture
def new_backend(certificates: Certificates) -> Iterator[Callable[..., LdapBackend]]:
    """Makes backends for servers, with the usual options unless others are given."""
    with contextlib.ExitStack() as stack:

        def make(*urls: str, **options: Any) -> LdapBackend:
            usual: dict[str, Any] = {
                "servers": urls,
                "user": UserOptions(PEOPLE),
                "groups": GroupOptions(GROUPS),
                "bind_dn": READER,
                "bind_password": Secret(READER_PASSWORD),
                "ca_file": certificates.ca,
                "allow_plaintext": True,
                "connect_timeout": 1,
                "timeout": 1,
            }
            backend = LdapBackend(LdapOptions(**{**usual, **options}))
            stack.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Callable[..., LdapBackend]]:
    """Makes the backend of a file in conf/, with other lines where a test says so."""
    with contextlib.ExitStack() as stack:

        def make(name: str, password: str, changed: dict[str, str]) -> LdapBackend:
            text = (CONF / f"ldap-{name}.toml").read_text()
            for old, new in changed.items():
                assert old in text, old
                text = text.replace(old, new)
            (tmp_path / "ldap.password").write_text(password)
            (tmp_path / "tokenissuer.toml").write_text(text)
            (config,) = load_config(tmp_path / "tokenissuer.toml").backends
            backend = config.build()
            assert isinstance(backend, LdapBackend)
            stack.callback(backend.close)
            return backend

        yield make
