"""Security of a runner's pod: what is set where the app is silent, and the profile.

`restricted` is Kubernetes' Pod Security Standard of that name. What only tightens is
set; what would need a choice (another volume, another user) is refused with its path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNTIME_DEFAULT: Final = {"type": "RuntimeDefault"}

_VOLUMES: Final = frozenset(
    {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image",
        "persistentVolumeClaim", "projected", "secret",
    }
)  # fmt: skip
_SAFE_SYSCTLS: Final = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    }
)


def set_defaults(pod: dict[str, Any]) -> None:
    """Tighten what the app left open, before the user's manifest is laid over it."""
    spec = pod["spec"]
    spec.setdefault("enableServiceLinks", False)
    context = spec.setdefault("securityContext", {})
    context.setdefault("seccompProfile", dict(RUNTIME_DEFAULT))
    runner = spec["containers"][0].setdefault("securityContext", {})
    runner.setdefault("allowPrivilegeEscalation", False)
    settle_escalation(pod)


def settle_escalation(pod: dict[str, Any]) -> None:
    """Let go of our default where the API refuses it: beside more privileges."""
    for container in pod["spec"]["containers"]:
        context = container.get("securityContext") or {}
        added = (context.get("capabilities") or {}).get("add") or ()
        strong = context.get("privileged") or {"SYS_ADMIN", "CAP_SYS_ADMIN"} & {*added}
        if strong and context.get("allowPrivilegeEscalation") is False:
            del context["allowPrivilegeEscalation"]


def restrict(pod: dict[str, Any]) -> None:
    """Make a pod fit the restricted profile; applying it again changes nothing.

    Raises:
        ManifestError: Something cannot be tightened without a choice.
    """
    spec = pod["spec"]
    _restrict_volumes(spec)
    context = spec.setdefault("securityContext", {})
    _restrict_context(context, "spec.securityContext")
    _settle_seccomp(context, needed=True)
    context["runAsNonRoot"] = True
    for sysctl in context.get("sysctls") or ():
        if sysctl.get("name") not in _SAFE_SYSCTLS:
            where = f"spec.securityContext.sysctls[{sysctl.get('name')}]"
            raise ManifestError(where, "the restricted profile does not allow it")
    for where, container in _containers(spec):
        _restrict_container(container, where)


def _restrict_container(container: dict[str, Any], where: str) -> None:
    context = container.setdefault("securityContext", {})
    _restrict_context(context, f"{where}.securityContext")
    _settle_seccomp(context, needed=False)
    context["allowPrivilegeEscalation"] = False
    context.pop("privileged", None)
    context.pop("procMount", None)
    if context.get("runAsNonRoot") is False:
        del context["runAsNonRoot"]
    # Adding capabilities to none is all the profile knows, and this one only.
    added = (context.get("capabilities") or {}).get("add") or ()
    kept = [name for name in added if name == "NET_BIND_SERVICE"]
    context["capabilities"] = {"drop": ["ALL"]} | ({"add": kept} if kept else {})
    for number, port in enumerate(container.get("ports") or ()):
        if port.get("hostPort"):
            place = f"{where}.ports[{number}].hostPort"
            raise ManifestError(place, "the restricted profile allows no host ports")


def _restrict_context(context: dict[str, Any], where: str) -> None:
    if context.get("runAsUser") == 0:
        reason = "the restricted profile allows no root; set another user's number"
        raise ManifestError(f"{where}.runAsUser", reason)
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        reason = "the restricted profile allows no host processes"
        raise ManifestError(f"{where}.windowsOptions.hostProcess", reason)
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        context["appArmorProfile"] = dict(RUNTIME_DEFAULT)
    labels = context.get("seLinuxOptions") or {}
    for field in ("user", "role"):
        if labels.get(field):
            reason = "the restricted profile leaves it to the node"
            raise ManifestError(f"{where}.seLinuxOptions.{field}", reason)


def _settle_seccomp(context: dict[str, Any], *, needed: bool) -> None:
    kind = (context.get("seccompProfile") or {}).get("type")
    if kind == "Unconfined" or (needed and kind is None):
        context["seccompProfile"] = dict(RUNTIME_DEFAULT)


def _restrict_volumes(spec: dict[str, Any]) -> None:
    for volume in spec.get("volumes") or ():
        for kind in volume.keys() - _VOLUMES - {"name"}:
            where = f"spec.volumes[{volume['name']}].{kind}"
            reason = (
                "the restricted profile does not allow it; take the volume out with "
                f'{{"name": "{volume["name"]}", "$patch": "delete"}} in the manifest'
            )
            raise ManifestError(where, reason)


def _containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            yield f"spec.{field}[{container.get('name')}]", container
