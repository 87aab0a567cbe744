"""The backend `gitlab`."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tokenissuer import (
    Access,
    Account,
    Backend,
    BackendUnavailable,
    ConfigurationError,
    Deadline,
    Findings,
    InvalidCredentials,
    read_file,
)
from tokenissuer_backends.gitlab.account import GitLabAccount
from tokenissuer_backends.gitlab.api import Api, is_username
from tokenissuer_backends.gitlab.client import Client
from tokenissuer_backends.gitlab.credential import ANONYMOUS, JOB_USER, personal_access_token
from tokenissuer_backends.gitlab.options import GitLabOptions
from tokenissuer_backends.gitlab.replay import Replay, SwitchedOff
from tokenissuer_backends.gitlab.report import Report
from tokenissuer_backends.gitlab.role import NOTHING

T = TypeVar("T")

# https://docs.gitlab.com/security/tokens/#token-prefixes
_TOKEN_PREFIX: Final = re.compile(r"gl[a-z]{2,8}-", re.ASCII)
#: Every token of GitLab's has at least so many characters.
_TOKEN_LENGTH: Final = 20


class GitLabBackend(Backend):
    """Accounts of a GitLab, or of a server that speaks its API."""

    Options = GitLabOptions
    users_make_groups = True

    def __init__(self, options: GitLabOptions) -> None:
        self._options: Final = options
        self._own: Final = personal_access_token(options.token.reveal()) if options.token else ANONYMOUS
        self._client: Final = Client(options.url, options.ca_file, options.connections, options.anonymous_requests)
        key = None if options.certificate is None else _public_key(options.certificate)
        self._replay: Final = Replay(self._client, options.issuer, key, options.remember)
        root = urllib.parse.urlsplit(options.url).path.rstrip("/")
        self._api: Final = Api(
            self._client,
            self._replay,
            self._own,
            root,
            options.remember,
            options.connections,
            groups=options.groups,
            grants=options.grants,
        )
        self._report: Final = Report(options, self._client, self._own, self._api)

    @property
    def may_grant(self) -> bool:
        """Whether roles in projects count."""
        return self._options.grants

    @property
    def bans_servers(self) -> bool:
        """Whether wrong logins go to GitLab's token endpoint, which counts them: `rack_attack`."""
        return self._options.mode == "jwt"

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the token is this user's.

        Raises:
            UnknownAccount: if no GitLab user can have this name.
            InvalidCredentials: if GitLab refuses.
        """
        try:
            return self._ask(lambda deadline: self._authenticate(username, password, deadline))
        except InvalidCredentials as error:
            error.is_guess = not _is_token(username, password)
            raise

    def lookup(self, name: str, password: str) -> Account:
        """Prove again that the token of the login is this user's.

        Raises:
            InvalidCredentials: if it no longer is.
        """
        # A deploy token's user name cannot be had back from the account's name.
        if not password or not is_username(name):
            raise InvalidCredentials(reason="GitLab says who somebody is only to the holder of their token")
        if self._options.mode == "jwt":
            return self._ask(lambda deadline: self._replay.authenticate(name, password, deadline))
        return self._ask(lambda deadline: self._api.lookup(name, password, deadline, wanted=self.groups_wanted))

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        """Return what GitLab's own registry would allow, if the option `grants` is set."""
        if not self._options.grants:
            return NOTHING
        return self._ask(lambda deadline: self._grants(account, access, deadline))

    def check(self) -> None:
        """Prove that GitLab answers, and not tokenissuer in its place."""
        self._report.greeting()
        if self._options.grants and self._options.mode == "api":
            self._report.has_endpoint()  # raises if GitLab does not answer

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report on GitLab itself, or on the project of a repository."""
        if account:
            yield from super().diagnose(account)
        if repository:
            yield from self._report.repository_findings(repository)
        if not account and not repository:
            yield from self._report.findings()

    def _authenticate(self, username: str, password: str, deadline: Deadline) -> Account:
        if self._options.mode == "jwt":
            return self._replay.authenticate(username, password, deadline)
        return self._api.authenticate(username, password, deadline, wanted=self.groups_wanted)

    def _grants(self, account: Account | None, access: Access, deadline: Deadline) -> frozenset[str]:
        if account is not None and not isinstance(account, GitLabAccount):
            return NOTHING
        if self._options.mode == "api":
            if account is None:
                return self._api.public_grants(access, deadline)
            return self._api.grants(account, access, deadline)
        try:
            if account is None:
                return self._replay.public_grants(ANONYMOUS.for_anonymous(), access, deadline)
            return self._replay.grants(account.credential, access, deadline)
        except SwitchedOff:
            raise BackendUnavailable("GitLab's own container registry is switched off") from None

    def _ask(self, question: Callable[[Deadline], T]) -> T:
        try:
            return question(self._deadline())
        except TimeoutError:
            raise BackendUnavailable("GitLab did not answer in time") from None

    def close(self) -> None:
        """Close all connections."""
        self._api.close()
        self._client.close()

    def _deadline(self) -> Deadline:
        return Deadline.after(self._options.timeout)


def _is_token(username: str, password: str) -> bool:
    """Whether a machine has made this password, so that it cannot be a guess."""
    looks_made = username == JOB_USER or _TOKEN_PREFIX.match(password) is not None
    return looks_made and len(password) >= _TOKEN_LENGTH


def _public_key(path: Path) -> RSAPublicKey:
    try:
        key = x509.load_pem_x509_certificate(read_file(path, "'certificate'")).public_key()
    except ValueError:
        raise ConfigurationError(f"'certificate': {path} has no PEM certificate") from None
    if not isinstance(key, RSAPublicKey):
        raise ConfigurationError(f"'certificate': {path} has no RSA key, but GitLab signs with RS256")
    return key
