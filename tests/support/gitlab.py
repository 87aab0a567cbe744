"""A GitLab for tests: a real HTTP server on 127.0.0.1 with GitLab's routes, shapes, statuses and oddities, and faults.

It decides by its own small model of roles and abilities, so that it cannot share a mistake with the code under test.
What its answers look like is recorded apart from it, in `gitlab_shapes`: a folder for each version of GitLab.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import http.server
import ipaddress
import json
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tokenissuer_backends.gitlab import GitLabBackend, GitLabOptions

SHAPES = Path(__file__).parent / "gitlab_shapes"
READING = {"api", "read_api"}
NAMING = {"api", "read_api", "read_user"}
EXPIRED = "Token is expired. You can either do re-authorization or token refresh."
REVOKED = "Token was revoked. You have to re-authorize from the user."
DENIED_LOGIN = (
    "HTTP Basic: Access denied. If a password was provided for Git authentication, the password was incorrect or "
    "you're required to use a token instead of a password."
)


@dataclass
class User:
    """Somebody with an account."""

    id: int
    username: str
    state: str = "active"
    external: bool = False
    admin: bool = False
    password: str = ""
    two_factors: bool = False


@dataclass
class Token:
    """A personal, project or group access token; `oauth` for the other kind."""

    text: str
    user: User
    scopes: list[str]
    expired: bool = False
    revoked: bool = False
    oauth: bool = False
    #: Whether the API serves it and yet calls it inactive.
    inactive: bool = False
    id: int = 0


@dataclass
class Project:
    """A project, with the three ways to be a member."""

    id: int
    path: str
    visibility: str = "private"
    registry: str = "enabled"
    direct: dict[int, int] = field(default_factory=dict)
    inherited: dict[int, int] = field(default_factory=dict)
    invited: dict[int, int] = field(default_factory=dict)
    state: str = "active"
    is_refused: bool = False
    archived: bool = False
    former_paths: list[str] = field(default_factory=list)
    #: Tags that only maintainers may push: in tokens, for GitLab's own registry.
    protected_tags: list[str] = field(default_factory=list)
    protected_repository: bool = False


@dataclass
class Group:
    """A group and its members."""

    id: int
    path: str
    members: dict[int, int]
    visibility: str = "private"
    invited: dict[int, int] = field(default_factory=dict)
    state: str = "active"
    is_refused: bool = False


@dataclass
class Job:
    """A CI job and its token."""

    token: str
    user: User
    project: Project
    status: str = "running"
    id: int = 4711


@dataclass
class DeployToken:
    """A project's deploy token."""

    id: int
    username: str
    token: str
    project: Project
    scopes: list[str]


@dataclass(frozen=True)
class Request:
    """What was asked, as it came in."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Caller:
    """Who is behind a credential, and what the credential may be used for."""

    user: User | None = None
    token: Token | None = None
    job: Job | None = None
    deploy: DeployToken | None = None
    auth_type: str = "none"

    @property
    def scopes(self) -> set[str]:
        """The token's scopes."""
        return set(self.token.scopes) if self.token else set()


class Reply(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, dict(headers or {})
        super().__init__(status)


def message(status: int, text: str) -> Reply:
    """The one of GitLab's two error shapes."""
    return Reply(status, {"message": text})


def shape_file(version: str, endpoint: str) -> Path:
    """Where the answer of an endpoint is recorded; the first two numbers of the version say in which folder."""
    return SHAPES / ".".join(version.split(".")[:2]) / f"{endpoint}.json"


@functools.cache
def read_shape(path: Path) -> str:
    """Read a file once."""
    return path.read_text()


def example(version: str, endpoint: str) -> dict[str, Any]:
    """The recorded answer of an endpoint; of a list its one element."""
    try:
        answer = json.loads(read_shape(shape_file(version, endpoint)))
    except FileNotFoundError:
        raise AssertionError(f"no answer of {endpoint!r} is recorded for GitLab {version}") from None
    table: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    return table


def filled(shape: Mapping[str, Any], /, **values: Any) -> dict[str, Any]:
    """A recorded table with other values.

    Raises:
        AssertionError: for a field that is not recorded.
    """
    invented = values.keys() - shape.keys()
    if invented:
        raise AssertionError(f"GitLab's answer has no field {', '.join(sorted(invented))}")
    return {**shape, **values}


def recorded(version: str, endpoint: str, /, **values: Any) -> dict[str, Any]:
    """The recorded answer of an endpoint with other values; see `filled`."""
    return filled(example(version, endpoint), **values)


class StubGitLab:
    """A GitLab with users, tokens, groups and projects, which tests add to.

    Args:
        root: the path it is installed under.
        certificate: serve TLS with this file of key and certificate.
    """

    def __init__(self, root: str = "", certificate: Path | None = None) -> None:
        self.root = root
        self.users: list[User] = []
        self.tokens: list[Token] = []
        self.projects: list[Project] = []
        self.groups: list[Group] = []
        self.jobs: list[Job] = []
        self.deploy_tokens: list[DeployToken] = []
        self.requests: list[Request] = []
        #: How many sockets clients have opened.
        self.connections = 0
        self.admin_mode = False
        self.anonymous_users = True
        self.registry_enabled = True
        self.associations = True
        self.issuer = "gitlab-issuer"
        #: Also chooses the recorded answers.
        self.version = "17.11.2-ee"
        self.describes_tokens = True
        #: Seconds by which its clock is ahead.
        self.clock_ahead = 0
        self.token_lifetime = 300
        self.fault: Callable[[Handler], None] | None = None
        #: Given for every project that is asked for by a path.
        self.find_by_any_path: Project | None = None
        self.recorded_repositories: set[str] = set()
        self.key = signing_key()
        #: Changes a token of /jwt/auth before it is signed, and how.
        self.forge: Callable[[dict[str, Any]], str | None] = lambda _claims: None
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.gitlab = self
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}{root}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()

    def hang_up(self) -> None:
        """Close every connection, as a server does with idle ones."""
        self._server.hang_up()

    # What tests add.

    def user(self, username: str, **more: Any) -> User:
        """Add a user."""
        self.users.append(User(100 + len(self.users), username, **more))
        return self.users[-1]

    def token(self, user: User, *scopes: str, **more: Any) -> str:
        """Add a token."""
        text = f"glpat-{uuid.uuid4().hex[:20]}"
        self.tokens.append(Token(text, user, list(scopes), id=900 + len(self.tokens), **more))
        return text

    def project(self, path: str, visibility: str = "private", registry: str = "enabled", **more: Any) -> Project:
        """Add a project."""
        self.projects.append(Project(5000 + len(self.projects), path, visibility, registry, **more))
        return self.projects[-1]

    def group(self, path: str, members: dict[int, int], visibility: str = "private") -> Group:
        """Add a group."""
        self.groups.append(Group(300 + len(self.groups), path, members, visibility))
        return self.groups[-1]

    def job(self, user: User, project: Project, status: str = "running") -> str:
        """Add a CI job."""
        text = f"glcbt-64_{uuid.uuid4().hex[:20]}"
        self.jobs.append(Job(text, user, project, status))
        return text

    def deploy_token(self, project: Project, *scopes: str, username: str = "") -> DeployToken:
        """Add a deploy token."""
        number = 70 + len(self.deploy_tokens)
        name = username or f"gitlab+deploy-token-{number}"
        self.deploy_tokens.append(DeployToken(number, name, f"gldt-{uuid.uuid4().hex[:20]}", project, list(scopes)))
        return self.deploy_tokens[-1]

    def asked(self, part: str = "") -> int:
        """How many requests had this in their path."""
        return sum(part in request.path for request in self.requests)

    def certificate(self) -> bytes:
        """What its own registry has as rootcertbundle."""
        return self_signed(self.key, "gitlab-registry")

    @contextlib.contextmanager
    def broken(self, fault: Callable[[Handler], None]) -> Iterator[None]:
        """Answer every request with a fault for a while."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    # What GitLab decides.

    def level(self, user: User | None, project: Project) -> int:
        """The effective role."""
        if user is None:
            return 0
        return max(way.get(user.id, 0) for way in (project.direct, project.inherited, project.invited))

    def is_admin(self, caller: Caller) -> bool:
        """Whether the caller has an administrator's rights over the API."""
        user = caller.user
        return bool(user and user.admin and (not self.admin_mode or "admin_mode" in caller.scopes))

    def sees(self, caller: Caller, project: Project) -> bool:
        """Whether the project exists for the caller."""
        if project.visibility == "public" or self.is_admin(caller):
            return True
        if caller.user is None:
            return False
        member = self.level(caller.user, project) > 0
        return member or (project.visibility == "internal" and not caller.user.external)

    def abilities(self, user: User | None, project: Project, *, admin: bool) -> set[str]:
        """What the policy of a project enables."""
        level = 50 if admin else self.level(user, project)
        if project.registry == "disabled":
            return set()
        if project.registry == "private" and level < 20:
            return set()
        enabled = set()
        open_to_users = project.visibility == "internal" and user is not None and not user.external
        external_member = bool(user and user.external and level >= 10 and project.visibility != "private")
        if level >= 20 or project.visibility == "public" or open_to_users or external_member:
            enabled.add("read")
        if level >= 30 and not project.archived:
            enabled.add("create")
        if level >= 40 and not project.archived:
            enabled.add("admin")
        return enabled

    def sign(self, claims: dict[str, Any]) -> str:
        """A JWT as GitLab makes them."""
        now = int(time.time()) + self.clock_ahead
        full = {
            "jti": str(uuid.uuid4()),
            "iat": now,
            "nbf": now - 5,
            "exp": now + self.token_lifetime,
            "iss": self.issuer,
            **claims,
        }
        forged = self.forge(full)
        if forged is not None:
            return forged
        der = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
        kid = ":".join(digest[start : start + 4] for start in range(0, 48, 4))
        return jwt.encode(full, self.key, algorithm="RS256", headers={"kid": kid})


@functools.cache
def signing_key() -> rsa.RSAPrivateKey:
    """The key of every GitLab here: making one takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def self_signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A certificate for 127.0.0.1 in PEM form."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


class _Server(http.server.ThreadingHTTPServer):
    gitlab: StubGitLab
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.gitlab.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news; a mistake of the stub is."""
        if isinstance(sys.exception(), AssertionError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Headers and body are sent apart; without this the second waits for the first to be acknowledged.
    disable_nagle_algorithm = True
    server: _Server
    timeout = 60

    @property
    def gitlab(self) -> StubGitLab:
        """The GitLab this is a connection of."""
        return self.server.gitlab

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `requests` instead."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.gitlab.clock_ahead)

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        """Answer one request, with a fault if there is one."""
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.gitlab.requests.append(Request(self.command, parts.path, query, headers))
        if self.gitlab.fault is not None:
            self.gitlab.fault(self)
            return
        try:
            if not parts.path.startswith(f"{self.gitlab.root}/"):
                raise Reply(404, "<html>not this application</html>", {"Content-Type": "text/html"})
            path = parts.path.removeprefix(self.gitlab.root)
            if path == "/jwt/auth":
                self.jwt_auth(query)
            elif path.startswith("/api/v4/") and self.command == "GET":
                self.api(path.removeprefix("/api/v4"), {key: values[-1] for key, values in query.items()})
            raise message(404, "404 Not Found")
        except Reply as reply:
            self.answer(reply)

    def answer(self, reply: Reply) -> None:
        """Send an answer: JSON unless it is text or nothing."""
        kind = "application/json"
        if reply.body is None:
            body, kind = b"", "text/plain"
        elif isinstance(reply.body, str):
            body, kind = reply.body.encode(), "text/plain"
        else:
            body = json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, **reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    # Who asks.

    def caller(self) -> Caller:
        """Who is behind the credential, for the API."""
        private, job_token = self.headers.get("PRIVATE-TOKEN"), self.headers.get("JOB-TOKEN")
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if job_token is not None:
            for job in self.gitlab.jobs:
                if job.token == job_token and job.status == "running":
                    return Caller(job.user, job=job)
            raise message(401, "401 Unauthorized")
        text = private if private is not None else bearer
        # A value with the prefix of CI job tokens is passed over in this header.
        if not text or text.startswith("glcbt-"):
            return Caller()
        for token in self.gitlab.tokens:
            if token.text == text:
                self.check_token(token)
                return Caller(token.user, token)
        raise message(401, "401 Unauthorized")

    def check_token(self, token: Token) -> None:
        """Refuse what GitLab refuses before it looks at scopes."""
        for bad, text in ((token.expired, EXPIRED), (token.revoked, REVOKED)):
            if bad:
                raise Reply(401, {"error": "invalid_token", "error_description": text})
        if token.user.state == "blocked":
            raise message(403, "403 Forbidden - Your account has been blocked.")
        if token.user.state == "deactivated":
            raise message(403, "403 Forbidden - Your account has been deactivated by your administrator.")

    def need(self, caller: Caller, scopes: set[str], *, anonymous: bool = False) -> None:
        """Refuse a token without the scopes of the route; also where the anonymous caller would be served."""
        if caller.token is not None and not caller.scopes & scopes:
            raise Reply(
                403,
                {
                    "error": "insufficient_scope",
                    "error_description": "The request requires higher privileges than provided by the access token.",
                    "scope": " ".join(sorted(scopes)),
                },
            )
        if caller.token is None and not anonymous:
            raise message(401, "401 Unauthorized")

    # The API.

    def api(self, path: str, query: Mapping[str, str]) -> None:
        """Answer one route."""
        caller = self.caller()
        match path.split("/")[1:]:
            case ["version" | "metadata"]:
                self.need(caller, NAMING)
                raise Reply(200, recorded(self.gitlab.version, "metadata", version=self.gitlab.version))
            case ["user"]:
                self.need(caller, NAMING)
                raise Reply(200, self.user_table(caller))
            case ["users"]:
                self.need(caller, NAMING, anonymous=True)
                if caller.user is None and (not self.gitlab.anonymous_users or "username" not in query):
                    raise message(403, "403 Forbidden - Not authorized to access /api/v4/users")
                name = query.get("username", "").lower()
                found = [user for user in self.gitlab.users if user.username.lower() == name]
                raise Reply(200, [recorded(self.gitlab.version, "users", **basic_user(user)) for user in found])
            case ["personal_access_tokens", "self", *rest] if self.gitlab.describes_tokens:
                self.token_itself(caller, rest, query)
            case ["groups"]:
                self.need(caller, READING, anonymous=True)
                self.list_groups(caller, query)
            case ["groups", id_, "members", "all", number]:
                self.need(caller, READING)
                self.group_member(urllib.parse.unquote(id_), number)
            case ["projects", id_, *rest]:
                self.project(caller, urllib.parse.unquote(id_), rest)
            case ["job"]:
                self.need_job(caller)

    def user_table(self, caller: Caller) -> dict[str, Any]:
        """What a user is told of himself."""
        user = caller.user
        assert user is not None
        values = {
            **basic_user(user),
            "email": f"{user.username}@example.com",
            "two_factor_enabled": user.two_factors,
            "external": user.external,
        }
        if self.gitlab.is_admin(caller):
            return recorded(self.gitlab.version, "user_admin", **values, is_admin=True)
        return recorded(self.gitlab.version, "user", **values)

    def token_itself(self, caller: Caller, rest: list[str], query: Mapping[str, str]) -> None:
        """Every scope will do here, but not every kind of token."""
        token = caller.token
        if token is None:
            raise message(401, "401 Unauthorized")
        if token.oauth:
            raise message(400, "400 Bad request - This endpoint requires token type to be a personal access token")
        version = self.gitlab.version
        if not rest:
            shape = example(version, "token")
            newer = {"granular": "granular" in token.scopes} if "granular" in shape else {}
            values = {"id": token.id, "scopes": token.scopes, "user_id": token.user.id, "active": not token.inactive}
            raise Reply(200, filled(shape, **values, **newer))
        if rest == ["associations"] and self.gitlab.associations and shape_file(version, "associations").exists():
            self.list_associations(token.user, query)

    def list_associations(self, user: User, query: Mapping[str, str]) -> None:
        """The groups and projects of a token's user, both in pages."""
        shape = example(self.gitlab.version, "associations")
        level = int(query.get("min_access_level", "0"))
        groups, _ = paginate(self.member_groups(user, level), query)
        # The header speaks of the list that was cut into pages last: the projects.
        projects, following = paginate(
            [project for project in self.gitlab.projects if self.gitlab.level(user, project) >= max(level, 1)], query
        )
        group_rows = [
            filled(
                shape["groups"][0],
                id=group.id,
                web_url=f"{self.gitlab.url}/groups/{group.path}",
                name=group.path.rpartition("/")[2],
                access_levels=group.members.get(user.id, 0),
                visibility=group.visibility,
            )
            for group in groups
        ]
        project_rows = [
            self.described(
                project,
                shape["projects"][0],
                visibility=project.visibility,
                access_levels=filled(
                    shape["projects"][0]["access_levels"],
                    project_access_level=project.direct.get(user.id),
                    group_access_level=project.inherited.get(user.id),
                ),
            )
            for project in projects
        ]
        raise Reply(200, {"groups": group_rows, "projects": project_rows}, {"X-Next-Page": following})

    def member_groups(self, user: User, level: int) -> list[Group]:
        """The groups of a user; without a level the public ones too."""
        return [
            group
            for group in self.gitlab.groups
            if (level and group.members.get(user.id, 0) >= level)
            or (not level and (user.id in group.members or group.visibility != "private"))
        ]

    def list_groups(self, caller: Caller, query: Mapping[str, str]) -> None:
        """A list in pages."""
        if caller.user is None:
            raise Reply(200, [])
        groups, following = paginate(self.member_groups(caller.user, int(query.get("min_access_level", "0"))), query)
        page = [
            recorded(
                self.gitlab.version,
                "groups",
                id=group.id,
                web_url=f"{self.gitlab.url}/groups/{group.path}",
                name=group.path.rpartition("/")[2],
                path=group.path.rpartition("/")[2],
                full_name=group.path.replace("/", " / "),
                full_path=group.path,
                visibility=group.visibility,
            )
            for group in groups
        ]
        raise Reply(200, page, {"X-Next-Page": following, "X-Page": query.get("page", "1")})

    def group_member(self, path: str, number: str) -> None:
        """One member of a group, of groups above it and of groups invited to it."""
        for group in self.gitlab.groups:
            for user in self.gitlab.users:
                level = max(group.members.get(user.id, 0), group.invited.get(user.id, 0))
                if group.path.lower() == path.lower() and str(user.id) == number and level:
                    if group.is_refused:
                        raise message(403, "403 Forbidden")
                    values = {**basic_user(user), "access_level": level, "membership_state": group.state}
                    raise Reply(200, recorded(self.gitlab.version, "group_member", **values))
        raise message(404, "404 Not found")

    def project(self, caller: Caller, id_: str, rest: list[str]) -> None:
        """A project and what is below it."""
        job_route = rest == ["registry", "repositories"]
        if caller.job is not None and not job_route:
            # Where job tokens are not taken, one counts for nothing.
            caller = Caller()
        self.need(caller, READING, anonymous=True)
        project = self.find_project(caller, id_, rest)
        if caller.job is not None and caller.job.project is not project:
            raise message(404, "404 Project Not Found")
        match rest:
            case []:
                raise Reply(200, self.project_table(caller, project))
            case ["members", "all", number]:
                if caller.user is None:
                    raise message(401, "401 Unauthorized")
                self.member(project, number)
            case ["registry", "repositories"]:
                admin = self.gitlab.is_admin(caller)
                if "read" not in self.gitlab.abilities(caller.user, project, admin=admin):
                    raise message(403 if caller.user else 401, "403 Forbidden" if caller.user else "401 Unauthorized")
                raise Reply(200, self.repositories(project))

    def find_project(self, caller: Caller, id_: str, rest: list[str]) -> Project:
        """By number, else by path without regard to case."""
        if self.gitlab.find_by_any_path is not None:
            return self.gitlab.find_by_any_path
        found = [
            project
            for project in self.gitlab.projects
            if (str(project.id) == id_ if id_.isdigit() else project.path.lower() == id_.lower())
        ]
        for project in found:
            if self.gitlab.sees(caller, project):
                return project
        for project in self.gitlab.projects:
            if id_.lower() in (path.lower() for path in project.former_paths) and self.gitlab.sees(caller, project):
                url = "/".join([f"{self.gitlab.url}/api/v4/projects/{project.id}", *rest])
                raise Reply(301, {"message": "Moved"}, {"Location": url})
        raise message(404, "404 Project Not Found")

    def project_table(self, caller: Caller, project: Project) -> dict[str, Any]:
        """The small description for the anonymous caller, the large one for users."""
        version = self.gitlab.version
        if caller.user is None:
            return self.described(project, example(version, "project_anonymous"))

        def way(members: dict[int, int]) -> dict[str, int] | None:
            assert caller.user is not None
            level = members.get(caller.user.id)
            return None if level is None else {"access_level": level, "notification_level": 3}

        enabled = project.registry == "enabled" or (
            project.registry == "private" and self.gitlab.level(caller.user, project) >= 20
        )
        return self.described(
            project,
            example(version, "project"),
            visibility=project.visibility,
            archived=project.archived,
            container_registry_enabled=enabled,
            container_registry_access_level=project.registry,
            permissions={"project_access": way(project.direct), "group_access": way(project.inherited)},
        )

    def described(self, project: Project, shape: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A recorded description of a project as one of this project."""
        group, _, name = project.path.rpartition("/")
        return filled(
            shape,
            id=project.id,
            name=name,
            name_with_namespace=project.path.replace("/", " / "),
            path=name,
            path_with_namespace=project.path,
            web_url=f"{self.gitlab.url}/{project.path}",
            namespace=filled(shape["namespace"], name=group, path=group.rpartition("/")[2], full_path=group),
            **more,
        )

    def repositories(self, project: Project) -> list[dict[str, Any]]:
        """The images that somebody has pushed to a project."""
        path = project.path.lower()
        return [
            recorded(
                self.gitlab.version,
                "repositories",
                name=name.removeprefix(path).removeprefix("/"),
                path=name,
                project_id=project.id,
                location=f"registry.example.com/{name}",
            )
            for name in sorted(self.gitlab.recorded_repositories)
            if name == path or name.startswith(f"{path}/")
        ]

    def member(self, project: Project, number: str) -> None:
        """The effective membership of one user."""
        for user in self.gitlab.users:
            level = self.gitlab.level(user, project)
            if str(user.id) == number and level:
                values = {**basic_user(user), "access_level": level}
                raise Reply(200, recorded(self.gitlab.version, "member", **values))
        # Another spelling than for projects.
        raise message(404, "404 Not found")

    def need_job(self, caller: Caller) -> None:
        """The job behind a job token."""
        if caller.job is None:
            raise message(404, "404 Job Not Found") if caller.token else message(401, "401 Unauthorized")
        job, shape = caller.job, example(self.gitlab.version, "job")
        raise Reply(
            200,
            filled(
                shape,
                id=job.id,
                status=job.status,
                web_url=f"{self.gitlab.url}/{job.project.path}/-/jobs/{job.id}",
                pipeline=filled(shape["pipeline"], project_id=job.project.id),
                user=filled(shape["user"], **basic_user(job.user)),
            ),
        )

    # The token endpoint of GitLab's own registry.

    def jwt_auth(self, query: Mapping[str, list[str]]) -> None:
        """Answer as `/jwt/auth` does."""
        if self.command != "GET":
            raise Reply(404, None)
        if query.get("service") != ["container_registry"]:
            raise Reply(404, None)
        caller = self.basic_caller()
        if not self.gitlab.registry_enabled:
            raise jwt_error(404, "UNAVAILABLE", "registry not enabled")
        if caller.auth_type == "personal_access_token" and not caller.scopes & {
            "api",
            "read_api",
            "read_registry",
            "write_registry",
            "granular",
        }:
            raise jwt_error(403, "DENIED", "access forbidden")
        scopes = [scope for value in query.get("scope", []) for scope in value.split()]
        access = [entry for scope in scopes for entry in self.access(caller, scope)]
        if not access and caller.user is None and caller.deploy is None:
            raise jwt_error(403, "DENIED", "access forbidden")
        info: dict[str, Any] | None = None
        if caller.deploy is not None:
            info = {
                "token_type": "deploy_token",
                "username": caller.deploy.username,
                "deploy_token_id": caller.deploy.id,
            }
        elif caller.user is not None:
            info = {"token_type": caller.auth_type, "username": caller.user.username, "user_id": caller.user.id}
        claims: dict[str, Any] = {"access": access, "aud": "container_registry", "auth_type": caller.auth_type}
        if caller.user is not None:
            claims["sub"] = caller.user.username
        claims["user"] = self.gitlab.sign({"user_info": info})
        raise Reply(200, {"token": self.gitlab.sign(claims)})

    def basic_caller(self) -> Caller:
        """Who is behind a user name and password, as for Git over HTTP."""
        header = self.headers.get("Authorization")
        if header is None:
            return Caller()
        username, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        if username == "gitlab-ci-token":
            for job in self.gitlab.jobs:
                if job.token == password and job.status == "running":
                    return Caller(job.user, job=job, auth_type="build")
        for token in self.gitlab.tokens:
            good = not (token.expired or token.revoked) and token.user.state == "active"
            if token.text == password and good:
                kind = "oauth" if token.oauth else "personal_access_token"
                return Caller(token.user, token, auth_type=kind)
        for deploy in self.gitlab.deploy_tokens:
            if (deploy.username, deploy.token) == (username, password):
                return Caller(deploy=deploy, auth_type="deploy_token")
        for user in self.gitlab.users:
            if password and (user.username.lower(), user.password) == (username.lower(), password):
                if user.two_factors:
                    break
                return Caller(user, auth_type="gitlab_or_ldap")
        raise jwt_error(401, "UNAUTHORIZED", DENIED_LOGIN)

    def access(self, caller: Caller, scope: str) -> list[dict[str, Any]]:
        """The entry for one scope; none if nothing is granted."""
        type_, name, actions = scope.split(":", 2)
        if type_ != "repository":
            return []
        name = name.lower()
        parts = name.split("/")
        paths = ["/".join(parts[: len(parts) - less]) for less in range(3) if len(parts) - less >= 2]
        found = [project for project in self.gitlab.projects if project.path.lower() in paths]
        if not found:
            return []
        project = found[0]
        granted = [action for action in actions.split(",") if self.may(caller, action, project)]
        if not granted:
            return []
        level = self.gitlab.level(caller.user, project)
        if "push" in granted:
            if project.protected_repository and level < 40:
                raise jwt_error(403, "DENIED", "Pushing to protected repository path forbidden")
            self.gitlab.recorded_repositories.add(name)
        meta: dict[str, Any] = {
            "project_path": project.path.lower(),
            "project_id": project.id,
            "root_namespace_id": 1,
        }
        if project.protected_tags and level < 40:
            meta["tag_deny_access_patterns"] = {"push": project.protected_tags, "delete": project.protected_tags}
        return [{"type": type_, "name": name, "actions": granted, "meta": meta}]

    def may(self, caller: Caller, action: str, project: Project) -> bool:
        """Whether credential and policy both allow it."""
        ability = {"pull": "read", "push": "create", "delete": "admin", "*": "admin"}.get(action)
        if ability is None or project.registry == "disabled":
            return False
        if caller.deploy is not None:
            needed = {"pull": "read_registry", "push": "write_registry"}.get(action)
            return project is caller.deploy.project and needed in caller.deploy.scopes
        enabled = self.gitlab.abilities(caller.user, project, admin=bool(caller.user and caller.user.admin))
        if caller.job is not None:
            own = caller.job.project is project
            return (own and action != "*") or (action == "pull" and "read" in enabled)
        if caller.token is not None:
            carried = {
                "read": {"api", "read_api", "read_registry", "granular"},
                "create": {"api", "write_registry"},
                "admin": {"api"},
            }
            if not caller.scopes & carried[ability]:
                return False
        elif caller.user is None and action != "pull":
            return False
        return ability in enabled


def basic_user(user: User) -> dict[str, Any]:
    """What everybody is told of a user."""
    return {
        "id": user.id,
        "username": user.username,
        "name": user.username.title(),
        "state": user.state,
        "web_url": f"https://gitlab.example.com/{user.username}",
    }


def jwt_error(status: int, code: str, text: str) -> Reply:
    """The shape of errors of `/jwt/auth`."""
    return Reply(status, {"errors": [{"code": code, "message": text}], "http_status": status})


def paginate(rows: list[Any], query: Mapping[str, str]) -> tuple[list[Any], str]:
    """One page, and the number of the next."""
    size, number = min(int(query.get("per_page", "20")), 100), int(query.get("page", "1"))
    more = len(rows) > size * number
    return rows[size * (number - 1) : size * number], str(number + 1) if more else ""


@contextlib.contextmanager
def serving(root: str = "", certificate: Path | None = None) -> Iterator[StubGitLab]:
    """A GitLab for as long as the block lasts."""
    gitlab = StubGitLab(root, certificate)
    gitlab.start()
    try:
        yield gitlab
    finally:
        gitlab.stop()


@contextlib.contextmanager
def asking(gitlab: StubGitLab, **options: Any) -> Iterator[GitLabBackend]:
    """A backend that asks this GitLab, for as long as the block lasts."""
    backend = GitLabBackend(GitLabOptions(**{"url": gitlab.url, "plain_http": True, **options}))
    try:
        yield backend
    finally:
        backend.close()


# Faults.


def answers(status: int, body: bytes, **headers: str) -> Callable[[Handler], None]:
    """Whatever is asked, the same answer."""

    def fault(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return fault


def cut(handler: Handler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True


def cut_body(handler: Handler) -> None:
    """The connection ends within the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id":')
    handler.close_connection = True


def slow(seconds: float) -> Callable[[Handler], None]:
    """An answer that comes too late."""

    def fault(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def drip(start: bytes, piece: bytes, pause: float = 0.05) -> Callable[[Handler], None]:
    """An answer that never ends, a little at a time, so that no single read ever times out."""

    def fault(handler: Handler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(start)
            for _ in range(int(30 / pause)):
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(pause)

    return fault
