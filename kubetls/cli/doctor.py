"""`kubetls doctor`: a configuration's whole chain, and the first thing to fix.

Environment, mount or kubeconfig, token, CA, reachability, handshake, identity, trust,
authentication, authorization. What is broken does not stop the rest from being looked
at, as long as that makes sense; nothing is sent to a server that is not verified.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from kubetls.cli.checks import (
    Patient,
    anchors_finding,
    api_findings,
    client_certificate_finding,
    refused,
    server_findings,
    token_finding,
)
from kubetls.cli.page import Answer, Exit, Finding
from kubetls.cli.whoami import open_session
from kubetls.credentials.anchors import SYSTEM_ANCHORS
from kubetls.credentials.choose import chosen_files
from kubetls.credentials.config import Config
from kubetls.credentials.endpoint import endpoint_from_environment, ignored_proxies
from kubetls.credentials.exec_entry import ExecEntry
from kubetls.credentials.incluster import (
    InClusterSource,
    mounted_anchors,
    mounted_namespace,
    mounted_token,
)
from kubetls.credentials.kubeconfig import chosen_context
from kubetls.credentials.kubeconfig_files import home_file, listed_files
from kubetls.credentials.volume import DEFAULT_VOLUME, VolumeContent, read_volume
from kubetls.errors import ConfigError, CredentialError, KubeTLSError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.cli.named import Named
    from kubetls.credentials.kubeconfig import ChosenContext

_MARKS: Final = {
    "ok": "ok",
    "warn": "warn",
    "fail": "FAIL",
    "unknown": "?",
    "skipped": "skip",
}


class Doctor:
    """One examination.

    Args:
        environ: The process's environment.
        timeout: Seconds for each step on the network.
    """

    def __init__(self, environ: Mapping[str, str], timeout: float) -> None:
        self._environ = environ
        self._timeout = timeout
        self._patient = Patient()
        self._findings: list[Finding] = []
        self._answer = Answer(Exit.FINE)

    def examine(self, named: Named, volume: str | None) -> Answer:
        """Check everything and say what to fix first.

        Args:
            named: A kubeconfig; without, what applies to this process.
            volume: A service-account volume other than the usual one.
        """
        self._proxies()
        try:
            files = self._files(named, volume)
        except ConfigError as error:
            self._findings.append(refused("environment", error))
        else:
            if files:
                self._kubeconfig(files, named)
            else:
                self._pod(volume or DEFAULT_VOLUME)
        self._credentials()
        self._findings += server_findings(self._patient, self._timeout)
        self._api()
        return self._report()

    # ------------------------------------------------------------------ configuration

    def _files(self, named: Named, volume: str | None) -> tuple[str, ...]:
        """Return the kubeconfig files to look at, () for the pod's credentials."""
        if volume is not None:
            return ()
        if not named:
            return chosen_files(self._environ)
        listed = (named.file,) if named.file else listed_files(self._environ)
        files = listed or home_file(self._environ)
        if not files:
            raise ConfigError("$HOME", "not set, nor is $KUBECONFIG; name a file")
        return files

    def _proxies(self) -> None:
        ignored = ignored_proxies(self._environ)
        if ignored:
            text = f"{', '.join(ignored)} is set, and not used here"
            remedy = "the server has to be reached without a proxy"
            self._findings.append(Finding("proxy", "warn", text, remedy))

    def _pod(self, volume: str) -> None:
        patient = self._patient
        self._answer.data["origin"] = "in-cluster"
        try:
            patient.endpoint = endpoint_from_environment(self._environ)
        except ConfigError as error:
            self._findings.append(refused("environment", error))
        else:
            text = f"a pod's; the server is {patient.endpoint}"
            self._findings.append(Finding("environment", "ok", text))
        try:
            content = read_volume(volume)
        except CredentialError as error:
            self._findings.append(refused("mount", error))
            return
        self._findings.append(Finding("mount", "ok", volume))
        namespace = self._mounted(content, volume)
        if patient.endpoint is not None and namespace is not None:
            patient.config = Config(
                patient.endpoint, InClusterSource(volume), namespace, "in-cluster"
            )

    def _mounted(self, content: VolumeContent, volume: str) -> str | None:
        patient, found = self._patient, self._findings
        namespace: str | None = None
        try:
            namespace = mounted_namespace(content, volume)
        except CredentialError as error:
            found.append(refused("namespace", error))
        try:
            patient.token = mounted_token(content, volume)
            patient.credentials_read = True
        except CredentialError as error:
            found.append(refused("token", error))
        try:
            patient.anchors = mounted_anchors(content, volume)
        except CredentialError as error:
            found.append(refused("CA", error))
        return namespace

    def _kubeconfig(self, files: tuple[str, ...], named: Named) -> None:
        try:
            chosen = chosen_context(
                files,
                named.context,
                named.trust,
                named.exec or "allow",
                inline_only=named.files == "inline-only",
            )
        except (ConfigError, CredentialError) as error:
            self._findings.append(refused("kubeconfig", error))
            return
        origin = chosen.config.origin
        self._answer.data["origin"] = origin
        text = f"{origin}; the server is {chosen.config.endpoint}"
        self._findings.append(Finding("kubeconfig", "ok", text))
        self._patient.config = chosen.config
        self._patient.endpoint = chosen.config.endpoint
        self._named(chosen)

    def _named(self, chosen: ChosenContext) -> None:
        patient, found = self._patient, self._findings
        source, documents = chosen.source, chosen.documents
        try:
            patient.anchors = source.anchors(documents)
        except KubeTLSError as error:
            found.append(refused("CA", error))
        try:
            plugin = isinstance(source.static(documents), ExecEntry)
            if plugin and patient.anchors is None:
                return
            patient.token, patient.client_certificate = source.credentials(
                documents, patient.anchors or SYSTEM_ANCHORS
            )
            patient.credentials_read = True
        except KubeTLSError as error:
            found.append(refused("credentials", error))

    # ------------------------------------------------------------------ the rest

    def _credentials(self) -> None:
        patient, found = self._patient, self._findings
        if patient.token is not None:
            found.append(token_finding(patient.token))
        if patient.client_certificate is not None:
            found.append(client_certificate_finding(patient.client_certificate))
        if patient.credentials_read and not (
            patient.token or patient.client_certificate
        ):
            text = "the context has no user with a token, certificate or plugin"
            remedy = "set one, or the server takes every request for anonymous"
            found.append(Finding("credentials", "warn", text, remedy))
        if patient.anchors is not None:
            found.append(anchors_finding(patient.anchors))

    def _api(self) -> None:
        trusted = any(f.check == "trust" and f.status == "ok" for f in self._findings)
        config = self._patient.config
        if config is None or not trusted or not self._patient.credentials_read:
            text = "needs a verified server and a credential"
            self._findings.append(Finding("authentication", "skipped", text))
            return
        try:
            with open_session(config, self._timeout) as session:
                self._findings += api_findings(session, self._answer.data)
        except KubeTLSError as error:
            # Read again in between, and it is worse than before.
            self._findings.append(refused("credentials", error))

    def _report(self) -> Answer:
        answer = self._answer
        for finding in self._findings:
            self._add(finding)
        first = next((f for f in self._findings if f.status == "fail"), None)
        if first is not None:
            answer.code = Exit.NO
        elif any(f.status == "unknown" for f in self._findings):
            answer.code = Exit.UNCHECKED
        if first is not None:
            answer.add(f"fix first: {first.check}: {first.remedy or first.text}")
        elif answer.code is Exit.FINE:
            answer.add("nothing to fix")
        endpoint = self._patient.endpoint
        answer.data |= {
            "server": None if endpoint is None else endpoint.url,
            "findings": [asdict(finding) for finding in self._findings],
            "fix_first": None if first is None else asdict(first),
        }
        return answer

    def _add(self, finding: Finding) -> None:
        mark = _MARKS[finding.status]
        self._answer.lines.append((f"{mark:<5}", f"{finding.check:<19} {finding.text}"))
        for line in finding.lines:
            self._answer.add(f"{'':<25}{line}")
        if finding.remedy and finding.status != "ok":
            self._answer.add(f"{'':<25}-> {finding.remedy}")
