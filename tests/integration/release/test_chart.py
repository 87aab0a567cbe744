"""The Helm chart: what Helm makes of it for each kind of accounts, and what Kubernetes and tokenissuer say to that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import Host, Ran, answers, program, registry_program, run
from tests.integration.release.conftest import ROOT, pip
from tokenissuer import load_config

pytestmark = pytest.mark.integration

CHART = ROOT / "conf" / "chart"
VARIANTS = ["", *sorted(path.name for path in (CHART / "ci").glob("*.yaml"))]
#: The registry beside it.
REGISTRY = ROOT / "conf" / "kubernetes-registry.yaml"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
#: Kinds that Kubernetes itself does not know.
FOREIGN = {"ServiceMonitor"}


def helm(*arguments: str) -> Ran:
    """Run Helm, which reads nothing of this machine's user."""
    command = program("helm", "tests/run builds it where Go is installed")
    return run(command, *arguments, env={"HOME": "/nonexistent"})


def rendered(variant: str, *options: str) -> str:
    """The objects of one variant, as YAML."""
    values = ["--values", str(CHART / "ci" / variant)] if variant else []
    return helm("template", "login", str(CHART), "--namespace", "registry", *values, *options).succeeded()


def objects(text: str) -> dict[str, list[dict[str, Any]]]:
    """The objects by their kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for document in yaml.safe_load_all(text):
        if document:
            found.setdefault(document["kind"], []).append(document)
    return found


def one(found: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (only,) = found[kind]
    return only


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_finds_nothing_wrong(variant: str) -> None:
    """No error and no warning."""
    values = ["--values", str(CHART / "ci" / variant)] if variant else []
    helm("lint", "--strict", str(CHART), *values).succeeded()


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A program that has Kubernetes' own schemas with it."""
    venv = tmp_path_factory.mktemp("validate") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = str(venv / "bin" / "python")
    got = pip("--python", python, "install", "--quiet", "--no-compile", "kubernetes-validate==1.37.0")
    if got.returncode:
        pytest.skip(f"no package index can be reached: {got.stderr.strip().splitlines()[-1:]}")
    return [str(venv / "bin" / "kubernetes-validate"), "--strict"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_knows_every_field(validator: list[str], variant: str, tmp_path: Path) -> None:
    """By the schemas of a version that the validator has, the newest."""
    # The variant without values stands for the files that the chart does not make, too.
    text = rendered(variant) + ("" if variant else f"\n---\n{REGISTRY.read_text()}")
    known = [document for documents in objects(text).values() for document in documents]
    known = [document for document in known if document["kind"] not in FOREIGN]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(known))
    said = run(*validator, str(file))
    assert said.code == 0, said


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_belongs_together_agrees(variant: str) -> None:
    """Selectors, ports, volumes and names; and the pod has no privileges."""
    found = objects(rendered(variant))
    pod = one(found, "Deployment")["spec"]["template"]
    labels = pod["metadata"]["labels"]
    selector = one(found, "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    for service in found["Service"]:
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    policy = one(found, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    mounted = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in pod["spec"]["volumes"])
    assert pod["spec"]["securityContext"]["runAsUser"] == 65532
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    # No secret is in anything that Helm makes: it keeps all that, and so does whoever reads it.
    assert "Secret" not in found


def test_the_manual_shows_the_values_that_are_tested_here() -> None:
    """The block of the page is the file, without its first line; every other block of values is taken by the chart."""
    blocks = re.findall(r"(?s)```yaml\n(.*?)```", PAGE)
    minimal, claim, refresh = blocks
    assert minimal == (CHART / "ci" / "minimal-values.yaml").read_text().partition("\n")[2]
    words = ["--set-json", f"refresh={json.dumps(yaml.safe_load(refresh)['refresh'])}"]
    volumes = one(objects(rendered("minimal-values.yaml", *words)), "Deployment")["spec"]["template"]["spec"]["volumes"]
    names = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
    assert names == [yaml.safe_load(claim)["metadata"]["name"]]


def test_the_manual_makes_every_object_that_the_pods_need() -> None:
    """Secrets, ConfigMaps and claims, under the names that are used, with the files that are read."""
    lines = PAGE.replace("\\\n", " ")
    made = dict(re.findall(r"(?m)^kubectl create (?:secret \w+|configmap) ([\w-]+) (.*)$", lines))
    found = [*objects(rendered("minimal-values.yaml")).values(), *objects(REGISTRY.read_text()).values()]
    documents = [document for each in found for document in each]
    own = {(document["kind"], document["metadata"]["name"]) for document in documents}
    for pod in [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]:
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in made
            if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in own:
                assert volume["configMap"]["name"] in made
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in own
    for ingress in [each["spec"] for each in documents if each["kind"] == "Ingress"]:
        (tls,) = ingress["tls"]
        assert tls["secretName"] in made
        assert tls["hosts"] == [rule["host"] for rule in ingress["rules"]] == ["registry.example.com"]
    for files in (["auth.key", "auth.crt"], ["users.htpasswd"], ["registry.yml", "auth.crt"]):
        assert any(all(f"set-up/{name}" in words for name in files) for words in made.values()), files
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert f"docker push mirror.example.com/tokenissuer:{version}\n" in PAGE


def test_the_registry_beside_it_takes_its_file_and_its_variables(host: Host, tmp_path: Path) -> None:
    """The program is started as in the pod, on the files that the page's `init` makes: names and certificate agree."""
    command = registry_program(3)
    (words,) = re.findall(r"(?m)^tokenissuer (init set-up .*)$", PAGE)
    run(sys.executable, "-m", "tokenissuer", *words.replace("set-up", str(tmp_path / "set-up")).split()).succeeded()
    (container,) = one(objects(REGISTRY.read_text()), "Deployment")["spec"]["template"]["spec"]["containers"]
    address = f"127.0.0.1:{host.free_port()}"

    def here(text: str) -> str:
        for place, folder in (("/etc/tokenissuer", "set-up"), ("/var/lib/registry", "images")):
            text = text.replace(place, str(tmp_path / folder))
        return text.replace("0.0.0.0:5000", address)

    # What `init` wrote is of the machine on which it ran; the variables must say where the files are in the pod.
    file = tmp_path / "set-up" / "registry.yml"
    file.write_text(file.read_text().replace(f"{tmp_path}/set-up/auth.crt", "/nowhere/auth.crt"))
    env = {each["name"]: here(each["value"]) for each in container["env"]}
    server = host.start("registry", command, *map(here, container["args"]), env=env)
    server.wait_for(lambda: answers(f"http://{address}{container['readinessProbe']['httpGet']['path']}", 200)())
    config = ("--config", str(tmp_path / "set-up" / "tokenissuer.toml"))
    challenge = host.get(f"http://{address}/v2/").headers["www-authenticate"]
    values = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())["issuer"]
    assert f'realm="{values["realm"]}",service="{values["services"][0]}"' in challenge
    assert f'name = "{values["name"]}"' in (tmp_path / "set-up" / "tokenissuer.toml").read_text()
    # The page's way to another key: the registry knows it after its restart.
    run(sys.executable, "-m", "tokenissuer", "keys", "add", *config).succeeded()
    switch = (sys.executable, "-m", "tokenissuer", "keys", "switch", "--registry", f"http://{address}", *config)
    assert "does not accept" in run(*switch).failed()
    server.stop()
    server = host.start("registry", command, *map(here, container["args"]), env=env)
    server.wait_for(lambda: answers(f"http://{address}/", 200)())
    assert "accepts tokens of the next key" in run(*switch).succeeded()


def test_two_pods_watched_by_prometheus(tmp_path: Path) -> None:
    """A budget for disruptions, a service of its own for the metrics, and a monitor that finds it."""
    found = objects(rendered("ldap-values.yaml"))
    assert one(found, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    monitor = one(found, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [service for service in found["Service"] if wanted <= service["metadata"]["labels"].items()]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    # Alert rules ask for this job.
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "tokenissuer"
    assert 'job="tokenissuer"' in (ROOT / "conf" / "alerts.yml").read_text()
    assert one(found, "NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_ingress_leads_the_realm_to_the_service() -> None:
    """And nothing else."""
    found = objects(rendered("htpasswd-values.yaml"))
    (rule,) = one(found, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == ("registry.example.com", "/jwt/auth", "Exact")
    service = one(found, "Service")
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokenissuer_takes_the_configuration(variant: str, tmp_path: Path) -> None:
    """With the Secrets where the pod has them."""
    found = objects(rendered(variant))
    run(sys.executable, "-m", "tokenissuer", "init", str(tmp_path / "made")).succeeded()
    volumes = {volume["name"]: volume for volume in one(found, "Deployment")["spec"]["template"]["spec"]["volumes"]}
    (container,) = one(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    for mount in container["volumeMounts"]:
        folder = tmp_path / "pod" / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True)
        for item in volumes[mount["name"]].get("secret", {}).get("items", []):
            (folder / item["path"]).write_text("secret\n")
    for name in ("auth.key", "auth.crt"):
        shutil.copy(tmp_path / "made" / name, tmp_path / "pod/run/tokenissuer/key")
    if "htpasswd" in volumes:
        for name in ("users.htpasswd", "users.groups"):
            (tmp_path / "pod/run/tokenissuer/htpasswd" / name).write_text("")
    if "ldap-ca" in volumes:
        shutil.copy(tmp_path / "made/auth.crt", tmp_path / "pod/run/tokenissuer/ldap-ca/ca.crt")
    text = one(found, "ConfigMap")["data"]["tokenissuer.toml"]
    # Every path in it is mounted.
    text = re.sub(r'"(/(?:run|var)/)', lambda place: f'"{tmp_path}/pod{place[1]}', text)
    config = tmp_path / "pod/etc/tokenissuer/tokenissuer.toml"
    config.write_text(text)
    loaded = load_config(config)
    expected = {"": ["htpasswd"], "ldap-values.yaml": ["ldap"], "gitlab-values.yaml": ["htpasswd", "gitlab"]}
    assert [backend.name for backend in loaded.backends] == expected.get(variant, ["htpasswd"])
    checked = run(sys.executable, "-m", "tokenissuer", "explain", "--config", str(config), "repository:team/app:pull")
    assert "unknown key" not in checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["htpasswd.enabled=false"], "enable a source of accounts"),
        (["refresh.enabled=true", "replicas=2"], "set replicas to 1"),
        (["issuer.realm="], "issuer.realm is needed"),
        (["key.existingSecret="], "key.existingSecret is needed"),
        (["ldap.enabled=true", "ldap.servers={ldaps://ldap}"], "ldap.userBase is needed"),
        (["gitlab.enabled=true"], "gitlab.url is needed"),
        (["replicas=many"], "replicas"),
        (["ldap.enable=true"], "enable"),
    ],
)
def test_values_that_cannot_work_are_refused(options: list[str], reason: str) -> None:
    """Before anything is installed, with the reason."""
    sets = [word for option in options for word in ("--set", option)]
    assert reason in helm("template", "login", str(CHART), *sets).failed()


def test_every_value_is_described_by_the_schema() -> None:
    """A word that is spelled wrong is refused, so every word must be known."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part: dict[str, Any], known: dict[str, Any], place: str) -> None:
        assert set(part) == set(known["properties"]), place
        assert known["additionalProperties"] is False, place
        for name, value in part.items():
            if "properties" in known["properties"][name]:
                compare(value, known["properties"][name], f"{place}.{name}")

    compare(
        values, {**schema, "properties": {n: s for n, s in schema["properties"].items() if n != "global"}}, "values"
    )
