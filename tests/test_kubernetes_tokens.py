"""Tokens of runners: one is right, every other one is refused. PyJWT signs them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from flame_backend.backends.kubernetes.tokens import ClockSkew, verified_claims
from flame_backend.errors import LinkUnauthenticated
from tests.issuer import (
    EXPECTED,
    JWKS,
    NOW,
    P256,
    RSA,
    STRANGER,
    WRONG_CLAIMS,
    bound,
    claims,
    forged,
    jwk,
    sign,
    signed_text,
)


@pytest.mark.parametrize(
    "token",
    [
        sign(claims()),
        sign(claims(), P256, "ES256", kid="ec"),
        sign(claims(jti=None)),
        sign(claims(exp=int(NOW) + 3600)),
        sign(claims(iat=int(NOW) + 60, nbf=int(NOW) + 60)),
        sign(claims(iat=int(NOW) - 599, nbf=int(NOW) - 599, exp=int(NOW) + 1)),
    ],
    ids=["RS256", "ES256", "no jti", "an hour", "a minute early", "a second left"],
)
def test_right_token_is_accepted(token: str) -> None:
    """With each algorithm that API servers sign with."""
    assert EXPECTED.issuer == verified_claims(token, JWKS, EXPECTED, NOW)["iss"]


@pytest.mark.parametrize(
    ("algorithm", "curve"), [("ES384", ec.SECP384R1()), ("ES512", ec.SECP521R1())]
)
def test_right_token_of_a_longer_key_is_accepted(
    algorithm: str, curve: ec.EllipticCurve
) -> None:
    """Its digest and the length of its signature are those of its curve."""
    key = ec.generate_private_key(curve)
    keys = {"keys": [jwk(key, "ec", algorithm)]}
    token = sign(claims(), key, algorithm, kid="ec")
    assert EXPECTED.issuer == verified_claims(token, keys, EXPECTED, NOW)["iss"]


@pytest.mark.parametrize("changes", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS.keys())
def test_token_with_one_wrong_claim_is_refused(changes: dict[str, Any]) -> None:
    """Well signed, and wrong in exactly one place."""
    with pytest.raises(LinkUnauthenticated):
        verified_claims(sign(claims(**changes)), JWKS, EXPECTED, NOW)


@pytest.mark.parametrize("name", forged())
def test_forged_token_is_refused(name: str) -> None:
    """Every known way to forge a token, and LinkUnauthenticated is all that comes."""
    with pytest.raises(LinkUnauthenticated):
        verified_claims(forged()[name], JWKS, EXPECTED, NOW)


def test_key_that_stands_twice_is_refused() -> None:
    """Two keys of one id: it is not said which one signed."""
    keys = {"keys": [*JWKS["keys"], jwk(STRANGER, "rsa", "RS256")]}
    with pytest.raises(LinkUnauthenticated):
        verified_claims(sign(claims()), keys, EXPECTED, NOW)


@pytest.mark.parametrize(
    "purpose",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"key_ops": ["sign"]},
        {"key_ops": []},
        {"key_ops": "verify"},
    ],
    ids=str,
)
def test_key_for_another_purpose_is_refused(purpose: dict[str, Any]) -> None:
    """A key says what it is for; Wycheproof's rejectWrongKeyOps."""
    keys = {"keys": [jwk(RSA, "rsa", "RS256") | purpose]}
    with pytest.raises(LinkUnauthenticated, match="another purpose"):
        verified_claims(sign(claims()), keys, EXPECTED, NOW)


def test_key_that_lists_verification_is_taken() -> None:
    """As some issuers write it."""
    keys = {"keys": [jwk(RSA, "rsa", "RS256") | {"key_ops": ["verify"]}]}
    assert verified_claims(sign(claims()), keys, EXPECTED, NOW)


@pytest.mark.parametrize("uid", [None, "", 7, ["uid-1"]], ids=str)
def test_pod_without_a_uid_is_refused_before_the_post_is_answered(uid: object) -> None:
    """Its own UID is compared later, but it has to be one."""
    token = sign(claims(**{"kubernetes.io": bound(pod={"name": "runner", "uid": uid})}))
    with pytest.raises(LinkUnauthenticated, match=r"pod\.uid"):
        verified_claims(token, JWKS, replace(EXPECTED, uid=None), NOW)


def test_entry_of_a_key_set_that_is_no_key_is_passed_over() -> None:
    """The others serve."""
    keys = {"keys": ["rsa", None, *JWKS["keys"]]}
    assert verified_claims(sign(claims()), keys, EXPECTED, NOW)


def test_key_without_an_id_is_nobodys() -> None:
    """A token that names no key is not verified by a key that has no name."""
    keys = {"keys": [{k: v for k, v in jwk(RSA, "", "RS256").items() if k != "kid"}]}
    with pytest.raises(LinkUnauthenticated):
        verified_claims(forged()["no kid"], keys, EXPECTED, NOW)


@pytest.mark.parametrize("kid", ["", ["rsa"], 7, True], ids=str)
def test_id_that_is_no_text_names_no_key(kid: object) -> None:
    """Even if a key set has the same for one."""
    token = signed_text(json.dumps(claims()), kid)
    keys = {"keys": [jwk(RSA, "rsa", "RS256") | {"kid": kid}]}
    with pytest.raises(LinkUnauthenticated, match="kid"):
        verified_claims(token, keys, EXPECTED, NOW)


@pytest.mark.parametrize("change", [{"kty": "RSA"}, {"crv": "P-384"}, {"kty": "oct"}])
def test_key_that_says_it_is_of_another_kind_is_refused(change: dict[str, str]) -> None:
    """Even if its numbers would do."""
    keys = {"keys": [jwk(P256, "ec", "ES256") | change]}
    with pytest.raises(LinkUnauthenticated):
        verified_claims(sign(claims(), P256, "ES256", kid="ec"), keys, EXPECTED, NOW)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iat": int(NOW) + 120}, "nbf: issued 120 s in the future"),
        ({"nbf": int(NOW) + 90}, "nbf: issued 90 s in the future"),
        ({"exp": int(NOW) - 30}, "exp: expired 30 s ago"),
    ],
)
def test_right_token_of_another_time_hints_at_the_clocks(
    changes: dict[str, Any], words: str
) -> None:
    """The leeway is no wider for it: it is refused, and told apart."""
    with pytest.raises(ClockSkew, match=f"{words} .*compare the clocks"):
        verified_claims(sign(claims(**changes)), JWKS, EXPECTED, NOW)


def test_token_of_somebody_else_is_never_a_matter_of_clocks() -> None:
    """Else anybody could have a text of theirs told as the runner's trouble."""
    with pytest.raises(LinkUnauthenticated) as caught:
        verified_claims(
            sign(claims(iat=int(NOW) + 120, aud=["x"])), JWKS, EXPECTED, NOW
        )
    assert type(caught.value) is LinkUnauthenticated
