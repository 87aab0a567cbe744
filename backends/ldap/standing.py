"""Whether an account is disabled, locked or expired, as far as its entry shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from tokenissuer_backends.ldap.wire import Entry

# Not shadowLastChange and sambaPwdLastSet: only the programs they are named after change them with the password, and
# the first counts days.
#: The server itself changes these with the password: OpenLDAP's policy, Active Directory, FreeIPA.
PASSWORD_CHANGED: Final = ("pwdChangedTime", "pwdLastSet", "krbLastPwdChange")

#: Operational attributes are returned only if they are asked for by name.
ATTRIBUTES: Final = (
    *PASSWORD_CHANGED,
    "userAccountControl",
    "accountExpires",
    "nsAccountLock",
    "krbPasswordExpiration",
    "krbPrincipalExpiration",
    "pwdAccountLockedTime",
    "pwdReset",
)

#: Locked permanently by an administrator: draft-behera-ldap-password-policy, 5.3.3.
_LOCKED_PERMANENTLY: Final = "000001010000Z"
_AD_DISABLED: Final = 0x2
_AD_PASSWORD_NEVER_EXPIRES: Final = 0x10000
_AD_NEVER: Final = (0, 0x7FFFFFFFFFFFFFFF)
_AD_EPOCH: Final = datetime(1601, 1, 1, tzinfo=UTC)


def objection(entry: Entry, now: datetime) -> str:
    """Say why the account may not be used; empty if the entry shows no reason.

    Args:
        entry: with `ATTRIBUTES`.
        now: with time zone.
    """
    control = _number(entry, "userAccountControl")
    if control & _AD_DISABLED or _first(entry, "nsAccountLock").lower() == "true":
        return "the account is disabled"
    if _first(entry, "pwdAccountLockedTime") == _LOCKED_PERMANENTLY:
        return "the account is locked"
    expires = _number(entry, "accountExpires")
    if (expires not in _AD_NEVER and _of_filetime(expires) <= now) or _is_past(entry, "krbPrincipalExpiration", now):
        return "the account has expired"
    if _first(entry, "pwdReset").lower() == "true":
        return "the password must be changed"
    if _first(entry, "pwdLastSet") == "0" and not control & _AD_PASSWORD_NEVER_EXPIRES:
        return "the password must be changed"
    # In FreeIPA an LDAP bind with such a password succeeds; a password set by an administrator expires at once.
    if _is_past(entry, "krbPasswordExpiration", now):
        return "the password has expired"
    return ""


def password_version(entry: Entry) -> str:
    """Return a text that changes with the password; empty if the directory does not show its last change."""
    return " ".join(f"{name}={value}" for name in PASSWORD_CHANGED if (value := _first(entry, name)))


def _first(entry: Entry, attribute: str) -> str:
    values = entry.texts(attribute)
    return values[0] if values else ""


def _number(entry: Entry, attribute: str) -> int:
    text = _first(entry, attribute)
    return int(text) if text.isascii() and text.lstrip("-").isdigit() else 0


def _of_filetime(value: int) -> datetime:
    """Convert a count of 100 ns since 1601."""
    try:
        return _AD_EPOCH + timedelta(microseconds=value // 10)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _is_past(entry: Entry, attribute: str, now: datetime) -> bool:
    text = _first(entry, attribute)
    if not text:
        return False
    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC) <= now
    except ValueError:
        return False
