"""Access rules → decision. No clock, no I/O."""

from tokenissuer.policy.decision import Decision, Policy
from tokenissuer.policy.pattern import Glob, account_path, fold
from tokenissuer.policy.rule import (
    CATALOG_ACTIONS,
    NOBODY,
    REPOSITORY_ACTIONS,
    AccessOptions,
    Caller,
    Identity,
    Names,
    Rule,
)

__all__ = [
    "CATALOG_ACTIONS",
    "NOBODY",
    "REPOSITORY_ACTIONS",
    "AccessOptions",
    "Caller",
    "Decision",
    "Glob",
    "Identity",
    "Names",
    "Policy",
    "Rule",
    "account_path",
    "fold",
]
