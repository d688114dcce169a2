"""Bearer tokens: grammar, what the payload tells, and that nothing shows them."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest

from kubetls.credentials.hidden import HiddenBytes
from kubetls.credentials.token import (
    TOKEN_BYTES,
    BoundToken,
    parse_mounted_token,
    parse_opaque_token,
)
from kubetls.errors import CredentialEmpty, CredentialMalformed
from tests.credential_files import encoded, jwt

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = "/volume/token"
LONG = b"a.b." + b"c" * TOKEN_BYTES


@pytest.mark.parametrize("content", [b"a.b.c", b"a.b.c\n", b"A-_9.B.C", jwt().encode()])
def test_mounted_token_is_three_segments(content: bytes) -> None:
    """Three base64url segments; one final newline is dropped."""
    expected = content.decode().removesuffix("\n")
    assert expected == parse_mounted_token(content, PATH).reveal()


@pytest.mark.parametrize(
    "content",
    [
        b"a.b",
        b"a.b.c.d",
        b"a..c",
        b".b.c",
        b"a.b.",
        b"abc",
        b"a.b.c=",
        b"a.b.c\n\n",
        b"a.b.c\r\n",
        b" a.b.c",
        b"a.b.c ",
        b"a.b .c",
        b"a.b.\x00c",
        b"a.b.\xc3\xa9",
        b"\xef\xbb\xbfa.b.c",
        b"a+.b/.c",
        b"Bearer a.b.c",
        LONG,
    ],
)
def test_malformed_mounted_token_is_refused(content: bytes) -> None:
    """Blanks, padding, NUL, non-ASCII, other counts, oversize: CredentialMalformed."""
    with pytest.raises(CredentialMalformed) as caught:
        parse_mounted_token(content, PATH)
    assert PATH == caught.value.path


@pytest.mark.parametrize("content", [b"", b"\n", b" \t\r\n", b"\x0b\x0c"])
@pytest.mark.parametrize("parse", [parse_mounted_token, parse_opaque_token])
def test_blank_token_is_empty(
    parse: Callable[[bytes, str], BoundToken], content: bytes
) -> None:
    """Nothing but blanks is CredentialEmpty, for mounts and kubeconfigs."""
    with pytest.raises(CredentialEmpty) as caught:
        parse(content, PATH)
    assert PATH == caught.value.path


@pytest.mark.parametrize(
    "text",
    [
        "k8s-aws-v1.aHR0cHM6",
        "ya29.a0-B_c",
        "sha256~Abc",
        "kubeconfig-u:secret",
        "!",
        "~",
    ],
)
def test_opaque_token_is_visible_ascii(text: str) -> None:
    """Tokens of EKS, GKE, OpenShift, Rancher are taken, blanks around them dropped."""
    assert text == parse_opaque_token(f" {text}\r\n".encode(), PATH).reveal()


@pytest.mark.parametrize(
    "content",
    [b"a b", b"a\nb", b"a\x00b", b"a\x7fb", "\u00e9".encode(), b"\xff", b"a" * 16385],
)
def test_malformed_opaque_token_is_refused(content: bytes) -> None:
    """Inner blanks, controls, non-ASCII, oversize: CredentialMalformed."""
    with pytest.raises(CredentialMalformed):
        parse_opaque_token(content, PATH)


def test_payload_tells_expiry_and_warning() -> None:
    """`exp` and `kubernetes.io.warnafter` are read, unverified."""
    token = BoundToken(
        jwt(exp=1_700_003_607, **{"kubernetes.io": {"warnafter": 1.5e9}})
    )
    assert (1_700_003_607.0, 1.5e9) == (token.expires_at, token.warn_after)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"exp":' + b"9" * 5000,
        b'{"exp":"1"}',
        b'{"exp":true}',
        b'{"exp":-1}',
        b'{"exp":NaN}',
        b'{"exp":1e999}',
        b'{"exp":null,"kubernetes.io":[]}',
        b'{"kubernetes.io":{"warnafter":{}}}',
    ],
)
def test_junk_payload_means_none(payload: bytes) -> None:
    """Whatever the payload is, the times are None and nothing is raised."""
    token = BoundToken(f"x.{encoded(payload)}.y")
    assert (None, None) == (token.expires_at, token.warn_after)


@pytest.mark.parametrize("text", ["opaque", "x.A.y", "x.!!!.y", "a.b", ""])
def test_opaque_text_has_no_times(text: str) -> None:
    """A token that is no JWT has no times."""
    assert BoundToken(text).expires_at is None


def test_tokens_equal_by_content() -> None:
    """== compares text; a token is never equal to its text; it does not hash."""
    assert BoundToken("a.b.c") == BoundToken("a.b.c")
    assert BoundToken("a.b.c") != BoundToken("a.b.d")
    assert BoundToken("a.b.c") != "a.b.c"
    with pytest.raises(TypeError):
        hash(BoundToken("a.b.c"))


@pytest.mark.parametrize("hidden", [BoundToken("a.b.SECRET"), HiddenBytes(b"SECRET")])
def test_secret_shows_nowhere(hidden: object) -> None:
    """repr, str, format and attribute dumps hide it; pickle and copies are refused."""
    shown = [repr(hidden), str(hidden), f"{hidden}", f"{hidden!a}", repr([hidden])]
    assert not [text for text in shown if "SECRET" in text]
    assert not hasattr(hidden, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(hidden, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            duplicate(hidden)


def test_attribute_dump_of_a_token_shows_a_function() -> None:
    """Debuggers that print every slot print no text."""
    token = BoundToken("a.b.SECRET")
    dump = {name: repr(getattr(token, name)) for name in dir(token)}
    assert "SECRET" not in str(dump)


def test_token_cannot_be_changed() -> None:
    """A token is a value."""
    with pytest.raises(AttributeError):
        BoundToken("a.b.c").expires_at = 0.0
