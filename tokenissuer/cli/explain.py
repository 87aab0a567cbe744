"""`tokenissuer explain`: why an account may do something, or may not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tokenissuer.accounts.backend import Account
from tokenissuer.accounts.chain import Chain, Login
from tokenissuer.cli.arguments import argument, read_address
from tokenissuer.config import Config, find_config, load_config
from tokenissuer.diagnosis import one_line
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, TokenIssuerError
from tokenissuer.options import near_match
from tokenissuer.policy import Caller, Policy, Rule
from tokenissuer.policy.expectation import one_scope
from tokenissuer.policy.explanation import Explanation, explain
from tokenissuer.scope import Access


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "scopes", nargs="+", type=argument(one_scope), metavar="SCOPE", help="such as repository:team/app:pull,push"
    )
    parser.add_argument("--account", metavar="NAME", help="who asks (default: nobody is logged in)")
    parser.add_argument(
        "--group", action="append", default=[], metavar="NAME", help="take the account as a member of this"
    )
    parser.add_argument(
        "--address", type=argument(read_address), metavar="IP", help="the client's address (default: not known)"
    )
    parser.add_argument("--service", metavar="NAME", help="the registry (default: the first of [issuer] services)")
    parser.add_argument(
        "--backend", metavar="NAME", help="whose account it is (default: the first backend that finds it)"
    )


def run(arguments: argparse.Namespace) -> int:
    """say which access rule allows or denies something, or why none does; exit status 1 if not all is granted"""
    config = load_config(find_config(arguments.config))
    policy, is_all = Policy(config.rules), True
    with closing(config.open_chain()) as chain:
        login, note = _find(chain, config, arguments)
        caller = _caller(config, arguments, login)
        for access in arguments.scopes:
            grants = frozenset[str]()
            if chain.may_grant and access.is_repository and (login is not None or caller.account is None):
                try:
                    grants = chain.grants(login, access)
                except BackendUnavailable as error:
                    note = f"backend '{error.backend}' does not answer: {error.reason}; what it grants is left out"
            explained = explain(policy, caller, access, grants)
            is_all = is_all and all(each.is_granted for each in explained)
            print(_heading(caller, access))
            for explanation in explained:
                _print(explanation, config.path)
    if note:
        print(one_line(f"note: {note}"))
    return 0 if is_all else 1


def _find(chain: Chain, config: Config, arguments: argparse.Namespace) -> tuple[Login | None, str]:
    """Return the account as its backend finds it; None for one that is made up, with a note on why."""
    if arguments.account is None:
        if arguments.group or arguments.backend:
            raise TokenIssuerError("--group and --backend need --account")
        return None, ""
    names = [backend.name for backend in chain.backends]
    if arguments.backend and arguments.backend not in names:
        raise TokenIssuerError(
            f"--backend: {config.path} has no backend '{arguments.backend}'; {near_match(arguments.backend, names)}"
        )
    if arguments.group:
        return None, ""
    reasons = []
    for backend in chain.backends:
        if arguments.backend not in (None, backend.name):
            continue
        try:
            return chain.find(backend, arguments.account), ""
        except (InvalidCredentials, BackendUnavailable) as error:
            reasons.append(f"backend '{backend.name}': {error.reason}")
    if arguments.backend:
        raise TokenIssuerError(f"{reasons[0]}; leave --backend out and name the groups with --group")
    return None, f"the account was not found, so it has no groups here ({'; '.join(reasons)}); name them with --group"


def _caller(config: Config, arguments: argparse.Namespace, login: Login | None) -> Caller:
    service, address = config.service(arguments.service), arguments.address
    if login is not None:
        return Caller(login.account, service, address, login.backend.name)
    if arguments.account is None:
        return Caller(None, service, address)
    account = Account(arguments.account, frozenset(arguments.group))
    return Caller(account, service, address, arguments.backend or config.backends[0].name)


def _heading(caller: Caller, access: Access) -> str:
    resource = f"{access.type}:{access.name}"
    if caller.account is None:
        return f"{resource}, nobody logged in"
    groups = ", ".join(sorted(caller.account.groups)) or "none"
    known = "" if caller.account.groups_known else ", and perhaps more"
    return f"{resource}, account '{caller.account.name}' of backend '{caller.backend}', groups: {groups}{known}"


def _print(explanation: Explanation, path: Path) -> None:
    verdict = "granted" if explanation.is_granted else "denied" if explanation.denied_by else "not granted"
    head = f"  {explanation.action:<7} {verdict:<12}"
    for line in _reasons(explanation, path):
        print(f"{head}{line}")
        head = " " * len(head)


def _reasons(explanation: Explanation, path: Path) -> Iterator[str]:
    if explanation.denied_by:
        for rule in explanation.denied_by:
            yield f"{_place(rule, path)} denies it"
        return
    for rule in explanation.allowed_by:
        yield f"{_place(rule, path)} allows it"
    if explanation.by_backend:
        yield "the backend grants it"
    if explanation.is_granted:
        return
    yield "nothing allows it" + (", and these rules come nearest:" if explanation.nearest else ", and no rule could")
    for obstacle in explanation.nearest:
        for reason in obstacle.reasons:
            yield f"{_place(obstacle.rule, path)}: {reason}"


def _place(rule: Rule, path: Path) -> str:
    """Name a rule by file and line."""
    line = f"{path}:{rule.line}" if rule.line else str(path)
    return f"{line}, [[access]] {rule}"
