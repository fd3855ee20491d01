"""Against the real registry of docker, with skopeo as the second client."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from overlayfs.image.oci.errors import NotFoundError, RegistryError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.registry.credentials import Credential, keep_credential
from overlayfs.image.registry.endpoints import Registries, Section
from overlayfs.image.registry.repository import check_login
from overlayfs.image.registry.transfer import Access, pull, push, tags
from overlayfs.image.store.store import Image, Store
from tests.image.making import put, tar, whole
from tests.image.registry.docker_registry import (
    PASSWORD,
    USER,
    Running,
    certificate,
    docker_registry,
    htpasswd,
    token_section,
    token_server,
)
from tests.image.registry.fake_registry import serving

NOISE = random.Random(7).randbytes(700_000)
LAYERS = (tar({"etc/os": b"debian", "noise": NOISE}), tar({"etc/os": b"ours"}))
ACCESS = Access(insecure=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with docker_registry(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.fixture
def image(store: Store) -> Image:
    return put(store, "here:1", *LAYERS)


def name(running: Running, text: str) -> Reference:
    return Reference.parse(f"{running.name}/{text}")


def skopeo(*words: str | Path) -> str:
    return subprocess.run(["skopeo", *words], capture_output=True, text=True, check=True).stdout


def there_and_back(store: Store, theirs: Store, image: Image, reference: Reference, access: Access) -> None:
    trio.run(push, store, image, reference, access)
    assert whole(theirs, trio.run(pull, theirs, reference, None, access)) == whole(store, image)


def test_push_and_pull_keep_the_bytes(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    there_and_back(store, theirs, image, name(plain, "a/there:1"), ACCESS)


def test_chunks(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    there_and_back(store, theirs, image, name(plain, "chunks:1"), replace(ACCESS, chunk=100_000))
    assert plain.log.read_text().count("PATCH /v2/chunks/") == 7


def test_what_is_there_is_skipped_and_what_is_beside_is_mounted(plain: Running, store: Store, image: Image) -> None:
    assert trio.run(push, store, image, name(plain, "base:1"), ACCESS).counts["sent"] == 3
    assert trio.run(push, store, image, name(plain, "base:2"), ACCESS).counts["exists"] == 3
    store.tag(image.descriptor, name(plain, "base:1"))
    more = put(store, None, *LAYERS, tar({"more": b"more"}))
    assert trio.run(push, store, more, name(plain, "more:1"), ACCESS).counts == {"sent": 2, "mounted": 2, "exists": 0}


def test_skopeo_pulls_what_we_push_and_back(
    plain: Running, store: Store, theirs: Store, image: Image, tmp_path: Path
) -> None:
    trio.run(push, store, image, name(plain, "ours:1"), ACCESS)
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{plain.name}/ours:1"))
    assert inspected["Digest"] == image.digest
    copy = ("copy", "--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo(*copy, f"docker://{plain.name}/ours:1", f"oci:{tmp_path}/layout:1")
    skopeo(*copy, f"oci:{tmp_path}/layout:1", f"docker://{plain.name}/theirs:1")
    assert whole(theirs, trio.run(pull, theirs, name(plain, "theirs:1"), None, ACCESS)) == whole(store, image)


def test_docker_media_types(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    trio.run(push, store, image, name(plain, "oci:1"), ACCESS)
    verify = ("--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo("copy", "--format", "v2s2", *verify, f"docker://{plain.name}/oci:1", f"docker://{plain.name}/docker:1")
    pulled = trio.run(pull, theirs, name(plain, "docker:1"), None, ACCESS)
    assert pulled.descriptor.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    assert pulled.config.rootfs == image.config.rootfs
    there_and_back(theirs, store, pulled, name(plain, "again:1"), ACCESS)
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{plain.name}/again:1"))
    assert inspected["Digest"] == pulled.digest


def test_resumed_download(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    trio.run(push, store, image, name(plain, "resume:1"), ACCESS)
    layer = image.manifest.layers[0]
    data = store.read_blob(layer)
    (theirs.path / "tmp" / f"partial-{layer.digest.removeprefix('sha256:')}").write_bytes(data[:500_000])
    assert whole(theirs, trio.run(pull, theirs, name(plain, "resume:1"), None, ACCESS)) == whole(store, image)
    assert f"blobs/{layer.digest}" in plain.log.read_text()


def test_tags(plain: Running, store: Store, image: Image) -> None:
    for tag in ("1", "2.0", "latest"):
        trio.run(push, store, image, name(plain, f"tagged:{tag}"), ACCESS)
    assert sorted(trio.run(tags, name(plain, "tagged"), ACCESS)) == ["1", "2.0", "latest"]
    with pytest.raises(NotFoundError, match="repository name not known"):
        trio.run(tags, name(plain, "nothing"), ACCESS)


def test_pull_by_digest(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    trio.run(push, store, image, name(plain, f"bydigest@{image.digest}"), ACCESS)
    assert trio.run(pull, theirs, name(plain, f"bydigest@{image.digest}"), None, ACCESS).digest == image.digest


def test_cut_connections(plain: Running, store: Store, theirs: Store, image: Image) -> None:
    """A man in the middle who cuts each connection after so many bytes."""
    trio.run(push, store, image, name(plain, "cut:1"), ACCESS)
    cuts = 0

    async def main() -> None:
        nonlocal cuts

        async def relay(client: trio.SocketStream) -> None:
            nonlocal cuts
            host, _, port = plain.name.partition(":")
            server = await trio.open_tcp_stream(host, int(port))

            async def requests() -> None:
                async for data in client:
                    await server.send_all(data)

            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(requests)
                left = 200_000
                try:
                    while left > 0 and (data := await server.receive_some(min(65536, left))):
                        await client.send_all(data)
                        left -= len(data)
                except trio.BrokenResourceError:
                    pass
                cuts += left <= 0
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            reference = Reference.parse(f"127.0.0.1:{port}/cut:1")
            assert whole(theirs, await pull(theirs, reference, None, ACCESS)) == whole(store, image)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert cuts >= 3


def test_passwords(tmp_path: Path, store: Store, theirs: Store, image: Image) -> None:
    with docker_registry(tmp_path, auth=htpasswd(tmp_path)) as running:
        reference = name(running, "app:1")
        with pytest.raises(RegistryError, match=f"overlayfs login {running.name}"):
            trio.run(push, store, image, reference, ACCESS)
        (endpoint,) = Registries().endpoints(reference, insecure=True)
        with pytest.raises(RegistryError, match="does not take"):
            trio.run(check_login, endpoint, Credential(USER, "wrong"))
        trio.run(check_login, endpoint, Credential(USER, PASSWORD))
        keep_credential(running.name, Credential(USER, PASSWORD))
        there_and_back(store, theirs, image, reference, ACCESS)
        # what we keep, skopeo reads; and the other way round
        skopeo("inspect", "--tls-verify=false", f"docker://{running.name}/app:1")
        skopeo("logout", running.name)
        with pytest.raises(RegistryError):
            trio.run(tags, reference, ACCESS)
        skopeo("login", "--tls-verify=false", "-u", USER, "-p", PASSWORD, running.name)
        assert trio.run(tags, reference, ACCESS) == ["1"]


def test_tls_of_an_authority_of_ones_own(tmp_path: Path, store: Store, theirs: Store, image: Image) -> None:
    cert, key = certificate(tmp_path)
    with docker_registry(tmp_path, http=f", tls: {{certificate: {cert}, key: {key}}}") as running:
        reference = name(running, "app:1")
        with pytest.raises(RegistryError, match=r"its certificate is not trusted .*; name its authority with --ca"):
            trio.run(push, store, image, reference, Access())
        there_and_back(store, theirs, image, reference, Access(ca=cert))
        configured = Registries({running.name: Section(ca=str(cert))})
        assert trio.run(tags, reference, Access(configured)) == ["1"]
        assert trio.run(tags, reference, ACCESS) == ["1"]  # insecure: nobody vouches for it


def test_tls_where_there_is_none(plain: Running) -> None:
    with pytest.raises(RegistryError, match="does not speak TLS; --insecure allows that"):
        trio.run(tags, name(plain, "app"), Access())


def test_tokens(tmp_path: Path, store: Store, theirs: Store, image: Image) -> None:
    with serving("localhost") as server:
        section = token_section(tmp_path, f"{server.url}/token")
        token_server(tmp_path, server)
        with docker_registry(tmp_path, auth=section) as running:
            reference = name(running, "team/app:1")
            with pytest.raises(RegistryError, match="token server"):
                trio.run(push, store, image, reference, ACCESS)
            keep_credential(running.name, Credential(USER, PASSWORD))
            there_and_back(store, theirs, image, reference, ACCESS)
            store.tag(image.descriptor, reference)
            more = put(store, None, *LAYERS, tar({"more": b"more"}))
            pushed = trio.run(push, store, more, name(running, "team/more:1"), ACCESS)
            assert pushed.counts == {"sent": 2, "mounted": 2, "exists": 0}
            encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            assert encoded not in running.log.read_text()
