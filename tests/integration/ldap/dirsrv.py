"""A real 389 Directory Server for tests: what FreeIPA and Red Hat Directory Server are made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.ldap.conftest import SUFFIX, environment, run_program
from tests.support.machine import free_port

MANAGER, MANAGER_PASSWORD = "cn=Directory Manager", "manager-secret"
INSTANCE = """
[general]
config_version = 2
strict_host_checking = False
full_machine_name = localhost
[slapd]
instance_name = {name}
port = {port}
secure_port = {tls_port}
root_password = {password}
self_sign_cert = False
[backend-userroot]
suffix = {suffix}
create_suffix_entry = True
"""
# `dscreate` starts and stops the server through systemd, which runs on no test machine.
SYSTEMCTL = """#!/bin/sh
for last; do :; done
name=${last#dirsrv@}
pid=/run/dirsrv/slapd-$name.pid
case $* in
  *is-active*) kill -0 "$(cat "$pid")" ;;
  *start*dirsrv@*)
    rm -f "$pid"
    ns-slapd -D "/etc/dirsrv/slapd-$name" -i "$pid"
    for _ in $(seq 300); do
      ldapwhoami -x -H "ldapi://%2Frun%2Fslapd-$name.socket" >/dev/null 2>&1 && break
      sleep 0.1
    done ;;
  *stop*dirsrv@*)
    kill "$(cat "$pid")"
    for _ in $(seq 300); do kill -0 "$(cat "$pid")" || break; sleep 0.1; done ;;
esac
"""


class DirectoryServer:
    """One instance. Debian's package keeps all of them in /etc/dirsrv, so that it has a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"test{os.getpid()}"
        self.port, self.tls_port = free_port(), free_port()

    @property
    def plain(self) -> str:
        """Its address."""
        return f"ldap://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Make it and run it."""
        if os.geteuid() != 0 or shutil.which("dscreate", path=environment()["PATH"]) is None:
            pytest.skip("a 389 Directory Server needs root, and Debian's 389-ds-base")
        program = self.folder / "bin" / "systemctl"
        program.parent.mkdir()
        program.write_text(SYSTEMCTL)
        program.chmod(0o755)
        run = Path("/run/dirsrv")
        run.mkdir(exist_ok=True)
        shutil.chown(run, "dirsrv", "dirsrv")
        text = INSTANCE.format(
            name=self.name, port=self.port, tls_port=self.tls_port, password=MANAGER_PASSWORD, suffix=SUFFIX
        )
        (self.folder / "instance.inf").write_text(text)
        self._run("dscreate", "from-file", str(self.folder / "instance.inf"))

    def remove(self) -> None:
        """End it, and remove its files."""
        if Path(f"/etc/dirsrv/slapd-{self.name}").exists():
            self._run("dsctl", self.name, "remove", "--do-it")

    def change(self, program: str, ldif: str) -> None:
        """Run ldapadd or ldapmodify as the directory's manager."""
        self._run(program, "-x", "-H", self.plain, "-D", MANAGER, "-w", MANAGER_PASSWORD, stdin=ldif)

    def modify(self, dn: str, **attributes: str) -> None:
        """Replace attributes of an entry."""
        replaced = "\n-\n".join(f"replace: {name}\n{name}: {value}" for name, value in attributes.items())
        self.change("ldapmodify", f"dn: {dn}\nchangetype: modify\n{replaced}\n")

    def _run(self, *command: str, stdin: str = "") -> None:
        path = f"{self.folder / 'bin'}:{environment()['PATH']}"
        program = shutil.which(command[0], path=path) or command[0]
        run_program(program, *command[1:], stdin=stdin, env={**environment(), "PATH": path})
