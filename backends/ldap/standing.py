"""Whether an account is disabled, locked or expired, as far as its entry shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from tokenissuer_backends.ldap.failure import Refused
from tokenissuer_backends.ldap.wire import Entry

# Not shadowLastChange and sambaPwdLastSet: only the programs they are named after change them with the password, and
# the first counts days.
#: The server itself changes these with the password: OpenLDAP's policy, Active Directory, FreeIPA, and 389 Directory
#: Server with passwordTrackUpdateTime.
PASSWORD_CHANGED: Final = ("pwdChangedTime", "pwdLastSet", "krbLastPwdChange", "pwdUpdateTime")

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
    "pwdStartTime",
    "pwdEndTime",
    "msDS-User-Account-Control-Computed",
    "logonHours",
    "userWorkstations",
)

#: What a directory counts wrong passwords in: OpenLDAP's policy, 389 Directory Server, FreeIPA.
COUNTERS: Final = ("pwdFailureTime", "passwordRetryCount", "krbLoginFailedCount")

#: Seconds after a change of the password in which no refusal is remembered; a few are for clocks that differ.
_SETTLED: Final = 5
#: Locked permanently by an administrator: draft-behera-ldap-password-policy, 5.3.3.
_LOCKED_PERMANENTLY: Final = "000001010000Z"
_AD_DISABLED: Final = 0x2
_AD_PASSWORD_NEVER_EXPIRES: Final = 0x10000
# Of the computed attribute: [MS-ADTS] 3.1.1.4.5.17.
_AD_LOCKED: Final = 0x10
_AD_PASSWORD_EXPIRED: Final = 0x800000
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
    if (expires not in _AD_NEVER and _of_filetime(expires) <= now) or any(
        _is_past(entry, attribute, now) for attribute in ("krbPrincipalExpiration", "pwdEndTime")
    ):
        return "the account has expired"
    if _first(entry, "pwdStartTime") and not _is_past(entry, "pwdStartTime", now):
        return "the account is not valid yet"
    if _first(entry, "pwdReset").lower() == "true":
        return "the password must be changed"
    if _first(entry, "pwdLastSet") == "0" and not control & _AD_PASSWORD_NEVER_EXPIRES:
        return "the password must be changed"
    # In FreeIPA an LDAP bind with such a password succeeds; a password set by an administrator expires at once.
    if _is_past(entry, "krbPasswordExpiration", now) or _computed(entry) & _AD_PASSWORD_EXPIRED:
        return "the password has expired"
    return ""


def refuse_unusable(entry: Entry) -> None:
    """Prove that the entry shows nothing against the account.

    Raises:
        Refused: if it does.
    """
    if reason := objection(entry, datetime.now(UTC)):
        raise Refused(reason)


def passing_objection(entry: Entry, now: datetime) -> str:
    """Say why nobody may log in now, though perhaps later; empty if the entry shows no reason.

    The directory itself refuses the password then. A refresh token stays good: else strangers could end every login of
    an account with a few wrong passwords.

    Args:
        entry: with `ATTRIBUTES`.
        now: with time zone.
    """
    if _computed(entry) & _AD_LOCKED:
        return "the account is locked after too many wrong passwords"
    if since := _first(entry, "pwdAccountLockedTime"):
        return f"the account was locked at {since} after too many wrong passwords; the lock may have ended since"
    hours = b"".join(entry.attributes.get("logonhours", ()))
    # A bit for each hour of the week, from Sunday on: https://learn.microsoft.com/windows/win32/adschema/a-logonhours
    hour = (now.isoweekday() % 7) * 24 + now.hour
    if len(hours) == 21 and not hours[hour // 8] >> hour % 8 & 1:
        return "the account may not log in at this hour (logonHours)"
    if stations := _first(entry, "userWorkstations"):
        return f"the account may log in from some computers only (userWorkstations: {stations})"
    return ""


def has_counted(before: Entry, after: Entry, now: datetime) -> bool:
    """Whether the directory shows that it has counted a wrong password, and has not locked the account.

    Not soon after a change of the password: directories count whole seconds, and another one within the same second
    would look like none.

    Args:
        before, after: the entry before and after a refused bind, with `ATTRIBUTES` and `COUNTERS`.
        now: with time zone.
    """
    settled = now - timedelta(seconds=_SETTLED)
    is_recent = any(_first(after, name) and not _is_past(after, name, settled) for name in PASSWORD_CHANGED)
    counted = (after.texts(name) not in ((), before.texts(name)) for name in COUNTERS)
    return any(counted) and not is_recent and not passing_objection(after, now)


def unseen(entry: Entry) -> str:
    """Say what the entry does not show, and only a login finds out; empty if nothing."""
    if entry.texts("userAccountControl"):
        if entry.texts("msDS-User-Account-Control-Computed"):
            return ""
        return "locks and the age of the password are not shown: let 'bind_dn' read msDS-User-Account-Control-Computed"
    if entry.texts("krbPasswordExpiration"):
        return "a lock after wrong passwords is not shown"
    return "the age that its policy allows a password is not shown"


def password_version(entry: Entry) -> str:
    """Return a text that changes with the password; empty if the directory does not show its last change."""
    return " ".join(f"{name}={value}" for name in PASSWORD_CHANGED if (value := _first(entry, name)))


def _computed(entry: Entry) -> int:
    return _number(entry, "msDS-User-Account-Control-Computed")


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
