"""A token server for container registries.

The names in `__all__`, `tokenissuer.testing.BackendContract` and `tokenissuer.wsgi:application` are public. Everything
else is private and may change.
"""

from tokenissuer.accounts.backend import Account, Backend, Listing, WantedGroups
from tokenissuer.accounts.cache import Cache
from tokenissuer.accounts.limit import Deadline
from tokenissuer.config import load_config, parse_config
from tokenissuer.diagnosis import Finding, Findings, Severity, Stopwatch, control_findings, secret_findings
from tokenissuer.errors import (
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    QuotaExceeded,
    RequestError,
    TokenIssuerError,
    UnknownAccount,
)
from tokenissuer.files import locked_folder, read_file, read_text, replace_file
from tokenissuer.net import shown_url, tls_context
from tokenissuer.options import Secret, option
from tokenissuer.policy import fold
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
    "control_findings",
    "fold",
    "load_config",
    "locked_folder",
    "option",
    "parse_config",
    "read_file",
    "read_text",
    "replace_file",
    "secret_findings",
    "shown_url",
    "tls_context",
]
