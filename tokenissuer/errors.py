"""Every error, with its HTTP status, its OAuth and Docker codes and the description a client may see.

OAuth codes: https://www.rfc-editor.org/rfc/rfc6749#section-5.2 (and 4.1.2.1 where 5.2 has none).
Docker codes: https://distribution.github.io/distribution/spec/api/#errors-2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


class TokenIssuerError(Exception):
    """Base class of everything that tokenissuer raises."""


class ConfigurationError(TokenIssuerError):
    """The configuration cannot be used; the text is one line that says what to change."""


class RequestError(TokenIssuerError):
    """A request is answered with an error.

    Args:
        description: what the client reads; the class's own text if absent. Never a secret, never backend internals.
        reason: what only the log gets; never a secret.
    """

    status: ClassVar[int]
    oauth_error: ClassVar[str]
    #: Clients show it, and some decide by it: ggcr retries UNKNOWN and UNAVAILABLE.
    docker_code: ClassVar[str]
    description: str
    #: The name of the backend that raised it, for log and metrics.
    backend: str = ""

    def __init__(self, description: str | None = None, *, reason: str = "") -> None:
        self.description = self.description if description is None else description
        self.reason = reason
        super().__init__(reason or self.description)


class InvalidRequest(RequestError):
    """The request cannot be understood."""

    status = 400
    oauth_error = "invalid_request"
    docker_code = "UNSUPPORTED"
    description = "the request cannot be understood"


class UnsupportedGrantType(RequestError):
    """The `grant_type` is not supported."""

    status = 400
    oauth_error = "unsupported_grant_type"
    docker_code = "UNSUPPORTED"
    description = "this grant_type is not supported; use grant_type=password"


class UnsupportedTokenType(RequestError):
    """This kind of token cannot be revoked (RFC 7009, 2.2.1)."""

    status = 400
    oauth_error = "unsupported_token_type"
    docker_code = "UNSUPPORTED"
    description = "access tokens cannot be revoked; they end by themselves within minutes"


class InvalidCredentials(RequestError):
    """The credentials are wrong. The description is the same for every cause, so that a guesser learns nothing.

    Args:
        description: see `RequestError`.
        reason: see `RequestError`.
        is_guess: False if the password cannot have been a guess, such as a machine's token or an empty text. The rate
            limit does not count it then.
        is_counted: whether the account source has counted it now (`Backend.bans_servers`).
    """

    status = 401
    oauth_error = "invalid_grant"
    docker_code = "UNAUTHORIZED"
    description = "wrong user name or password"

    def __init__(
        self, description: str | None = None, *, reason: str = "", is_guess: bool = True, is_counted: bool = False
    ) -> None:
        self.is_guess = is_guess
        self.is_counted = is_counted
        super().__init__(description, reason=reason)


class UnknownAccount(InvalidCredentials):
    """The backend does not know the name. The next backend in the chain is asked."""


class LoginEnded(InvalidCredentials):
    """The refresh token is not valid, or no longer."""

    description = "this login has ended; log in again"


#: What people read who are not logged in. It begins with GitLab's own words, by which they may search.
FORBIDDEN: Final = "access forbidden; if you have an account here, log in first (docker login) and try again"


class AccessDenied(RequestError):
    """Nothing of what was requested is granted, and the user can do something about it: log in, or log in otherwise."""

    status = 403
    oauth_error = "access_denied"
    docker_code = "DENIED"
    description = FORBIDDEN


class LoginRequired(RequestError):
    """Like `AccessDenied`, for a browser: it asks its user to log in."""

    status = 401
    oauth_error = "access_denied"
    docker_code = "UNAUTHORIZED"
    description = FORBIDDEN


class NotFound(RequestError):
    """There is no such page. People read this in the output of `docker login`.

    Args:
        path: what was asked for; empty if there is nothing to say about it.
        realm: where tokens are issued.
    """

    status = 404
    oauth_error = "not_found"
    docker_code = "UNSUPPORTED"

    def __init__(self, path: str = "", realm: str = "/token") -> None:
        super().__init__(f"the token server has no page {path[:100]}; tokens are issued at {realm}")


class LoopDetected(RequestError):
    """The request comes from a backend of this very server: the address of its account source leads back here."""

    status = 508
    oauth_error = "server_error"
    docker_code = "UNSUPPORTED"
    description = "the account source of this token server leads back to the token server itself"


class MethodNotAllowed(RequestError):
    """The page exists, but not for this method.

    Args:
        allowed: the methods to name in the `Allow` header.
    """

    status = 405
    oauth_error = "invalid_request"
    docker_code = "UNSUPPORTED"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        super().__init__(f"this method is not supported here; use {' or '.join(allowed)}")


class LengthRequired(RequestError):
    """The length of the body is unknown: there is no Content-Length, and the server does not decode chunks."""

    status = 411
    oauth_error = "invalid_request"
    docker_code = "UNSUPPORTED"
    description = "the body has no Content-Length, and this server does not accept chunked bodies"


class ContentTooLarge(RequestError):
    """The body or the query is longer than any client needs."""

    status = 413
    oauth_error = "invalid_request"
    docker_code = "UNSUPPORTED"
    description = "the request is too large"


class TooManyAttempts(RequestError):
    """There were too many wrong passwords. The answer is the same whether this password is right.

    Args:
        retry_after: seconds until one more is allowed.
        limit: which was reached, for the log: `account`, `address`, `source`, `turn` for logins that wait for others
            from their address, or `anonymous` for questions without a login.
    """

    WHAT: ClassVar[Mapping[str, str]] = {
        "anonymous": "requests without a login for what is not public",
        "turn": "logins at once",
    }

    status = 429
    oauth_error = "temporarily_unavailable"
    docker_code = "TOOMANYREQUESTS"

    def __init__(self, retry_after: int, limit: str) -> None:
        self.retry_after = retry_after
        self.limit = limit
        what = self.WHAT.get(limit, "wrong passwords")
        super().__init__(
            f"too many {what} from your address; try again in {retry_after} second{'s' if retry_after > 1 else ''}",
            reason=f"too many {what} (limit: {limit})",
        )


class InternalError(RequestError):
    """A bug in tokenissuer or a plug-in; the log has the details."""

    status = 500
    oauth_error = "server_error"
    docker_code = "UNKNOWN"
    description = "the token server failed; its log says why"


class BackendUnavailable(RequestError):
    """The backend cannot answer. This never becomes "wrong password", an anonymous token or another backend's answer.

    Args:
        reason: what only the log gets; never a secret.
        retry_after: seconds until another try makes sense.
        description: see `RequestError`; where it is no use to wait, what has to change.
    """

    status = 503
    oauth_error = "temporarily_unavailable"
    docker_code = "UNAVAILABLE"
    description = "the account source is not available; try again in a moment"

    def __init__(self, reason: str = "", *, retry_after: int = 5, description: str | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(description, reason=reason)


class QuotaExceeded(BackendUnavailable):
    """A limit on questions to the backend is reached, ours or its own. The backend itself is well."""


class StoreUnavailable(BackendUnavailable):
    """The session store cannot be read or written."""

    description = "the store of logins is not available; try again in a moment"
