"""What a token request came to, counted."""

from __future__ import annotations

from typing import Final

from tokenissuer.errors import BackendUnavailable, InvalidCredentials, RequestError, TooManyAttempts
from tokenissuer.metrics import metrics
from tokenissuer.service import Password, RefreshToken, TokenRequest, TokenResponse

#: What outages are counted for when no backend is their cause.
STORE: Final = "refresh.store"


def count_answer(request: TokenRequest, response: TokenResponse) -> None:
    """Count a token that was issued."""
    if isinstance(request.credentials, Password):
        metrics().logins.labels(response.source, "accepted").inc()
        if response.refresh_token:
            metrics().refresh_tokens.labels("issued").inc()
    elif isinstance(request.credentials, RefreshToken):
        metrics().refresh_tokens.labels("redeemed").inc()


def count_refusal(request: TokenRequest, error: RequestError) -> None:
    """Count a token that was not issued."""
    if isinstance(error, BackendUnavailable):
        count_outage(error)
    if isinstance(error, TooManyAttempts):
        metrics().throttled.labels(error.limit).inc()
    elif isinstance(request.credentials, RefreshToken):
        if isinstance(error, InvalidCredentials):
            metrics().refresh_tokens.labels("refused").inc()
    elif isinstance(request.credentials, Password):
        if isinstance(error, InvalidCredentials):
            metrics().logins.labels(error.source or "none", "refused").inc()
        elif isinstance(error, BackendUnavailable):
            metrics().logins.labels(error.source or "none", "unavailable").inc()


def count_revocation() -> None:
    """Count a refresh token that its holder has revoked."""
    metrics().refresh_tokens.labels("revoked").inc()


def count_outage(error: BackendUnavailable) -> None:
    """Count a request that failed by what could not be asked."""
    metrics().outages.labels(error.source or STORE).inc()
