"""Who a container's program runs as: the image's /etc/passwd and /etc/group, hostile ones too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.container.root_paths import Inside
from overlayfs.container.users import MAX_FILE, User, find_user
from overlayfs.image.oci.errors import ImageError, InvalidError, LimitError, NotFoundError
from tests.container.small import GROUPS, USERS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(USERS)
    (root / "etc/group").write_bytes(GROUPS)
    return root


def found(root: Path, text: str) -> User:
    with Inside(os.fsencode(root)) as inside:
        return find_user(inside, text)


BOB = User(33, 44, (50,), "bob", "/home/bob")


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (50,), "root", "/root")),
        ("root", User(0, 0, (50,), "root", "/root")),
        ("bob", BOB),
        ("33", BOB),
        ("bob:", BOB),
        ("bob:7", User(33, 7, (), "bob", "/home/bob")),
        ("bob:others", User(33, 50, (), "bob", "/home/bob")),
        ("1234", User(1234, 0)),
        ("1234:bobs", User(1234, 44)),
        ("1234:5678", User(1234, 5678)),
    ],
)
def test_user_is_who_the_image_says(root: Path, text: str, user: User) -> None:
    assert found(root, text) == user


def test_image_without_passwd_has_numbers_only(tmp_path: Path) -> None:
    assert found(tmp_path, "") == User()
    assert found(tmp_path, "5:6") == User(5, 6)
    with pytest.raises(NotFoundError, match="no user 'bob' in /etc/passwd: give a number"):
        found(tmp_path, "bob")


@pytest.mark.parametrize("text", ["-1", "4294967296", "2147483648", "1:-1", "99999999999999999999"])
def test_numbers_that_are_no_ids_are_refused(root: Path, text: str) -> None:
    with pytest.raises(InvalidError, match="is no user or group"):
        found(root, text)


def test_unknown_group_is_refused(root: Path) -> None:
    with pytest.raises(NotFoundError, match="no group 'nobodys'"):
        found(root, "bob:nobodys")


def test_damaged_lines_are_passed_over(root: Path) -> None:
    lines = b"\nx\nbob:x:\nbob:x:no:44::/:\nbob:x:99999999999:1::/:\n#bob:x:1:1::/:\n\xff\xfe:x:1:1::/:\n+::::::\n"
    (root / "etc/passwd").write_bytes(lines + USERS)
    assert found(root, "bob") == BOB


# -- hostile files


def test_passwd_that_links_out_is_looked_for_in_the_image(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("bob:x:0:0::/:\n")
    for target in (str(secret), "../../secret", "../" * 40 + str(secret)):
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").symlink_to(target)
        with pytest.raises(NotFoundError, match="no user 'bob'"):
            found(root, "bob")


def test_passwd_behind_absolute_links_is_found_in_the_image(root: Path) -> None:
    (root / "real").mkdir()
    (root / "etc/passwd").rename(root / "real/people")
    (root / "etc/passwd").symlink_to("/else/people")
    (root / "else").symlink_to("/real")
    assert found(root, "bob") == BOB


def test_etc_that_links_out_is_looked_for_in_the_image(root: Path) -> None:
    (root / "etc").rename(root / "gone")
    (root / "etc").symlink_to("/etc")
    with pytest.raises(ImageError):
        found(root, "bob")


def test_link_into_proc_leads_nowhere(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
    with pytest.raises(NotFoundError):
        found(root, "bob")


def test_fifo_for_passwd_is_refused_without_waiting(root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(InvalidError, match="/etc/passwd in the image cannot be read: not a regular file"):
        found(root, "bob")


def test_directory_and_loop_for_passwd_are_refused(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("passwd")
    with pytest.raises(InvalidError, match="Too many levels of symbolic links"):
        found(root, "bob")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").mkdir()
    with pytest.raises(InvalidError, match="not a regular file"):
        found(root, "bob")


def test_huge_passwd_is_refused(root: Path) -> None:
    os.truncate(root / "etc/passwd", 1 << 40)
    with pytest.raises(LimitError, match=f"more than {MAX_FILE} bytes"):
        found(root, "bob")


def test_huge_group_is_refused(root: Path) -> None:
    os.truncate(root / "etc/group", 1 << 40)
    with pytest.raises(LimitError, match="/etc/group"):
        found(root, "bob")
