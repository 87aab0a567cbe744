"""Every error, knowing its HTTP status, its OAuth and Docker codes and the sentence a client may see.

OAuth codes: https://www.rfc-editor.org/rfc/rfc6749#section-5.2 (and 4.1.2.1 where 5.2 has none).
Docker codes: https://distribution.github.io/distribution/spec/api/#errors-2
"""

from __future__ import annotations

from typing import ClassVar


class TokenIssuerError(Exception):
    """Anything that tokenissuer itself raises."""


class ConfigurationError(TokenIssuerError):
    """The set-up cannot be used; the text is one line that says what to change."""


class RequestError(TokenIssuerError):
    """A request is answered with an error.

    Args:
        sentence: what the client is told; the class's own sentence when absent. Never a secret, never the inside of
            a backend.
        reason: what the log is told besides; never a secret.
    """

    status: ClassVar[int]
    #: The OAuth code.
    error: ClassVar[str]
    #: The Docker code. Clients show it, and some decide by it: ggcr retries UNKNOWN and UNAVAILABLE.
    code: ClassVar[str]
    sentence: str
    #: The backend that raised it; for the log.
    source: str = ""
    #: Whether that backend was asked before, and not now.
    is_remembered: bool = False

    def __init__(self, sentence: str | None = None, *, reason: str = "") -> None:
        self.sentence = self.sentence if sentence is None else sentence
        self.reason = reason
        super().__init__(reason or self.sentence)


class InvalidRequest(RequestError):
    """The request itself cannot be understood."""

    status = 400
    error = "invalid_request"
    code = "UNSUPPORTED"
    sentence = "the request cannot be understood"


class UnsupportedGrantType(RequestError):
    """A `grant_type` that is not served."""

    status = 400
    error = "unsupported_grant_type"
    code = "UNSUPPORTED"
    sentence = "this grant_type is not served; use grant_type=password"


class UnsupportedTokenType(RequestError):
    """A token of a kind that cannot be revoked (RFC 7009, 2.2.1)."""

    status = 400
    error = "unsupported_token_type"
    code = "UNSUPPORTED"
    sentence = "access tokens cannot be revoked; they end by themselves within minutes"


class InvalidCredentials(RequestError):
    """Credentials were sent and are wrong. One sentence for every cause, so that nobody learns which it was."""

    status = 401
    error = "invalid_grant"
    code = "UNAUTHORIZED"
    sentence = "wrong user name or password"


class UnknownAccount(InvalidCredentials):
    """The backend does not know the name: the next backend in the chain is asked."""


class LoginEnded(InvalidCredentials):
    """A refresh token that is not good, or no longer."""

    sentence = "this login has ended; log in again"


class AccessDenied(RequestError):
    """Nobody is logged in, and nothing of what was asked for is open to everyone."""

    status = 403
    error = "access_denied"
    code = "DENIED"
    sentence = "access forbidden"


class NotFound(RequestError):
    """No such page."""

    status = 404
    error = "not_found"
    code = "UNSUPPORTED"
    sentence = "there is nothing here; tokens are issued at /token"


class MethodNotAllowed(RequestError):
    """The page is there, the method is not.

    Args:
        allowed: the methods to name in the `Allow` header.
    """

    status = 405
    error = "invalid_request"
    code = "UNSUPPORTED"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        super().__init__(f"this method is not served here; use {' or '.join(allowed)}")


class LengthRequired(RequestError):
    """The body's end cannot be told: neither a length, nor a server that takes chunks apart."""

    status = 411
    error = "invalid_request"
    code = "UNSUPPORTED"
    sentence = "the body has no Content-Length, and this server does not take chunked bodies"


class ContentTooLarge(RequestError):
    """The body or the query is longer than any client needs."""

    status = 413
    error = "invalid_request"
    code = "UNSUPPORTED"
    sentence = "the request is too large"


class RequestTooSlow(RequestError):
    """The request did not come in time."""

    status = 408
    error = "invalid_request"
    code = "UNSUPPORTED"
    sentence = "the request took too long to come"


class HeaderTooLarge(RequestError):
    """The header is longer than any client needs."""

    status = 431
    error = "invalid_request"
    code = "UNSUPPORTED"
    sentence = "the header of the request is too large"


class TooManyAttempts(RequestError):
    """Too many wrong passwords. The answer is the same whether this one is right.

    Args:
        retry_after: seconds after which one more is allowed.
        limit: whose tries are used up, for the log: `account` or `address`.
    """

    status = 429
    error = "temporarily_unavailable"
    code = "TOOMANYREQUESTS"

    def __init__(self, retry_after: int, limit: str) -> None:
        self.retry_after = retry_after
        self.limit = limit
        super().__init__(
            f"too many wrong passwords from your address; try again in {retry_after} seconds",
            reason=f"too many different wrong passwords (limit: {limit})",
        )


class InternalError(RequestError):
    """A defect of ours; the truth is in the log."""

    status = 500
    error = "server_error"
    code = "UNKNOWN"
    sentence = "the token server failed; its log says why"


class BackendUnavailable(RequestError):
    """The account source cannot be asked. Never "wrong password", never anonymous, never a weaker backend.

    Args:
        reason: what the log is told; never a secret.
        retry_after: seconds after which trying again makes sense.
    """

    status = 503
    error = "temporarily_unavailable"
    code = "UNAVAILABLE"
    sentence = "the account source is not available; try again in a moment"

    def __init__(self, reason: str = "", *, retry_after: int = 5) -> None:
        self.retry_after = retry_after
        super().__init__(reason=reason)
