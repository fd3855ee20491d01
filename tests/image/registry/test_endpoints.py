"""registries.toml: where a registry is, by which mirrors, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.registry.endpoints import Endpoint, Registries, is_loopback

DEBIAN = Reference.parse("debian")


def load(tmp_path: Path, text: str) -> Registries:
    (tmp_path / "registries.toml").write_text(text)
    return Registries.load(tmp_path / "registries.toml")


def test_docker_hub_has_its_api_elsewhere() -> None:
    assert Registries().endpoints(DEBIAN) == [Endpoint("docker.io", "registry-1.docker.io")]


def test_any_registry_is_reached_by_its_name() -> None:
    assert Registries().endpoints(Reference.parse("h.example:5000/x")) == [
        Endpoint("h.example:5000", "h.example", 5000)
    ]
    assert Registries().endpoints(Reference.parse("[::1]:5000/x")) == [Endpoint("[::1]:5000", "::1", 5000)]


def test_mirrors_come_first_for_who_wants_them(tmp_path: Path) -> None:
    registries = load(
        tmp_path,
        """
        [registry."docker.io"]
        mirrors = ["https://m.example", "cache.example:8443/hub/", "http://127.0.0.1:5000"]
        connections = 8
        [registry."m.example"]
        ca = "/etc/m.pem"
        connections = 2
        """,
    )
    assert registries.endpoints(DEBIAN, mirrors=True) == [
        Endpoint("m.example", "m.example", ca=Path("/etc/m.pem"), connections=2),
        Endpoint("cache.example:8443", "cache.example", 8443, prefix="hub/"),
        Endpoint("127.0.0.1:5000", "127.0.0.1", 5000, "http"),
        Endpoint("docker.io", "registry-1.docker.io", connections=8),
    ]
    assert len(registries.endpoints(DEBIAN)) == 1


def test_location_replaces_the_name_and_keeps_the_credentials(tmp_path: Path) -> None:
    registries = load(tmp_path, '[registry."r.example"]\nlocation = "https://10.0.0.1:5000/all"\n')
    assert registries.endpoints(Reference.parse("r.example/x")) == [
        Endpoint("r.example", "10.0.0.1", 5000, prefix="all/")
    ]


def test_command_line_means_the_registry_and_not_its_mirrors(tmp_path: Path) -> None:
    registries = load(tmp_path, '[registry."localhost:5000"]\nmirrors = ["m.example"]\n')
    mirror, own = registries.endpoints(
        Reference.parse("localhost:5000/x"), ca=Path("/ca.pem"), insecure=True, mirrors=True
    )
    assert (mirror.ca, mirror.is_insecure, mirror.scheme) == (None, False, "https")
    assert (own.ca, own.is_insecure, own.scheme) == (Path("/ca.pem"), True, None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("10.0.0.1", False),
        ("128.0.0.1", False),
        ("2130706433", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("name", ["registry.example.com/x", "10.0.0.1:5000/x", "debian"])
def test_insecure_is_for_loopback_only(name: str) -> None:
    with pytest.raises(InvalidError, match="loopback only"):
        Registries().endpoints(Reference.parse(name), insecure=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[registry."docker.io"]\nmirors = []\n', "mirors"),
        ('[registry."docker.io"]\nmirrors = "m"\n', "mirrors"),
        ("[registries]\n", "registries"),
        ("nonsense", "registries.toml"),
        ('[registry."docker.io"]\nconnections = 0\n', "connections is 0"),
        ('[registry."docker.io"]\nmirrors = ["http://m.example"]\n', "plain HTTP is for loopback"),
        ('[registry."docker.io"]\nlocation = "http://r.example"\n', "plain HTTP is for loopback"),
        ('[registry."docker.io"]\nmirrors = ["ftp://m.example"]\n', "ftp"),
        ('[registry."docker.io"]\nmirrors = ["https://user:secret@m.example"]\n', "name of a host"),
        ('[registry."docker.io"]\nmirrors = ["m.example:99999"]\n', "name of a host"),
        ('[registry."docker.io"]\nmirrors = [""]\n', "name of a host"),
        ('[registry."docker.io"]\ninsecure = true\n', "loopback only"),
        ('[registry."docker.io"]\nblocked = true\n', "blocked"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        load(tmp_path, text).endpoints(DEBIAN, mirrors=True)


def test_users_file_replaces_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVERLAYFS_REGISTRIES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert Registries.load() == Registries()
    (tmp_path / "overlayfs").mkdir()
    (tmp_path / "overlayfs/registries.toml").write_text('[registry."r.example"]\nblocked = true\n')
    assert Registries.load().sections["r.example"].blocked
    monkeypatch.setenv("OVERLAYFS_REGISTRIES", str(tmp_path / "other.toml"))
    (tmp_path / "other.toml").write_text("")
    assert Registries.load() == Registries()
