"""`tokenissuer sessions`: the logins with refresh tokens."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from tokenissuer.config import find_config, load_config
from tokenissuer.diagnosis import one_line
from tokenissuer.errors import BackendUnavailable, TokenIssuerError
from tokenissuer.sessions.store import Session, Store

_DAY: Final = 24 * 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=["list", "revoke"], help="show sessions, or end them")
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these")
    parser.add_argument("--account", metavar="NAME", help="only this account's")
    parser.add_argument("--client", metavar="ID", help="only this client's, such as docker")
    parser.add_argument("--unused-for", type=_days, metavar="DAYS", help="only sessions not used for so many days")
    parser.add_argument("--older-than", type=_days, metavar="DAYS", help="only sessions that began so many days ago")
    parser.add_argument("--all", action="store_true", help="revoke: every session")


def run(arguments: argparse.Namespace) -> int:
    """list the logins with refresh tokens, or revoke them"""
    config = load_config(find_config(arguments.config))
    # Made here it would belong to whoever runs this command, and the user that serves could not open it.
    if missing := [path for path in config.store_files() if not path.exists()]:
        none_yet = f"there are no sessions yet: `serve` has not made {missing[0]}"
        if arguments.action == "revoke":
            raise TokenIssuerError(none_yet)
        print(none_yet)
        return 0
    refresh = config.open_refresh()
    if refresh is None:
        raise TokenIssuerError(f"{config.path} has no table [refresh]: there are no sessions")
    with contextlib.closing(refresh.store), contextlib.closing(config.open_chain()) as chain:
        now = time.time()
        try:
            found = [session for session in refresh.store.sessions() if _is_meant(session, arguments, now)]
            if arguments.action == "list":
                states = refresh.states(found, chain)
                _print_table(_row(session, state) for session, state in zip(found, states, strict=True))
                return 0
            return _revoke(refresh.store, found, arguments, now)
        except BackendUnavailable as error:
            raise TokenIssuerError(error.reason) from None


def _is_meant(session: Session, arguments: argparse.Namespace, now: float) -> bool:
    return (
        (not arguments.ids or session.id in arguments.ids)
        and arguments.account in (None, session.account)
        and arguments.client in (None, session.client_id)
        and (arguments.unused_for is None or session.used <= now - arguments.unused_for)
        and (arguments.older_than is None or session.created <= now - arguments.older_than)
    )


def _revoke(store: Store, sessions: Sequence[Session], arguments: argparse.Namespace, now: float) -> int:
    limits = (arguments.account, arguments.client, arguments.unused_for, arguments.older_than)
    if not arguments.ids and not arguments.all and limits == (None, None, None, None):
        raise TokenIssuerError("name the sessions: IDs, --account, --client, --unused-for, --older-than, or --all")
    unknown = set(arguments.ids) - {session.id for session in sessions}
    valid = [session for session in sessions if session.ended is None]
    store.end([session.digest for session in valid], now, "revoked by the administrator")
    print(f"Revoked: {len(valid)}. An access token issued before stays valid until it ends.")
    if unknown:
        raise TokenIssuerError(f"no such session: {', '.join(sorted(unknown))}")
    return 0


def _row(session: Session, state: str) -> tuple[str, ...]:
    return (
        session.id,
        session.account,
        session.backend,
        session.service,
        session.client_id or session.agent.partition(" ")[0],
        _moment(session.created),
        session.created_from,
        _moment(session.used),
        session.used_from,
        state,
    )


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    head = ("ID", "ACCOUNT", "BACKEND", "SERVICE", "CLIENT", "LOGIN", "FROM", "LAST USED", "FROM", "STATE")
    table = [head, *(tuple(one_line(cell[:60]) or "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days < 100_000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of days")
    return days * _DAY
