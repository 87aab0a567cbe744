"""`tokenissuer serve`: the application under waitress."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from waitress.server import create_server

from tokenissuer.app import Application
from tokenissuer.config import Config, find_config, load_config
from tokenissuer.errors import ConfigurationError

DEFAULT_LISTEN: Final = "127.0.0.1:5001"

_log: Final = logging.getLogger("tokenissuer")

#: Bytes: a query with every possible mount source, and an access token or password in a header.
_MAX_HEADER_SIZE: Final = 128 * 1024
#: Bytes: above what the application reads, so that its own answer says what is wrong.
_MAX_BODY_SIZE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on, as HOST:PORT; port 0 is any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read HOST:PORT.

        Raises:
            argparse.ArgumentTypeError: if it is none.
        """
        host, _, port = text.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise argparse.ArgumentTypeError(f"'{text}' is no HOST:PORT such as {DEFAULT_LISTEN}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--listen", type=Listen.parse, default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"else {DEFAULT_LISTEN}"
    )
    parser.add_argument("--threads", type=_threads, default=8, metavar="N", help="requests answered at once; else 8")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="else info")


def run(arguments: argparse.Namespace) -> int:
    """answer token requests"""
    log_to_stderr(arguments.log_level)
    config = load_config(find_config(arguments.config))
    with stopped_by_signal():
        server = open_server(config, arguments.listen, arguments.threads)
        _log.info("serving %s on http://%s", config.path, arguments.listen)
        server.run()
    _log.info("stopped")
    return 0


def log_to_stderr(level: str) -> None:
    """Write the log to standard error, one line each, with UTC times."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It warns at every busy moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Server:
    """The application, and what listens for it.

    Args:
        application: answers.
        listener: waitress's server.
    """

    application: Application
    listener: Any

    def run(self) -> None:
        """Serve until something stops it, then let go of everything."""
        try:
            self.listener.run()
        finally:
            self.listener.close()
            self.application.close()


def open_server(config: Config, listen: Listen, threads: int) -> Server:
    """Build the service and listen.

    Args:
        config: what to serve.
        listen: where.
        threads: requests answered at once.

    Raises:
        ConfigurationError: if the service cannot be built, or nothing can listen there.
    """
    application = Application(config.build(time.time(), threads), config.server.proxies())
    for finding in config.findings(time.time()):
        _log.warning("%s", finding)
    try:
        listener = create_server(
            application,
            host=listen.host,
            port=listen.port,
            threads=threads,
            ident=None,
            max_request_header_size=_MAX_HEADER_SIZE,
            max_request_body_size=_MAX_BODY_SIZE,
            # Which of them count, `[server] trusted_proxies` says.
            clear_untrusted_proxy_headers=False,
        )
    except (OSError, ValueError) as error:
        application.close()
        raise ConfigurationError(f"cannot listen on {listen}: {_cause(error)}") from None
    return Server(application, listener)


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C end what runs inside, and the next ones do nothing.

    Programs that stop others send a signal twice, to the process and to its group: the second must not cut short
    what the first began.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)

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


def _cause(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}; stop what listens there, or use --listen with another port"
    return str(error)


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to 1000")
    return int(text)
