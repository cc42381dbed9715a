import base64
import datetime
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from registry.server.jwt import (
    InvalidToken,
    Verifier,
    encode_part,
    jwk_of,
    key_from_jwk,
    libtrust_id,
    sign,
    thumbprint,
)

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = 1_000_000.0
CLAIMS = {"iss": "me", "aud": "service", "exp": NOW + 100, "nbf": NOW, "sub": "ann"}
VERIFIER = Verifier({thumbprint(KEY.public_key()): KEY.public_key()})


def forge(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"x" * 64) -> str:
    parts = [encode_part(msgspec.json.encode(part)) for part in (header, claims)]
    return ".".join([*parts, encode_part(signature)])


def test_a_right_token_is_believed() -> None:
    assert VERIFIER.verify(sign(CLAIMS, KEY), "me", "service", NOW)["sub"] == "ann"
    several = sign({**CLAIMS, "aud": ["other", "service"]}, KEY)
    assert VERIFIER.verify(several, "me", "service", NOW)


@pytest.mark.parametrize(
    ("changes", "moment", "words"),
    [
        ({"iss": "you"}, NOW, "issuer"),
        ({"aud": "else"}, NOW, "audience"),
        ({"aud": None}, NOW, "audience"),
        ({}, NOW + 161, "expired"),
        ({"exp": None}, NOW, "exp"),
        ({"exp": "late"}, NOW, "exp"),
        ({"exp": True}, NOW, "exp"),
        ({}, NOW - 61, "not valid yet"),
    ],
)
def test_claims_are_checked(changes: dict[str, Any], moment: float, words: str) -> None:
    with pytest.raises(InvalidToken, match=words):
        VERIFIER.verify(sign({**CLAIMS, **changes}, KEY), "me", "service", moment)


def test_forgeries_are_refused() -> None:
    kid = thumbprint(KEY.public_key())
    other = ec.generate_private_key(ec.SECP256R1())
    right = sign(CLAIMS, KEY)
    head, _, signature = right.split(".")
    for token in (
        "",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "é.b.c",
        forge({"alg": "none", "kid": kid}, CLAIMS, b""),
        forge({"alg": "HS256", "kid": kid}, CLAIMS),
        forge({"alg": "ES256", "kid": kid}, CLAIMS),
        forge({"alg": "ES256", "kid": kid}, CLAIMS, b"short"),
        forge({"alg": "ES256", "kid": "unknown"}, CLAIMS),
        forge({"alg": "ES256", "x5c": []}, CLAIMS),
        forge({"alg": "ES256", "x5c": ["nonsense"]}, CLAIMS),
        forge({"alg": "RS256", "kid": kid}, CLAIMS),
        f"{head}.{encode_part(msgspec.json.encode({**CLAIMS, 'sub': 'root'}))}.{signature}",
        sign(CLAIMS, other),
    ):
        with pytest.raises(InvalidToken):
            VERIFIER.verify(token, "me", "service", NOW)
    embedded = {"alg": "ES256", "jwk": {**jwk_of(other.public_key()), "kid": kid}}
    with pytest.raises(InvalidToken):
        VERIFIER.verify(forge(embedded, CLAIMS), "me", "service", NOW)


def signed(header: dict[str, Any], algorithm: str, key: Any) -> str:
    text = ".".join(encode_part(msgspec.json.encode(part)) for part in ({**header, "alg": algorithm}, CLAIMS))
    if algorithm == "EdDSA":
        signature = key.sign(text.encode())
    elif algorithm == "PS256":
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
        signature = key.sign(text.encode(), pss, hashes.SHA256())
    else:
        signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA512())
    return f"{text}.{encode_part(signature)}"


def test_keys_of_a_jwks_file_verify(tmp_path: Path) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    ed_key = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "jwks.json"
    keys = [{**jwk_of(rsa_key.public_key()), "kid": "r"}, jwk_of(ed_key.public_key())]
    path.write_bytes(msgspec.json.encode({"keys": keys}))
    verifier = Verifier.load_sync(path, None)
    for algorithm in ("RS512", "PS256"):
        assert verifier.verify(signed({"kid": "r"}, algorithm, rsa_key), "me", "service", NOW)
    assert verifier.verify(signed({"kid": thumbprint(ed_key.public_key())}, "EdDSA", ed_key), "me", "service", NOW)
    with pytest.raises(InvalidToken):
        key_from_jwk({"kty": "oct", "k": "c2VjcmV0"})
    path.write_bytes(b'{"keys":[]}')
    with pytest.raises(ValueError, match="no key"):
        Verifier.load_sync(path, None)
    for nonsense in (b"{", b"[]", b'{"keys": 1}'):
        path.write_bytes(nonsense)
        with pytest.raises(ValueError, match="is no set of keys"):
            Verifier.load_sync(path, None)


def certificate(key: Any, issuer_key: Any, name: str, issuer: str, ca: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, issuer))
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
    builder = builder.serial_number(5).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def test_certificates_verify_by_id_and_by_chain(tmp_path: Path) -> None:
    root_key, leaf_key, rogue_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = certificate(root_key, root_key, "root", "root", ca=True)
    leaf = certificate(leaf_key, root_key, "leaf", "root", ca=False)
    rogue = certificate(rogue_key, leaf_key, "rogue", "leaf", ca=False)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    verifier = Verifier.load_sync(None, bundle)

    def token(header: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
        whole = sign(CLAIMS, key)
        _, body, _ = whole.split(".")
        text = f"{encode_part(msgspec.json.encode({'alg': 'ES256', **header}))}.{body}"
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{encode_part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def x5c(*chain: x509.Certificate) -> list[str]:
        return [base64.b64encode(c.public_bytes(serialization.Encoding.DER)).decode() for c in chain]

    for identity in (thumbprint(root_key.public_key()), libtrust_id(root_key.public_key())):
        assert verifier.verify(token({"kid": identity}, root_key), "me", "service", NOW)
    assert verifier.verify(token({"x5c": x5c(leaf)}, leaf_key), "me", "service", NOW)
    assert verifier.verify(token({"x5c": x5c(leaf, root)}, leaf_key), "me", "service", NOW)
    for chain in ((rogue,), (rogue, leaf), (rogue, leaf, root)):
        with pytest.raises(InvalidToken):
            verifier.verify(token({"x5c": x5c(*chain)}, rogue_key), "me", "service", NOW)
    assert time.time() > NOW


def test_only_configured_algorithms_count() -> None:
    keys = {thumbprint(KEY.public_key()): KEY.public_key()}
    assert Verifier(keys, algorithms=frozenset({"ES256"})).verify(sign(CLAIMS, KEY), "me", "service", NOW)
    with pytest.raises(InvalidToken, match="ES256 is not among"):
        Verifier(keys, algorithms=frozenset({"RS256"})).verify(sign(CLAIMS, KEY), "me", "service", NOW)
