"""GitLab's own token endpoint: the caller's credential is sent on to its `/jwt/auth`.

It knows every kind of credential, deploy tokens and passwords included, and every rule of GitLab's own registry:
https://docs.gitlab.com/user/packages/container_registry/authenticate_with_container_registry/. It answers only while
GitLab's registry is switched on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tokenissuer import Access, BackendUnavailable, Cache, Deadline, InvalidCredentials, fold
from tokenissuer_backends.gitlab.account import GitLabAccount
from tokenissuer_backends.gitlab.client import Absent, Client, Refused
from tokenissuer_backends.gitlab.credential import JOB_USER, Credential, basic
from tokenissuer_backends.gitlab.project import candidates
from tokenissuer_backends.gitlab.role import NOTHING, PULL, asked_actions

_log: Final = logging.getLogger("tokenissuer.backends.gitlab")

ROUTE: Final = "/jwt/auth"
#: Not what the client names: that is a registry of ours.
SERVICE: Final = "container_registry"
#: Seconds after which a registry that was switched off may be on.
_OFF_SECONDS: Final = 60.0
#: Seconds by which two clocks may differ.
SKEW: Final = 30

#: The same for every cause, so that a guesser does not learn which accounts exist.
LOGIN_WANTED: Final = (
    "GitLab refuses this login; use your own user name with your password or a token that is valid and has a registry "
    "scope (only a token if you sign in with two factors), or the user name and token of a deploy token"
)


class SwitchedOff(Exception):
    """GitLab has no token endpoint: its own registry is switched off."""


@dataclass(frozen=True, slots=True)
class Issued:
    """What GitLab's token says.

    Args:
        subject: the user's name; empty for a deploy token.
        auth_type: the kind of credential, in GitLab's words.
        user_info: more about the caller.
        ends: seconds since 1970.
        granted: actions on each repository.
    """

    subject: str
    auth_type: str
    user_info: Mapping[str, Any]
    ends: int
    granted: Mapping[str, frozenset[str]]


class Replay:
    """Asks GitLab's own token endpoint.

    Args:
        client: sends the requests.
        issuer: the `iss` claim that GitLab's tokens must have; None if it is not known.
        key: the key they must be signed with; None to trust them because they came over a verified connection.
        remember: seconds for which an answer about rights is remembered.
    """

    def __init__(self, client: Client, issuer: str | None, key: RSAPublicKey | None, remember: float) -> None:
        self._client: Final = client
        self._issuer: Final = issuer
        self._key: Final = key
        # None means that the registry is switched off; `_off_until` remembers that for all questions.
        self._grants: Final = Cache[frozenset[str] | None](lambda found: 0 if found is None else remember)
        self._off_until = 0.0

    def authenticate(self, username: str, password: str, deadline: Deadline) -> GitLabAccount:
        """Prove that the credential belongs to the user named.

        Args:
            username: what was typed.
            password: what was typed.
            deadline: for all questions.

        Raises:
            InvalidCredentials: if GitLab refuses, or the credential is somebody else's.
            BackendUnavailable: if GitLab cannot tell.
        """
        credential = basic(username, password)
        try:
            return _account(username, credential, self._issued(credential, (), deadline))
        except Refused as answer:
            # https://docs.gitlab.com/rate_limits/abuse_bans/: jobs are not counted.
            raise InvalidCredentials(LOGIN_WANTED, reason=str(answer), is_counted=username != JOB_USER) from None
        except Absent as answer:
            raise BackendUnavailable(f"{answer}; is GitLab's own container registry switched on?") from None

    def grants(self, credential: Credential, access: Access, deadline: Deadline) -> frozenset[str]:
        """Return what GitLab grants of what is requested.

        Raises:
            SwitchedOff: if GitLab's own registry is switched off.
            BackendUnavailable: if GitLab cannot tell.
        """
        # GitLab adds a repository to its list when it grants a push: only what the client wants may be requested.
        return self._granted(credential, Access(access.type, access.name, asked_actions(access)), deadline)

    def public_grants(self, credential: Credential, access: Access, deadline: Deadline) -> frozenset[str]:
        """Return what GitLab grants to everyone.

        Raises:
            SwitchedOff: if GitLab's own registry is switched off.
            BackendUnavailable: if GitLab cannot tell.
        """
        return self._granted(credential, Access(access.type, access.name, asked_actions(access) & PULL), deadline)

    def _granted(self, credential: Credential, access: Access, deadline: Deadline) -> frozenset[str]:
        if not candidates(access) or not access.actions:
            return NOTHING
        if time.monotonic() < self._off_until:
            raise SwitchedOff

        def ask() -> frozenset[str] | None:
            try:
                issued = self._issued(credential, (str(access),), deadline)
            except Refused as answer:
                _log.info("nothing granted on %s: %s", access.name, answer)
                return NOTHING
            except Absent:
                self._off_until = time.monotonic() + _OFF_SECONDS
                return None
            return issued.granted.get(access.name, NOTHING) & access.actions

        found = self._grants.ask((credential.fingerprint, str(access)), ask, deadline.remaining())
        if found is None:
            raise SwitchedOff
        return found

    def _issued(self, credential: Credential, scopes: tuple[str, ...], deadline: Deadline) -> Issued:
        query = [("service", SERVICE), *(("scope", scope) for scope in scopes)]
        text = self._client.get(ROUTE, credential, deadline, query).table().get("token")
        if not isinstance(text, str):
            raise BackendUnavailable("GitLab's token endpoint answered without a token")
        claims = self._verified(text, SERVICE)
        subject, auth_type, nested = claims.get("sub", ""), claims.get("auth_type", ""), claims.get("user")
        user = self._verified(nested, None).get("user_info") if isinstance(nested, str) else None
        if not isinstance(subject, str) or not isinstance(auth_type, str):
            raise BackendUnavailable("GitLab's token is not in its usual form")
        return Issued(subject, auth_type, user if isinstance(user, dict) else {}, int(claims["exp"]), _granted(claims))

    def _verified(self, text: str, audience: str | None) -> Mapping[str, Any]:
        """Return the claims of a valid token of GitLab's.

        Args:
            text: the token.
            audience: whom it must be for; None for the token within a token, which has neither that nor an issuer.
        """
        try:
            # Checked even if the signature is not: anybody can make a token with `none`.
            if jwt.get_unverified_header(text).get("alg") != "RS256":
                raise BackendUnavailable("GitLab's token is not signed with RS256")
            claims: Mapping[str, Any] = jwt.decode(
                text,
                key=self._key or "",
                algorithms=["RS256"],
                audience=audience,
                issuer=self._issuer if audience else None,
                leeway=SKEW,
                options={
                    "require": ["exp", "iss", "aud"] if audience else [],
                    "verify_signature": self._key is not None,
                    "verify_exp": True,
                    "verify_nbf": True,
                    "verify_iat": False,
                    "verify_aud": audience is not None,
                    "verify_iss": True,
                },
            )
        except (jwt.InvalidTokenError, ValueError, OverflowError, TypeError) as error:
            raise BackendUnavailable(f"GitLab's token cannot be trusted: {type(error).__name__}: {error}") from None
        return claims


def _account(username: str, credential: Credential, issued: Issued) -> GitLabAccount:
    """Compare what was typed with whom GitLab names: for most kinds of token it ignores the user name."""
    number = issued.user_info.get("deploy_token_id")
    if issued.auth_type == "deploy_token" and not issued.subject and isinstance(number, int):
        # Its user name is free text, which could be a user's name: only the number is unique.
        name, expected = f"deploy-token:{number}", issued.user_info.get("username")
    else:
        name, expected = issued.subject, JOB_USER if issued.auth_type == "build" else issued.subject
    if not name or not isinstance(expected, str) or fold(expected) != fold(username):
        raise InvalidCredentials(LOGIN_WANTED, reason="the credential belongs to another user than the one named")
    is_job = issued.auth_type == "build"
    # GitLab's token endpoint tells no groups.
    return GitLabAccount(
        name=name, groups_known=False, delegated=is_job, valid_until=issued.ends, credential=credential
    )


def _granted(claims: Mapping[str, Any]) -> Mapping[str, frozenset[str]]:
    entries = claims.get("access")
    if not isinstance(entries, list):
        raise BackendUnavailable("GitLab's token has no list 'access'")
    granted: dict[str, frozenset[str]] = {}
    for entry in entries:
        match entry:
            case {"type": "repository", "name": str(name), "actions": list(actions)}:
                may = frozenset(action for action in actions if isinstance(action, str))
                granted[name] = granted.get(name, NOTHING) | (may - _tag_bound(entry.get("meta")))
            case _:
                continue
    return granted


def _tag_bound(meta: object) -> frozenset[str]:
    """Return the actions that GitLab grants for some tags only.

    Only GitLab's own registry reads these limits, and only in GitLab's own token: ours would allow the action on
    every tag, protected ones too.
    """
    if not isinstance(meta, dict):
        return NOTHING
    bound = set()
    denied = meta.get("tag_deny_access_patterns")
    if isinstance(denied, dict):
        bound |= {action for action in ("push", "delete") if denied.get(action)}
    if meta.get("tag_immutable_patterns"):
        bound |= {"push", "delete"}
    return frozenset(bound)
