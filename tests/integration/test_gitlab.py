"""GitLab roles at a real registry: docker login, push, pull and delete, as everybody who may be there."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gitlab import StubGitLab, answers, serving

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Host, Image, Issuer, Site, Sites

pytestmark = pytest.mark.integration

NewClient = Callable[[], "Client"]
NewImage = Callable[[], "Image"]

EXAMPLE = Path(__file__).parents[2] / "conf" / "gitlab.toml"
ROLES = {"nonmember": 0, "guest": 10, "reporter": 20, "developer": 30, "maintainer": 40}
#: Visibility → who may at least pull, push, delete, by name.
MATRIX = {
    "private": ({"reporter", "developer", "maintainer"}, {"developer", "maintainer"}, {"maintainer"}),
    "internal": ({*ROLES}, {"developer", "maintainer"}, {"maintainer"}),
    "public": ({*ROLES, "anonymous"}, {"developer", "maintainer"}, {"maintainer"}),
}


def configure(issuer: Issuer, gitlab: StubGitLab, more: str = "") -> None:
    """Give the issuer the example's backend and rules, with this GitLab's address."""
    text = re.sub(r"(?ms)^\[\[backends\]\].*?(?=^\[[a-z])", "", issuer.config.read_text(), count=1)
    issuer.config.write_text(text)
    issuer.set_access("")
    example = EXAMPLE.read_text()
    example = example[example.index("[[backends]]") :]
    example = example.replace(
        'url = "http://127.0.0.1:8181"\nplain_http = true\n', f'url = "{gitlab.url}"\nplain_http = true\n{more}', 1
    )
    with issuer.config.open("a") as config:
        config.write(example)


@pytest.fixture(scope="module")
def gitlab() -> Iterator[StubGitLab]:
    """A GitLab with one account of each role and a project of each visibility."""
    with serving() as gitlab:
        for name in ROLES:
            gitlab.token(gitlab.user(name), "api")
        members = {user.id: ROLES[user.username] for user in gitlab.users if ROLES[user.username]}
        for visibility in MATRIX:
            gitlab.project(f"Team/{visibility}", visibility, direct=members)
        gitlab.group("platform/operators", {gitlab.users[-1].id: 50})
        yield gitlab


@pytest.fixture(scope="module")
def issuer(sites: Sites, gitlab: StubGitLab) -> Issuer:
    """An issuer that asks it."""
    issuer = sites.new_issuer("gitlab")
    configure(issuer, gitlab)
    issuer.start()
    issuer.passwords.update({token.user.username: token.text for token in gitlab.tokens})
    return issuer


@pytest.fixture(scope="module", params=[2, 3], ids=["registry2", "registry3"])
def site(request: pytest.FixtureRequest, sites: Sites, issuer: Issuer) -> Site:
    """A registry of each generation that trusts the issuer."""
    return sites.registry(issuer, request.param)


@pytest.fixture
def machine_of(site: Site, new_client: NewClient) -> Callable[[str], Client]:
    """The machine of somebody who has done `docker login`, or of somebody who has not."""

    def make(user: str) -> Client:
        client = new_client()
        if user != "anonymous":
            client.login(site.registry, user, site.issuer.passwords[user]).succeeded()
        return client

    return make


@pytest.mark.parametrize("visibility", MATRIX)
@pytest.mark.parametrize("user", [*ROLES, "anonymous"])
def test_everybody_can_do_what_the_role_in_the_project_allows_and_no_more(
    site: Site,
    machine_of: Callable[[str], Client],
    new_image: NewImage,
    tmp_path: Path,
    user: str,
    visibility: str,
) -> None:
    """As in GitLab's own registry."""
    pulling, pushing, deleting = MATRIX[visibility]
    owner, client = machine_of("maintainer"), machine_of(user)
    reference = site.reference(f"team/{visibility}/{site.repository('x')[2:]}")
    image = new_image()
    if user in pushing:
        client.push(image, reference).succeeded()
    else:
        client.push(image, reference).failed()
        owner.push(image, reference).succeeded()
    if user in pulling:
        client.pull(reference, tmp_path / "pulled").succeeded()
        assert image.is_in(tmp_path / "pulled")
    else:
        client.pull(reference, tmp_path / "pulled").failed()
    delete = client.skopeo("delete", "--tls-verify=false", f"docker://{reference}")
    if user in deleting:
        delete.succeeded()
    else:
        delete.failed()
        owner.pull(reference, tmp_path / "still there").succeeded()


def test_docker_keeps_no_gitlab_token_and_its_login_ends_with_that(
    site: Site, gitlab: StubGitLab, new_client: NewClient, new_image: NewImage
) -> None:
    """GitLab is asked with the token of the login at each use; while it is down, nobody's login ends."""
    token = gitlab.token(gitlab.users[-1], "api")
    client, image, reference = new_client(), new_image(), site.reference("team/private/kept")
    client.login(site.registry, gitlab.users[-1].username, token).succeeded()
    assert client.stored_logins()[site.registry]["identitytoken"].startswith("tir_")
    for folder in (client.home, site.issuer.folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path
    client.push(image, reference).succeeded()
    with gitlab.broken(answers(502, b"<html>")):
        client.push(image, reference).failed()
    client.push(image, reference).succeeded()
    gitlab.tokens[-1].revoked = True
    assert "this login has ended; log in again" in client.push(image, reference).failed()
    gitlab.tokens[-1].revoked = False
    assert "this login has ended; log in again" in client.push(image, reference).failed()


def test_a_wrong_token_is_refused_with_what_is_needed(site: Site, new_client: NewClient) -> None:
    """Docker shows the sentence."""
    said = new_client().login(site.registry, "maintainer", "my account password").failed()
    assert "personal access token" in said


def test_a_job_pushes_to_its_own_project_and_not_to_its_users_others(
    site: Site, gitlab: StubGitLab, new_client: NewClient, new_image: NewImage
) -> None:
    """`docker login -u gitlab-ci-token -p $CI_JOB_TOKEN`."""
    token = gitlab.job(gitlab.users[-1], gitlab.projects[0])
    client = new_client()
    client.login(site.registry, "gitlab-ci-token", token).succeeded()
    client.push(new_image(), site.reference("team/private/by-job")).succeeded()
    client.push(new_image(), site.reference("team/internal/by-job")).failed()


def test_read_only_registry_tokens_pull_and_do_not_push(
    site: Site, gitlab: StubGitLab, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """Whatever the role: the token is bounded by its scopes."""
    owner = gitlab.users[-1]
    reference = site.reference("team/private/by-scope")
    for scopes, works in ((("read_registry",), False), (("read_registry", "write_registry"), True)):
        client = new_client()
        client.login(site.registry, owner.username, gitlab.token(owner, *scopes)).succeeded()
        pushed = client.push(new_image(), reference)
        assert (pushed.code == 0) == works, pushed
    client.pull(reference, tmp_path / "pulled").succeeded()


def test_groups_of_gitlab_stand_in_access_rules(issuer: Issuer) -> None:
    """The example gives the catalog to one."""
    for user, actions in (("maintainer", ["*"]), ("developer", None)):
        access = claims(issuer.token("registry:catalog:*", user=user))["access"]
        assert [entry["actions"] for entry in access] == ([actions] if actions else [])


def test_gitlabs_trouble_is_503_with_the_time_to_come_back(issuer: Issuer, gitlab: StubGitLab) -> None:
    """Neither "wrong password" nor anonymous; and it ends by itself."""
    token = gitlab.token(gitlab.user("patient"), "api")
    with gitlab.broken(answers(429, b"Retry later\n", Content_Type="text/plain", Retry_After="1")):
        answer = issuer.ask("repository:team/public:pull", user="patient", password=token)
        anonymous = issuer.ask("repository:team/public/other:pull")
    for trouble in (answer, anonymous):
        assert trouble.status == 503
        assert trouble.headers["retry-after"] == "1"
        assert token not in trouble.body.decode()
    time.sleep(1.1)
    assert issuer.ask("repository:team/public:pull", user="patient", password=token).status == 200


def test_a_push_of_many_layers_asks_a_handful_of_times(issuer: Issuer, gitlab: StubGitLab) -> None:
    """Each layer may cost a token, but not a question."""
    gitlab.requests.clear()
    for _ in range(20):
        issuer.token("repository:team/internal:pull,push", user="developer")
    assert gitlab.asked("/projects/") <= 1
    assert len(gitlab.requests) <= 6


def test_no_secret_is_written_to_the_log(own_sites: Sites, gitlab: StubGitLab, host: Host) -> None:
    """At the most talkative level, whatever happens."""
    issuer = own_sites.new_issuer("talkative")
    configure(issuer, gitlab)
    server = host.start("issuer", *issuer.command(), "--log-level", "debug")
    server.wait_for(lambda: not host.is_free(issuer.port))
    token = gitlab.tokens[-1].text
    user = gitlab.tokens[-1].user.username
    for name in (user, "somebody-else"):
        issuer.ask("repository:team/private:pull", user=name, password=token)
        with gitlab.broken(answers(502, b"<html>")):
            issuer.ask("repository:team/private/other:pull", user=name, password=token)
    job = gitlab.job(gitlab.users[0], gitlab.projects[0])
    issuer.ask("repository:team/private:pull", user="gitlab-ci-token", password=job)
    said = server.output()
    assert "/api/v4/" in said
    for secret in (token, job, base64.b64encode(f"{user}:{token}".encode()).decode()):
        assert secret not in said


def test_check_says_what_gitlab_says(issuer: Issuer, gitlab: StubGitLab, host: Host) -> None:
    """Reachable, clock, look-up of users; and the project of a repository."""
    command = [host.tokenissuer(), "check", "--config", str(issuer.config), "--repository", "team/public/image"]
    said = host.run(*command)
    assert said.code == 0, said
    for words in ("clock is", "looks up users by name", "belongs to the project team/public"):
        assert words in said.stdout
    with gitlab.broken(answers(502, b"<html>")):
        said = host.run(*command)
    assert said.code == 1
    assert "GitLab does not answer" in said.stdout


def test_gitlabs_own_token_endpoint_as_the_source(
    own_sites: Sites, gitlab: StubGitLab, new_client: NewClient, new_image: NewImage, tmp_path: Path
) -> None:
    """Passwords and deploy tokens work then, and nothing outlives GitLab's own token."""
    issuer = own_sites.new_issuer("replay")
    certificate = issuer.folder / "gitlab-registry.crt"
    certificate.write_bytes(gitlab.certificate())
    configure(
        issuer, gitlab, 'mode = "jwt"\nissuer = "gitlab-issuer"\ncertificate = "gitlab-registry.crt"\ngroups = false\n'
    )
    issuer.start()
    site = own_sites.registry(issuer, 2)
    dora = gitlab.user("dora", password="correct horse battery")
    project = gitlab.project("team/replayed", direct={dora.id: 30})
    deploy = gitlab.deploy_token(project, "read_registry")
    reference = site.reference("team/replayed/app")
    person, robot = new_client(), new_client()
    person.login(site.registry, "dora", "correct horse battery").succeeded()
    person.push(new_image(), reference).succeeded()
    robot.login(site.registry, deploy.username, deploy.token).succeeded()
    robot.pull(reference, tmp_path / "pulled").succeeded()
    robot.push(new_image(), reference).failed()
    new_client().login(site.registry, "dora", "wrong").failed()
    token = issuer.ask("repository:team/replayed/app:pull", user="dora", password="correct horse battery").json()
    assert token["expires_in"] <= 300
    assert claims(token["token"])["exp"] <= time.time() + 300


def claims(token: str) -> dict[str, Any]:
    """What a token says."""
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded
