"""flame-backend in a pod of a real cluster, with the app's own account."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from flame_backend.backends.kubernetes.access import Access, access_objects
from tests.cluster.manifests import ACCOUNT, account

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

PROGRAM = "from flame_backend.cli import main; print(main({words}))"
TRIAL_THAT_FAILS = [
    *("doctor", "--runner", "--boot-timeout", "4"),
    *("--manifest", "/tmp/change"),
]


def test_doctor_is_content_with_the_shipped_role(space: Space) -> None:
    """It finds its pod, its rights, the issuer, and the server takes its runner."""
    text = space.run(PROGRAM.format(words=["doctor", "--json"]))
    *answer, code = text.splitlines()
    checks = json.loads("\n".join(answer))
    assert "0" == code, text
    found = {check["name"]: check["verdict"] for check in checks}
    for name in ("may create pods", "issuer", "variables", "address", "dry run"):
        assert "ok" == found[name], text
    # The account may not look at Services, and needs not.
    assert "skip" == found["labels"]


def test_doctor_names_the_right_that_is_missing(space: Space) -> None:
    """With the command that grants it, and exit code 1."""
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    space.apply(*account("poor", rules))
    text = space.run(
        PROGRAM.format(words=["doctor"]), name="poor", serviceAccountName="poor"
    )
    assert text.endswith("\n1\n")
    assert "fail  may create pods: denied" in text
    assert f"flame-backend init --service-account NAME -n {space.name}" in text
    assert "fail  dry run: 403 Forbidden" in text


def test_doctor_tries_a_real_runner(space: Space) -> None:
    """It boots, dials in, runs calls, and is gone; the times are told by phase."""
    text = space.run(PROGRAM.format(words=["doctor", "--runner", "--json"]))
    *answer, code = text.splitlines()
    assert "0" == code, text
    checks = json.loads("\n".join(answer[answer.index("[") :]))
    found = {check["name"]: check for check in checks}
    for name in ("runner", "calls", "deleted"):
        assert "ok" == found[name]["verdict"], text
    told = found["runner"]["detail"]
    assert re.search(r"dialled in and proved itself; ready after \d+\.\d s: ", told)
    for phase in ("create", "connect", "import"):
        assert re.search(rf"\b{phase} \d+\.\d s", told), told
    assert re.search(r"takes \d+\.\d\d ms", found["calls"]["detail"])
    assert [] == space.runners()


def test_doctor_says_what_kept_the_runner(space: Space) -> None:
    """The phase, the cluster's own words, and what to do about it."""
    change = "spec: {nodeSelector: {disk: none}}"
    program = (
        f"open('/tmp/change', 'w').write({change!r})\n"
        f"{PROGRAM.format(words=TRIAL_THAT_FAILS)}"
    )
    text = space.run(program)
    assert text.endswith("\n1\n"), text
    (line,) = (line for line in text.splitlines() if line.startswith("fail"))
    assert re.match(r"fail  runner: runner doctor-\w+ did not boot \(schedule\)", line)
    assert "node affinity/selector" in line
    assert "compare resources, nodeSelector and quota" in text
    assert "ok    deleted: the runner's pod is gone" in text


def test_render_in_a_pod_shows_its_runner(space: Space) -> None:
    """With the pod's own image and interpreter, and no token of the API."""
    text = space.run(PROGRAM.format(words=["render", "--json"]))
    pod = json.loads(text[: text.rindex("}") + 1])
    (container,) = pod["spec"]["containers"]
    assert [{"uid", "name", "kind", "apiVersion", "controller"}] == [
        set(owner) for owner in pod["metadata"]["ownerReferences"]
    ]
    assert "flame_backend.runner" == container["command"][-1]
    assert ["flame-token"] == [volume["name"] for volume in pod["spec"]["volumes"]]


GUARDED = """
import time
import flame_backend as flame
import kubetls

def add(a, b):
    return a + b

session = kubetls.session()
pods = kubetls.path("v1", "pods", namespace=session.namespace)
secret = {"name": "x", "secret": {"secretName": "any"}}
container = {"name": "c", "image": "i"}
stolen = {"metadata": {"name": "stolen"}}
stolen["spec"] = {"volumes": [secret], "containers": [container]}
while True:
    try:
        session.post(pods, stolen, dry_run=True)
    except kubetls.ApiError as error:
        print("refused" if "denied request" in error.message else error)
        break
    time.sleep(0.2)

backend = flame.KubernetesBackend(service_account="lesser", port=7433)
with flame.Pool("guarded", max=1, boot_timeout=60, backend=backend) as pool:
    print(pool.call(add, 1, 2))
"""


def test_runner_boots_under_everything_that_init_prints(space: Space) -> None:
    """Role, runner's account, network policies, admission policy; no Secret is had."""
    if space.cluster.only_namespace is not None:
        pytest.skip("the admission policy is cluster-scoped, the user's cluster is not")
    access = Access(
        account=ACCOUNT,
        namespace=space.name,
        runner_account="lesser",
        parent_labels={"app": "app"},
        port=7433,
        lock_egress=True,
        policy=True,
    )
    objects = access_objects(access)
    space.apply(*objects)
    try:
        assert ["refused", "3"] == space.run(GUARDED).splitlines()
        assert [] == space.runners()
    finally:
        for item in objects:
            if item["kind"].startswith("Validating"):
                space.kubectl("delete", item["kind"], item["metadata"]["name"])
