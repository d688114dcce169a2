"""Laws of the runner's pod, for every parent and every manifest that is allowed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from flame_backend.backends.kubernetes.hardening import restrict
from flame_backend.backends.kubernetes.image_name import pinned
from flame_backend.backends.kubernetes.manifest import (
    TOKEN_SECONDS,
    RunnerOptions,
    runner_pod,
    stages,
)
from flame_backend.backends.kubernetes.merging import merged, plain
from flame_backend.backends.kubernetes.provenance import leaves, origins
from flame_backend.backends.kubernetes.refusals import FORBIDDEN
from flame_backend.errors import ManifestError
from tests.property import pods
from tests.property.pods import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Iterator

SCALARS = st.none() | st.booleans() | st.integers(0, 9) | pods.LABELS
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(pods.LABELS, inner, max_size=4)
    ),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(pods.LABELS, TREES, max_size=4)


def all_containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every container of a pod."""
    yield from pod["spec"]["containers"]
    yield from pod["spec"].get("initContainers") or ()


@given(parent=pods.parents(), options=pods.options())
def test_inputs_are_never_changed(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """Neither the parent's pod nor the user's manifest, and the result is a new one."""
    options = pods.with_sidecars(parent, options)
    before = copy.deepcopy((parent, options.manifest, options.env))
    pod = runner_pod(parent, options, IDENTITY)
    again = runner_pod(parent, options, IDENTITY)
    pod["spec"]["containers"][0]["env"].clear()
    for volume in pod["spec"]["volumes"]:
        volume.clear()
    assert before == (parent, options.manifest, options.env)
    assert again == runner_pod(parent, options, IDENTITY)


@given(parent=pods.parents(), options=pods.options())
def test_forced_fields_are_constant(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """Whatever the parent has and the user says."""
    pod = runner_pod(parent, options, IDENTITY)
    metadata, spec = pod["metadata"], pod["spec"]
    (runner,) = spec["containers"]
    assert ("v1", "Pod", "pool-abc") == (
        pod["apiVersion"],
        pod["kind"],
        metadata["name"],
    )
    assert ("Never", False, 30) == (
        spec["restartPolicy"],
        spec["automountServiceAccountToken"],
        spec["terminationGracePeriodSeconds"],
    )
    assert {
        "flame-backend/pool": "pool",
        "flame-backend/instance": "f00d",
        "flame-backend/process": "beef",
        "app.kubernetes.io/managed-by": "flame-backend",
    }.items() <= metadata["labels"].items()
    command = ["/usr/bin/python3", "-P", "-m", "flame_backend.runner"]
    assert ("flame-runner", command) == (runner["name"], runner["command"])
    forbidden = {path.removeprefix("spec.") for path in FORBIDDEN} & spec.keys()
    assert forbidden <= {
        "restartPolicy",
        "automountServiceAccountToken",
        "terminationGracePeriodSeconds",
    }
    assert options.owner_reference == ("ownerReferences" in metadata)
    assert "app" not in metadata["labels"]


@given(parent=pods.parents(), options=pods.options())
def test_one_token_and_it_is_the_runners(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """No other token source, and nothing but the runner mounts its volume."""
    options = pods.with_sidecars(parent, options)
    pod = runner_pod(parent, options, IDENTITY)
    tokens = [
        source["serviceAccountToken"]
        for volume in pod["spec"]["volumes"]
        for source in (volume.get("projected") or {}).get("sources") or ()
        if "serviceAccountToken" in source
    ]
    expected = {
        "audience": IDENTITY.audience,
        "expirationSeconds": TOKEN_SECONDS,
        "path": "token",
    }
    assert [expected] == tokens
    mounting = [
        container["name"]
        for container in all_containers(pod)
        for mount in container.get("volumeMounts") or ()
        if mount["name"] == "flame-token"
    ]
    assert ["flame-runner"] == mounting


@given(parent=pods.parents(), options=pods.options())
def test_names_are_unique_and_mounts_have_volumes(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """Variables, volumes, containers; $(POD_IP) is defined before its users."""
    options = pods.with_sidecars(parent, options)
    pod = runner_pod(parent, options, IDENTITY)
    volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))
    for container in all_containers(pod):
        names = [entry["name"] for entry in container.get("env") or ()]
        assert len(names) == len(set(names))
        mounted = {mount["name"] for mount in container.get("volumeMounts") or ()}
        assert mounted <= set(volumes)
    (runner,) = pod["spec"]["containers"]
    names = [entry["name"] for entry in runner["env"]]
    assert ["POD_NAME", "POD_NAMESPACE", "POD_UID", "POD_IP"] == names[:4]
    assert "FLAME_PARENT" == names[-1]


@given(parent=pods.parents(), options=pods.options())
def test_env_option_has_the_last_word(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """Text sets a variable, None leaves it out."""
    (runner,) = runner_pod(parent, options, IDENTITY)["spec"]["containers"]
    found = {entry["name"]: entry for entry in runner["env"]}
    for name, value in (options.env or {}).items():
        expected = None if value is None else {"name": name, "value": value}
        assert expected == found.get(name)


@given(parent=pods.parents(), data=st.data())
def test_none_deletes_whatever_is_not_forced(
    parent: dict[str, Any], data: st.DataObject
) -> None:
    """Any field of spec or container that the runner has by inheritance or default."""
    options = RunnerOptions(container="app")
    spec = stages(parent, options, IDENTITY)[1][1]["spec"]
    own = {"containers", "initContainers"}
    where = data.draw(st.sampled_from(sorted(spec.keys() - own)))
    pod = runner_pod(
        parent, replace(options, manifest={"spec": {where: None}}), IDENTITY
    )
    left = pod["spec"].get(where)
    assert left is None or where == "volumes"
    if where == "volumes":
        assert ["flame-token"] == [volume["name"] for volume in left]
    container = spec["containers"][0]
    kept = {"name", "image", "env", "volumeMounts"}
    field = data.draw(st.sampled_from(sorted(container.keys() - kept)))
    change = {"spec": {"containers": [{field: None}]}}
    pod = runner_pod(parent, replace(options, manifest=change), IDENTITY)
    assert field not in pod["spec"]["containers"][0]


@given(parent=pods.parents(), options=pods.options())
def test_manifest_says_the_same_in_every_form(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """Dict, YAML, JSON and callback; and saying it once more changes nothing."""
    manifest = options.manifest
    assume(isinstance(manifest, dict))
    expected = runner_pod(parent, options, IDENTITY)
    for form in (
        yaml.safe_dump(manifest),
        json.dumps(manifest),
        lambda pod, app: manifest,
    ):
        pod = runner_pod(parent, replace(options, manifest=form), IDENTITY)
        assert expected == pod


@given(parent=pods.parents(), options=pods.options())
def test_restricting_twice_changes_nothing(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """And a runner's pod that is restricted stays so."""
    options = pods.with_sidecars(parent, options)
    pod = runner_pod(parent, replace(options, hardening="restricted"), IDENTITY)
    again = copy.deepcopy(pod)
    restrict(again)
    assert pod == again


@given(parent=pods.parents(), options=pods.options())
def test_every_field_has_an_origin(
    parent: dict[str, Any], options: RunnerOptions
) -> None:
    """The origins tell the whole pod, and only its own fields."""
    steps = stages(parent, options, IDENTITY)
    found = origins(steps)
    assert runner_pod(parent, options, IDENTITY) == steps[-1][1]
    told = {path: value for path, (_, value) in found.items()}
    assert dict(leaves(steps[-1][1])) == told
    assert {name for name, _ in found.values()} <= {name for name, _ in steps}


@given(base=MAPPINGS, patch=MAPPINGS)
def test_merging_twice_is_merging_once(
    base: dict[str, Any], patch: dict[str, Any]
) -> None:
    """And it changes neither side."""
    before = copy.deepcopy((base, patch))
    try:
        once = merged(base, patch, "m")
    except ManifestError as error:
        assert error.reason == "must be a mapping"
    else:
        assert once == merged(once, patch, "m")
        assert base == merged(base, {}, "m")
    assert before == (base, patch)


@given(value=MAPPINGS)
def test_plain_is_a_copy(value: dict[str, Any]) -> None:
    """What JSON can say comes back equal and is another object."""
    found = plain(value, "m")
    assert value == found
    assert found is not value


@given(image=st.text(max_size=40), identity=st.text(max_size=90))
def test_pinning_returns_the_image_or_its_digest(image: str, identity: str) -> None:
    """Never anything that the status does not say of this very repository."""
    found = pinned(image, identity)
    assert found == image or (found in identity and "@sha256:" in found)
