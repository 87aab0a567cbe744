"""Fake directories, and backends that ask them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.ldap import READER, READER_PASSWORD, FakeDirectory
from tokenissuer.options import Secret
from tokenissuer_backends.ldap import LdapBackend
from tokenissuer_backends.ldap.options import GroupOptions, LdapOptions, UserOptions


@pytest.fixture
def new_directory() -> Iterator[Callable[..., FakeDirectory]]:
    """Makes such servers."""
    with contextlib.ExitStack() as stack:

        def make(**fields: Any) -> FakeDirectory:
            directory = FakeDirectory(**fields)
            stack.callback(directory.close)
            return directory

        yield make


@pytest.fixture
def new_backend() -> Iterator[Callable[..., LdapBackend]]:
    """Makes backends for servers, with the usual options unless others are given."""
    with contextlib.ExitStack() as stack:

        def make(*directories: FakeDirectory | str, **options: Any) -> LdapBackend:
            urls = (each if isinstance(each, str) else each.url for each in directories)
            usual: dict[str, Any] = {
                "servers": tuple(urls),
                "user": UserOptions("dc=test"),
                "groups": GroupOptions("ou=groups,dc=test"),
                "bind_dn": READER,
                "bind_password": Secret(READER_PASSWORD),
                "allow_plaintext": True,
                "connect_timeout": 1,
                "timeout": 1,
            }
            backend = LdapBackend(LdapOptions(**{**usual, **options}))
            stack.callback(backend.close)
            return backend

        yield make
