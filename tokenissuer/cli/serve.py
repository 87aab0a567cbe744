"""`tokenissuer serve`: the application under waitress."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from tokenissuer.cli.arguments import argument
from tokenissuer.config import THREADS, find_config, load_config
from tokenissuer.errors import TokenIssuerError
from tokenissuer.monitoring.log import LogFormat, log_to_stderr
from tokenissuer.monitoring.metrics import serve_metrics
from tokenissuer.net import HostPort
from tokenissuer.serving.listener import Listener, inherited_sockets, open_sockets
from tokenissuer.serving.notify import notify
from tokenissuer.serving.reload import ReloadingApplication

DEFAULT_LISTEN: Final = HostPort("127.0.0.1", 5001)
_MAX_THREADS: Final = 1000

#: What ends `serve`.
STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

_log: Final = logging.getLogger("tokenissuer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--listen",
        type=argument(HostPort.parse),
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"where to listen (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--threads",
        type=argument(_threads),
        default=THREADS,
        metavar="N",
        help=f"requests answered at once (default: {THREADS})",
    )
    add_log_level(parser, default="info")
    parser.add_argument(
        "--log-format",
        choices=[*LogFormat],
        default=LogFormat.AUTO,
        help="how lines are written (default: auto, which is text on a terminal and json elsewhere)",
    )


def add_log_level(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare the option `--log-level`."""
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default=default,
        help=f"the least severe messages shown (default: {default})",
    )


def run(arguments: argparse.Namespace) -> int:
    """answer token requests"""
    log_to_stderr(arguments.log_level, LogFormat(arguments.log_format))
    path = find_config(arguments.config)
    try:
        with stopped_by_signal():
            open_server(path, arguments.listen, arguments.threads).run()
    except TokenIssuerError as error:
        # systemd shows the journal's lines from its last try on, and then this one is no longer among them.
        notify(str(error))
        raise
    _log.info("stopped")
    return 0


@dataclass(frozen=True, slots=True)
class Server:
    """The application, and the sockets that it is served on.

    Args:
        path: the configuration file.
        application: answers.
        sockets: what to listen on.
        threads: requests answered at once.
        stopped_by: the signals that end it.
    """

    path: Path
    application: ReloadingApplication
    sockets: Sequence[socket.socket] = field(repr=False)
    threads: int
    stopped_by: Sequence[signal.Signals] = STOPPING

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; answer what has arrived until then, and close everything.

        SIGHUP, unless it is one of `stopped_by`, and a change of a file read everything again.
        """
        addresses = ", ".join(_url(sock) for sock in self.sockets)
        metrics = load_config(self.path).metrics
        with contextlib.ExitStack() as ending:
            ending.callback(self.application.close)
            for sock in self.sockets:
                ending.enter_context(sock)
            listener = Listener(self.application, self.sockets, self.threads)
            if metrics is not None:
                ending.enter_context(serve_metrics(HostPort.parse(metrics.listen), self.application.troubles))
            self.application.watch()
            if signal.SIGHUP not in self.stopped_by:
                before = signal.signal(signal.SIGHUP, lambda *_: self.application.reload())
                ending.callback(signal.signal, signal.SIGHUP, before)
            with listener.stopped_by(*self.stopped_by):
                _log.info("serving %s on %s", self.path, addresses)
                notify(f"serving {self.path} on {addresses}", is_ready=True)
                listener.run()


def open_server(
    path: Path, listen: HostPort, threads: int = THREADS, stopped_by: Sequence[signal.Signals] = STOPPING
) -> Server:
    """Build the application and listen.

    Args:
        path: the configuration file.
        listen: where; sockets from systemd are used instead.
        threads: requests answered at once.
        stopped_by: the signals that end it.

    Raises:
        ConfigurationError: if the application cannot be built, or nothing can listen there.
    """
    with contextlib.ExitStack() as opened:
        application = ReloadingApplication(path, threads)
        opened.callback(application.close)
        sockets = inherited_sockets() or open_sockets(listen)
        opened.pop_all()
    return Server(path, application, sockets, threads, stopped_by)


@contextlib.contextmanager
def stopped_by_signal(numbers: Sequence[signal.Signals] = STOPPING) -> Iterator[None]:
    """Let the first of these signals end the block, and ignore the next ones.

    Programs that stop others send a signal twice, to the process and to its group: the second must not cut short
    what the first began.
    """

    def stop(number: int, frame: object) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"http://{HostPort(host, port)}"


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= _MAX_THREADS:
        raise ValueError(f"'{text}' is not a number from 1 to {_MAX_THREADS}")
    return int(text)
