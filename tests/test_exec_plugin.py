"""Credential plugins: real programs, written to the test's folder and run."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import os
import pickle
import pty
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import kubetls
from kubetls.credentials.exec_entry import last_words
from kubetls.credentials.exec_plugin import RERUN_SECONDS, ExecPlugins
from kubetls.credentials.kubeconfig import kubeconfig
from kubetls.credentials.kubeconfig_source import KubeconfigSource
from kubetls.credentials.program import PRINTED_BYTES
from kubetls.errors import (
    CredentialError,
    ExecPluginError,
    KubeconfigError,
    Unauthorized,
)
from tests.cluster.pki import Authority
from tests.credential_files import CA_PEM, KEY_PEM, SERVER_PEM, write_kubeconfig
from tests.servers import VERSION, Server, refusal
from tests.test_credentials_leaks import SECRET
from tests.test_credentials_leaks import assert_silent as assert_hidden

if TYPE_CHECKING:
    from pathlib import Path

V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"


def printed(version: str = V1, **status: Any) -> str:
    """Return an ExecCredential as a plugin prints it."""
    return json.dumps(
        {"apiVersion": version, "kind": "ExecCredential", "status": status}
    )


def in_seconds(seconds: float, zone: dt.tzinfo = dt.UTC) -> str:
    """Return an RFC 3339 time that many seconds from now."""
    return (dt.datetime.now(zone) + dt.timedelta(seconds=seconds)).isoformat()


def assert_silent(error: BaseException) -> None:
    """Fail when an error shows a secret outside of this file's own frames."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    assert_hidden(error.with_traceback(frames))


class Clock:
    """Both clocks of `ExecPlugins`, moved by hand."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def plugins(self, **changes: Any) -> ExecPlugins:
        return ExecPlugins(
            monotonic=lambda: time.monotonic() + self.ahead,
            now=lambda: time.time() + self.ahead,
            **changes,
        )


class Plugin:
    """A plugin script beside a kubeconfig that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.plugins = self.clock.plugins()

    def script(
        self, body: str, name: str = "plugin", interpreter: str = "/bin/sh"
    ) -> Path:
        """Write the program; each run adds a line to `runs` first (sh only)."""
        file = self.folder / name
        count = f'echo run >> "{self.folder}/runs"\n' if "sh" in interpreter else ""
        file.write_text(f"#!{interpreter}\n{count}{body}\n")
        file.chmod(0o755)
        return file

    def prints(self, version: str = V1, **status: Any) -> Path:
        """Write a program that prints a credential."""
        return self.script(f"cat <<'END'\n{printed(version, **status)}\nEND")

    def config(
        self,
        cluster: dict[str, Any] | None = None,
        user: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        **entry: Any,
    ) -> KubeconfigSource:
        """Write the kubeconfig and return its source."""
        fields = {
            "apiVersion": V1,
            "command": "./plugin",
            "interactiveMode": "Never",
        } | entry
        kept = {name: value for name, value in fields.items() if value is not None}
        file = write_kubeconfig(
            self.folder / "config",
            user={"token": None, "exec": kept} | (user or {}),
            cluster=cluster or {},
        )
        source = kubeconfig(file, **(arguments or {})).source
        assert isinstance(source, KubeconfigSource)
        return dataclasses.replace(source, plugins=self.plugins)

    @property
    def runs(self) -> int:
        """How often the program was run."""
        file = self.folder / "runs"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """Return a plugin in the test's folder."""
    return Plugin(tmp_path)


def token_of(source: KubeconfigSource, *, fresh: bool = False) -> str | None:
    """Return the token that a source reads."""
    token = source.read(fresh=fresh).token
    return None if token is None else token.reveal()


# ------------------------------------------------------------------ what it gives


@pytest.mark.parametrize("version", [V1, V1BETA1])
def test_plugin_gives_a_token(plugin: Plugin, version: str) -> None:
    """Both versions; the token is the user's."""
    plugin.prints(version, token="from-the-plugin")
    assert "from-the-plugin" == token_of(plugin.config(apiVersion=version))


def test_plugin_gives_a_client_certificate(plugin: Plugin) -> None:
    """Certificate and key are held in memory like those of a kubeconfig."""
    plugin.prints(
        clientCertificateData=SERVER_PEM.decode(), clientKeyData=KEY_PEM.decode()
    )
    generation = plugin.config().read()
    assert generation.token is None
    assert generation.client_certificate is not None
    assert KEY_PEM.split() == generation.client_certificate.key_pem.split()


def test_python_plugin_gives_its_expiry(plugin: Plugin) -> None:
    """ExpirationTimestamp is the token's end, whatever zone it is written in."""
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    text = printed(token="t", expirationTimestamp=in_seconds(60, zone))
    plugin.script(f"print({text!r})", interpreter=sys.executable)
    token = plugin.config().read().token
    assert token is not None
    assert token.expires_at == pytest.approx(time.time() + 60, abs=30)


def test_reading_a_kubeconfig_runs_nothing(plugin: Plugin) -> None:
    """The plugin runs when credentials are read first, not when the file is."""
    plugin.prints(token="t")
    source = plugin.config()
    assert 0 == plugin.runs
    source.read()
    assert 1 == plugin.runs


@pytest.mark.parametrize(
    "user",
    [
        {"token": "static"},
        {
            "client-certificate-data": base64.b64encode(SERVER_PEM).decode(),
            "client-key-data": base64.b64encode(KEY_PEM).decode(),
        },
    ],
)
def test_static_credential_wins_over_the_plugin(
    plugin: Plugin, user: dict[str, Any]
) -> None:
    """As for kubectl: with a token or certificate the plugin is not asked."""
    plugin.prints(token="t")
    generation = plugin.config(user=user).read()
    assert (0, "static" if "token" in user else None) == (
        plugin.runs,
        generation.token and generation.token.reveal(),
    )


# ------------------------------------------------------------------ what it is told

TELL = 'printf %s "$KUBERNETES_EXEC_INFO" > "$0.told"\n'


def told(plugin: Plugin) -> Any:
    """Return the ExecCredential that the plugin got."""
    return json.loads((plugin.folder / "plugin.told").read_text())


def test_plugin_is_told_its_version_and_nothing_of_the_cluster(plugin: Plugin) -> None:
    """Without provideClusterInfo there is no cluster in it."""
    plugin.script(f"{TELL}echo '{printed(token='t')}'")
    plugin.config().read()
    assert {
        "apiVersion": V1,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    } == told(plugin)


def test_plugin_is_told_about_the_cluster(plugin: Plugin) -> None:
    """provideClusterInfo: server, name, CA, and the extension with its types."""
    config = {"arn": "a:b", "retries": 3, "ratio": 0.5, "on": True, "id": "007"}
    plugin.script(f"{TELL}echo '{printed(token='t')}'")
    source = plugin.config(
        cluster={
            "tls-server-name": "api.example.org",
            "extensions": [
                {"name": "client.authentication.k8s.io/exec", "extension": config}
            ],
        },
        provideClusterInfo=True,
    )
    source.read()
    cluster = told(plugin)["spec"]["cluster"]
    ca = base64.b64decode(cluster.pop("certificate-authority-data"))
    assert CA_PEM.split() == ca.split()
    assert {
        "server": "https://127.0.0.1:6443",
        "tls-server-name": "api.example.org",
        "config": config,
    } == cluster


def test_arguments_and_variables_arrive_as_they_are(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell: blanks, quotes and dollars are text; env adds to what is inherited."""
    monkeypatch.setenv("INHERITED", "i")
    monkeypatch.setenv("REPLACED", "old")
    body = (
        "import os, sys, json\n"
        "e = os.environ\n"
        "said = [sys.argv[1:], e['INHERITED'], e['REPLACED'], e['ADDED']]\n"
        "open(sys.argv[0] + '.told', 'w').write(json.dumps(said))\n"
        f"print({printed(token='t')!r})"
    )
    plugin.script(body, interpreter=sys.executable)
    plugin.plugins = ExecPlugins(os.environ)
    args = ["get token", "$(touch x)", "a'b\"c", ""]
    env = [{"name": "REPLACED", "value": "new"}, {"name": "ADDED", "value": "$HOME"}]
    plugin.config(args=args, env=env).read()
    assert [args, "i", "new", "$HOME"] == told(plugin)
    assert not (plugin.folder / "x").exists()


# ------------------------------------------------------------------ where it is found


def test_bare_name_is_looked_for_in_absolute_folders_of_path(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative part of PATH would let the current folder choose the program."""
    plugin.prints(token="t")
    monkeypatch.chdir(plugin.folder)
    for path in ("", ".", "bin", ":"):
        plugin.plugins = ExecPlugins({"PATH": path})
        with pytest.raises(ExecPluginError, match="in no absolute folder of PATH"):
            plugin.config(command="plugin").read()
    plugin.plugins = ExecPlugins({"PATH": f".:/absent:{plugin.folder}/:/bin"})
    assert "t" == token_of(plugin.config(command="plugin"))


def test_path_is_relative_to_the_kubeconfig(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the current folder; an absolute path is taken as it is."""
    (plugin.folder / "bin").mkdir()
    file = plugin.prints(token="t").rename(plugin.folder / "bin" / "plugin")
    monkeypatch.chdir("/")
    assert "t" == token_of(plugin.config(command="bin/plugin"))
    assert "t" == token_of(plugin.config(command=str(file)))
    for command in ("./plugin", "/absent/plugin", "./bin"):
        with pytest.raises(ExecPluginError, match="is not there, or is no program"):
            plugin.config(command=command).read()


def test_missing_plugin_says_how_to_install_it(plugin: Plugin) -> None:
    """The hint is in the error, on one line, escaped and shortened."""
    hint = "Install it:\n\n  brew install x\x1b[31m" + "!" * 400
    source = plugin.config(command="not-there-plugin", installHint=hint)
    with pytest.raises(ExecPluginError) as caught:
        source.read()
    text = str(caught.value)
    assert "users[ann].exec: the credential plugin not-there-plugin is in no" in text
    assert "(Install it: brew install x\\x1b[31m!!!" in text
    assert text.endswith("!...)")
    assert 1 == len(text.splitlines())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (text, caught.value.install_hint) == (str(again), again.install_hint)


# ------------------------------------------------------------------ how often it runs


def test_credential_is_kept_until_it_expires(plugin: Plugin) -> None:
    """One run until the plugin's own time is over, then another."""
    plugin.prints(token="t", expirationTimestamp=in_seconds(1000))
    source = plugin.config()
    for seconds, runs in ((0, 1), (900, 1), (1001, 2)):
        plugin.clock.ahead = seconds
        source.read()
        assert runs == plugin.runs


def test_credential_without_expiry_is_kept_until_it_is_refused(plugin: Plugin) -> None:
    """A day later it is the same; `fresh` (a 401) asks again."""
    plugin.prints(token="one")
    source = plugin.config()
    assert "one" == token_of(source)
    plugin.clock.ahead = 86400
    plugin.prints(token="two")
    assert "one" == token_of(source)
    assert "two" == token_of(source, fresh=True)
    assert 2 == plugin.runs


def test_reruns_are_rate_limited(plugin: Plugin) -> None:
    """Refused or expired or failing: one more run in ten seconds, and its outcome."""
    plugin.prints(token="t", expirationTimestamp=in_seconds(-60))
    source = plugin.config()
    for _ in range(5):
        assert "t" == token_of(source, fresh=True)
    assert 2 == plugin.runs
    plugin.clock.ahead += RERUN_SECONDS
    plugin.script("exit 3")
    for _ in range(5):
        with pytest.raises(ExecPluginError, match="failed with exit code 3"):
            source.read()
    assert 3 == plugin.runs
    plugin.clock.ahead += RERUN_SECONDS
    plugin.prints(token="well")
    assert "well" == token_of(source)


def test_plugin_that_fails_at_first_is_rate_limited(plugin: Plugin) -> None:
    """A failure is an outcome as well: requests do not start a program each."""
    plugin.script("exit 1")
    source = plugin.config()
    for _ in range(5):
        with pytest.raises(ExecPluginError, match="exit code 1"):
            source.read()
    assert 1 == plugin.runs


def test_refused_token_is_replaced_within_the_request(
    plugin: Plugin, tmp_path: Path
) -> None:
    """A stale token on the first request: the plugin runs again, the request as well.

    Then the limit holds: a server that goes on refusing starts no program per request.
    """
    authority = Authority()
    pair = authority.issue("server", addresses=("127.0.0.1",))
    stale, good = printed(token="stale"), printed(token="good")
    plugin.script(f"[ -e \"$0.2\" ] && echo '{good}' || echo '{stale}'; touch $0.2")
    answers = [refusal(401, "Unauthorized"), VERSION, refusal(401, "Unauthorized")]
    with Server(pair, tmp_path, answers) as server:
        ca = base64.b64encode(authority.certificate).decode()
        plugin.config(
            cluster={
                "server": f"https://127.0.0.1:{server.port}",
                "certificate-authority-data": ca,
            }
        )
        with kubetls.session(kubeconfig(plugin.folder / "config")) as session:
            session.get("/version")
            for _ in range(3):
                with pytest.raises(Unauthorized):
                    session.get("/version")
    sent = [request.headers["Authorization"] for request in server.requests]
    assert ["Bearer stale", *["Bearer good"] * 4] == sent
    assert 2 == plugin.runs


def test_each_plugin_and_cluster_has_its_own(plugin: Plugin) -> None:
    """Other arguments, variables or a cluster it is told about: another credential."""
    plugin.prints(token="t")
    informed: dict[str, Any] = {"provideClusterInfo": True}
    other = {"cluster": {"server": "https://127.0.0.1:7443"}}
    changes: list[dict[str, Any]] = [
        {},
        {"args": ["a"]},
        {"env": [{"name": "A", "value": "a"}]},
        informed,
        informed | other,
    ]
    for runs, change in enumerate(changes, 1):
        for _ in range(2):
            plugin.config(**change).read()
            assert runs == plugin.runs


def test_many_threads_cause_one_rerun(plugin: Plugin) -> None:
    """All wait for the one that runs it; of eight refusals, one asks again."""
    plugin.script(f"sleep 0.2\necho '{printed(token='t')}'")
    source = plugin.config()
    start = threading.Barrier(8)
    found: list[str | None] = []

    def read() -> None:
        start.wait()
        found.append(token_of(source, fresh=True))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (["t"] * 8, 2) == (found, plugin.runs)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_is_not_stuck_with_a_lock(plugin: Plugin) -> None:
    """A fork while another thread waits for the plugin leaves no locked lock."""
    plugin.script(f"sleep 0.5\necho '{printed(token='t')}'")
    source = plugin.config()
    thread = threading.Thread(target=source.read)
    thread.start()
    while not plugin.runs:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        os._exit(0 if token_of(source) == "t" else 1)
    _, status = os.waitpid(child, 0)
    thread.join()
    assert (0, 2) == (status, plugin.runs)


# ------------------------------------------------------------------ whether it may run


def test_refused_plugin_is_not_run(plugin: Plugin) -> None:
    """exec="refuse" is said when the file is read; inline-only refuses it as well."""
    plugin.prints(token="t")
    for arguments in ({"exec": "refuse"}, {"files": "inline-only"}):
        with pytest.raises(KubeconfigError, match="exec") as caught:
            plugin.config(arguments=arguments)
        assert caught.value.source.endswith("users[ann].exec")
    assert 0 == plugin.runs


def test_callable_decides_on_path_arguments_and_variables(plugin: Plugin) -> None:
    """It sees what would run; only True allows, and it is asked before each run."""
    file = plugin.prints(token="t")
    asked: list[tuple[Any, ...]] = []
    answers: list[Any] = [False, None, "yes", 1, True]

    def decide(*what: Any) -> bool:
        asked.append(what)
        return answers.pop(0)  # type: ignore[no-any-return]

    source = plugin.config(
        arguments={"exec": decide, "files": "inline-only"},
        args=["get-token"],
        env=[{"name": "A", "value": "b"}],
    )
    for _ in range(4):
        with pytest.raises(ExecPluginError, match="refused by the callable"):
            source.read()
    assert 0 == plugin.runs
    assert ["t"] * 2 == [token_of(source) for _ in range(2)]
    path = f"{plugin.folder}/./{file.name}"
    assert [(path, ("get-token",), {"A": "b"})] * 5 == asked


# ------------------------------------------------------------------ at a terminal


def test_always_interactive_needs_a_terminal(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the error says so, and nothing runs."""
    plugin.prints(token="t")
    monkeypatch.setattr(os, "isatty", lambda _: False)
    with pytest.raises(ExecPluginError, match="needs a person at a terminal"):
        plugin.config(interactiveMode="Always").read()
    assert 0 == plugin.runs


READ = """
import sys
from kubetls.credentials.kubeconfig import kubeconfig
print(kubeconfig(sys.argv[1]).source.read().token.reveal())
"""


@pytest.mark.parametrize(
    ("mode", "interactive"),
    [("Always", True), ("IfAvailable", True), ("Never", False), (None, True)],
)
def test_interactive_plugin_gets_the_terminal(
    plugin: Plugin, mode: str | None, interactive: bool
) -> None:
    """With a terminal on standard input, modes that want it read what is typed."""
    version = V1 if mode else V1BETA1
    text = printed(version, token="t-ANSWER").replace("ANSWER", "'$answer'")
    plugin.script(f"{TELL}read answer\necho '{text}'")
    plugin.config(interactiveMode=mode, apiVersion=version)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"typed\n")
        ran = subprocess.run(
            [sys.executable, "-c", READ, plugin.folder / "config"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ("t-typed" if interactive else "t-", "") == (ran.stdout.strip(), ran.stderr)
    assert interactive is told(plugin)["spec"]["interactive"]


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("did not print one JSON object", ""),
        ("did not print one JSON object", f"SECRET {SECRET}"),
        ("did not print one JSON object", f'["{SECRET}"]'),
        ("did not print one JSON object", "[" * 5000),
        ("did not print one JSON object", "1" * 5000),
        ("something else than an ExecCredential", json.dumps({"kind": SECRET})),
        ("did not answer as", printed(V1BETA1, token=SECRET)),
        ("without status", json.dumps({"kind": "ExecCredential", "apiVersion": V1})),
        ("neither a token nor", printed()),
        ("neither a token nor", printed(token="", expirationTimestamp="2026-01-01")),
        ("a token that is no text", printed(token=[SECRET])),
        ("visible ASCII", printed(token=f"two words {SECRET}")),
        ("visible ASCII", printed(token=f"{SECRET}\ud800")),
        ("without the other", printed(clientKeyData=KEY_PEM.decode())),
        ("without the other", printed(token=SECRET, clientCertificateData="x")),
        ("no certificate", printed(clientKeyData=SECRET, clientCertificateData="x")),
        ("not RFC 3339", printed(token=SECRET, expirationTimestamp="soon")),
        ("not RFC 3339", printed(token=SECRET, expirationTimestamp="2030-01-01")),
        (
            "not RFC 3339",
            printed(token=SECRET, expirationTimestamp="2030-01-01T00:00:00"),
        ),
    ],
)
def test_useless_output_is_refused_and_does_not_show(
    expected: str, output: str, plugin: Plugin
) -> None:
    """Each fault is named; what was printed is in no text, frame or pickle."""
    (plugin.folder / "output").write_text(output)
    plugin.script(f"cat '{plugin.folder}/output'")
    source = plugin.config()
    with pytest.raises(ExecPluginError, match=expected) as caught:
        source.read()
    assert_silent(caught.value)
    assert 1 == len(str(caught.value).splitlines())


def test_complaint_is_shown_escaped_and_without_secrets(plugin: Plugin) -> None:
    """Exit code and last words; secrets of the entry and tokens are hidden in them."""
    words = (
        f"debug: cookie {SECRET}{'x' * 40}\n\x1b[31merror:\x1b[0m login needed for"
        f" {SECRET}, tried short-one and eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJh.c2lnbmF0dXJl"
    )
    (plugin.folder / "words").write_text(words)
    plugin.script(f"echo $UNSAID\ncat '{plugin.folder}/words' >&2\nexit 2")
    source = plugin.config(
        env=[{"name": "COOKIE", "value": SECRET}],
        args=["--client-secret=short-one"],
    )
    with pytest.raises(ExecPluginError) as caught:
        source.read()
    assert (
        "the credential plugin plugin failed with exit code 2: debug: cookie "
        "[hidden]" in str(caught.value)
    )
    assert "\\x1b[31merror:\\x1b[0m login needed for [hidden], tried [hidden] and " in (
        str(caught.value)
    )
    assert "short-one" not in str(caught.value)
    assert "eyJ" not in str(caught.value)
    assert_silent(caught.value)


def test_secrets_of_the_environment_do_not_show(plugin: Plugin) -> None:
    """What the plugin inherits under a secretive name is hidden as well."""
    plugin.plugins = ExecPlugins({"PATH": "/bin:/usr/bin", "MY_PASSWORD": "hunter22"})
    plugin.script('echo "bad: $MY_PASSWORD" >&2\nexit 1')
    with pytest.raises(ExecPluginError, match=r"exit code 1: bad: \[hidden\]$"):
        plugin.config().read()


def test_long_complaint_shows_its_end() -> None:
    """What went wrong stands at the end of what a program says."""
    text = last_words(b"start " + b"word " * 1000 + b"end", ())
    assert text.startswith("...")
    assert text.endswith("word end")
    assert 303 == len(text)


def test_signal_is_named(plugin: Plugin) -> None:
    """A plugin that was killed says nothing; its signal does."""
    plugin.script("kill -9 $$")
    with pytest.raises(ExecPluginError, match="was ended by signal 9"):
        plugin.config().read()


def test_program_that_does_not_start_is_named(plugin: Plugin) -> None:
    """No interpreter, no format, too long a command line: the system says why."""
    plugin.script("", interpreter="/absent/interpreter")
    with pytest.raises(
        ExecPluginError, match=r"does not start \(No such file.*\(hint\)"
    ):
        plugin.config(installHint="hint").read()
    (plugin.folder / "plugin").write_bytes(b"\x7fELF nothing")
    with pytest.raises(ExecPluginError, match=r"does not start \(Exec format error\)"):
        plugin.config(args=["again"]).read()
    plugin.prints(token="t")
    with pytest.raises(ExecPluginError, match="does not start") as caught:
        plugin.config(args=[SECRET * 6000]).read()
    assert_silent(caught.value)


def processes(text: str) -> list[str]:
    """Return the command lines that hold a text."""
    listed = subprocess.run(
        ["/bin/ps", "-eo", "args"], capture_output=True, text=True, check=True
    )
    return [line for line in listed.stdout.splitlines() if text in line]


def test_plugin_that_takes_too_long_is_ended_with_its_children(plugin: Plugin) -> None:
    """The time is bounded; what the plugin started goes as well."""
    plugin.plugins = plugin.clock.plugins(run_seconds=1)
    plugin.script("echo waiting >&2\nsleep 31.4159 &\nsleep 31.4159")
    began = time.monotonic()
    with pytest.raises(ExecPluginError, match=r"took longer than 1 s: waiting$"):
        plugin.config().read()
    assert time.monotonic() - began < 10
    # Killed, which takes effect when the kernel gets to it.
    while processes("sleep 31.4159"):
        assert time.monotonic() - began < 10


def test_daemon_that_keeps_the_pipes_is_not_waited_for(plugin: Plugin) -> None:
    """Plugins that leave an agent behind have answered when they exit."""
    agent = f"sleep 27.1828 &\necho $! > '{plugin.folder}/agent'"
    plugin.script(f"{agent}\necho '{printed(token='t')}'")
    began = time.monotonic()
    try:
        assert "t" == token_of(plugin.config())
    finally:
        os.kill(int((plugin.folder / "agent").read_text()), 9)
    assert time.monotonic() - began < 10


def test_endless_output_is_cut_off(plugin: Plugin) -> None:
    """A plugin cannot fill our memory; standard error is read and dropped."""
    plugin.script("yes SECRET")
    with pytest.raises(ExecPluginError, match=f"more than {PRINTED_BYTES} bytes"):
        plugin.config().read()
    noise = "yes | head -c 3000000 >&2"
    plugin.script(f"{noise}\necho '{printed(token='t')}'")
    assert "t" == token_of(plugin.config(args=["again"]))


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("apiVersion", "removed from Kubernetes in 1.24", {"apiVersion": V1 + "alpha1"}),
    ("apiVersion", "not known; set client", {"apiVersion": V1 + "beta2"}),
    ("apiVersion", "not known", {"apiVersion": "v1"}),
    ("apiVersion", "not set", {"apiVersion": None}),
    ("command", "not set", {"command": ""}),
    ("command", "NUL", {"command": "a\0b"}),
    ("command", "must be text", {"command": ["aws"]}),
    ("interactiveMode", "must be Never", {"interactiveMode": None}),
    ("interactiveMode", "must be Never", {"interactiveMode": "never"}),
    ("provideClusterInfo", "true or false", {"provideClusterInfo": "yes"}),
    ("args", "list of text", {"args": "get-token"}),
    ("args", "list of text", {"args": [{"a": SECRET}]}),
    ("args", "NUL", {"args": [f"{SECRET}\0"]}),
    ("env", "list of name and value", {"env": {"A": SECRET}}),
    ("env", "both text", {"env": [{"name": "A", "value": [SECRET]}]}),
    ("env", "both text", {"env": [{"value": SECRET}]}),
    ("env", "equals sign", {"env": [{"name": "A=B", "value": SECRET}]}),
    ("env", "NUL", {"env": [{"name": "A", "value": f"{SECRET}\0"}]}),
    ("installHint", "must be text", {"installHint": [SECRET]}),
]


@pytest.mark.parametrize(("place", "expected", "entry"), REFUSED)
def test_malformed_entry_is_named(
    place: str, expected: str, entry: dict[str, Any], plugin: Plugin
) -> None:
    """Each field has its rule; the error names it and shows no secret."""
    with pytest.raises(KubeconfigError, match=expected) as caught:
        plugin.config(**entry)
    assert caught.value.source.endswith(f"users[ann].exec.{place}")
    assert_silent(caught.value)


def test_entry_that_is_no_mapping_is_named(plugin: Plugin) -> None:
    """`exec: aws` is what a person writes first."""
    file = write_kubeconfig(plugin.folder / "config", user={"exec": "aws"})
    with pytest.raises(KubeconfigError, match=r"users\[ann\]\.exec: must be a mapping"):
        kubeconfig(file)


def test_numbers_in_arguments_are_text(plugin: Plugin) -> None:
    """YAML's numbers arrive as they were written, as for kubectl."""
    plugin.script(f'echo "$@" > "$0.args"\necho \'{printed(token="t")}\'')
    source = plugin.config(args=["ARG"])
    file = plugin.folder / "config"
    whole = yaml.safe_load(file.read_text())
    text = yaml.safe_dump(whole).replace("- ARG", "- 007\n      - 1.50")
    file.write_text(text)
    source.read()
    assert "007 1.50" == (plugin.folder / "plugin.args").read_text().strip()


def test_errors_of_plugins_are_credential_errors() -> None:
    """Whoever catches CredentialError catches them."""
    assert issubclass(ExecPluginError, CredentialError)
