"""`--change`: what each instruction does to a configuration, in docker's words."""

from __future__ import annotations

import pytest

from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.instructions import apply_changes

START = RunConfig(env=["PATH=/bin", "A=x y"], cmd=["old"], working_dir="/srv", labels={"l": "1"})


@pytest.mark.parametrize(
    ("change", "env"),
    [
        ("ENV B=1", ["B=1"]),
        ("env B=1 C=2", ["B=1", "C=2"]),
        ("ENV B 1 2", ["B=1 2"]),
        ("ENV B=", ["B="]),
        ('ENV B="1 2" C=\'3 "4"\' D=5\\ 6', ["B=1 2", 'C=3 "4"', "D=5 6"]),
        ("ENV B=$A", ["B=x y"]),
        ("ENV B=\"<$A>\" C='$A' D=\\$A", ["B=<x y>", "C=$A", "D=$A"]),
        ("ENV B=${A}z C=${N:-d} D=${A:+s} E=${N:+s} F=$N", ["B=x yz", "C=d", "D=s", "E=", "F="]),
        ("ENV B it's", None),
        ("ENV=B=1", ["B=1"]),
        ("ENV B\t1  2", ["B=1  2"]),
        ("ENV B=a=b", ["B=a=b"]),
    ],
)
def test_env(change: str, env: list[str] | None) -> None:
    if env is None:  # a quote that is never closed is a letter
        env = ["B=it's"]
    assert apply_changes(START, [change]).env == ["PATH=/bin", "A=x y", *env]


def test_env_replaces_in_place() -> None:
    assert apply_changes(START, ["ENV PATH=$PATH:/opt", "ENV PATH=$PATH:/more"]).env == [
        "PATH=/bin:/opt:/more",
        "A=x y",
    ]


@pytest.mark.parametrize(
    ("changes", "entrypoint", "cmd"),
    [
        (['CMD ["a", "b c"]'], [], ["a", "b c"]),
        (["CMD echo $HOME"], [], ["/bin/sh", "-c", "echo $HOME"]),
        (["CMD=/bin/bash"], [], ["/bin/sh", "-c", "/bin/bash"]),
        (["CMD []"], [], []),
        (["CMD [not json"], [], ["/bin/sh", "-c", "[not json"]),
        (['ENTRYPOINT ["e"]'], ["e"], []),
        (['ENTRYPOINT ["e"]', 'CMD ["c"]'], ["e"], ["c"]),
        (['CMD ["c"]', 'ENTRYPOINT ["e"]'], ["e"], ["c"]),
    ],
)
def test_commands(changes: list[str], entrypoint: list[str], cmd: list[str]) -> None:
    made = apply_changes(START, changes)
    assert (made.entrypoint, made.cmd) == (entrypoint, cmd)


@pytest.mark.parametrize(
    ("change", "member", "value"),
    [
        ("WORKDIR /a", "working_dir", "/a"),
        ("WORKDIR a/../b", "working_dir", "/srv/b"),
        ("WORKDIR /a b", "working_dir", "/a b"),
        ("USER 1000:100", "user", "1000:100"),
        ("STOPSIGNAL SIGUSR1", "stop_signal", "SIGUSR1"),
        ("LABEL a=1 b.c='2 3'", "labels", {"l": "1", "a": "1", "b.c": "2 3"}),
        ("EXPOSE 80 53/UDP 8000-8001", "exposed_ports", {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}),
        ('VOLUME ["/a b"]', "volumes", {"/a b": {}}),
    ],
)
def test_other_instructions(change: str, member: str, value: object) -> None:
    assert getattr(apply_changes(START, [change]), member) == value


@pytest.mark.parametrize(
    "change",
    [
        "",
        "RUN x",
        "ENV",
        "ENV A",
        "ENV A=1 B",
        "ENV =1",
        "LABEL a",
        "EXPOSE 0",
        "EXPOSE 65536",
        "EXPOSE 9-8",
        "EXPOSE x",
        "EXPOSE 80/icmp",
        "STOPSIGNAL foo",
        "USER",
        "WORKDIR ",
        "VOLUME ",
    ],
)
def test_what_is_not_understood_is_named(change: str) -> None:
    with pytest.raises(InvalidError, match="--change"):
        apply_changes(START, [change])
