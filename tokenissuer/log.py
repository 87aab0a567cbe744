"""The log, on standard error: one line each, with UTC times."""

from __future__ import annotations

import logging
import sys
import time


def log_to_stderr(level: str) -> None:
    """Write the whole program's log to standard error.

    Args:
        level: debug, info, warning or error.
    """
    logging.basicConfig(level=level.upper(), handlers=[_handler()], force=True)
    # It warns at every busy moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def log_beside_others() -> None:
    """Write our own log to standard error, unless whoever runs us has set up logging."""
    ours = logging.getLogger("tokenissuer")
    if not ours.hasHandlers():
        ours.addHandler(_handler())
        ours.setLevel(logging.INFO)


def _handler() -> logging.Handler:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    return handler
