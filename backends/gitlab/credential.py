"""The header that proves who sends a request to GitLab: https://docs.gitlab.com/api/rest/authentication/."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from typing import Final

from tokenissuer import InvalidCredentials

# The characters of GitLab's tokens: url-safe base64, the dots of routable tokens and of JWTs, and what an administrator
# may choose for a prefix. None of them ends a header line.
_TOKEN: Final = re.compile(r"[A-Za-z0-9_+=/@:.-]+", re.ASCII)

#: The user name of every CI job.
JOB_USER: Final = "gitlab-ci-token"

# Fingerprints are keys of caches. Without this key they reveal nothing.
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)


class Credential:
    """One request header and its secret value, which appears in no log, traceback or `repr`.

    Args:
        header: the header's name; empty for the anonymous caller.
        value: the header's value.
        is_for_anonymous: whether it is sent for an anonymous caller.
    """

    __slots__ = ("__value", "fingerprint", "header", "is_for_anonymous")

    def __init__(self, header: str, value: str, *, is_for_anonymous: bool = False) -> None:
        self.header: Final = header
        self.__value: Final = value
        self.is_for_anonymous: Final = is_for_anonymous
        #: Tells credentials apart without revealing them. Requests for anonymous callers have another fingerprint:
        #: GitLab's rate limit for them must not stop logins.
        text = f"{is_for_anonymous}:{header}:{value}"
        self.fingerprint: Final = hmac.digest(_FINGERPRINT_KEY, text.encode(), "sha256")

    def headers(self) -> dict[str, str]:
        """Return the header to send; none for the anonymous caller."""
        return {self.header: self.__value} if self.header else {}

    def for_anonymous(self) -> Credential:
        """Return the same credential, for requests of anonymous callers."""
        return Credential(self.header, self.__value, is_for_anonymous=True)

    def as_login(self, username: str) -> Credential:
        """Return the same secret as the password of a login.

        Args:
            username: whose login.
        """
        return basic(username, self.__value)

    def __repr__(self) -> str:
        return f"Credential({self.header or 'anonymous'})"


ANONYMOUS: Final = Credential("", "")


def personal_access_token(text: str) -> Credential:
    """Wrap a personal, project or group access token.

    Raises:
        InvalidCredentials: if no such token can look like this; then it is not sent to GitLab.
    """
    # Not `Authorization: Bearer`: there GitLab looks for an OAuth token first.
    return Credential("PRIVATE-TOKEN", _token(text))


def job_token(text: str) -> Credential:
    """Wrap the token of a running CI job.

    Raises:
        InvalidCredentials: if no such token can look like this.
    """
    return Credential("JOB-TOKEN", _token(text))


def basic(username: str, password: str) -> Credential:
    """Wrap a user name and password, as HTTP's Basic authentication does.

    Raises:
        InvalidCredentials: if the user name holds a colon, at which GitLab would split it.
    """
    if ":" in username:
        raise InvalidCredentials(reason="the user name holds a colon")
    return Credential("Authorization", "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode())


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise InvalidCredentials(reason="the password has characters that no GitLab token has")
    return text
