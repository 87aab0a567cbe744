"""A token server for container registries.

The names in `__all__`, `tokenissuer.testing.BackendContract` and `tokenissuer.wsgi:application` are public. Everything
else is private and may change.
"""

from tokenissuer.accounts.backend import Account, Backend, Listing, WantedGroups
from tokenissuer.accounts.cache import Cache, Deadline
from tokenissuer.config import load_config, parse_config
from tokenissuer.diagnosis import Finding, Findings, Severity, Stopwatch
from tokenissuer.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    QuotaExceeded,
    RequestError,
    TokenIssuerError,
    UnknownAccount,
)
from tokenissuer.net import tls_context
from tokenissuer.options import Secret, option, read_file, read_text
from tokenissuer.scope import Access
from tokenissuer.sessions.store import Session, Store
from tokenissuer.web.app import Application

__all__ = [
    "Access",
    "Account",
    "Application",
    "Backend",
    "BackendUnavailable",
    "Cache",
    "ConfigurationError",
    "Deadline",
    "Finding",
    "Findings",
    "InvalidCredentials",
    "Listing",
    "QuotaExceeded",
    "RequestError",
    "Secret",
    "Session",
    "Severity",
    "Stopwatch",
    "Store",
    "TokenIssuerError",
    "UnknownAccount",
    "WantedGroups",
    "load_config",
    "option",
    "parse_config",
    "read_file",
    "read_text",
    "tls_context",
]
