"""Accounts and rights over the REST API: https://docs.gitlab.com/api/rest/."""

from __future__ import annotations

import contextlib
import logging
import re
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from tokenissuer import (
    Access,
    BackendUnavailable,
    Cache,
    Deadline,
    InvalidCredentials,
    UnknownAccount,
    WantedGroups,
    fold,
)
from tokenissuer_backends.gitlab.account import GitLabAccount, JobAccount, TokenAccount
from tokenissuer_backends.gitlab.client import Absent, Client, GitLabAnswer, Refused, TooManyPages
from tokenissuer_backends.gitlab.credential import ANONYMOUS, JOB_USER, Credential, job_token, personal_access_token
from tokenissuer_backends.gitlab.project import Project, access_level, candidates, project_route, read_project
from tokenissuer_backends.gitlab.replay import Replay, SwitchedOff
from tokenissuer_backends.gitlab.role import (
    EVERYTHING,
    GUEST,
    MAINTAINER,
    NO_ACCESS,
    NOTHING,
    OWNER,
    PULL,
    RegistryLevel,
    Viewer,
    actions_by_scopes,
    asked_actions,
)

_log: Final = logging.getLogger("tokenissuer.backends.gitlab")

#: Seconds after which a GitLab that is too old may have been updated.
_TOO_OLD_RETRY: Final = 3600
#: At most so many groups of the rules are asked for one by one. With more, the list of all groups is read.
MAX_NAMED: Final = 20

#: What GitLab says about the token of the request.
TOKEN_ROUTE: Final = "/api/v4/personal_access_tokens/self"

#: The same for every cause, so that a guesser does not learn which accounts exist.
TOKEN_WANTED: Final = (
    "this login needs your GitLab user name and, for the password, a personal access token that is valid and has the "
    "scope read_registry (also write_registry to push) or api; with a project's or group's token, the name of its bot "
    "user; the password of your account does not work here"
)
NO_SCOPE: Final = (
    "access forbidden; this token has no scope for a registry: log in with one that has read_registry (also "
    "write_registry to push) or api"
)
NO_LOOKUP: Final = (
    "this GitLab does not say whose token this is; make a personal access token that has the scope read_user or "
    "read_api besides its registry scopes"
)

#: Scopes of a token that can ask for its owner.
_NAMING: Final = frozenset({"api", "read_api", "read_user"})
#: Scopes of a token that can ask for projects and groups.
_READING: Final = frozenset({"api", "read_api"})
#: The scope of tokens that have permissions of their own.
GRANULAR: Final = "granular"

# GitLab's user names; none of these characters means something in a URL, and lower() is reliable for them.
_USERNAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)
_GROUP_PATH: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*", re.ASCII)
_JOB_PAGE: Final = re.compile(r"/(?P<project>[^?#]+)/-/jobs/[0-9]+")
_GROUP_PAGE: Final = re.compile(r"/groups/(?P<group>[^?#]+)")


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of an account.

    Args:
        paths: full paths.
        are_complete: whether none is missing that may matter.
    """

    paths: frozenset[str]
    are_complete: bool


def is_username(text: str) -> bool:
    """Whether a GitLab user can have this name."""
    return bool(_USERNAME.fullmatch(text))


class Api:
    """Asks the REST API, with the caller's own credential.

    Args:
        client: sends the requests.
        replay: asks GitLab's own token endpoint, for tokens that may not use the API.
        own: the credential for questions on nobody's behalf.
        root: the path that GitLab is installed under; empty if none.
        remember: seconds for which an answer about a project is remembered.
        connections: questions at once.
        groups: whether accounts get their groups.
        grants: whether roles in projects count, and with them the scopes of tokens.
    """

    def __init__(
        self,
        client: Client,
        replay: Replay,
        own: Credential,
        root: str,
        remember: float,
        connections: int,
        *,
        groups: bool,
        grants: bool,
    ) -> None:
        self._client: Final = client
        self._replay: Final = replay
        self._own: Final = own
        self._root: Final = root
        self._groups: Final = groups
        self._grants: Final = grants
        # A tuple has the project, or nothing if there is none.
        self._projects: Final = Cache[tuple[Project, ...]](lambda _: remember)
        self._levels: Final = Cache[int](lambda _: remember)
        self._readable: Final = Cache[frozenset[str]](lambda _: remember)
        # It starts no thread before the first question.
        self._threads: Final = ThreadPoolExecutor(connections, "gitlab")

    def close(self) -> None:
        """End the threads when they have their answers."""
        self._threads.shutdown(wait=False)

    def authenticate(self, username: str, password: str, deadline: Deadline, wanted: WantedGroups) -> GitLabAccount:
        """Prove that the token is this user's.

        Args:
            username: what was typed.
            password: what was typed.
            deadline: for all questions.
            wanted: the groups that may matter.

        Raises:
            UnknownAccount: if no GitLab user can have this name.
            InvalidCredentials: if the token is not valid, or not this user's.
            BackendUnavailable: if GitLab cannot tell.
        """
        if not is_username(username):
            raise UnknownAccount(TOKEN_WANTED, reason="no GitLab user can have this name")
        try:
            if username == JOB_USER:
                return self._job_account(job_token(password), deadline)
            return self._token_account(username, personal_access_token(password), deadline, wanted)
        except InvalidCredentials as error:
            description = NO_LOOKUP if error.description == NO_LOOKUP else TOKEN_WANTED
            raise InvalidCredentials(description, reason=error.reason) from None
        except Refused as answer:
            raise InvalidCredentials(TOKEN_WANTED, reason=str(answer)) from None

    def lookup(self, name: str, token: str, deadline: Deadline, wanted: WantedGroups) -> GitLabAccount:
        """Prove again that the token is this user's.

        Raises:
            InvalidCredentials: if it no longer is.
            BackendUnavailable: if GitLab cannot tell, or does not tell us.
        """
        try:
            return self.authenticate(name, token, deadline, wanted)
        except InvalidCredentials as error:
            if error.description != NO_LOOKUP:
                raise
            # Nobody has refused the token: GitLab only tells us less than at the login.
            raise BackendUnavailable(error.reason) from None

    def grants(self, account: GitLabAccount, access: Access, deadline: Deadline) -> frozenset[str]:
        """Return what GitLab's own registry would allow.

        Raises:
            BackendUnavailable: if GitLab cannot tell.
        """
        paths = candidates(access)
        if not paths:
            return NOTHING
        try:
            match account:
                case TokenAccount():
                    return self._token_grants(account, access, paths, deadline)
                case JobAccount():
                    return self._job_grants(account, access, paths, deadline)
        except GitLabAnswer as answer:
            # The credential was valid a moment ago and no longer is, or it may not ask this.
            _log.info("nothing granted on %s: %s", access.name, answer)
        return NOTHING

    def public_grants(self, access: Access, deadline: Deadline) -> frozenset[str]:
        """Return what GitLab's own registry would allow to everyone.

        Raises:
            BackendUnavailable: if GitLab cannot tell.
        """
        paths = candidates(access)
        return self._public_actions(self._own.for_anonymous(), paths, deadline) if paths else NOTHING

    def find_user(self, username: str, deadline: Deadline) -> tuple[Mapping[str, Any], ...]:
        """Return the user of this name as our own credential sees it; nothing if there is none.

        Raises:
            Refused: if this GitLab does not tell.
            BackendUnavailable: if it cannot.
        """
        rows = self._client.get("/api/v4/users", self._own, deadline, [("username", username)]).rows()
        return tuple(row for row in rows if _same(row.get("username"), username))

    def _token_account(
        self, username: str, token: Credential, deadline: Deadline, wanted: WantedGroups
    ) -> TokenAccount:
        try:
            facts = self._client.get(TOKEN_ROUTE, token, deadline).table()
        except Absent:
            raise BackendUnavailable(
                "GitLab does not describe tokens: version 15.5 or newer is needed",
                retry_after=_TOO_OLD_RETRY,
                description="this GitLab is too old for logins with tokens; its administrator has to update it",
            ) from None
        scopes = frozenset(scope for scope in _list(facts, "scopes") if isinstance(scope, str))
        owner = _number(facts, "user_id")
        if facts.get("active") is not True or facts.get("revoked") is not False:
            raise InvalidCredentials(reason="the token is not active")
        if scopes & _NAMING:
            user: Mapping[str, Any] = self._client.get("/api/v4/user", token, deadline).table()
        else:
            user = self._owner_by_name(username, deadline)
        # The holder of one user's token must not become the user that he names.
        if not _same(user.get("username"), username) or user.get("id") != owner:
            raise InvalidCredentials(reason="the token belongs to another user than the one named")
        if user.get("state") != "active":
            raise InvalidCredentials(reason=f"the user is {str(user.get('state'))[:20]!a} in GitLab")
        # Only now: whoever holds some token must not make us ask for the groups of others.
        groups = self._groups_of(token, owner, scopes, wanted, deadline)
        return TokenAccount(
            name=str(user["username"]),
            groups=groups.paths,
            groups_known=groups.are_complete,
            credential=token,
            user_id=owner,
            scopes=scopes,
            # Unknown for a token with only registry scopes: then internal projects stay closed.
            external=user.get("external") is not False,
            administrator=user.get("is_admin") is True,
            advice=NO_SCOPE if self._grants and not _may(scopes) else "",
        )

    def _owner_by_name(self, username: str, deadline: Deadline) -> Mapping[str, Any]:
        try:
            rows = self.find_user(username, deadline)
        except Refused as answer:
            if self._own is not ANONYMOUS and answer.status == HTTPStatus.UNAUTHORIZED:
                # It has ended, or was taken back: nothing that the user could do about it.
                raise BackendUnavailable(f"GitLab refuses the configured token: {answer}") from None
            raise InvalidCredentials(NO_LOOKUP, reason=f"users cannot be looked up by name: {answer}") from None
        if not rows:
            raise InvalidCredentials(reason="GitLab shows no user of this name")
        return rows[0]

    def _groups_of(
        self, token: Credential, owner: int, scopes: frozenset[str], wanted: WantedGroups, deadline: Deadline
    ) -> Groups:
        if not self._groups or not (wanted.named or wanted.others):
            return Groups(frozenset(), are_complete=True)
        # A rule may mean another backend's group. None of the characters of a path means something in a URL.
        named = [path for path in wanted.named if _GROUP_PATH.fullmatch(path)]
        # GitLab would take a path of digits for a number.
        if scopes & _READING and len(named) <= MAX_NAMED and not any(path.isdigit() for path in named):
            questions = {path: partial(self._is_member, path, token, owner, deadline) for path in named}
            found = _groups_by(self._at_once(questions, deadline))
        else:
            found = Groups(frozenset(), are_complete=not named)
            wanted = replace(wanted, others=True)
        if not wanted.others:
            return found
        # The list leaves out groups to which another group is invited.
        listed = self._listed_groups(token, scopes, deadline)
        are_complete = found.are_complete and listed.are_complete and not wanted.others_deny
        return Groups(found.paths | listed.paths, are_complete)

    def _at_once(
        self, questions: Mapping[str, Callable[[], bool | None]], deadline: Deadline
    ) -> Mapping[str, bool | None]:
        """Ask several questions at the same time; one after the other where the system allows no more threads."""
        try:
            asked = {name: self._threads.submit(question) for name, question in questions.items()}
        except RuntimeError:
            return {name: question() for name, question in questions.items()}
        try:
            return {name: future.result(deadline.remaining()) for name, future in asked.items()}
        finally:
            for future in asked.values():
                future.cancel()

    def _is_member(self, path: str, token: Credential, owner: int, deadline: Deadline) -> bool | None:
        """Whether somebody is a member of a group, or of one invited to it; None if GitLab does not say."""
        route = f"/api/v4/groups/{urllib.parse.quote(path, safe='')}/members/all/{owner}"
        try:
            member = self._client.get(route, token, deadline).table()
        except Absent:
            return False
        except Refused:
            return None
        states = (member.get("state", "active"), member.get("membership_state", "active"))
        return member.get("id") == owner and states == ("active", "active") and access_level(member) >= GUEST

    def _listed_groups(self, token: Credential, scopes: frozenset[str], deadline: Deadline) -> Groups:
        # Without a minimum GitLab lists every public group as well.
        members_only = [("min_access_level", str(GUEST))]
        try:
            if scopes & _READING:
                pages = self._client.pages("/api/v4/groups", token, deadline, members_only)
                paths = frozenset(_text(row, "full_path").lower() for page in pages for row in page.rows())
            else:
                pages = self._client.pages(f"{TOKEN_ROUTE}/associations", token, deadline, members_only)
                paths = frozenset(
                    self._page_path(_GROUP_PAGE, row) for page in pages for row in _list(page.table(), "groups")
                )
        except (Absent, TooManyPages):
            # GitLab before 17.4 does not show them to a token with only registry scopes.
            return Groups(frozenset(), are_complete=False)
        return Groups(paths, are_complete=True)

    def _page_path(self, pattern: re.Pattern[str], row: Any) -> str:
        """Read a group's or project's full path from the address of a page of it."""
        address = urllib.parse.urlsplit(_text(row, "web_url") if isinstance(row, dict) else "").path
        found = pattern.fullmatch(address.removeprefix(self._root))
        if found is None:
            raise BackendUnavailable("GitLab gave a web_url that is not in its usual form")
        return found[1].lower()

    def _job_account(self, token: Credential, deadline: Deadline) -> JobAccount:
        try:
            job = self._client.get("/api/v4/job", token, deadline).table()
        except Absent as answer:
            raise InvalidCredentials(reason=str(answer)) from None
        user = job.get("user")
        if job.get("status") != "running" or not isinstance(user, dict):
            raise InvalidCredentials(reason="the job is not running")
        project = self._page_path(_JOB_PAGE, job)
        return JobAccount(
            name=_text(user, "username"),
            # A job's token does not show them.
            groups_known=not self._groups,
            delegated=True,
            credential=token,
            project=project,
        )

    def _token_grants(
        self, account: TokenAccount, access: Access, paths: tuple[str, ...], deadline: Deadline
    ) -> frozenset[str]:
        may = _may(account.scopes)
        if not may:
            _log.info("nothing granted on %s: the token has no scope for a registry", access.name)
            return NOTHING
        try:
            # GitLab decides: it also knows archived groups and protected tags.
            return may & self._replay.grants(account.credential.as_login(account.name), access, deadline)
        except SwitchedOff:
            if not account.scopes & _READING:
                _log.info(
                    "nothing granted on %s: GitLab's own registry is switched off, and the token cannot read projects",
                    access.name,
                )
                return NOTHING
        for path in paths:
            for project in self._project(account.credential, path, deadline):
                return may & self._actions(account, project, asked_actions(access) & may, deadline)
        return NOTHING

    def _actions(
        self, account: TokenAccount, project: Project, wanted: frozenset[str], deadline: Deadline
    ) -> frozenset[str]:
        level = OWNER if account.administrator else project.access_level
        known = project.actions_for(Viewer(level, external=account.external))
        if level >= MAINTAINER or project.registry is RegistryLevel.DISABLED or wanted <= known:
            return known
        # The project's own answer leaves out groups invited to it or to a group above it.
        level = max(level, self._effective_level(account, project, deadline))
        return project.actions_for(Viewer(level, external=account.external))

    def _project(self, credential: Credential, path: str, deadline: Deadline) -> tuple[Project, ...]:
        """Return the project of exactly this path, as the caller sees it; nothing if there is none."""

        def ask() -> tuple[Project, ...]:
            try:
                found = read_project(self._client.get(project_route(path), credential, deadline).table())
            except (Absent, Refused):
                return ()
            return (found,) if found.path == path else ()

        return self._projects.ask((credential.fingerprint, path), ask, deadline.remaining())

    def _effective_level(self, account: TokenAccount, project: Project, deadline: Deadline) -> int:
        def ask() -> int:
            route = f"/api/v4/projects/{project.id}/members/all/{account.user_id}"
            try:
                member = self._client.get(route, account.credential, deadline).table()
            except (Absent, Refused):
                return NO_ACCESS
            if member.get("id") != account.user_id or member.get("state", "active") != "active":
                return NO_ACCESS
            return access_level(member)

        return self._levels.ask((account.credential.fingerprint, project.id), ask, deadline.remaining())

    def _job_grants(
        self, account: JobAccount, access: Access, paths: tuple[str, ...], deadline: Deadline
    ) -> frozenset[str]:
        with contextlib.suppress(SwitchedOff):
            # GitLab decides: a job may also pull from other projects that allow it.
            return self._replay.grants(account.credential.as_login(JOB_USER), access, deadline)
        if account.project in paths:
            # A job may do everything in its own project, if the registry is switched on.
            return EVERYTHING if self._lists_images(account.credential, account.project, deadline) else NOTHING
        return self._public_actions(self._own, paths, deadline)

    def _public_actions(self, credential: Credential, paths: tuple[str, ...], deadline: Deadline) -> frozenset[str]:
        for path in paths:
            if not credential.header:
                if self._lists_images(credential, path, deadline):
                    return PULL
                continue
            for project in self._project(credential, path, deadline):
                # Our own credential may see more than everyone: what counts is what everyone may do.
                return project.actions_for(Viewer(logged_in=False))
        return NOTHING

    def _lists_images(self, credential: Credential, path: str, deadline: Deadline) -> frozenset[str]:
        """Return pull if GitLab shows the images of a project to this caller: that needs the right to pull them.

        The project itself does not tell the anonymous caller, or a job, its registry level.
        """

        def ask() -> frozenset[str]:
            route = f"{project_route(path)}/registry/repositories"
            try:
                self._client.get(route, credential, deadline, [("per_page", "1")]).rows()
            except (Absent, Refused):
                return NOTHING
            return PULL

        return self._readable.ask((credential.fingerprint, path), ask, deadline.remaining())


def _may(scopes: frozenset[str]) -> frozenset[str]:
    """Return what a token's scopes allow at most. What fine-grained tokens may do only GitLab knows."""
    return EVERYTHING if GRANULAR in scopes else actions_by_scopes(scopes)


def _groups_by(is_member: Mapping[str, bool | None]) -> Groups:
    paths = frozenset(path for path, answer in is_member.items() if answer)
    return Groups(paths, are_complete=None not in is_member.values())


def _same(found: object, typed: str) -> bool:
    return isinstance(found, str) and found.isascii() and fold(found) == fold(typed)


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    found = table.get(key)
    if not isinstance(found, list):
        raise BackendUnavailable(f"GitLab's answer has no list '{key}'")
    return found


def _text(table: Mapping[str, Any], key: str) -> str:
    found = table.get(key)
    if not isinstance(found, str) or not found:
        raise BackendUnavailable(f"GitLab's answer has no text '{key}'")
    return found


def _number(table: Mapping[str, Any], key: str) -> int:
    found = table.get(key)
    if not isinstance(found, int) or isinstance(found, bool):
        raise BackendUnavailable(f"GitLab's answer has no number '{key}'")
    return found
