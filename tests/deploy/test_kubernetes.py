"""Manifests against the schemas of Kubernetes and of the operator, and their commands against Dask's."""

import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hotdask
from hotdask.cluster.certificates import make_certificates
from hotdask.config import load_settings

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonschema = pytest.importorskip("jsonschema")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.31"


def read(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def pods() -> dict[str, dict]:
    """Specification of each kind of pod."""
    cluster, job = read("cluster.yaml")["spec"], read("job.yaml")["spec"]
    return {
        "worker": cluster["worker"]["spec"],
        "scheduler": cluster["scheduler"]["spec"],
        "launch": job["template"]["spec"],
    }


def check(manifest: dict) -> None:
    """Strict: fields that Kubernetes does not know are refused."""
    kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.parametrize("name", ["storage.yaml", "network.yaml", "job.yaml"])
def test_manifests_of_kubernetes(name: str) -> None:
    check(read(name))


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_pods_and_service_of_the_cluster(role: str) -> None:
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": pods()[role]})
    service = read("cluster.yaml")["spec"]["scheduler"]["service"]
    check({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hotdask-scheduler"}, "spec": service})


def test_the_check_sees() -> None:
    wrong = read("job.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["imaeg"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


def test_the_cluster_is_what_the_operator_expects() -> None:
    try:
        files = metadata.files("dask-kubernetes")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the operator's schema, which dask-kubernetes holds")
    (crd,) = (f for f in files if str(f).endswith("crds/daskcluster.yaml"))
    (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(read("cluster.yaml"), schema)
    broken = read("cluster.yaml")
    del broken["spec"]["worker"]["spec"]["containers"][0]["name"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_everything_named_is_there(tmp_path: Path) -> None:
    made = read("kustomization.yaml")
    assert all((FOLDER / name).exists() for name in made["resources"])
    (secret,), (settings,) = made["secretGenerator"], made["configMapGenerator"]
    assert made["generatorOptions"]["disableNameSuffixHash"]
    certificates = make_certificates(tmp_path / "certificates", installed="/etc/hotdask/certificates")
    assert sorted(secret["files"]) == sorted(f"certificates/{path.name}" for path in certificates.iterdir())
    for name, pod in pods().items():
        (container,) = pod["containers"]
        assert container["image"] == made["images"][0]["name"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes), name
        assert volumes["certificates"]["secret"]["secretName"] == secret["name"]
        assert volumes["survey"]["persistentVolumeClaim"]["claimName"] == read("storage.yaml")["metadata"]["name"]
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(made["images"][0]["newTag"]) == hotdask.__version__
        assert places["certificates"] == "/etc/hotdask/certificates"
    assert pods()["launch"]["volumes"][0]["configMap"]["name"] == settings["name"]
    dockerfile = (FOLDER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    assert all((FOLDER.parents[1] / name).exists() for line in copied for name in line.split())


def test_addresses_agree() -> None:
    settings = load_settings(FOLDER / "settings.toml")
    cluster = read("cluster.yaml")
    service = cluster["spec"]["scheduler"]["service"]
    address = f"tls://{cluster['metadata']['name']}-scheduler:{service['ports'][0]['port']}"
    assert settings.cluster.scheduler == address
    (worker,), (scheduler,) = pods()["worker"]["containers"], pods()["scheduler"]["containers"]
    assert worker["args"][2] == address
    assert {"name": "DASK_SCHEDULER_ADDRESS", "value": address} in worker["env"]
    assert scheduler["ports"][0]["name"] == service["ports"][0]["targetPort"]
    assert str(scheduler["ports"][0]["containerPort"]) == scheduler["args"][scheduler["args"].index("--port") + 1]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]


def test_nothing_but_pods_of_the_run_reaches_a_pod() -> None:
    (rule,) = read("network.yaml")["spec"]["ingress"]
    (source,) = rule["from"]
    label = read("network.yaml")["spec"]["podSelector"]["matchLabels"]
    assert source["podSelector"]["matchLabels"] == label
    cluster = read("cluster.yaml")["spec"]
    labels = [cluster[role]["metadata"]["labels"] for role in ("worker", "scheduler")]
    labels.append(read("job.yaml")["spec"]["template"]["metadata"]["labels"])
    assert all(label.items() <= found.items() for found in labels)


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_commands_are_dasks_and_pages_on_loopback(role: str) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    program, verb, *arguments = pods()[role]["containers"][0]["args"]
    assert (program, verb) == ("dask", role)
    command = {"worker": dask_worker, "scheduler": dask_scheduler}[role].main
    context = command.make_context(verb, list(arguments))
    assert context.params["dashboard_address"].startswith("127.0.0.1:")
    if role == "worker":
        assert context.params["nthreads"] == 1
