"""Access rules for tests: one that is changed a little, and generated ones with callers and scopes."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import strategies as st

from tokenissuer.accounts.backend import Account
from tokenissuer.policy import Caller, Glob, Names, Rule
from tokenissuer.scope import Access


def rule(**changes: Any) -> Rule:
    """A rule that lets everyone pull everything, but for the changes."""
    values: dict[str, Any] = {
        "number": 1,
        "authenticated": False,
        "everyone": True,
        "repositories": ("**",),
        "catalog": False,
        "actions": frozenset({"pull"}),
        "services": frozenset(),
        "networks": (),
        "deny": False,
        **changes,
    }
    for key in ("repositories", "except_repositories"):
        values[key] = tuple(Glob(text) for text in values.get(key, ()))
    for key in ("accounts", "groups", "except_accounts", "except_groups"):
        values[key] = Names(values.get(key, ()))
    return Rule(**values)


SEGMENTS = st.sampled_from(["a", "b", "*", "**", "**", "a*", "*b", "a*b", "*a*", "{account}", "{group}", "{account}*"])
NAMES = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5).map("/".join)
PATTERNS = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)
ACCOUNTS = st.none() | st.builds(
    Account, st.sampled_from(["a", "b", "ab"]), st.frozensets(st.sampled_from(["a", "b", "*"]))
)
ACTIONS = st.frozensets(st.sampled_from(["pull", "push", "delete"]), min_size=1)
RULES = st.builds(
    lambda **values: rule(**values),
    number=st.integers(1, 9),
    accounts=st.frozensets(st.sampled_from(["a", "b"])),
    groups=st.frozensets(st.sampled_from(["a", "b", "*"])),
    authenticated=st.booleans(),
    everyone=st.booleans(),
    repositories=st.lists(PATTERNS, max_size=2),
    catalog=st.booleans(),
    actions=ACTIONS,
    services=st.frozensets(st.sampled_from(["one", "two"])),
    except_accounts=st.frozensets(st.sampled_from(["a", "b", "*b"]), max_size=1),
    except_groups=st.frozensets(st.sampled_from(["a", "b", "a*"]), max_size=1),
    except_repositories=st.lists(PATTERNS, max_size=1),
    networks=st.lists(st.sampled_from([ipaddress.ip_network("10.0.0.0/8")]), max_size=1).map(tuple),
    deny=st.booleans(),
)
CALLERS = st.builds(
    Caller,
    account=ACCOUNTS,
    service=st.sampled_from(["one", "two"]),
    address=st.sampled_from([None, ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("192.0.2.1")]),
)
ASKED = st.builds(
    Access,
    type=st.sampled_from(["repository", "repository", "repository", "registry", "thing"]),
    name=NAMES | st.sampled_from(["catalog", "a//b", "a/../b", "A", "", "a/"]),
    actions=st.frozensets(st.sampled_from(["pull", "push", "delete", "*", "search"])),
)
