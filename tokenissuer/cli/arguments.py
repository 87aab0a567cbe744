"""Values on the command line. A wrong one is wrong usage: one line, and exit status 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from tokenissuer.net import IPAddress, parse_address

T = TypeVar("T")


def argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Make the type of an option.

    Args:
        read: returns the value, and raises ValueError with a text for the user.
    """

    def convert(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def read_address(text: str) -> IPAddress:
    """Read an address.

    Raises:
        ValueError: if the text is not one.
    """
    address = parse_address(text)
    if address is None:
        raise ValueError(f"'{text}' is not an address such as 192.0.2.1")
    return address
