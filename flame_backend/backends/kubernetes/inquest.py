"""Why a runner ended: what its pod, kubelet, output and token have to say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import kubetls
from flame_backend.backends.kubernetes.causes import Cause, silence_of

if TYPE_CHECKING:
    from flame_backend.backends.kubernetes.admission import Admission
    from flame_backend.backends.kubernetes.books import Runner
    from flame_backend.backends.kubernetes.pods import Pods


class Inquest:
    """Finds causes; keeps nothing but what it writes into the books.

    All but `of_silence` ask the API server, so they belong into a worker.

    Args:
        pods: The runners' pods.
        admission: Knows why a runner's token was refused.
    """

    def __init__(self, pods: Pods, admission: Admission) -> None:
        self._pods = pods
        self._admission = admission

    def see_pod(self, runner: Runner) -> bool:
        """Ask for the pod when the watch has said nothing; False without answer."""
        try:
            runner.pod = self._pods.get(runner.name)
        except kubetls.NotFound:
            runner.removed = True
        except kubetls.KubeTLSError:
            return False
        return True

    def ask_kubelet(self, runner: Runner) -> None:
        """Find out whether the kubelet of a runner answers."""
        # The answer may take longer than callers wait.
        runner.mute = True
        try:
            runner.mute = not self._pods.kubelet_answers(runner.name)
        except kubetls.KubeTLSError:
            return

    def of_silence(self, runner: Runner) -> Cause:
        """Return the cause of an end, from what is known by now."""
        cause = runner.end()
        if cause is None and runner.pod is not None:
            cause = silence_of(runner.pod)
        if cause is None and runner.mute:
            words = f"the kubelet of {runner.node} does not answer; {runner.gone}"
            cause = Cause(name="NodeLost", words=words)
        return cause or Cause(name="Unknown", words=runner.gone or "")

    def explained(self, runner: Runner, cause: Cause) -> Cause:
        """Add what the runner printed, and why its token was refused."""
        trouble = self._admission.trouble(runner.name)
        if trouble:
            cause = replace(cause, words=f"{cause.words}; {trouble}")
        return cause.with_log(self._pods.last_output(runner.name))
