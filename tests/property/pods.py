"""Pods of parents and manifests of users, as hypothesis makes them.

Everything made here is valid to a real API server, which the integration tests ask.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from flame_backend.backends.kubernetes.manifest import RunnerIdentity, RunnerOptions

UID = "0b7f1c1e-6d5c-4a54-9c5c-5a4e0d8f3b1a"
IDENTITY = RunnerIdentity(
    name="pool-abc",
    pool="pool",
    instance="f00d",
    process="beef",
    audience=f"flame-backend/{UID}/pool-abc",
    parent_variable="{}",
    boot_timeout=60,
    grace=30,
)

LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
WORDS = st.text("abcxyz019 /:$()=-_.", max_size=12)
VARIABLES = st.sampled_from(
    ["A", "B", "C", "PYTHONUNBUFFERED", "LANG", "AZURE_TENANT_ID"]
)
VOLUMES = ("data", "cache", "settings", "token", "mixed", "scratch")

_TOKEN = {"serviceAccountToken": {"audience": "x", "path": "token"}}
_PROJECTED = {"configMap": {"name": "c"}}
_SOURCES: tuple[dict[str, Any], ...] = (
    {"emptyDir": {}},
    {"configMap": {"name": "settings"}},
    {"secret": {"secretName": "s"}},
    {"persistentVolumeClaim": {"claimName": "models"}},
    {"projected": {"sources": [_TOKEN]}},
    {"projected": {"sources": [_TOKEN, _PROJECTED]}},
)


@st.composite
def variables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Variables with a value or a source, each name once."""
    values = st.fixed_dictionaries({"value": WORDS})
    key = {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}
    sources = st.just({"valueFrom": key})
    found = draw(st.dictionaries(VARIABLES, values | sources, max_size=4))
    return [{"name": name, **entry} for name, entry in found.items()]


@st.composite
def containers(draw: st.DrawFn, name: str, volumes: list[str]) -> dict[str, Any]:
    """A container with all that the API lets one have, within reason."""
    mounted = draw(st.lists(st.sampled_from(volumes), unique=True)) if volumes else []
    made: dict[str, Any] = {
        "name": name,
        "image": draw(st.sampled_from(["app:1", "registry.example/team/app:2"])),
        "env": draw(variables()),
        "volumeMounts": [{"name": v, "mountPath": f"/mnt/{v}"} for v in mounted],
    }
    optional = st.fixed_dictionaries(
        {},
        optional={
            "resources": st.just(
                {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1"}}
            ),
            "imagePullPolicy": st.sampled_from(["Always", "IfNotPresent"]),
            "workingDir": st.just("/app"),
            "command": st.just(["serve"]),
            "ports": st.just([{"containerPort": 80}]),
            "livenessProbe": st.just({"httpGet": {"path": "/", "port": 80}}),
            "lifecycle": st.just({"preStop": {"exec": {"command": ["sleep", "1"]}}}),
            "envFrom": st.just([{"configMapRef": {"name": "c", "optional": True}}]),
            "securityContext": st.fixed_dictionaries(
                {},
                optional={
                    "readOnlyRootFilesystem": st.booleans(),
                    "runAsUser": st.integers(1, 2000),
                    "privileged": st.just(True),
                    "capabilities": st.just({"add": ["NET_ADMIN", "SYS_ADMIN"]}),
                },
            ),
        },
    )
    return made | draw(optional)


@st.composite
def parents(draw: st.DrawFn) -> dict[str, Any]:
    """The pod of a parent, as the API server would give it."""
    names = draw(st.lists(st.sampled_from(VOLUMES), unique=True, max_size=4))
    volumes = [{"name": n, **draw(st.sampled_from(_SOURCES))} for n in names]
    app = draw(containers("app", names))
    beside = draw(st.lists(st.just("proxy"), max_size=1))
    spec = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "nodeSelector": st.dictionaries(LABELS, LABELS, max_size=2),
                "securityContext": st.just({"runAsUser": 1000, "fsGroup": 1000}),
                "tolerations": st.just([{"key": "gpu", "operator": "Exists"}]),
                "dnsPolicy": st.just("ClusterFirst"),
                "hostAliases": st.just([{"ip": "10.0.0.1", "hostnames": ["db"]}]),
                "imagePullSecrets": st.just([{"name": "registry"}]),
                "nodeName": st.just("node-1"),
                "priority": st.just(0),
                "hostNetwork": st.just(True),
                "shareProcessNamespace": st.just(True),
            },
        )
    )
    labels = draw(st.dictionaries(LABELS, LABELS, max_size=2))
    return {
        "metadata": {
            "name": "web-5d9",
            "namespace": "default",
            "uid": UID,
            "labels": {"app": "web", "pod-template-hash": "5d9", **labels},
        },
        "spec": {
            "serviceAccountName": "default",
            **spec,
            "volumes": volumes,
            "containers": [app, *(draw(containers(name, names)) for name in beside)],
        },
        "status": {
            "containerStatuses": [
                {
                    "name": "app",
                    "imageID": "registry.example/team/app@sha256:" + "a" * 64,
                }
            ]
        },
    }


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """What a user may want changed; None deletes."""
    container = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "env": variables(),
                "image": st.just("other:1"),
                "resources": st.none()
                | st.just({"limits": {"nvidia.com/gpu": 1, "cpu": "2"}}),
                "workingDir": st.none() | st.just("/srv"),
                "envFrom": st.none(),
                "volumeMounts": st.just([{"name": "more", "mountPath": "/mnt/more"}]),
                "securityContext": st.none()
                | st.just({"privileged": None, "capabilities": None}),
            },
        )
    )
    spec = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "nodeSelector": st.none() | st.just({"disk": "ssd"}),
                "tolerations": st.none() | st.just([{"operator": "Exists"}]),
                "securityContext": st.none() | st.just({"runAsUser": 2000}),
                "runtimeClassName": st.none(),
                "activeDeadlineSeconds": st.integers(1, 86400),
                "topologySpreadConstraints": st.just(
                    [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                        }
                    ]
                ),
                "initContainers": st.just(
                    [{"name": "prepare", "image": "prepare:1", "command": ["true"]}]
                ),
            },
        )
    )
    # Of its own name; a mount of it makes it stay.
    spec["volumes"] = [{"name": "more", "emptyDir": {}}]
    labels = draw(st.dictionaries(LABELS, LABELS, max_size=2))
    taken = {"app", "run", "name", "component"}
    kept = {f"x-{name}" if name in taken else name: v for name, v in labels.items()}
    made: dict[str, Any] = {"spec": spec | {"containers": [container]}}
    # Of a parent without other labels, these are not all there are.
    if draw(st.booleans()):
        made["metadata"] = {"labels": {**kept, "team": "data"}}
    return made


@st.composite
def options(draw: st.DrawFn) -> RunnerOptions:
    """The options of a backend."""
    return RunnerOptions(
        manifest=draw(st.none() | manifests()),
        env=draw(st.dictionaries(VARIABLES, st.none() | WORDS, max_size=3)),
        resources=draw(st.none() | st.just({"limits": {"memory": "2Gi"}})),
        container="app",
        service_account=draw(st.none() | st.just("default")),
        owner_reference=draw(st.booleans()),
        inherit=draw(st.sampled_from(["app", "image"])),
        hardening=draw(st.sampled_from(["inherit", "restricted"])),
        python="/usr/bin/python3",
    )


def with_sidecars(parent: dict[str, Any], chosen: RunnerOptions) -> RunnerOptions:
    """Let the containers beside the parent's app come along."""
    names = [item["name"] for item in parent["spec"]["containers"]]
    return replace(chosen, sidecars=[name for name in names if name != "app"])
