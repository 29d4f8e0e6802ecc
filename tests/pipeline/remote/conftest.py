"""A fake fal over real sockets, and a context to buy from it; fal-client itself is unmodified."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from multitalk_pack.pipeline.remote.context import Caps, RemoteContext
from multitalk_pack.pipeline.remote.credentials import Key
from multitalk_pack.pipeline.remote.exchange import Backoff
from support.fake_fal import KEY, FakeFal
from support.remote import write_video


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory):
    """A certificate authority that is trusted for this run only, and a server's TLS context of fal's names."""
    trustme = pytest.importorskip("trustme", reason="trustme makes the certificates of the fake fal")
    root = trustme.CA()
    leaf = root.issue_cert(
        "fal.run", "*.fal.run", "falrun.com", "*.falrun.com", "rest.fal.ai", "api.fal.ai", "fal.media", "*.fal.media"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    root.cert_pem.write_to_path(str(path))
    return path, context


@pytest.fixture(scope="session")
def video_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real small mp4 without sound, 10 frames of 32x32."""
    path = tmp_path_factory.mktemp("video") / "result.mp4"
    write_video(path, 10)
    return path.read_bytes()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, key or certificate of this machine gets into a test."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("FAL_", "SSL_CERT_", "MULTITALK_FAL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FAL_HOME_DIR", str(tmp_path / "no_fal_login"))


@pytest.fixture
def fal(clean_environment, authority, video_bytes, monkeypatch: pytest.MonkeyPatch):
    """The fake by the door that changes nothing of the client: a CONNECT proxy that ends TLS."""
    certificate, context = authority
    fake = FakeFal(context, video_bytes)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{fake.port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    yield fake
    fake.close()


@pytest.fixture
def plain_fal(fal: FakeFal, monkeypatch: pytest.MonkeyPatch) -> FakeFal:
    """The fake by plain HTTP: the client's four addresses are changed. The video still comes by TLS."""
    client = pytest.importorskip("fal_client.client")
    monkeypatch.setattr(client, "RUN_URL_FORMAT", f"{fal.url}/run/")
    monkeypatch.setattr(client, "QUEUE_URL_FORMAT", f"{fal.url}/queue/")
    monkeypatch.setattr(client, "REST_URL", f"{fal.url}/rest")
    monkeypatch.setattr(client, "CDN_URL", f"{fal.url}/cdn")
    return fal


@pytest.fixture
def context(tmp_path: Path) -> RemoteContext:
    """A context whose waits are a hundredth of the real ones."""
    return RemoteContext(Key(KEY, "the test"), tmp_path / "private", tmp_path / "output", Caps(), Backoff(unit_s=0.01))
