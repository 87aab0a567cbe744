"""`tokenissuer serve`: the application under waitress, in one process or several."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from tokenissuer.config import find_config, load_config
from tokenissuer.errors import ConfigurationError
from tokenissuer.listener import STOP_PATIENCE, Listen, Listener, inherited_sockets, open_sockets
from tokenissuer.live import LOOK_INTERVAL, LiveApplication
from tokenissuer.log import LogFormat, log_to_stderr
from tokenissuer.metrics import counting_together
from tokenissuer.observatory import Observatory
from tokenissuer.supervisor import Supervisor

DEFAULT_LISTEN: Final = Listen("127.0.0.1", 5001)

_log: Final = logging.getLogger("tokenissuer")

#: What ends `serve`.
STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--listen", type=listen_argument, default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"else {DEFAULT_LISTEN}"
    )
    parser.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes; else 1")
    parser.add_argument(
        "--threads", type=_threads, default=8, metavar="N", help="requests answered at once by each process; else 8"
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="else info")
    parser.add_argument(
        "--log-format",
        choices=[*LogFormat],
        default=LogFormat.AUTO,
        help="else auto: text on a terminal, json elsewhere",
    )


def run(arguments: argparse.Namespace) -> int:
    """answer token requests"""
    log_to_stderr(arguments.log_level, LogFormat(arguments.log_format))
    path = find_config(arguments.config)
    with stopped_by_signal(), counting_together() if arguments.workers > 1 else contextlib.nullcontext():
        server = open_server(path, arguments.listen, arguments.threads, arguments.workers)
        server.run()
    _log.info("stopped")
    return 0


@dataclass(frozen=True, slots=True)
class Server:
    """The application, and what listens for it.

    Args:
        path: the configuration file.
        application: answers.
        sockets: what to listen on.
        threads: requests answered at once by each process.
        workers: how many processes.
        stopped_by: what ends it.
        watched: where metrics and health in detail are shown; empty for nowhere.
    """

    path: Path
    application: LiveApplication
    sockets: Sequence[socket.socket] = field(repr=False)
    threads: int
    workers: int = 1
    stopped_by: Sequence[signal.Signals] = STOPPING
    watched: Sequence[socket.socket] = field(default=(), repr=False)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; answer what has come until then, and let go of everything.

        A change of a file reads everything again, and so does SIGHUP, unless that is one of `stopped_by`.
        """
        addresses = ", ".join(_url(sock) for sock in self.sockets)
        try:
            if self.workers == 1:
                listener = Listener(self.application, self.sockets, self.threads)
                _log.info("serving %s on %s", self.path, addresses)
                self._serve(listener, self.application.look, self.application.reload)
            else:
                _log.info("serving %s on %s with %d workers", self.path, addresses, self.workers)
                supervisor = Supervisor(self._work, self.workers, self._follow, STOP_PATIENCE + 5)
                supervisor.run(stopping=self._close_sockets)
        finally:
            self._close_sockets()
            self.application.close()

    def _follow(self, at_once: bool) -> bool:
        return self.application.reload() if at_once else self.application.look()

    def _work(self) -> None:
        parent = os.getppid()
        listener = Listener(self.application, self.sockets, self.threads)

        def look() -> None:
            if os.getppid() != parent:
                listener.stop()

        def follow() -> None:
            # The parent has already built what the files say. A worker that cannot is replaced by a fork of the parent:
            # in the end all do the same.
            if not self.application.reload():
                listener.stop()

        self._serve(listener, look, follow)
        self.application.close()

    def _serve(self, listener: Listener, look: Callable[[], object], follow: Callable[[], object]) -> None:
        heard, ended = threading.Event(), threading.Event()

        def keep_house() -> None:
            while not ended.is_set():
                if heard.wait(LOOK_INTERVAL):
                    heard.clear()
                    if not ended.is_set():
                        follow()
                else:
                    look()

        # Beside the loop that moves bytes, which nothing may hold up.
        housekeeper = threading.Thread(target=keep_house, name="housekeeper", daemon=True)
        before = signal.signal(signal.SIGHUP, lambda *_: heard.set())
        observatories = [Observatory(sock, self.application.troubles) for sock in self.watched]
        try:
            with listener.stopped_by(*self.stopped_by):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, signal.SIGHUP, signal.SIGCHLD})
                housekeeper.start()
                for observatory in observatories:
                    observatory.start()
                listener.run()
        finally:
            ended.set()
            heard.set()
            for observatory in observatories:
                observatory.stop()
            housekeeper.join(STOP_PATIENCE)
            if signal.SIGHUP not in self.stopped_by:
                signal.signal(signal.SIGHUP, before)

    def _close_sockets(self) -> None:
        for sock in (*self.sockets, *self.watched):
            sock.close()


def open_server(
    path: Path, listen: Listen, threads: int, workers: int = 1, stopped_by: Sequence[signal.Signals] = STOPPING
) -> Server:
    """Build the application and listen.

    Args:
        path: the configuration file.
        listen: where; what systemd listens on already goes before it.
        threads: requests answered at once by each process.
        workers: how many processes.
        stopped_by: what ends it.

    Raises:
        ConfigurationError: if the application cannot be built, or nothing can listen there.
    """
    with contextlib.ExitStack() as opened:
        application = LiveApplication(path, threads)
        opened.callback(application.close)
        sockets = inherited_sockets() or open_sockets(listen)
        for sock in sockets:
            opened.enter_context(sock)
        watched = _open_watched(path)
        opened.pop_all()
    return Server(path, application, sockets, threads, workers, stopped_by, watched)


@contextlib.contextmanager
def stopped_by_signal(numbers: Sequence[signal.Signals] = STOPPING) -> Iterator[None]:
    """Let the first of these signals end what runs inside, and the next ones do nothing.

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


def listen_argument(text: str) -> Listen:
    """Read HOST:PORT from the command line.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        return Listen.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _open_watched(path: Path) -> Sequence[socket.socket]:
    options = load_config(path).metrics
    if options is None:
        return ()
    try:
        return open_sockets(Listen.parse(options.listen))
    except ConfigurationError as error:
        raise ConfigurationError(f"[metrics] {error}") from None


def _url(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _threads(text: str) -> int:
    return _number(text, 1000)


def _workers(text: str) -> int:
    return _number(text, 100)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to {most}")
    return int(text)
