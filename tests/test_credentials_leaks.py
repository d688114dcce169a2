"""No error path of reading credentials shows a secret, not even in captured variables.

Error reporters print the variables of every frame. What an error carries outside of the
tests' own frames is rendered here as they do, and searched.
"""

from __future__ import annotations

import base64
import itertools
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kubetls.credentials.anchors import parse_anchors
from kubetls.credentials.client_certificate import parse_client_certificate
from kubetls.credentials.document import parse_document
from kubetls.credentials.endpoint import endpoint_from_url
from kubetls.credentials.hidden import HiddenBytes
from kubetls.credentials.incluster import in_cluster
from kubetls.credentials.kubeconfig import kubeconfig
from kubetls.credentials.token import parse_mounted_token, parse_opaque_token
from kubetls.errors import KubeTLSError
from tests.credential_files import (
    CA_PEM,
    ENVIRON,
    KEY_PEM,
    SERVER_PEM,
    document,
    publish,
    write_kubeconfig,
    write_plain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "TopSecretMarker0123456789"
KEY_LINE = KEY_PEM.splitlines()[1].decode()
KEY_DATA = base64.b64encode(KEY_PEM).decode()


def chained(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and whatever hangs on it, suppressed or not."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.append(found)
            yield found
            waiting += [e for e in (found.__cause__, found.__context__) if e]


def rendered(error: BaseException) -> str:
    """Return all that reporters, logs and pickles would hold of an error."""
    shown = []
    for found in chained(error):
        frames = found.__traceback__
        while frames and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        report = traceback.TracebackException(
            type(found), found, frames, capture_locals=True, compact=True
        )
        shown += [*report.format(), repr(found), str(found), repr(vars(found))]
        shown.append(repr(pickle.dumps(found)))
    return "\n".join(shown)


def assert_silent(error: BaseException) -> None:
    """Fail when any secret of these tests shows, as text, bytes or base64."""
    text = rendered(error)
    for secret in (SECRET, KEY_LINE, KEY_DATA[40:80]):
        assert secret not in text


BAD_TOKENS = [
    f"{SECRET}",
    f"a.{SECRET}.b.c",
    f"a.b.{SECRET}=",
    f"a b {SECRET}",
    f"a.b.{SECRET}\n\n",
    f"{SECRET}\x00",
    f"\u00e9{SECRET}",
    f"a.b.{SECRET}" + "x" * 20_000,
]


@pytest.mark.parametrize("text", BAD_TOKENS)
@pytest.mark.parametrize("parse", [parse_mounted_token, parse_opaque_token])
def test_refused_token_does_not_show(parse: Callable[..., object], text: str) -> None:
    """Parsers of tokens leave no trace of what they refused."""
    try:
        parse(text.encode(), "token")
    except KubeTLSError as error:
        assert_silent(error)


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        *({"token": text.encode()} for text in BAD_TOKENS),
        {"ca_crt": None},
        {"ca_crt": b""},
        {"ca_crt": CA_PEM + KEY_PEM},
        {"ca_crt": SERVER_PEM},
        {"namespace": b"No"},
        {"namespace": b"x" * 300},
    ],
)
def test_refused_volume_does_not_show_its_token(
    changes: dict[str, Any], swapped: bool, tmp_path: Path
) -> None:
    """Whichever file of a volume is refused, neither token nor key shows."""
    content = {"token": f"a.b.{SECRET}".encode()} | changes
    if swapped:
        publish(tmp_path, "1", **content)
    else:
        write_plain(tmp_path, **content)
    with pytest.raises(KubeTLSError) as caught:
        in_cluster(tmp_path, ENVIRON)
    assert_silent(caught.value)


def test_token_that_changes_while_it_is_read_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one whose reading fails in the middle."""
    file = write_plain(tmp_path, token=f"a.b.{SECRET}".encode()) / "token"
    real, calls = os.read, itertools.count()

    def touching(descriptor: int, count: int) -> bytes:
        os.utime(file, ns=(1, 1))
        return real(descriptor, count)

    def breaking(descriptor: int, count: int) -> bytes:
        if next(calls):
            raise OSError(5, "Input/output error")
        return real(descriptor, 10 + len(SECRET))

    for fault in (touching, breaking):
        monkeypatch.setattr(os, "read", fault)
        with pytest.raises(KubeTLSError) as caught:
            in_cluster(tmp_path, ENVIRON)
        monkeypatch.undo()
        assert_silent(caught.value)


BAD_KUBECONFIGS: list[dict[str, Any]] = [
    *({"user": {"token": text}} for text in (BAD_TOKENS[3], *BAD_TOKENS[5:])),
    {"user": {"token": [SECRET]}},
    {"user": {"token": {"a": SECRET}}},
    {"user": {"tokenFile": "absent"}},
    {"user": {"tokenFile": "bad-token"}},
    {"user": {"password": SECRET}},
    {"user": {"exec": {"env": [{"name": "A", "value": SECRET}]}}},
    {"user": {"auth-provider": {"config": {"refresh": SECRET}}}},
    {"user": {"client-key-data": KEY_DATA}},
    {"user": {"client-key-data": KEY_DATA, "client-key": "x"}},
    {"user": {"client-key-data": KEY_DATA + "?", "client-certificate": "server.pem"}},
    {"user": {"client-key-data": KEY_DATA, "client-certificate": "absent"}},
    {"user": {"client-key": "key.pem"}},
    {"user": {"client-key": "key.pem", "client-certificate": "key.pem"}},
    {"user": {"client-key": "two-keys.pem", "client-certificate": "server.pem"}},
    {"cluster": {"certificate-authority-data": KEY_DATA}},
    {
        "cluster": {
            "certificate-authority-data": None,
            "certificate-authority": "key.pem",
        }
    },
    {"cluster": {"server": f"https://ann:{SECRET}@host"}},
    {"cluster": {"server": f"https://host?token={SECRET}"}},
    {"cluster": {"insecure-skip-tls-verify": True}},
    {"cluster": {"proxy-url": f"http://ann:{SECRET}@proxy"}},
    {"context": {"namespace": "No"}},
    {"context": {"user": "absent"}},
    {"context": {"cluster": "absent"}},
    {"users": [{"name": "ann", "user": SECRET}]},
    {"users": [SECRET]},
    {"users": SECRET},
    {"users": [{"name": "ann", "user": {"token": SECRET}}] * 2},
    {"users": [{"name": [SECRET]}]},
    {"kind": "Pod"},
    {"current-context": None},
]


@pytest.mark.parametrize(
    "changes", BAD_KUBECONFIGS, ids=lambda changes: str(changes)[:60]
)
def test_refused_kubeconfig_does_not_show_its_secrets(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever is refused in a kubeconfig, neither its token nor its key shows."""
    (tmp_path / "bad-token").write_text(f"a b {SECRET}")
    (tmp_path / "key.pem").write_bytes(KEY_PEM)
    (tmp_path / "two-keys.pem").write_bytes(KEY_PEM * 2)
    (tmp_path / "server.pem").write_bytes(SERVER_PEM)
    whole = {part: dict(fields) for part, fields in changes.items() if part == "user"}
    user = {"token": SECRET} | whole.get("user", {})
    file = write_kubeconfig(tmp_path / "config", **(changes | {"user": user}))
    with pytest.raises(KubeTLSError) as caught:
        kubeconfig(file)
    assert_silent(caught.value)


@pytest.mark.parametrize(
    "url", [f"https://ann:{SECRET}@host", f"https://h?token={SECRET}"]
)
def test_refused_url_does_not_show(url: str) -> None:
    """A URL's user part is a password, its query may be a token."""
    with pytest.raises(KubeTLSError) as caught:
        endpoint_from_url(url, "server")
    assert_silent(caught.value)


@pytest.mark.parametrize(
    "tail",
    [
        "\x00",
        "\n{",
        "\n--- {}",
        "\na: *b",
        "\na: &a {b: *a}",
        "\na: !!binary x",
        "\na: 1\na: 2",
        "\n? [a]\n: b",
        "\na: " + "[" * 2000,
        '\na: "\\UFFFFFFFF"',
        "\n\ta: b",
    ],
)
def test_broken_yaml_does_not_show(tail: str) -> None:
    """A file that is no kubeconfig may hold secrets all the same."""
    text = yaml.safe_dump(document(user={"token": SECRET})) + tail
    with pytest.raises(KubeTLSError) as caught:
        parse_document(HiddenBytes(text.encode()), "config")
    assert_silent(caught.value)


@pytest.mark.parametrize(
    "pem",
    [
        KEY_PEM,
        KEY_PEM[:-20],
        KEY_PEM.replace(b"\n", b"\n?", 2),
        KEY_PEM + KEY_PEM,
        KEY_PEM.replace(b"EC PRIVATE", b"OPENSSH PRIVATE"),
        KEY_PEM.replace(b"EC PRIVATE", b"ENCRYPTED PRIVATE"),
    ],
)
def test_refused_key_does_not_show(pem: bytes) -> None:
    """A key in a bundle, a broken or second key: its digits stay hidden."""
    for parse in (
        lambda: parse_anchors(CA_PEM + pem, "ca.crt"),
        lambda: parse_client_certificate(
            HiddenBytes(CA_PEM), "chain", HiddenBytes(pem + b"-----\n"), "key"
        ),
        lambda: parse_client_certificate(
            HiddenBytes(pem), "chain", HiddenBytes(pem), "key"
        ),
    ):
        with pytest.raises(KubeTLSError) as caught:
            parse()
        assert_silent(caught.value)


def test_search_finds_a_secret_where_there_is_one() -> None:
    """The search itself works: a variable of a frame outside of this file is found."""
    with pytest.raises(ValueError, match="invalid literal") as caught:
        yaml.constructor.SafeConstructor().construct_yaml_int(
            yaml.ScalarNode("tag:yaml.org,2002:int", SECRET)
        )
    with pytest.raises(AssertionError):
        assert_silent(caught.value)
