"""Jobs and pods log in with the token of their platform, at real registries and with real clients."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.oidc import (
    AUDIENCE,
    KUBERNETES_HEADER,
    Fault,
    Provider,
    github_claims,
    kubernetes_claims,
    providing,
)

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Issuer, Site, Sites

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

NewClient = Callable[[], "Client"]
NewImage = Callable[[], "Image"]

PLUGIN = Path(__file__).parents[2] / "conf" / "kubernetes-credential-provider"
BACKENDS = """
[[backends]]
type = "oidc"
name = "github"
audience = "{audience}"
preset = "github"
issuer = "{github}"
ca_file = "{ca_file}"
require = {{ repository_owner = "Example" }}

[[backends]]
type = "oidc"
name = "cluster"
audience = "{audience}"
preset = "kubernetes"
issuer = "{cluster}"
jwks_file = "cluster.json"

[[backends]]
type = "htpasswd"
path = "users.htpasswd"

[[access]]
groups = ["github:*"]
repositories = ["{{group}}", "{{group}}/**"]
actions = ["pull", "push"]

[[access]]
groups = ["kubernetes:web"]
repositories = ["example/app/**"]
actions = ["pull"]
"""


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """A platform for jobs."""
    with providing(tmp_path_factory.mktemp("github")) as provider:
        yield provider


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """A cluster whose keys are in a file: nobody can ask it."""
    with providing(tmp_path_factory.mktemp("cluster")) as provider:
        yield provider


def configured(sites: Sites, name: str, github: Provider, cluster: Provider) -> Issuer:
    """An issuer that trusts both, and gives people refresh tokens."""
    issuer = sites.new_issuer(name)
    issuer.drop_tables("backends")
    (issuer.folder / "cluster.json").write_text(json.dumps({"keys": cluster.published}))
    issuer.set_access(
        BACKENDS.format(audience=AUDIENCE, github=github.issuer, ca_file=github.ca_file, cluster=cluster.issuer)
    )
    assert "[refresh]" in issuer.config.read_text()
    return issuer


@pytest.fixture(scope="module")
def issuer(sites: Sites, github: Provider, cluster: Provider) -> Issuer:
    """The issuer of these tests, serving."""
    issuer = configured(sites, "machines", github, cluster)
    issuer.start()
    return issuer


@pytest.fixture(scope="module", params=[2, 3])
def site(request: pytest.FixtureRequest, sites: Sites, issuer: Issuer) -> Site:
    """A registry of each generation that trusts it."""
    return sites.registry(issuer, request.param)


def job(github: Provider, repository: str = "Example/App", **changes: Any) -> str:
    """The token of a job."""
    return github.token(**github_claims(repository, **changes))


def test_a_job_pushes_below_its_own_path_and_nowhere_else(
    site: Site, github: Provider, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """`docker login -u anything --password-stdin`, then push and pull."""
    client, image = new_client(), new_image()
    token = job(github)
    assert "Login Succeeded" in client.login(site.registry, "anything", token).succeeded()
    stored = client.stored_logins()[site.registry]
    assert stored.keys() == {"auth"}, "a machine gets no identity token"
    assert base64.b64decode(stored["auth"]).decode() == f"anything:{token}"
    for place in ("example/app", "example/app/web", "example/app/web/arm"):
        reference = site.reference(place, tag=f"g{time.monotonic_ns()}")
        client.push(image, reference).succeeded()
        client.pull(reference, tmp_path / place.replace("/", "-")).succeeded()
        assert image.is_in(tmp_path / place.replace("/", "-"))
    for place in ("example/other", "example/app2/web", "other/app/web", "app"):
        client.push(image, site.reference(place)).failed()
        client.pull(site.reference(place), tmp_path / "none").failed()
    client.crane("push", str(image.folder), site.reference("example/app/by-crane")).succeeded()
    client.crane("push", str(image.folder), site.reference("example/other/by-crane")).failed()


def test_the_job_of_another_project_has_its_own_path(
    site: Site, github: Provider, new_client: NewClient, new_image: NewImage
) -> None:
    """The same rule, another place."""
    client = new_client()
    client.login(site.registry, "x", job(github, "Example/other")).succeeded()
    client.push(new_image(), site.reference("example/other/web")).succeeded()
    client.push(new_image(), site.reference("example/app/web")).failed()


def test_a_token_that_is_refused_says_little_to_the_client(site: Site, github: Provider, new_client: NewClient) -> None:
    """Only that it has expired; the log says why."""
    past = int(time.time()) - 600
    expired = new_client().login(site.registry, "x", job(github, iat=past - 300, nbf=past - 300, exp=past)).failed()
    assert "the ID token has expired; get a new one from your platform" in expired
    for token in (job(github, aud="https://vault.example"), job(github, "evil/app")):
        client = new_client()
        assert "wrong user name or password" in client.login(site.registry, "x", token).failed()
        assert not client.stored_logins()
    assert site.issuer.server is not None
    said = site.issuer.server.output()
    assert "its 'aud' is 'https://vault.example', not 'audience'" in said
    assert "its 'repository_owner' is ['evil'], not as 'require' wants it" in said


def test_people_log_in_as_before(site: Site, new_client: NewClient) -> None:
    """Their passwords go past the backends for tokens, and they get identity tokens."""
    client = new_client()
    client.login(site.registry, site.issuer.first_account, site.issuer.first_password).succeeded()
    assert client.stored_logins()[site.registry]["identitytoken"]


def request(image: str, token: str, **more: Any) -> str:
    """What the kubelet writes: https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/."""
    asked = {
        "kind": "CredentialProviderRequest",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": image,
        "serviceAccountToken": token,
        **more,
    }
    return json.dumps(asked, separators=(",", ":"))


SHELLS: Mapping[str, list[str]] = {
    "as it is": [str(PLUGIN)],
    "dash": ["dash", str(PLUGIN)],
    "bash": ["bash", "--posix", str(PLUGIN)],
    "busybox": ["busybox", "sh", str(PLUGIN)],
}


def test_a_kubelet_pulls_with_the_token_of_the_pods_service_account(
    site: Site,
    github: Provider,
    cluster: Provider,
    host: Host,
    new_client: NewClient,
    new_image: NewImage,
    tmp_path: Path,
) -> None:
    """It runs the program with the pod's token, and gives the answer to its runtime."""
    owner, image, reference = new_client(), new_image(), site.reference("example/app/for-pods")
    owner.login(site.registry, "x", job(github)).succeeded()
    owner.push(image, reference).succeeded()
    token = cluster.token(header=KUBERNETES_HEADER, **kubernetes_claims("web", "shop"))
    answer = json.loads(host.run(str(PLUGIN), stdin=request(reference, token)).succeeded())
    assert answer["kind"] == "CredentialProviderResponse"
    assert answer["apiVersion"] == "credentialprovider.kubelet.k8s.io/v1"
    assert (answer["cacheKeyType"], answer["cacheDuration"]) == ("Registry", "0s")
    (registry,) = answer["auth"]
    assert registry == site.registry
    auth = answer["auth"][registry]
    assert auth == {"username": "kubernetes", "password": token}
    pod = new_client()
    login = ("--src-creds", f"{auth['username']}:{auth['password']}")
    pod.pull(reference, tmp_path / "pod", *login).succeeded()
    assert image.is_in(tmp_path / "pod")
    login = ("--dest-creds", login[1])
    pod.push(new_image(), site.reference("example/app/by-pod"), *login).failed()
    # The account of another namespace, and a token for the cluster itself.
    for claims in (
        kubernetes_claims("db", "shop"),
        kubernetes_claims("web", "shop", aud=["https://kubernetes.default.svc"]),
    ):
        other = cluster.token(header=KUBERNETES_HEADER, **claims)
        pod.pull(reference, tmp_path / "none", "--src-creds", f"kubernetes:{other}").failed()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_for_the_kubelet_reads_any_json(host: Host, shell: str) -> None:
    """In every shell that a node may have."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"no {shell}")
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.ab-_cd"
    hostile = {"serviceAccountAnnotations": {"serviceAccountToken": "forged", "image": "x", "a": '"image":"x\\"'}}
    for image, registry in {
        "registry.example.com/team/app:v1": "registry.example.com",
        "registry.example.com:5000/team/app@sha256:" + "0" * 64: "registry.example.com:5000",
        "127.0.0.1:5000/a/b/c": "127.0.0.1:5000",
    }.items():
        plain = request(image, token, **hostile)
        for text in (plain, f"{plain}\n", json.dumps(json.loads(plain), indent=4), plain.replace("\n", "\r\n")):
            answer = json.loads(host.run(*SHELLS[shell], stdin=text).succeeded())
            assert answer["auth"] == {registry: {"username": "kubernetes", "password": token}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        request("registry.example.com/a", ""),
        request("", "eyJh.eyJh.x"),
        request("registry.example.com/a", 'x","image":"y'),
        '{"kind":"CredentialProviderRequest","image":"registry.example.com/a"}',
    ],
)
def test_the_program_for_the_kubelet_answers_nothing_without_a_token(host: Host, text: str) -> None:
    """It says what is missing."""
    said = host.run(str(PLUGIN), stdin=text)
    assert said.code == 1
    assert said.stdout == ""
    assert "no image or no serviceAccountToken" in said.stderr


def test_check_shows_the_providers(issuer: Issuer, github: Provider, host: Host) -> None:
    """And what is wrong with one."""
    command = [host.tokenissuer(), "check", "--config", str(issuer.config)]
    said = host.run(*command)
    assert f"provider {github.issuer}: it has 1 keys" in said.stdout, said
    assert said.code == 0, said
    with github.broken(Fault(404)):
        said = host.run(*command)
    assert said.code == 1
    assert f"provider {github.issuer}: its keys cannot be had: {github.issuer}/.well-known/" in said.stdout


def test_explain_says_which_rule_is_for_a_job(issuer: Issuer, host: Host) -> None:
    """As the manual shows it."""
    job = ("--account", "github:example/app:refs/heads/main", "--group", "github:example/app")
    command = (host.tokenissuer(), "explain", "--config", str(issuer.config))
    for name, code in (("example/app/web", 0), ("example/other", 1)):
        said = host.run(*command, f"repository:{name}:push", *job)
        assert said.code == code, said


def test_new_keys_in_the_file_count_without_a_restart(
    own_sites: Sites, github: Provider, tmp_path: Path, host: Host
) -> None:
    """The file is watched like every other."""
    with providing(tmp_path) as cluster:
        issuer = configured(own_sites, "watching", github, cluster)
        issuer.start()
        cluster.add_key("next", "ES256")
        token = cluster.token("next", header=KUBERNETES_HEADER, **kubernetes_claims("web", "shop"))
        assert issuer.ask(user="x", password=token).status == 401
        (issuer.folder / "cluster.json").write_text(json.dumps({"keys": cluster.published}))
        assert host.wait_until(lambda: issuer.ask(user="x", password=token).status == 200)


def test_no_token_is_in_the_log(own_sites: Sites, github: Provider, cluster: Provider, host: Host) -> None:
    """At the most talkative level, right or wrong."""
    issuer = configured(own_sites, "talkative", github, cluster)
    server = host.start("issuer", *issuer.command(), "--log-level", "debug")
    server.wait_for(lambda: not host.is_free(issuer.port))
    tokens = [
        job(github),
        job(github, "evil/app"),
        job(github, aud="other"),
        job(github, iss="https://elsewhere.example"),
        github.token(header={"kid": "absent"}),
        cluster.token(**kubernetes_claims("web", "shop", sub=None)),
    ]
    for token in tokens:
        issuer.ask("repository:example/app/x:push", user="x", password=token)
        issuer.ask("repository:example/app/x:push", user=token, password=token)
    said = server.output()
    assert "the ID token is refused" in said
    assert "github:Example/App:refs/heads/main" in said
    for token in tokens:
        for part in token.split(".")[1:]:
            assert part not in said
        assert base64.b64encode(f"x:{token}".encode()).decode() not in said
