"""flame-backend doctor: would runners work here, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import kubetls
from flame_backend.backends.kubernetes.access import (
    DIAGNOSIS_RULES,
    LEASE_RULES,
    RULES,
    SELF_RULES,
)
from flame_backend.backends.kubernetes.keys import DISCOVERY_PATH, JWKS_PATH
from flame_backend.backends.kubernetes.own_pod import addresses_of
from flame_backend.backends.kubernetes.pod_template import app_container
from flame_backend.cli import output, trial
from flame_backend.cli.check import Check
from flame_backend.cli.cluster import add_cluster_options, in_pod, open_session
from flame_backend.cli.runners import (
    add_parent_options,
    add_runner_options,
    parent_pod,
    sample_pod,
)
from flame_backend.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

HELP = "check rights, identity, labels, and a runner's pod"
DESCRIPTION = """\
Ask the API server whether runners would work: the account's rights, the issuer's keys
that prove a runner's identity, the parent's pod, Services that would take runners for
the app, and a dry run of the very pod. Nothing is created, but with --runner: in the
app's pod that boots one real runner, calls it, and deletes it.
"""
EPILOG = """\
examples:
  kubectl exec deploy/web -- flame-backend doctor       # as the app's own account
  kubectl exec deploy/web -- flame-backend doctor --runner
  flame-backend doctor -n shop --pod web-5d9 --as-account web
  flame-backend doctor -n shop --pod web-5d9 --as-account web \\
      --runner-namespace shop-runners --service-account runner --inherit image
"""

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
_AUTHORIZATION = "authorization.k8s.io/v1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--as-account",
        metavar="NAME",
        help="ask for the rights of this service account instead of your own; takes "
        "the right to create subjectaccessreviews",
    )
    trial.add_arguments(parser)
    add_parent_options(parser)
    add_runner_options(parser)
    add_cluster_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one of them failed."""
    checks = []
    with open_session(args) as session:
        for check in _checks(session, args):
            checks.append(check)
            if not args.json:
                _print(check)
    if args.json:
        output.as_json([check._asdict() for check in checks])
    return int(any(check.verdict == "fail" for check in checks))


def _print(check: Check) -> None:
    mark = output.coloured(f"{check.verdict:4}", COLOURS[check.verdict])
    detail = " ".join(check.detail.split())
    output.say(f"{mark}  {check.name}: {detail}")
    if check.remedy:
        output.say(f"      {check.remedy}")


def _checks(session: kubetls.Session, args: argparse.Namespace) -> Iterator[Check]:
    # Not reaching the server at all is an error of its own, with its own exit code.
    version = session.get("/version").get("gitVersion")
    yield Check("server", "ok", f"{session.server} {version}, {session.config.origin}")
    yield from _rights(session, args)
    yield _issuer(session, args.as_account)
    if args.pod is None and args.parent is None and not in_pod():
        remedy = "give the app's pod with --pod, or a file with --parent"
        yield Check("parent", "skip", "this is no pod and none is named", remedy)
        return
    try:
        parent = parent_pod(args, session)
        pod = sample_pod(args, parent)
    except (kubetls.KubeTLSError, ConfigurationError) as error:
        yield Check("parent", "fail", str(error))
        return
    yield _variables(parent, args.container)
    yield _addresses(parent, from_file=args.parent is not None)
    namespace = args.runner_namespace or session.namespace
    yield from _clashes(session, namespace, pod)
    yield _dry_run(session, namespace, pod, from_file=args.parent is not None)
    if args.runner:
        yield from trial.checks(session, args)


# ------------------------------------------------------------------ rights, identity


def _rights(session: kubetls.Session, args: argparse.Namespace) -> Iterator[Check]:
    home, away = session.namespace, args.runner_namespace
    wanted = [(away or home, RULES, "fail"), (away or home, DIAGNOSIS_RULES, "warn")]
    if away not in {None, home}:
        wanted += [(away, LEASE_RULES, "fail"), (home, SELF_RULES, "fail")]
    for namespace, rules, missing in wanted:
        for rule in rules:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    right = _Right(namespace, rule["apiGroups"][0], resource, verb)
                    yield _may(session, args, right, missing)


class _Right(NamedTuple):
    """A verb on a resource of a namespace."""

    namespace: str
    group: str
    resource: str
    verb: str


def _may(
    session: kubetls.Session, args: argparse.Namespace, right: _Right, missing: str
) -> Check:
    name = f"may {right.verb} {right.resource}"
    account = args.as_account
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "namespace": right.namespace,
        "group": right.group,
        "verb": right.verb,
        "resource": resource,
        "subresource": subresource,
    }
    try:
        status = _reviewed(session, account, {"resourceAttributes": attributes})
    except kubetls.KubeTLSError as error:
        return Check(name, "fail", str(error))
    if status.get("allowed"):
        return Check(name, "ok", f"in namespace {right.namespace}")
    words = status.get("reason") or "no rule allows it"
    command = (
        f"flame-backend init --service-account {account or 'NAME'} "
        f"-n {session.namespace}"
    )
    if args.runner_namespace is not None:
        runner = args.service_account or "NAME"
        command += f" --runner-namespace {args.runner_namespace}"
        command += f" --runner-account {runner}"
    remedy = f"{command} | kubectl apply -f -"
    return Check(name, missing, f"denied in {right.namespace}: {words}", remedy)


def _reviewed(
    session: kubetls.Session, account: str | None, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the API server says of a right, an account's or our own."""
    spec, kind = dict(attributes), "SelfSubjectAccessReview"
    if account:
        kind = "SubjectAccessReview"
        spec["user"] = f"system:serviceaccount:{session.namespace}:{account}"
        group = "system:serviceaccounts"
        spec["groups"] = [group, f"{group}:{session.namespace}", "system:authenticated"]
    review = {"apiVersion": _AUTHORIZATION, "kind": kind, "spec": spec}
    path = kubetls.path(_AUTHORIZATION, f"{kind.lower()}s")
    status: dict[str, Any] = session.post(path, review)["status"]
    return status


def _issuer(session: kubetls.Session, account: str | None) -> Check:
    """Check what the parent verifies runners' tokens with."""
    name = "issuer"
    remedy = (
        "bind ClusterRole system:service-account-issuer-discovery to group "
        "system:serviceaccounts, as Kubernetes does by default"
    )
    try:
        issuer = session.get(DISCOVERY_PATH).get("issuer")
        keys = session.get(JWKS_PATH).get("keys") or ()
        for path in (DISCOVERY_PATH, JWKS_PATH) if account else ():
            attributes = {"nonResourceAttributes": {"path": path, "verb": "get"}}
            if not _reviewed(session, account, attributes).get("allowed"):
                detail = f"{account} may not get {path}"
                return Check(name, "fail", detail, remedy)
    except kubetls.KubeTLSError as error:
        return Check(name, "fail", str(error), remedy)
    if not issuer or not keys:
        return Check(name, "fail", f"issuer {issuer!r} publishes {len(keys)} keys")
    return Check(name, "ok", f"{issuer}, keys published: {len(keys)}")


# ------------------------------------------------------------------ the parent's pod


def _variables(parent: dict[str, Any], container: str | None) -> Check:
    """Check how the parent is told of its own pod."""
    wanted = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    entries = app_container(parent, container).get("env") or ()
    found = {
        entry["name"]: ((entry.get("valueFrom") or {}).get("fieldRef") or {})
        for entry in entries
    }
    missing = [
        name
        for name, path in wanted.items()
        if found.get(name, {}).get("fieldPath") != path
    ]
    if not missing:
        return Check(
            "variables", "ok", "POD_NAME and POD_NAMESPACE by the downward API"
        )
    detail = f"{', '.join(missing)} not set: the parent finds its pod by its host name"
    name = missing[0]
    remedy = (
        f"env: - {{name: {name}, valueFrom: {{fieldRef: "
        f"{{fieldPath: {wanted[name]}}}}}}}"
    )
    return Check("variables", "warn", detail, remedy)


def _addresses(parent: dict[str, Any], *, from_file: bool) -> Check:
    addresses = addresses_of(parent)
    if addresses:
        return Check("address", "ok", f"runners dial {', '.join(addresses)}")
    verdict = "skip" if from_file else "fail"
    return Check("address", verdict, "the pod has no address")


def _clashes(
    session: kubetls.Session, namespace: str, pod: dict[str, Any]
) -> Iterator[Check]:
    """Look for what would take a runner for one of the app's pods."""
    labels = pod["metadata"]["labels"]
    path = kubetls.path("v1", "services", namespace=namespace)
    try:
        services = list(session.list(path))
    except kubetls.Forbidden:
        detail = "this account may not list services"
        yield Check("labels", "skip", detail, "run doctor as somebody who may")
        return
    except kubetls.KubeTLSError as error:
        yield Check("labels", "fail", str(error))
        return
    clashing = [
        service["metadata"]["name"]
        for service in services
        if selects((service.get("spec") or {}).get("selector"), labels)
    ]
    if not clashing:
        yield Check("labels", "ok", f"none of {len(services)} Services selects runners")
    for name in clashing:
        detail = f"Service {name} would send runners its requests"
        yield Check("labels", "fail", detail, "take its labels out of the manifest")


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Say whether a Service's selector takes a pod; one without selector takes none."""
    return bool(selector) and (selector or {}).items() <= labels.items()


def _dry_run(
    session: kubetls.Session, namespace: str, pod: dict[str, Any], *, from_file: bool
) -> Check:
    """Have the API server judge the very pod: schema, admission, quota, rights."""
    name = "dry run"
    if from_file:
        # Its owner has no UID that the server knows; the rest is as it will be.
        pod["metadata"].pop("ownerReferences", None)
    path = kubetls.path("v1", "pods", namespace=namespace)
    try:
        session.post(path, pod, {"fieldValidation": "Strict"}, dry_run=True)
    except kubetls.ApiError as error:
        words = f"{error.status} {error.reason}: {error.message}"
        return Check(name, "fail", words, "see the pod with: flame-backend render")
    except kubetls.KubeTLSError as error:
        return Check(name, "fail", str(error))
    return Check(name, "ok", "the API server takes the runner's pod")
