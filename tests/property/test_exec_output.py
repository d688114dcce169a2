"""Laws of what credential plugins print: total, silent, exact on what is sound."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetls.credentials.exec_entry import (
    ExecEntry,
    last_words,
    parse_exec_credential,
)
from kubetls.credentials.hidden import HiddenBytes
from kubetls.errors import ExecPluginError

V1 = "client.authentication.k8s.io/v1"
ENTRY = ExecEntry(
    place="config: users[ann].exec",
    version=V1,
    command="./plugin",
    folder="/",
    args=(),
    env=(),
    interactive_mode="Never",
    provides_cluster=False,
    install_hint=None,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
fields = st.sampled_from(
    ["token", "clientCertificateData", "clientKeyData", "expirationTimestamp"]
)


def printed(status: Any) -> HiddenBytes:
    """Return an ExecCredential with this status."""
    document = {"apiVersion": V1, "kind": "ExecCredential", "status": status}
    return HiddenBytes(json.dumps(document).encode())


@given(st.binary(max_size=200) | values.map(lambda v: json.dumps(v).encode()))
def test_any_output_without_a_credential_is_our_error(content: bytes) -> None:
    """Whatever a program prints: ExecPluginError, one line of ASCII."""
    with pytest.raises(ExecPluginError) as caught:
        parse_exec_credential(HiddenBytes(content), ENTRY)
    assert str(caught.value).isascii()
    assert 1 == len(str(caught.value).splitlines())


@given(values | st.dictionaries(fields, values | st.text("aZ0.-:TZ+", max_size=30)))
def test_any_status_gives_a_credential_or_our_error(status: Any) -> None:
    """Fields of any type and value, alone and together."""
    try:
        found = parse_exec_credential(printed(status), ENTRY)
    except ExecPluginError:
        return
    assert found.token is not None
    assert status["token"].strip() == found.token.reveal()


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_visible_token_comes_back_as_it_is(token: str) -> None:
    """Every token that may stand in a header is taken, and nothing is added."""
    found = parse_exec_credential(printed({"token": token}), ENTRY)
    assert found.token is not None
    assert (token, None) == (found.token.reveal(), found.expires_at)


@given(
    st.binary(max_size=400),
    st.from_regex(r"[A-Za-z0-9]{12,40}", fullmatch=True),
    st.binary(max_size=400),
)
def test_known_secret_is_in_no_complaint(
    before: bytes, secret: str, after: bytes
) -> None:
    """Wherever it stands in what a plugin says; the rest is one line of ASCII."""
    text = last_words(before + secret.encode() + after, [secret])
    assert secret not in text
    assert text.isascii()
    assert text.isprintable()
