"""kubeconfig files: what is read, what is refused, and with which word."""

from __future__ import annotations

import base64
import functools
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kubetls.credentials import incluster
from kubetls.credentials.anchors import SYSTEM_ANCHORS, parse_anchors
from kubetls.credentials.choose import choose
from kubetls.credentials.document import DOCUMENT_BYTES, parse_document
from kubetls.credentials.hidden import HiddenBytes
from kubetls.credentials.incluster import in_cluster
from kubetls.credentials.kubeconfig import kubeconfig
from kubetls.errors import (
    ConfigError,
    CredentialEmpty,
    CredentialError,
    CredentialMalformed,
    CredentialMissing,
    InsecureConfigRefused,
    KubeconfigError,
    KubeTLSError,
    NotInCluster,
)
from tests.credential_files import (
    CA_PEM,
    ENVIRON,
    KEY_PEM,
    OTHER_CA_PEM,
    SERVER_PEM,
    document,
    publish,
    write_kubeconfig,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kubetls.credentials.config import Config


def b64(data: bytes) -> str:
    """Return base64 text."""
    return base64.b64encode(data).decode()


def token_of(config: Config) -> str | None:
    """Return the token that the config's source gives now."""
    token = config.source.read().token
    return None if token is None else token.reveal()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where the test's kubeconfig goes."""
    return tmp_path / "config"


def test_current_context_is_read(file: Path) -> None:
    """Server, namespace, anchors and token are those of current-context."""
    config = kubeconfig(write_kubeconfig(file))
    generation = config.source.read()
    assert "https://127.0.0.1:6443" == config.endpoint.url
    assert "team-a" == config.namespace
    assert f"kubeconfig {file} context dev" == config.origin
    assert "opaque-SECRET" == token_of(config)
    assert parse_anchors(CA_PEM, "") == generation.anchors
    assert generation.client_certificate is None


def test_named_context_wins_over_the_current_one(file: Path) -> None:
    """`context=` chooses; its entries are looked up by name."""
    other = {"name": "prod", "context": {"cluster": "kind", "user": "bob"}}
    bob = {"name": "bob", "user": {"token": "bobs"}}
    whole = document()
    whole["contexts"].append(other)
    whole["users"].insert(0, bob)
    file.write_text(yaml.safe_dump(whole))
    config = kubeconfig(str(file), "prod")
    assert ("bobs", "default") == (token_of(config), config.namespace)


def test_json_is_a_kubeconfig(file: Path) -> None:
    """JSON is YAML."""
    file.write_text(json.dumps(document(), indent=2))
    assert "team-a" == kubeconfig(file).namespace


def test_unknown_fields_are_passed_over(file: Path) -> None:
    """Extensions, preferences and fields of later versions do not matter."""
    extension = [{"name": "x", "extension": {"a": [1, {"b": None}]}}]
    write_kubeconfig(
        file,
        preferences={"colors": True},
        extensions=extension,
        cluster={"extensions": extension, "disable-compression": True, "new": 1.5},
        user={"new": []},
    )
    assert "team-a" == kubeconfig(file).namespace


def test_aliases_are_read(file: Path) -> None:
    """Programs that write YAML name a repeated value once."""
    text = yaml.safe_dump(document()).replace(
        "namespace: team-a", "namespace: &t team-a"
    )
    file.write_text(text + "other: *t\nmore: [*t, *t]\n")
    assert "team-a" == kubeconfig(file).namespace


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("opaque-SECRET", "<<: *shared"),
        ("own", "<<: *shared\n    token: own"),
        ("own", "token: own\n    <<: *shared"),
        ("first", "<<: [{token: first}, *shared]"),
        (None, '"<<": *shared'),
    ],
)
def test_merge_key_merges(expected: str | None, fields: str, file: Path) -> None:
    """Passed over, it would send requests as nobody; kubectl merges (goyaml)."""
    text = yaml.safe_dump(document(users=None)).replace("users: null\n", "")
    file.write_text(
        f"shared: &shared\n  token: opaque-SECRET\n{text}"
        f"users:\n- name: ann\n  user:\n    {fields}\n"
    )
    assert expected == token_of(kubeconfig(file))


def test_merged_field_is_judged_like_any_other(file: Path) -> None:
    """What is refused is refused through a merge key as well."""
    text = yaml.safe_dump(document())
    weak = "weak: &weak {insecure-skip-tls-verify: true}\n"
    file.write_text(weak + text.replace("cluster:\n", "cluster:\n    <<: *weak\n", 1))
    with pytest.raises(InsecureConfigRefused):
        kubeconfig(file)


def test_numbers_and_dates_are_names(file: Path) -> None:
    """A context may be called 2024-01-01 or 007, unquoted, as for kubectl."""
    text = yaml.safe_dump(document()).replace("dev", "2024-01-01").replace("ann", "007")
    file.write_text(text.replace("'", ""))
    assert "opaque-SECRET" == token_of(kubeconfig(file))


def test_tls_server_name_replaces_the_reference(file: Path) -> None:
    """The address is dialled, the name is insisted on."""
    write_kubeconfig(file, cluster={"tls-server-name": "Kubernetes.default.svc"})
    endpoint = kubeconfig(file).endpoint
    assert ("127.0.0.1", "kubernetes.default.svc") == (
        endpoint.address.text,
        endpoint.reference.text,
    )


def test_files_are_relative_to_the_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CA, certificate, key and token files lie beside the kubeconfig."""
    folder = tmp_path / "cluster"
    write_kubeconfig(
        folder / "config",
        cluster={
            "certificate-authority-data": None,
            "certificate-authority": "pki/ca.crt",
        },
        user={
            "token": "loses",
            "tokenFile": "token",
            "client-certificate": str(folder / "pki/both.pem"),
            "client-key": "pki/../pki/both.pem",
        },
    )
    (folder / "pki").mkdir()
    (folder / "pki/ca.crt").write_bytes(CA_PEM)
    (folder / "pki/both.pem").write_bytes(KEY_PEM + SERVER_PEM)
    (folder / "token").write_bytes(b" file-token\n")
    monkeypatch.chdir(tmp_path)
    config = kubeconfig("cluster/config")
    monkeypatch.chdir("/")
    generation = config.source.read()
    assert "file-token" == token_of(config)
    assert generation.client_certificate is not None
    assert b"KEY" not in generation.client_certificate.certificate_pem
    assert KEY_PEM.split() == generation.client_certificate.key_pem.split()


def test_inline_client_certificate(file: Path) -> None:
    """client-certificate-data and client-key-data, as kind writes them."""
    user = {
        "token": None,
        "client-certificate-data": b64(SERVER_PEM),
        "client-key-data": b64(KEY_PEM),
    }
    generation = kubeconfig(write_kubeconfig(file, user=user)).source.read()
    assert generation.token is None
    assert generation.client_certificate is not None


def test_source_follows_changed_files(tmp_path: Path, file: Path) -> None:
    """Token file, CA and the kubeconfig itself are read anew on each reading."""
    (tmp_path / "token").write_bytes(b"one")
    config = kubeconfig(write_kubeconfig(file, user={"tokenFile": "token"}))
    (tmp_path / "token").write_bytes(b"two")
    assert "two" == token_of(config)
    write_kubeconfig(file, cluster={"certificate-authority-data": b64(OTHER_CA_PEM)})
    assert parse_anchors(OTHER_CA_PEM, "") == config.source.read().anchors
    assert "opaque-SECRET" == token_of(config)
    write_kubeconfig(file, cluster={"insecure-skip-tls-verify": True})
    with pytest.raises(InsecureConfigRefused):
        config.source.read()
    file.unlink()
    with pytest.raises(KubeconfigError, match="does not exist"):
        config.source.read()


def test_context_without_user_is_anonymous(file: Path) -> None:
    """No user means no credential; the server's CA is known all the same."""
    generation = kubeconfig(
        write_kubeconfig(file, context={"user": None})
    ).source.read()
    assert (None, None) == (generation.token, generation.client_certificate)


def test_missing_ca_names_trust_system(file: Path) -> None:
    """Without a CA nothing is trusted, unless the caller says "system"."""
    write_kubeconfig(file, cluster={"certificate-authority-data": None})
    with pytest.raises(KubeconfigError, match='trust="system"') as caught:
        kubeconfig(file)
    assert f"{file}: clusters[kind].certificate-authority" == caught.value.source
    assert kubeconfig(file, trust="system").source.read().anchors is SYSTEM_ANCHORS


def test_trust_system_never_widens_a_named_ca(file: Path) -> None:
    """A cluster that names its CA is held to it."""
    anchors = kubeconfig(write_kubeconfig(file), trust="system").source.read().anchors
    assert parse_anchors(CA_PEM, "") == anchors


def test_self_signed_server_certificate_may_anchor(file: Path) -> None:
    """A certificate that is no CA anchors itself (OpenShift publishes such bundles)."""
    write_kubeconfig(file, cluster={"certificate-authority-data": b64(SERVER_PEM)})
    assert 1 == len(kubeconfig(file).source.read().anchors.certificates)


def test_inline_only_refuses_files(file: Path) -> None:
    """A foreign kubeconfig cannot name this machine's files (the pod's token)."""
    (file.parent / "token").write_bytes(b"the-pods-own-SECRET")
    named = ["certificate-authority", "tokenFile", "client-certificate", "client-key"]
    for name in named:
        part = "cluster" if name == "certificate-authority" else "user"
        changes: dict[str, Any] = {part: {name: "token", "token": None}}
        changes[part] |= {"certificate-authority-data": None}
        write_kubeconfig(file, **changes)
        with pytest.raises(KubeconfigError, match="inline-only") as caught:
            kubeconfig(file, files="inline-only")
        assert caught.value.source.endswith(f".{name}")
    assert "opaque-SECRET" == token_of(
        kubeconfig(write_kubeconfig(file), files="inline-only")
    )


INSECURE = "insecure-skip-tls-verify"
REFUSED: list[tuple[type[KubeTLSError], str, dict[str, Any]]] = [
    (
        InsecureConfigRefused,
        f"clusters[kind].{INSECURE}",
        {"cluster": {INSECURE: True}},
    ),
    (KubeconfigError, f"clusters[kind].{INSECURE}", {"cluster": {INSECURE: "true"}}),
    (KubeconfigError, f"clusters[kind].{INSECURE}", {"cluster": {INSECURE: 1}}),
    (
        KubeconfigError,
        "clusters[kind].proxy-url",
        {"cluster": {"proxy-url": "http://proxy:3128"}},
    ),
    (
        KubeconfigError,
        "clusters[kind].certificate-authority",
        {"cluster": {"certificate-authority": "ca.crt"}},
    ),
    (
        KubeconfigError,
        "clusters[kind].certificate-authority-data",
        {"cluster": {"certificate-authority-data": "?"}},
    ),
    (
        CredentialMalformed,
        "clusters[kind].certificate-authority-data",
        {"cluster": {"certificate-authority-data": b64(KEY_PEM)}},
    ),
    (
        CredentialEmpty,
        "clusters[kind].certificate-authority-data",
        {"cluster": {"certificate-authority-data": b64(b"none")}},
    ),
    (
        KubeconfigError,
        "clusters[kind].server",
        {"cluster": {"server": "http://h:8080"}},
    ),
    (KubeconfigError, "clusters[kind].server", {"cluster": {"server": "h:6443"}}),
    (KubeconfigError, "clusters[kind].server", {"cluster": {"server": None}}),
    (KubeconfigError, "clusters[kind].server", {"cluster": {"server": ""}}),
    (KubeconfigError, "clusters[kind].server", {"cluster": {"server": True}}),
    (KubeconfigError, "clusters[kind].server", {"cluster": {"server": ["https://h"]}}),
    (
        KubeconfigError,
        "clusters[kind].tls-server-name",
        {"cluster": {"tls-server-name": "*.example.org"}},
    ),
    (
        KubeconfigError,
        "users[ann].auth-provider",
        {"user": {"auth-provider": {"name": "gcp"}}},
    ),
    (KubeconfigError, "users[ann].username", {"user": {"username": "admin"}}),
    (KubeconfigError, "users[ann].password", {"user": {"password": "SECRET"}}),
    (KubeconfigError, "users[ann].as", {"user": {"as": "root"}}),
    (
        KubeconfigError,
        "users[ann].as-groups",
        {"user": {"as-groups": ["system:masters"]}},
    ),
    (
        KubeconfigError,
        "users[ann].exec.apiVersion",
        {"user": {"exec": {"command": "aws"}}},
    ),
    (CredentialMalformed, "users[ann].token", {"user": {"token": "two words SECRET"}}),
    (CredentialMalformed, "users[ann].token", {"user": {"token": "SECRET\u00e9"}}),
    (CredentialEmpty, "users[ann].token", {"user": {"token": " "}}),
    (KubeconfigError, "users[ann].token", {"user": {"token": ["SECRET"]}}),
    (KubeconfigError, "users[ann].token", {"user": {"token": {"SECRET": "SECRET"}}}),
    (CredentialMissing, "users[ann].tokenFile", {"user": {"tokenFile": "absent"}}),
    (CredentialMalformed, "users[ann].tokenFile", {"user": {"tokenFile": "."}}),
    (CredentialMalformed, "users[ann].tokenFile", {"user": {"tokenFile": "a\0b"}}),
    (CredentialMalformed, "users[ann].tokenFile", {"user": {"tokenFile": "fifo"}}),
    (CredentialMalformed, "users[ann].tokenFile", {"user": {"tokenFile": "/dev/zero"}}),
    (
        KubeconfigError,
        "users[ann].client-key",
        {"user": {"client-certificate-data": b64(SERVER_PEM)}},
    ),
    (
        KubeconfigError,
        "users[ann].client-certificate",
        {"user": {"client-key-data": b64(KEY_PEM)}},
    ),
    (
        KubeconfigError,
        "users[ann].client-key",
        {"user": {"client-key-data": b64(KEY_PEM), "client-key": "SECRET"}},
    ),
    (KubeconfigError, "contexts[dev].namespace", {"context": {"namespace": "A/b"}}),
    (KubeconfigError, "contexts[dev].cluster", {"context": {"cluster": None}}),
    (KubeconfigError, "clusters", {"context": {"cluster": "absent"}}),
    (KubeconfigError, "users", {"context": {"user": "absent"}}),
    (KubeconfigError, "contexts", {"current-context": "absent"}),
    (KubeconfigError, "contexts", {"contexts": []}),
    (KubeconfigError, "current-context", {"current-context": ""}),
    (KubeconfigError, "current-context", {"current-context": ["dev"]}),
    (KubeconfigError, "clusters", {"clusters": {"kind": {}}}),
    (KubeconfigError, "users", {"users": ["ann"]}),
    (KubeconfigError, "users", {"users": [{"name": "ann"}, {"name": "ann"}]}),
    (KubeconfigError, "users[0].name", {"users": [{"name": ["ann"]}]}),
    (KubeconfigError, "users[0].user", {"users": [{"name": "ann", "user": "SECRET"}]}),
    (KubeconfigError, "kind", {"kind": "Pod"}),
    (KubeconfigError, "apiVersion", {"apiVersion": "v2"}),
]


@pytest.mark.parametrize(("error", "place", "changes"), REFUSED)
def test_refused_entry_is_named(
    error: type[KubeTLSError], place: str, changes: dict[str, Any], file: Path
) -> None:
    """Each fault has its class, names file and field, and shows no secret."""
    os.mkfifo(file.parent / "fifo")
    write_kubeconfig(file, **changes)
    with pytest.raises(KubeTLSError) as caught:
        kubeconfig(file)
    assert error is type(caught.value)
    fault = caught.value
    assert isinstance(fault, ConfigError | CredentialError)
    source = fault.source if isinstance(fault, ConfigError) else fault.path
    assert f"{file}: {place}" in source
    assert source.rstrip(")").endswith(place)
    assert "SECRET" not in str(fault)
    assert 1 == len(str(fault).splitlines())


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("certificate-authority-data", {"cluster": {INSECURE: True}}),
        ("apiVersion: not set; set", {"user": {"exec": {"command": "x"}}}),
        ("use an exec plugin or a token", {"user": {"auth-provider": {"name": "x"}}}),
        ("https only", {"cluster": {"server": "http://h"}}),
        ("there: dev", {"current-context": "absent"}),
        ("use-context", {"current-context": None}),
    ],
)
def test_refusal_says_what_to_do(
    expected: str, changes: dict[str, Any], file: Path
) -> None:
    """The text has the remedy, or what is there instead."""
    with pytest.raises(ConfigError, match=expected):
        kubeconfig(write_kubeconfig(file, **changes))


BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n"
    for n in range(9)
)


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        ("more than 200000 values", BOMB.encode()),
        ("nested too deeply", b"a: &x {b: *x}"),
        ("tag", b"!!python/object/apply:os.system ['echo SECRET']"),
        ("tag", b"a: !!binary U0VDUkVU"),
        ("tag", b"a: !!set {b}"),
        ("a.b: stands there twice", b"a:\n  b: 1\n  b: 2\n"),
        ("a key must be text", b"{[a]: b}"),
        ("a.<<: stands there twice", b"a: {<<: {b: SECRET}, <<: {c: d}}"),
        ("a.<<: merges mappings only", b"a: {<<: SECRET}"),
        ("a.<<: merges mappings only", b"a: {<<: [{b: c}, SECRET]}"),
        ("nested too deeply", b"[" * 5000),
        (
            "nested too deeply",
            b"a:\n" + b"".join(b" " * n + b"- \n" for n in range(1200)),
        ),
        ("no mapping", b""),
        ("no mapping", b"- a\n"),
        ("no mapping", b"SECRET"),
        ("no mapping", b"null"),
        ("not one YAML document", b"a: b\n---\nc: d\n"),
        ("not one YAML document \\(line 2\\)", b"a: b\n c: SECRET: d"),
        ("not one YAML document", b"a: \xff\xfe"),
        ("not one YAML document", b'a: "\\UFFFFFFFF"'),
        ("not one YAML document", b"%YAML " + b"9" * 5000 + b".1\n---\na: b"),
        ("not one YAML document", b"\x00"),
        ("not one YAML document", b"a: *unknown"),
        ("larger than", b"#" * (DOCUMENT_BYTES + 1)),
    ],
)
def test_document_of_another_shape_is_refused(
    expected: str, content: bytes, file: Path
) -> None:
    """Bombs, tags, repeated keys, other documents: one typed error naming the file."""
    file.write_bytes(content)
    with pytest.raises(KubeconfigError, match=expected) as caught:
        kubeconfig(file)
    assert caught.value.source.startswith(str(file))
    assert "SECRET" not in str(caught.value)
    assert 1 == len(str(caught.value).splitlines())


def test_document_is_capped_before_it_is_parsed() -> None:
    """However its bytes came, a document has at most 1 MiB."""
    text = json.dumps(document()).encode()
    padded = HiddenBytes(text.ljust(DOCUMENT_BYTES))
    assert "dev" == parse_document(padded, "config").text("current-context")
    with pytest.raises(KubeconfigError, match="config: larger than"):
        parse_document(HiddenBytes(text.ljust(DOCUMENT_BYTES + 1)), "config")


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo"])
def test_kubeconfig_that_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    """An absent file, a folder and a FIFO are KubeconfigErrors with the path."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(KubeconfigError) as caught:
        kubeconfig(tmp_path / kind)
    assert str(tmp_path / kind) == caught.value.source


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("trust", {"trust": "none"}),
        ("files", {"files": "deny"}),
        ("exec", {"exec": "maybe"}),
        ("exec", {"exec": None}),
    ],
)
def test_unknown_argument_is_refused(
    source: str, arguments: dict[str, Any], file: Path
) -> None:
    """A misspelt strictness never means none."""
    with pytest.raises(ConfigError) as caught:
        kubeconfig(write_kubeconfig(file), **arguments)
    assert source == caught.value.source


def test_first_file_of_the_list_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$KUBECONFIG: missing files are passed over; of each name the first counts."""
    write_kubeconfig(
        tmp_path / "one" / "config",
        users=[{"name": "bob", "user": {"token": "bobs"}}],
        **{"current-context": None},
    )
    write_kubeconfig(
        tmp_path / "two" / "config",
        context={"namespace": "loses"},
        cluster={"server": "https://loses"},
        user={"token": None, "tokenFile": "token"},
    )
    (tmp_path / "two" / "token").write_bytes(b"beside-two")
    listed = [str(tmp_path / name / "config") for name in ("absent", "one", "two")]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([*listed, ""]))
    for config in (kubeconfig(), choose(os.environ)):
        assert "https://127.0.0.1:6443" == config.endpoint.url
        assert ("team-a", "beside-two") == (config.namespace, token_of(config))
    monkeypatch.setenv("KUBECONFIG", listed[0])
    with pytest.raises(KubeconfigError, match="does not exist"):
        kubeconfig()


@pytest.mark.parametrize("text", ["", "\n", "# none yet\r\n  \n", "---\n# none\n"])
def test_empty_file_of_the_list_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """As if it were absent, as for kubectl; as the only one it says why."""
    (tmp_path / "empty").write_text(text)
    full = write_kubeconfig(tmp_path / "full")
    listed = [str(tmp_path / "empty"), str(full)]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(listed))
    assert kubeconfig().endpoint == kubeconfig(full).endpoint
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([listed[0], "absent"]))
    with pytest.raises(KubeconfigError, match="do not exist, or are empty"):
        kubeconfig()


def test_path_none_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without $KUBECONFIG it is ~/.kube/config, and ~ works in a path."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_kubeconfig(tmp_path / ".kube" / "config")
    assert kubeconfig() == kubeconfig("~/.kube/config")
    monkeypatch.delenv("HOME")
    with pytest.raises(KubeconfigError, match=r"\$HOME"):
        kubeconfig()


def test_choice_is_list_then_pod_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$KUBECONFIG, else the pod, else ~/.kube/config; each as the only one left."""
    listed = write_kubeconfig(tmp_path / "listed")
    home = write_kubeconfig(tmp_path / ".kube" / "config").parent.parent
    publish(tmp_path / "mount", "1")
    mounted = functools.partial(in_cluster, tmp_path / "mount")
    monkeypatch.setattr(incluster, "in_cluster", mounted)
    places = {"KUBECONFIG": str(listed), "HOME": str(home)}
    assert str(listed) in choose(places | ENVIRON).origin
    assert "in-cluster" == choose(ENVIRON | {"HOME": str(home)}).origin
    assert (
        str(home / ".kube/config")
        in choose({"KUBECONFIG": "", "HOME": str(home)}).origin
    )


def test_broken_pod_never_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With KUBERNETES_SERVICE_HOST set its errors are raised; home is not looked at."""
    write_kubeconfig(tmp_path / ".kube" / "config")
    mounted = functools.partial(in_cluster, tmp_path / "absent")
    monkeypatch.setattr(incluster, "in_cluster", mounted)
    home = {"HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        choose(home | {"KUBERNETES_SERVICE_HOST": ""})
    with pytest.raises(CredentialMissing, match="automountServiceAccountToken"):
        choose(home | ENVIRON)


def test_broken_list_never_falls_back(tmp_path: Path) -> None:
    """A $KUBECONFIG that leads nowhere is an error, whatever else is there."""
    write_kubeconfig(tmp_path / ".kube" / "config")
    for listed in (str(tmp_path / "absent"), ":"):
        with pytest.raises(KubeconfigError):
            choose({"KUBECONFIG": listed, "HOME": str(tmp_path)} | ENVIRON)


@pytest.mark.parametrize("environ", [{}, {"HOME": "/absent"}])
def test_no_place_left_names_all(environ: dict[str, str]) -> None:
    """Nothing found: the error says where was looked."""
    with pytest.raises(NotInCluster) as caught:
        choose(environ)
    for place in (
        "KUBERNETES_SERVICE_HOST",
        "$KUBECONFIG",
        "HOME",
        "no cluster is configured; name a kubeconfig in $KUBECONFIG",
    ):
        assert place in str(caught.value).replace("/absent/.kube/config", "HOME")
