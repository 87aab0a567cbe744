"""An OpenID provider for tests: a real HTTPS server on 127.0.0.1 with keys of every kind, and faults.

It writes its keys and signs its tokens by itself, without the library that the code under test reads them with.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import http.server
import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.support.gitlab import self_signed
from tokenissuer_backends.oidc import OidcBackend, OidcOptions

AUDIENCE = "registry.example"
DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
#: For each algorithm the hash it signs.
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def private_key(kind: str, number: int = 0) -> Private:
    """A key for an algorithm, or an RSA key of some bits; always the same one."""
    return _private_key(kind, number)


@functools.cache
def _private_key(kind: str, number: int) -> Private:
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind])
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=int(kind) if kind.isdigit() else 2048)


def encode(content: bytes) -> str:
    """Base64 as tokens have it."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def encode_number(number: int, size: int = 0) -> str:
    """A number of a JWK."""
    return encode(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def jwk(private: Private, **more: Any) -> dict[str, Any]:
    """The public key as RFC 7517 and 8037 write it."""
    if isinstance(private, rsa.RSAPrivateKey):
        numbers = private.public_key().public_numbers()
        return {"kty": "RSA", "n": encode_number(numbers.n), "e": encode_number(numbers.e), **more}
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": encode(private.public_key().public_bytes_raw()), **more}
    point, size = private.public_key().public_numbers(), (private.key_size + 7) // 8
    curve = {256: "P-256", 384: "P-384", 521: "P-521"}[private.key_size]
    return {"kty": "EC", "crv": curve, "x": encode_number(point.x, size), "y": encode_number(point.y, size), **more}


def public_pem(private: Private) -> bytes:
    """The public key as a file would have it: what somebody may try as a shared secret."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form)


def signature(message: bytes, algorithm: str, key: Private | bytes | None) -> bytes:
    """Sign as RFC 7518 and 8037 say."""
    digest = HASHES.get(algorithm[2:])
    if isinstance(key, bytes):
        return hmac.new(key, message, f"sha{algorithm[2:]}").digest()
    if isinstance(key, rsa.RSAPrivateKey):
        assert digest is not None
        if algorithm.startswith("PS"):
            return key.sign(message, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return key.sign(message, padding.PKCS1v15(), digest)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        assert digest is not None
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return b"" if key is None else key.sign(message)


def signed(header: Mapping[str, Any], claims: object, key: Private | bytes | None, algorithm: str = "") -> str:
    """A token.

    Args:
        header: its header, which may lie about the algorithm.
        claims: its payload; bytes are taken as they are.
        key: signs; bytes are a shared secret, None is no signature.
        algorithm: what really signs; empty for what the header says.
    """
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    message = f"{encode(json.dumps(header).encode())}.{encode(payload)}"
    return f"{message}.{encode(signature(message.encode(), algorithm or str(header.get('alg')), key))}"


@dataclass(frozen=True)
class Fault:
    """An answer in the place of the right one."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Ends the connection without an answer.
    cut: bool = False
    #: Sends the body piece by piece, for ever.
    drip: bool = False


class Provider:
    """An OpenID provider.

    Args:
        folder: for its certificate.
        root: the path of its issuer's URL.
    """

    def __init__(self, folder: Path, root: str = "") -> None:
        tls = private_key("ES256", -1)
        assert isinstance(tls, ec.EllipticCurvePrivateKey)
        #: Its certificate, which nobody else has issued.
        self.ca_file = folder / "provider-ca.pem"
        self.ca_file.write_bytes(self_signed(tls, f"provider {uuid.uuid4()}"))
        pem = folder / "provider.pem"
        form = serialization.PrivateFormat.PKCS8
        secret = tls.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        pem.write_bytes(secret + self.ca_file.read_bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.provider = self
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.issuer = self.address + root
        self.root = root
        #: The paths that were asked for.
        self.requests: list[str] = []
        #: What it signs with, by key id, and what it has published.
        self.keys: dict[str, tuple[str, Private]] = {}
        self.published: list[Any] = []
        #: Changes the discovery document.
        self.more: dict[str, Any] = {}
        #: By path; one for the empty path is for all.
        self.faults: dict[str, Fault] = {}
        #: Seconds that an answer takes.
        self.delay = 0.0
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.add_key("first", "RS256")

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()

    def add_key(self, key_id: str, algorithm: str, number: int = 0, **more: Any) -> None:
        """Sign with one more key, and publish it."""
        kind = "RSA" if algorithm[:2] in ("RS", "PS") else algorithm
        self.keys[key_id] = (algorithm, private_key(kind, number))
        self.published.append(jwk(self.keys[key_id][1], **{"kid": key_id, "use": "sig", "alg": algorithm, **more}))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good token, with changes; None takes one out."""
        now = int(time.time())
        full = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "robot",
            "jti": str(uuid.uuid4()),
            "iat": now,
            "nbf": now - 5,
            "exp": now + 300,
            **changes,
        }
        return {name: value for name, value in full.items() if value is not None}

    def token(self, key_id: str = "first", header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A token signed with one of the keys."""
        algorithm, private = self.keys[key_id]
        head = {"alg": algorithm, "kid": key_id, "typ": "JWT", **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return signed(head, self.claims(**changes), private, algorithm)

    @property
    def fetches(self) -> int:
        """How often the keys were asked for."""
        return self.requests.count(KEYS)

    @contextlib.contextmanager
    def broken(self, fault: Fault, path: str = "") -> Iterator[None]:
        """Answer requests for a path with a fault for a while."""
        self.faults[path] = fault
        try:
            yield
        finally:
            del self.faults[path]


class _Server(http.server.ThreadingHTTPServer):
    provider: Provider
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, or do not trust the certificate, are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `requests` instead."""

    def do_GET(self) -> None:
        """Answer with one of the two documents."""
        provider = self.server.provider
        provider.requests.append(self.path)
        time.sleep(provider.delay)
        fault = provider.faults.get(self.path) or provider.faults.get("")
        if fault is None:
            documents = {
                provider.root + DISCOVERY: {
                    "issuer": provider.issuer,
                    "jwks_uri": provider.address + KEYS,
                    "id_token_signing_alg_values_supported": ["RS256"],
                    **provider.more,
                },
                KEYS: {"keys": provider.published},
            }
            known = self.path in documents
            fault = Fault(200 if known else 404, json.dumps(documents.get(self.path, "absent")).encode())
        if fault.cut:
            self.close_connection = True
            return
        self.send_response(fault.status)
        for name, value in {"Content-Type": "application/json", **fault.headers}.items():
            self.send_header(name, value)
        if not fault.drip:
            self.send_header("Content-Length", str(len(fault.body)))
        self.end_headers()
        self.wfile.write(fault.body)
        self.close_connection = fault.drip
        with contextlib.suppress(OSError):
            for _ in range(600 if fault.drip else 0):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)


@contextlib.contextmanager
def providing(folder: Path, root: str = "") -> Iterator[Provider]:
    """A provider for as long as the block lasts."""
    provider = Provider(folder, root)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()


def asking(provider: Provider, **options: Any) -> OidcBackend:
    """A backend that trusts this provider."""
    usual = {"audience": AUDIENCE, "issuer": provider.issuer, "ca_file": provider.ca_file, "account": "ci:{sub}"}
    if options.get("preset"):
        del usual["account"]
    return OidcBackend(OidcOptions(**{**usual, **options}))


# What the platforms' tokens say, by their documentation, with values of our own.


def github_claims(repository: str, ref: str = "refs/heads/main", **changes: Any) -> dict[str, Any]:
    """https://docs.github.com/actions/reference/openid-connect-reference."""
    owner, _, name = repository.partition("/")
    workflow = f"{repository}/.github/workflows/image.yml@{ref}"
    now = int(time.time())
    claims = {
        "sub": f"repo:{owner}@7001/{name}@900100:ref:{ref}",
        "ref": ref,
        "ref_type": "tag" if ref.startswith("refs/tags/") else "branch",
        "ref_protected": "false",
        "sha": hashlib.sha1(ref.encode(), usedforsecurity=False).hexdigest(),
        "repository": repository,
        "repository_id": "900100",
        "repository_owner": owner,
        "repository_owner_id": "7001",
        "repository_visibility": "private",
        "run_id": "55001",
        "run_number": "12",
        "run_attempt": "1",
        "runner_environment": "github-hosted",
        "actor": "ada",
        "actor_id": "4001",
        "workflow": "image",
        "workflow_ref": workflow,
        "workflow_sha": "0" * 40,
        "job_workflow_ref": workflow,
        "job_workflow_sha": "0" * 40,
        "event_name": "push",
        "head_ref": "",
        "base_ref": "",
        "nbf": now - 300,
        "iat": now,
        "exp": now + 300,
    }
    return {**claims, **changes}


def gitlab_claims(project: str, ref: str = "main", **changes: Any) -> dict[str, Any]:
    """https://docs.gitlab.com/ci/secrets/id_token_authentication/."""
    now = int(time.time())
    claims = {
        "namespace_id": "31",
        "namespace_path": project.rpartition("/")[0],
        "project_id": "44",
        "project_path": project,
        "project_visibility": "private",
        "user_id": "5",
        "user_login": "ada",
        "user_email": "ada@example.org",
        "user_access_level": "developer",
        "user_identities": [{"provider": "saml", "extern_uid": "ada"}],
        "groups_direct": ["tools"],
        "pipeline_id": "812",
        "pipeline_source": "push",
        "job_id": "4410",
        "ref": ref,
        "ref_type": "branch",
        "ref_path": f"refs/heads/{ref}",
        "ref_protected": "true",
        "runner_id": 3,
        "runner_environment": "self-hosted",
        "sha": "1" * 40,
        "ci_config_ref_uri": f"gitlab.example.org/{project}//.gitlab-ci.yml@refs/heads/{ref}",
        "ci_config_sha": "1" * 40,
        "iat": now,
        "nbf": now - 5,
        "exp": now + 3600,
        "sub": f"project_path:{project}:ref_type:branch:ref:{ref}",
    }
    return {**claims, **changes}


def kubernetes_claims(namespace: str, account: str, **changes: Any) -> dict[str, Any]:
    """https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/."""
    now = int(time.time())
    claims = {
        "aud": [AUDIENCE],
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-3", "uid": str(uuid.uuid4())},
            "pod": {"name": f"{account}-x7", "uid": str(uuid.uuid4())},
            "serviceaccount": {"name": account, "uid": str(uuid.uuid4())},
        },
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "sub": f"system:serviceaccount:{namespace}:{account}",
    }
    return {**claims, **changes}


#: The header of a Kubernetes token has no type.
KUBERNETES_HEADER: Mapping[str, Any] = {"typ": None}
