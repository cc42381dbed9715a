"""Which servers are asked, and how far each is trusted."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from registry.client.failures import ConnectionFailed
from registry.client.hosts import Endpoint, HostPolicy
from registry.client.session import RegistrySession, Transport


async def bases(policy: HostPolicy, domain: str, for_push: bool = False) -> list[tuple[str, bool]]:
    return [(e.base, e.verify) for e in await policy.endpoints(domain, for_push=for_push)]


async def test_hub_and_its_mirrors() -> None:
    policy = HostPolicy(["https://mirror.example/", "http://10.0.0.1:5000"], ["10.0.0.0/8"])
    assert await bases(policy, "docker.io") == [
        ("https://mirror.example", True),
        ("http://10.0.0.1:5000", False),
        ("https://registry-1.docker.io", True),
    ]
    assert await bases(policy, "docker.io", for_push=True) == [("https://registry-1.docker.io", True)]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "reg.lan", "reg.lan:80", "10.1.2.3"]
)
async def test_insecure_hosts_fall_back_to_plain_http(host: str) -> None:
    policy = HostPolicy((), ["reg.lan", "10.0.0.0/8"])
    assert await bases(policy, host) == [(f"https://{host}", False), (f"http://{host}", True)]


async def test_secure_hosts_do_not() -> None:
    policy = HostPolicy((), ["reg.lan"])
    assert await bases(policy, "192.0.2.1:5000") == [("https://192.0.2.1:5000", True)]
    policy.reload((), ["192.0.2.1:5000"])
    assert len(await bases(policy, "192.0.2.1:5000")) == 2


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A CA, and a certificate for 127.0.0.1 with its key."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])

    def build(name: x509.Name, public: ec.EllipticCurvePublicKey, is_ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(1))
        builder = builder.not_valid_after(now + datetime.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if not is_ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    ca = build(ca_name, ca_key.public_key(), True)
    leaf = build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")]), key.public_key(), False)
    paths = folder / "ca.crt", folder / "leaf.pem", folder / "leaf.key"
    paths[0].write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    paths[2].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password))
    return paths


async def test_certs_d_makes_a_private_ca_good(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(text="{}")

    server = web.Server(handle)  # type: ignore[arg-type]
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    host = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    policy = HostPolicy((), (), [tmp_path / "certs.d"], loopback=())
    transport = Transport(policy)
    try:
        (endpoint,) = await policy.endpoints(host)
        session = RegistrySession(transport, endpoint)
        with pytest.raises(ConnectionFailed, match="x509: certificate signed by unknown authority"):
            await session.ping()
        (tmp_path / "certs.d" / host).mkdir(parents=True)
        (tmp_path / "certs.d" / host / "ca.crt").write_bytes(ca.read_bytes())
        await session.ping()
    finally:
        await transport.aclose()
        listener.close()
        await server.shutdown(0.1)


async def test_plain_http_behind_https(stage: object) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="{}")

    stage.handler = handler  # type: ignore[attr-defined]
    host = stage.host  # type: ignore[attr-defined]
    session = RegistrySession(stage.transport, Endpoint(f"https://{host}", host))  # type: ignore[attr-defined]
    with pytest.raises(ConnectionFailed, match="http: server gave HTTP response to HTTPS client"):
        await session.ping()


def test_a_client_certificate_needs_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "reg.example"
    folder.mkdir()
    (folder / "client.cert").write_text("x")
    with pytest.raises(ValueError, match=r"missing key client.key for client certificate client.cert"):
        HostPolicy((), (), [tmp_path]).tls_sync(Endpoint("https://reg.example", "reg.example"))
