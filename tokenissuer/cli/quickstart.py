"""`tokenissuer quickstart`: issuer and registry on this machine, without a question."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenissuer.cli.arguments import argument
from tokenissuer.cli.init import SetUp
from tokenissuer.cli.serve import DEFAULT_LISTEN, add_log_level, open_server, stopped_by_signal
from tokenissuer.config import Config, load_config
from tokenissuer.errors import ConfigurationError, TokenIssuerError
from tokenissuer.files import read_text
from tokenissuer.monitoring.log import log_to_stderr
from tokenissuer.net import HostPort
from tokenissuer.serving.listener import open_sockets

#: A closed terminal ends it as Ctrl-C does.
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DEFAULT_FOLDER: Final = "tokenissuer-quickstart"
_DEFAULT_REGISTRY_LISTEN: Final = "127.0.0.1:5000"
#: Addresses that a client on this machine reaches as localhost.
_HERE: Final = ("127.0.0.1", "0.0.0.0", "::1", "::")
_REGISTRY_PROGRAMS: Final = ("registry", "docker-registry")
#: Seconds for the registry to start, and to end.
_REGISTRY_TIMEOUT: Final = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(_DEFAULT_FOLDER),
        metavar="DIR",
        help=f"the folder (default: ./{_DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--listen",
        type=argument(HostPort.parse),
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"the issuer's address (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--registry-listen",
        type=argument(HostPort.parse),
        default=HostPort.parse(_DEFAULT_REGISTRY_LISTEN),
        metavar="HOST:PORT",
        help=f"the registry's address (default: {_DEFAULT_REGISTRY_LISTEN})",
    )
    add_log_level(parser, default="warning")


def run(arguments: argparse.Namespace) -> int:
    """start an issuer and a registry that trusts it, with one account, in a new folder"""
    log_to_stderr(arguments.log_level)
    listen, registry_listen = arguments.listen, arguments.registry_listen
    for address, flag in ((listen, "--listen"), (registry_listen, "--registry-listen")):
        if address.port == 0:
            raise ConfigurationError(
                f"{flag} {address}: port 0 is not possible here, because both programs must know the port"
            )
        # Before anything is written: it may be taken.
        for sock in open_sockets(address, flag):
            sock.close()
    if listen == registry_listen:
        raise ConfigurationError(f"--listen and --registry-listen are both {listen}; give one of them another port")
    set_up = SetUp(arguments.folder.absolute(), realm=f"http://{_client_host(listen)}/token")
    login = (
        _first_login(set_up, registry_listen) if not set_up.config.exists() else _next_login(set_up, registry_listen)
    )
    config = load_config(set_up.config)
    _refuse_moved(set_up)
    _refuse_other_port(config, listen)
    registry_failed = threading.Event()
    with stopped_by_signal(_STOPPING), _registry(set_up, registry_listen, registry_failed):
        server = open_server(set_up.config, listen, stopped_by=_STOPPING)
        print(f"Issuer:    http://{listen}")
        print(login)
        print("Ctrl-C stops everything.", flush=True)
        server.run()
    print("Stopped.")
    return 1 if registry_failed.is_set() else 0


def _first_login(set_up: SetUp, registry: HostPort) -> str:
    password = set_up.write()
    # Now: if the start fails later, nobody could know it.
    print(f"Made:      {set_up.folder}")
    print(f"Account:   {set_up.account}   password: {password}   (shown only now)", flush=True)
    return f"Log in:\n  echo {password} | docker login -u {set_up.account} --password-stdin {_reachable(registry)}"


def _next_login(set_up: SetUp, registry: HostPort) -> str:
    print(f"Again:     {set_up.folder}")
    config = shlex.quote(str(set_up.config))
    return (
        "Log in with the password shown at the first start:\n"
        f"  docker login -u {set_up.account} {_reachable(registry)}\n"
        f"or set another:\n  tokenissuer passwd {set_up.account} --config {config}"
    )


@contextlib.contextmanager
def _registry(set_up: SetUp, listen: HostPort, failed: threading.Event) -> Iterator[None]:
    program = _find_registry()
    if program is None:
        print("No registry program is on PATH. In another terminal, this starts one:")
        print(f"  {_docker_run(set_up, listen)}")
        yield
        return
    log = set_up.folder / "registry.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, "serve", str(set_up.registry)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # In another process group: Ctrl-C ends this program, which then ends the registry in order.
            start_new_session=True,
            env={**os.environ, "REGISTRY_HTTP_ADDR": str(listen), "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        _wait_for_registry(process, listen, log)
        print(f"Registry:  {program} on {listen}, log in {log}")
        stopping = threading.Event()
        threading.Thread(target=_watch, args=(process, log, stopping, failed), daemon=True).start()
        try:
            yield
        finally:
            stopping.set()
    finally:
        _end(process)


def _find_registry() -> str | None:
    """Return the registry program; another program of that name is skipped."""
    for name in _REGISTRY_PROGRAMS:
        program = shutil.which(name)
        if program is None:
            continue
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
            if "distribution" in said.stdout:
                return program
    return None


def _docker_run(set_up: SetUp, listen: HostPort) -> str:
    volume = shlex.quote(f"{set_up.folder}:{set_up.folder}")
    return (
        f"docker run --rm -p {listen}:5000 -e REGISTRY_HTTP_ADDR=:5000 -v {volume} "
        f"registry:3 {shlex.quote(str(set_up.registry))}"
    )


def _wait_for_registry(process: subprocess.Popen[bytes], listen: HostPort, log: Path) -> None:
    for _ in range(_REGISTRY_TIMEOUT * 20):
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(0.05)
            raise TokenIssuerError(f"the registry ended at once (exit code {code}); {log} says why")
        with contextlib.suppress(OSError), socket.create_connection((_reachable(listen).host, listen.port), 1):
            return
    raise TokenIssuerError(f"the registry does not answer on {listen} after {_REGISTRY_TIMEOUT} s; {log} says why")


def _watch(process: subprocess.Popen[bytes], log: Path, stopping: threading.Event, failed: threading.Event) -> None:
    """End everything when the registry ends by itself."""
    code = process.wait()
    if not stopping.is_set():
        failed.set()
        print(f"tokenissuer: the registry ended (exit code {code}); {log} says why", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_REGISTRY_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _refuse_other_port(config: Config, listen: HostPort) -> None:
    realm = urllib.parse.urlsplit(config.issuer.realm)
    if realm.hostname in ("localhost", "127.0.0.1") and realm.port != listen.port:
        raise ConfigurationError(
            f"{config.path} sends clients to {config.issuer.realm}, but the issuer would listen on {listen}; "
            f"use --listen {listen.host}:{realm.port}, or another folder"
        )


def _refuse_moved(set_up: SetUp) -> None:
    found = re.search(r'^\s*rootcertbundle: "?(?P<folder>.*)/auth\.crt"?\s*$', read_text(set_up.registry), re.MULTILINE)
    if found is not None and Path(found["folder"]) != set_up.folder:
        old, new, file = (shlex.quote(str(each)) for each in (found["folder"], set_up.folder, set_up.registry))
        raise ConfigurationError(
            f"{set_up.registry} names files in {found['folder']}: the folder has been moved; change the names: "
            f"sed -i s={old}/={new}/=g {file}"
        )


def _client_host(listen: HostPort) -> str:
    # A name where there is one: crane and Helm refuse a realm whose host is a loopback address.
    return f"localhost:{listen.port}" if listen.host in _HERE else str(listen)


def _reachable(listen: HostPort) -> HostPort:
    """Return the address for clients on this machine: docker speaks plain HTTP only to loopback addresses."""
    return HostPort("127.0.0.1", listen.port) if listen.host == "0.0.0.0" else listen
