"""A real Active Directory domain for tests: Samba's domain controller, with nothing but its LDAP server."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.ldap.conftest import (
    Certificates,
    environment,
    run_program,
    slapd_program,
    start_listening,
)

DOMAIN = "DC=corp,DC=example,DC=com"
STAFF, GROUPS, SERVICES = (f"OU={unit},{DOMAIN}" for unit in ("Staff", "Groups", "Services"))
READER = f"CN=tokenissuer,{SERVICES}"
ADMIN, ADMIN_PASSWORD = "administrator@corp.example.com", "Admin-secret-1"
#: Wrong passwords that lock an account.
LOCKOUT = 5

CONFIGURATION = """
[global]
    netbios name = DC1
    workgroup = CORP
    realm = CORP.EXAMPLE.COM
    server role = active directory domain controller
    server services = ldap
    interfaces = {address}/8
    bind interfaces only = yes
    lock directory = {folder}
    state directory = {folder}/state
    cache directory = {folder}/cache
    private dir = {folder}/private
    pid directory = {folder}
    ncalrpc dir = {folder}/ncalrpc
    log file = {folder}/samba.log
    tls keyfile = {certificates}/server.key
    tls certfile = {certificates}/server.pem
    tls cafile = {certificates}/ca.pem
    ldap server require strong auth = no
"""


def password_of(name: str) -> str:
    """What an account of this name logs in with."""
    return f"Right-{name}-1"


def entry(dn: str, kind: str, **attributes: str | list[str]) -> str:
    """The LDIF of an entry."""
    lines = [f"dn: {dn}", f"objectClass: {kind}"]
    for name, value in attributes.items():
        lines += [f"{name}: {each}" for each in (value if isinstance(value, list) else [value])]
    return "\n".join(lines) + "\n"


def user(name: str, unit: str = STAFF, **attributes: str) -> str:
    """The LDIF of an account that can be used."""
    octets = f'"{password_of(name)}"'.encode("utf-16-le")
    text = entry(
        f"CN={name},{unit}",
        "user",
        sAMAccountName=name,
        userPrincipalName=f"{name}@corp.example.com",
        mail=f"{name}@mail.example",
        userAccountControl="512",
        **attributes,
    )
    return f"{text}unicodePwd:: {base64.b64encode(octets).decode()}\n"


def group(name: str, *members: str) -> str:
    """The LDIF of a security group."""
    return entry(f"CN={name},{GROUPS}", "group", sAMAccountName=name, member=list(members))


class Domain:
    """One domain controller, on an address of this machine that nothing else uses: its ports are fixed."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.folder = folder
        self.certificates = certificates
        self.address = f"127.77.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def tls(self) -> str:
        """Its address with TLS."""
        return f"ldaps://{self.address}"

    @property
    def plain(self) -> str:
        """Its address without TLS."""
        return f"ldap://{self.address}"

    def provision(self) -> None:
        """Make the domain."""
        if os.geteuid() != 0 or shutil.which("samba", path=environment()["PATH"]) is None:
            pytest.skip("a domain controller needs root, and Debian's samba, samba-ad-provision and winbind")
        arguments = ["--realm", "CORP.EXAMPLE.COM", "--domain", "CORP", "--host-name", "dc1", "--host-ip", self.address]
        arguments += ["--server-role", "dc", "--dns-backend", "NONE", "--targetdir", str(self.folder)]
        arguments += ["--adminpass", ADMIN_PASSWORD, "--option=bind interfaces only=yes"]
        self._run("samba-tool", "domain", "provision", *arguments, f"--option=interfaces={self.address}/8")
        text = CONFIGURATION.format(address=self.address, folder=self.folder, certificates=self.certificates.folder)
        (self.folder / "smb.conf").write_text(text)
        # Samba wants to be the only one who can read the key.
        (self.certificates.folder / "server.key").chmod(0o600)

    def start(self) -> None:
        """Run it, and return when it answers."""
        program = slapd_program("samba")
        command = [program, "--foreground", "--no-process-group", "-s", str(self.folder / "smb.conf")]
        self.process = start_listening(command, self.folder / "output.log", [(self.address, 389), (self.address, 636)])

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def add(self, *entries: str) -> None:
        """Add entries."""
        self._change("ldapadd", "\n".join(entries))

    def modify(self, dn: str, **attributes: str | bytes) -> None:
        """Replace attributes of an entry."""
        replaced = "\n-\n".join(
            f"replace: {name}\n"
            + (f"{name}: {value}" if isinstance(value, str) else f"{name}:: {base64.b64encode(value).decode()}")
            for name, value in attributes.items()
        )
        self._change("ldapmodify", f"dn: {dn}\nchangetype: modify\n{replaced}\n")

    def number(self, name: str, attribute: str) -> int:
        """An attribute of an account that is a number."""
        found = self._run(
            *("ldapsearch", "-x", "-LLL", "-H", self.plain, "-D", ADMIN, "-w", ADMIN_PASSWORD),
            *("-b", DOMAIN, f"(sAMAccountName={name})", attribute),
        )
        return int(found.partition(f"{attribute}: ")[2].split()[0])

    def _change(self, program: str, ldif: str) -> None:
        # Passwords can be set over TLS only. The certificate is for another name than this address.
        self._run(program, "-x", "-H", self.tls, "-D", ADMIN, "-w", ADMIN_PASSWORD, stdin=ldif)

    def _run(self, name: str, *arguments: str, stdin: str = "") -> str:
        # Instead of LDAPNOINIT, with which this variable would not be read.
        trusting = {"PATH": environment()["PATH"], "LANG": "C.UTF-8", "LDAPTLS_REQCERT": "never"}
        return run_program(slapd_program(name), *arguments, stdin=stdin, env=trusting)
