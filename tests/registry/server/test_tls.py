import asyncio
import datetime
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry.config import Settings, TlsFiles
from registry.server.tls import OwnCertificates, TlsKeeper, server_names

from .conftest import Start

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_certificates_are_made_once_and_kept(tmp_path: Path) -> None:
    own = OwnCertificates(tmp_path / "tls")
    assert own.ensure_sync(["localhost", "127.0.0.1"], NOW)
    before = own.certificate.read_bytes(), own.ca.read_bytes()
    assert not own.ensure_sync(["localhost"], NOW + datetime.timedelta(days=300))
    assert (own.certificate.read_bytes(), own.ca.read_bytes()) == before
    load(own.certificate).verify_directly_issued_by(load(own.ca))
    assert own.key.stat().st_mode & 0o777 == 0o600


def test_renewal_keeps_the_ca(tmp_path: Path) -> None:
    own = OwnCertificates(tmp_path)
    own.ensure_sync(["localhost"], NOW)
    ca, old = own.ca.read_bytes(), load(own.certificate)
    assert own.ensure_sync(["localhost"], NOW + datetime.timedelta(days=370))
    assert own.ca.read_bytes() == ca and load(own.certificate).not_valid_after_utc > old.not_valid_after_utc
    assert own.ensure_sync(["localhost", "new.example"], NOW + datetime.timedelta(days=370))
    assert own.ca.read_bytes() == ca
    own.ensure_sync(["localhost"], NOW + datetime.timedelta(days=3500))
    assert own.ca.read_bytes() != ca


def test_half_a_pair_is_made_again(tmp_path: Path) -> None:
    own = OwnCertificates(tmp_path)
    own.ensure_sync(["localhost"])
    own.key.write_bytes(b"")
    assert own.ensure_sync(["localhost"])


def test_certificates_that_were_made_survive_a_power_loss(tmp_path: Path, synced: list[str]) -> None:
    OwnCertificates(tmp_path / "tls").ensure_sync(["localhost"])
    assert synced == ["ca", "tls", "ca", "tls", "server", "tls", "server", "tls"]


def test_names_cover_loopback_and_the_address() -> None:
    names = server_names("192.0.2.1")
    assert {"localhost", "127.0.0.1", "::1", "192.0.2.1"} <= set(names)
    assert "0.0.0.0" not in server_names("0.0.0.0")


async def test_clients_that_trust_the_ca_get_in(start: Start, tmp_path: Path) -> None:
    client = await start(own_tls_folder=tmp_path / "tls")
    context = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.crt"))
    answer = await client.call("GET", f"https://localhost:{client.port}/v2/", ssl=context)
    assert answer.status == 200
    data = b"x" * 700_000
    digest = await client.push_blob("a", data, ssl=context)
    answer = await client.call("GET", f"/v2/a/blobs/{digest}", ssl=context)
    assert answer.body == data


def self_signed(folder: Path) -> Path:
    """A client's certificate with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ann")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.not_valid_after(now + datetime.timedelta(1)).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "client.pem"
    path.write_bytes(certificate.public_bytes(encoding) + private)
    return path


@pytest.mark.parametrize("is_optional", [False, True])
async def test_clients_show_a_certificate_where_one_is_asked_for(
    start: Start, tmp_path: Path, is_optional: bool
) -> None:
    own, mine = OwnCertificates(tmp_path / "own"), self_signed(tmp_path)
    await asyncio.to_thread(own.ensure_sync, ["localhost"])
    files = TlsFiles(own.certificate, own.key, (mine,), client_optional=is_optional)
    client = await start(tls=files)
    url = f"https://localhost:{client.port}/v2/"
    context = ssl.create_default_context(cafile=str(own.ca))
    if is_optional:
        assert (await client.call("GET", url, ssl=context)).status == 200
    else:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await client.call("GET", url, ssl=context)
    context = ssl.create_default_context(cafile=str(own.ca))
    context.load_cert_chain(mine)
    assert (await client.call("GET", url, ssl=context)).status == 200


async def test_changed_files_are_taken_up(tmp_path: Path) -> None:
    own = OwnCertificates(tmp_path / "own")
    await asyncio.to_thread(own.ensure_sync, ["localhost"], NOW)
    keeper = TlsKeeper(Settings(root=tmp_path, tls=TlsFiles(own.certificate, own.key, minimum="tls1.3")))
    assert await keeper.load() and keeper.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert not await keeper.refresh()
    await asyncio.to_thread(own.ensure_sync, ["localhost", "other"], NOW)
    assert await keeper.refresh()
    own.certificate.write_bytes(b"half written")
    assert not await keeper.refresh(), "the old certificate serves on"


async def test_half_replaced_files_do_not_stop_the_old_certificate(start: Start, tmp_path: Path) -> None:
    own, other = OwnCertificates(tmp_path / "own"), OwnCertificates(tmp_path / "other")
    for made in (own, other):
        await asyncio.to_thread(made.ensure_sync, ["localhost"])
    client = await start(tls=TlsFiles(own.certificate, own.key))
    url = f"https://localhost:{client.port}/v2/"
    key = own.key.read_bytes()
    own.certificate.write_bytes(other.certificate.read_bytes())
    assert not await client.server.tls.refresh()
    assert (await client.call("GET", url, ssl=ssl.create_default_context(cafile=str(own.ca)))).status == 200
    own.key.write_bytes(other.key.read_bytes())
    assert await client.server.tls.refresh() and key != own.key.read_bytes()
    assert (await client.call("GET", url, ssl=ssl.create_default_context(cafile=str(other.ca)))).status == 200


async def test_an_authority_that_is_removed_lets_nobody_in_any_more(start: Start, tmp_path: Path) -> None:
    own, mine = OwnCertificates(tmp_path / "own"), self_signed(tmp_path)
    await asyncio.to_thread(own.ensure_sync, ["localhost"])
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(mine.read_bytes() + own.ca.read_bytes())
    client = await start(tls=TlsFiles(own.certificate, own.key, (authorities,)))
    url = f"https://localhost:{client.port}/v2/"

    async def come_in() -> int:
        context = ssl.create_default_context(cafile=str(own.ca))
        context.load_cert_chain(mine)
        return (await client.call("GET", url, ssl=context, headers={"Connection": "close"})).status

    assert await come_in() == 200
    authorities.write_bytes(own.ca.read_bytes())
    assert await client.server.tls.refresh()
    with pytest.raises((aiohttp.ClientError, OSError)):
        await come_in()


async def test_who_is_refused_is_told_why(start: Start, tmp_path: Path) -> None:
    own, mine = OwnCertificates(tmp_path / "own"), self_signed(tmp_path)
    await asyncio.to_thread(own.ensure_sync, ["localhost"])
    client = await start(tls=TlsFiles(own.certificate, own.key, (mine,), minimum="tls1.3"))
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.read() == (
        b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
        b"Client sent an HTTP request to an HTTPS server.\n"
    )
    writer.close()
    await writer.wait_closed()
    old = ssl.create_default_context(cafile=str(own.ca))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(aiohttp.ClientConnectorError, match=r"(?i)alert protocol version"):
        await client.call("GET", f"https://localhost:{client.port}/v2/", ssl=old)
