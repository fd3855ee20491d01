"""The lane between two sockets: one stands for /dev/fuse, the other for pyfuse3. Every request is answered once."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import stat
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from overlayfs.fuse import abi
from overlayfs.fuse.abi import Opcode
from overlayfs.fuse.channel import Channel
from overlayfs.fuse.control import Control
from overlayfs.fuse.copying import CopyUps
from overlayfs.fuse.fastlane import FastLane
from overlayfs.fuse.looping import relay, serve_lane
from overlayfs.fuse.status import Status
from overlayfs.fuse.syncing import Syncs
from overlayfs.fuse.tasks import Tasks
from overlayfs.overlay import lookup
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import Directory
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.state import State

ROOT = 1
UNKNOWN = 0x7777_7777
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
DEADLINE_S = 20
ERROR = -errno.ENOTTY  # what the socket that stands for pyfuse3 answers everything with
Reply = tuple[int, bytes]  # an errno (0 or negative), and what follows


class Wire:
    """The kernel's side: sends requests, and knows which reply belongs to which."""

    def __init__(self, kernel: socket.socket, behind: socket.socket, overlay: Overlay) -> None:
        self.kernel = kernel
        self.behind = behind
        self.overlay = overlay
        self.forwarded: list[bytes] = []
        self.forgotten: list[int] = []  # inodes whose attributes the kernel was told to ask for again
        self._unique = 0

    def send(self, opcode: int, node: int = ROOT, body: bytes = b"", uid: int = 0) -> int:
        """One request; its unique number."""
        self._unique += 2
        length = abi.IN_HEADER.size + len(body)
        self.kernel.send(abi.IN_HEADER.pack(length, opcode, self._unique, node, uid, 0, os.getpid(), 0, 0) + body)
        return self._unique

    async def receive(self) -> tuple[int, Reply]:
        with trio.fail_after(DEADLINE_S):
            await trio.lowlevel.wait_readable(self.kernel)
        reply = self.kernel.recv(abi.LONGEST_REQUEST)
        length, error, unique = abi.OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        if not unique:
            assert error == abi.FUSE_NOTIFY_INVAL_INODE
            node, offset, _ = abi.NOTIFY_INVAL_INODE_OUT.unpack_from(reply, abi.OUT_HEADER.size)
            assert offset < 0
            self.forgotten.append(node)
            return await self.receive()
        assert -4096 < error <= 0
        assert not error or length == abi.OUT_HEADER.size
        return unique, (error, reply[abi.OUT_HEADER.size :])

    async def ask(self, opcode: int, node: int = ROOT, body: bytes = b"", uid: int = 0) -> Reply:
        """One request and its reply; nothing else may come."""
        unique = self.send(opcode, node, body, uid)
        answered, reply = await self.receive()
        assert answered == unique
        return reply

    async def nothing_comes(self) -> None:
        """The next reply is that to a question asked now."""
        error, body = await self.ask(Opcode.STATFS)
        assert (error, len(body)) == (0, abi.STATFS_OUT.size)

    async def node(self, name: bytes) -> int:
        error, body = await self.ask(Opcode.LOOKUP, body=name + b"\0")
        assert error == 0
        return int.from_bytes(body[:8], "little")

    async def stand_in(self) -> None:
        """Answer what was passed on, each with the same error."""
        while True:
            await trio.lowlevel.wait_readable(self.behind)
            request = self.behind.recv(abi.LONGEST_REQUEST)
            self.forwarded.append(request)
            _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(request)
            if opcode not in abi.WITHOUT_REPLY:
                self.behind.send(abi.OUT_HEADER.pack(abi.OUT_HEADER.size, ERROR, unique))


@pytest.fixture
def base() -> Iterator[Path]:
    """In memory, where small copies are made at once."""
    with tempfile.TemporaryDirectory(prefix="overlayfs-lane-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def layers(base: Path) -> OverlayOptions:
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    lower = base / "lower"
    (lower / "file").write_bytes(b"0123456789")
    (lower / "large").write_bytes(b"L" * (2 << 20))
    (lower / "d").mkdir()
    for number in range(100):
        (lower / f"d/entry{number:03}").write_bytes(b"")
    (lower / "link").symlink_to("file")
    os.setxattr(lower / "file", "user.a", b"value")
    return OverlayOptions(lowers=(bytes(lower),), upper=bytes(base / "upper"), work=bytes(base / "work"))


@contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (first, second):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with first, second:
        yield first, second


@pytest.fixture
def play(layers: OverlayOptions) -> Iterator[Callable[..., None]]:
    """Runs a scene with a lane between the sockets; the lane must still be there at its end."""
    overlay = Overlay.open(layers)

    def run(scene: Callable[[Wire], Awaitable[None]], poll_us: int = 0) -> None:
        with _sockets() as (kernel, device), _sockets() as (behind, ours):
            kernel.setblocking(False)
            behind.setblocking(False)
            trio.run(_play, Wire(kernel, behind, overlay), device, ours, scene, poll_us)

    umask = os.umask(0)
    yield run
    os.umask(umask)
    overlay.close()


async def _play(
    wire: Wire,
    device: socket.socket,
    ours: socket.socket,
    scene: Callable[[Wire], Awaitable[None]],
    poll_us: int,
) -> None:
    tasks = Tasks()
    syncs, channel = Syncs(tasks), Channel(device.fileno())
    channel.connect(ours)
    copy_ups = CopyUps(wire.overlay, syncs)
    status = Status(wire.overlay, "test")
    control = Control(wire.overlay, copy_ups, device.fileno)
    lane = FastLane(
        wire.overlay,
        copy_ups,
        syncs,
        tasks,
        channel,
        poll_us=poll_us,
        status=status,
        control=control,
        passes_through=False,
    )
    status.transport_facts = lane.facts
    async with trio.open_nursery() as nursery:
        tasks.run_in(nursery)
        nursery.start_soon(syncs.serve)
        nursery.start_soon(relay, channel)
        nursery.start_soon(wire.stand_in)
        nursery.start_soon(serve_lane, lane, channel)
        await scene(wire)
        await wire.nothing_comes()
        assert channel.in_flight == 0
        nursery.cancel_scope.cancel()
    syncs.close()


Play = Callable[..., None]

# What a mount hardly sends


def test_syncfs_is_answered_by_a_task(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        uniques = {wire.send(Opcode.SYNCFS, body=bytes(8)) for _ in range(30)}
        replies = dict([await wire.receive() for _ in range(30)])
        assert replies == dict.fromkeys(uniques, (0, b""))
        assert wire.forwarded == []

    play(scene)


def test_unknown_and_foreign_opcodes_are_not_supported(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        for opcode in (0, 7, 19, 54, 60, 63, 64, 1000, 4096, 0xFFFF_FFFF, Opcode.BMAP, Opcode.POLL, Opcode.GETLK):
            assert await wire.ask(opcode, body=b"whatever\0") == (-errno.ENOSYS, b"")
        assert wire.forwarded == []

    play(scene)


def test_rename_of_a_directory_is_passed_on_unchanged(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        body = struct.pack("<Q", ROOT) + b"d\0moved\0"
        assert await wire.ask(Opcode.RENAME, body=body) == (ERROR, b"")
        [request] = wire.forwarded
        assert abi.IN_HEADER.unpack_from(request)[1] == Opcode.RENAME
        assert request[abi.IN_HEADER.size :] == body

    play(scene)


def test_what_has_no_reply_gets_none(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        node = await wire.node(b"file")
        wire.send(Opcode.INTERRUPT, 0, struct.pack("<Q", 2))
        wire.send(Opcode.INTERRUPT, 0, struct.pack("<Q", 1 << 60))
        wire.send(Opcode.FORGET, UNKNOWN, struct.pack("<Q", 1))
        wire.send(Opcode.FORGET, ROOT, struct.pack("<Q", 1 << 40))
        wire.send(Opcode.NOTIFY_REPLY, 0, bytes(40))
        wire.send(Opcode.FORGET, node, struct.pack("<Q", 1))
        await wire.nothing_comes()
        assert wire.overlay.facts()["inodes"] == 1

    play(scene)


def test_batch_forget(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        names = (b"file", b"large", b"d")
        nodes = [await wire.node(name) for name in names]
        assert [await wire.node(name) for name in names] == nodes
        pairs = b"".join(struct.pack("<QQ", node, 1) for node in (*nodes, UNKNOWN))
        wire.send(Opcode.BATCH_FORGET, 0, struct.pack("<II", 4, 0) + pairs)
        await wire.nothing_comes()
        assert wire.overlay.facts()["inodes"] == 4
        wire.send(Opcode.BATCH_FORGET, 0, struct.pack("<II", 2, 0) + pairs)  # only the first two of them
        await wire.nothing_comes()
        assert wire.overlay.facts()["inodes"] == 2
        wire.send(Opcode.BATCH_FORGET, 0, struct.pack("<II", 0, 0))
        wire.send(Opcode.BATCH_FORGET, 0, struct.pack("<II", 3, 0) + struct.pack("<QQ", nodes[2], 99))
        await wire.nothing_comes()
        assert wire.overlay.facts()["inodes"] == 1

    play(scene)


def test_failure_to_read_ahead_is_nobodys(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    names, failures = lookup.names, []

    def failing(state: State, directory: Directory) -> list[bytes]:
        if directory.number != ROOT:
            failures.append(directory.name)
            raise ValueError("a fault of ours")
        return names(state, directory)

    async def scene(wire: Wire) -> None:
        monkeypatch.setattr(lookup, "names", failing)
        error, _ = await wire.ask(Opcode.READDIRPLUS, body=abi.READ_IN.pack(0, 0, 1 << 16, 0, 0, 0, 0))
        assert error == 0
        await wire.node(b"file")

    play(scene, poll_us=100_000)
    assert failures == [b"d"]


# Messages that are wrong

_SHORT = [opcode for opcode in Opcode if opcode not in abi.WITHOUT_REPLY and opcode is not Opcode.INIT]


@pytest.mark.parametrize("body", [b"", b"\0", b"x", b"\xff" * 7], ids=["empty", "nul", "letter", "seven"])
def test_short_messages_are_answered(body: bytes, play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")
        for opcode in _SHORT:
            for node in (ROOT, file, UNKNOWN):
                await wire.ask(opcode, node, body)
        for silent in abi.WITHOUT_REPLY:
            wire.send(silent, file, body)
        assert await wire.node(b"file") == file

    play(scene)


def _messages_with_names(*names: bytes) -> list[tuple[int, bytes]]:
    """Each request that makes, moves, finds or removes an entry of this name, or these, in its directory."""
    text = b"".join(names)
    first, rest = names[0], b"x\0" + text
    return [
        (Opcode.LOOKUP, text),
        (Opcode.CREATE, abi.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + text),
        (Opcode.MKDIR, struct.pack("<II", 0o755, 0) + text),
        (Opcode.MKNOD, abi.MKNOD_IN.pack(stat.S_IFIFO | 0o644, 0, 0, 0) + text),
        (Opcode.SYMLINK, text + b"target\0"),
        (Opcode.RENAME, abi.RENAME_IN.pack(ROOT) + b"file\0" + first),
        (Opcode.RENAME, abi.RENAME_IN.pack(ROOT) + rest),
        (Opcode.RENAME2, abi.RENAME2_IN.pack(ROOT, 0, 0) + b"file\0" + first),
        (Opcode.UNLINK, text),
        (Opcode.RMDIR, text),
    ]


@pytest.mark.parametrize("name", [b"../escaped\0", b"d/made\0", b"/escaped\0", b"made/\0", b"/\0", b"\0"])
def test_paths_for_names_are_refused(name: bytes, play: Play, base: Path) -> None:
    before = {top: sorted(os.listdir(base / top)) for top in (".", "upper")}

    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")
        for opcode, body in (*_messages_with_names(name), (Opcode.LINK, abi.LINK_IN.pack(file) + name)):
            assert await wire.ask(opcode, body=body) == (-errno.EIO, b""), opcode

    play(scene)
    assert before == {top: sorted(os.listdir(base / top)) for top in (".", "upper")}


@pytest.mark.parametrize("name", [b"made", b"ma\0de\0", b"made\0\0"], ids=["endless", "two", "empty-second"])
def test_names_that_are_not_one_string_are_refused(name: bytes, play: Play, base: Path) -> None:
    before = os.listdir(base / "upper")

    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")
        more = [(Opcode.LINK, abi.LINK_IN.pack(file) + name), (Opcode.REMOVEXATTR, name)]
        for opcode, body in (*_messages_with_names(name), *more):
            if opcode is not Opcode.SYMLINK:
                assert await wire.ask(opcode, body=body) == (-errno.EIO, b""), opcode
        for body in (b"made\0target", b"made\0target\0more\0", b"made\0target\0\0", b"made\0"):
            assert await wire.ask(Opcode.SYMLINK, body=body) == (-errno.EIO, b"")

    play(scene)
    assert os.listdir(base / "upper") == before


def test_messages_that_hold_less_data_than_they_say_are_refused(play: Play, base: Path) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")
        for body in (abi.SETXATTR_IN.pack(5, 0) + b"user.a\0four", abi.SETXATTR_IN.pack(1, 0) + b"user.a"):
            assert await wire.ask(Opcode.SETXATTR, file, body) == (-errno.EIO, b"")
        write = abi.WRITE_IN.pack(0, 0, 5, 0, 0, 0, 0) + b"four"
        assert await wire.ask(Opcode.WRITE, file, write) == (-errno.EIO, b"")
        ioctl = abi.IOCTL_IN.pack(0, 0, SETFLAGS, 0, 4, 0) + b"\x40\0"
        assert await wire.ask(Opcode.IOCTL, file, ioctl) == (-errno.EIO, b"")

    play(scene)
    assert os.listdir(base / "upper") == []


def test_message_shorter_than_its_header_does_nothing(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        assert (await wire.ask(Opcode.MKDIR, body=struct.pack("<II", 0o755, 0) + b"made\0"))[0] == 0
        assert (await wire.ask(Opcode.RMDIR, body=b"made\0"))[0] == 0
        await wire.ask(Opcode.MKDIR, body=struct.pack("<II", 0o755, 0) + b"last\0")
        wire.kernel.send(b"short")
        wire.kernel.send(bytes(abi.IN_HEADER.size - 1))
        await wire.nothing_comes()

    play(scene)


def test_unknown_nodes_are_stale(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        for opcode, body in (
            (Opcode.GETATTR, bytes(16)),
            (Opcode.LOOKUP, b"file\0"),
            (Opcode.READ, bytes(40)),
            (Opcode.READLINK, b""),
            (Opcode.UNLINK, b"file\0"),
            (Opcode.LSEEK, bytes(24)),
            (Opcode.READDIR, bytes(40)),
        ):
            error, _ = await wire.ask(opcode, UNKNOWN, body)
            assert error in (-errno.ESTALE, -errno.ENOENT), opcode

    play(scene)


def test_random_messages_are_answered_once_each(play: Play) -> None:
    seed = 20
    choice = random.Random(seed)
    opcodes = [opcode for opcode in Opcode if opcode not in (Opcode.INIT, Opcode.FALLOCATE)] + [0, 54, 63, 64, 9999]

    async def scene(wire: Wire) -> None:
        nodes = [ROOT, UNKNOWN, 0, *[await wire.node(name) for name in (b"file", b"large", b"d", b"link")]]
        for _ in range(3000):
            body = choice.randbytes(choice.choice((0, 1, 8, 16, 24, 40, 48, 60, 88, 200)))
            body = bytes(byte if choice.random() < 0.4 else 0 for byte in body)
            if choice.random() < 0.5:
                body += choice.choice((b"file\0", b"d\0", b"a\0b\0", b"..\0", b"/\0", b"x" * 300 + b"\0"))
            opcode = choice.choice(opcodes)
            if opcode in abi.WITHOUT_REPLY:
                wire.send(opcode, choice.choice(nodes), body)
            else:
                await wire.ask(opcode, choice.choice(nodes), body)

    print(f"seed {seed}")
    play(scene)


# Names


def test_rename_and_rename2(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        def names(old: bytes, new: bytes) -> bytes:
            return old + b"\0" + new + b"\0"

        def second(flags: int, old: bytes, new: bytes) -> bytes:
            return struct.pack("<QII", ROOT, flags, 0) + names(old, new)

        first = struct.pack("<Q", ROOT)
        assert await wire.ask(Opcode.RENAME, ROOT, first + names(b"file", b"moved")) == (0, b"")
        assert await wire.ask(Opcode.RENAME, ROOT, first + names(b"file", b"moved")) == (-errno.ENOENT, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(0, b"moved", b"file")) == (0, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(1, b"file", b"link")) == (-errno.EEXIST, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(2, b"file", b"absent")) == (-errno.ENOENT, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(2, b"file", b"link")) == (0, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(3, b"file", b"link")) == (-errno.EINVAL, b"")
        assert await wire.ask(Opcode.RENAME2, ROOT, second(1 << 20, b"file", b"link")) == (-errno.EINVAL, b"")
        file, link = await wire.node(b"file"), await wire.node(b"link")
        assert await wire.ask(Opcode.READLINK, file) == (0, b"file")
        assert (await wire.ask(Opcode.READLINK, link))[0] == -errno.EINVAL
        for broken in (b"", b"one", b"one\0", b"a\0b\0c\0"):
            assert (await wire.ask(Opcode.RENAME, ROOT, first + broken))[0] < 0
        assert wire.forwarded == []
        # a directory may have to be copied with all that is in it
        assert await wire.ask(Opcode.RENAME, ROOT, first + names(b"d", b"e")) == (ERROR, b"")
        assert len(wire.forwarded) == 1

    play(scene)


def test_absent_name_is_an_entry_that_may_be_kept(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        error, body = await wire.ask(Opcode.LOOKUP, body=b"absent\0")
        node, _, entry_s, *_ = struct.unpack_from("<QQQQII", body)
        assert (error, node, len(body)) == (0, 0, abi.ENTRY_SIZE)
        assert entry_s > 365 * 86400
        assert (await wire.ask(Opcode.LOOKUP, body=b"n" * 256 + b"\0"))[0] == -errno.ENAMETOOLONG
        assert (await wire.ask(Opcode.LOOKUP, await wire.node(b"file"), b"x\0"))[0] == -errno.ENOTDIR

    play(scene)


# Extended attributes


def test_xattr_sizes(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")

        async def get(name: bytes, size: int, node: int = file) -> Reply:
            return await wire.ask(Opcode.GETXATTR, node, struct.pack("<II", size, 0) + name + b"\0")

        async def names(size: int, uid: int = 0) -> Reply:
            return await wire.ask(Opcode.LISTXATTR, file, struct.pack("<II", size, 0), uid)

        assert await get(b"user.a", 0) == (0, struct.pack("<II", 5, 0))
        assert await get(b"user.a", 4) == (-errno.ERANGE, b"")
        assert await get(b"user.a", 5) == (0, b"value")
        assert await get(b"user.a", 1 << 16) == (0, b"value")
        assert await get(b"user.b", 0) == (-errno.ENODATA, b"")
        assert await get(b"user.b", 100) == (-errno.ENODATA, b"")
        assert await get(b"trusted.overlay.origin", 100) == (-errno.ENODATA, b"")
        assert await names(0) == (0, struct.pack("<II", 7, 0))
        assert await names(6) == (-errno.ERANGE, b"")
        assert await names(7) == await names(4096) == await names(7, uid=1000) == (0, b"user.a\0")
        assert wire.forwarded == []
        error, size = await get(b"user.overlayfs.status", 0, ROOT)
        error, document = await get(b"user.overlayfs.status", struct.unpack("<II", size)[0], ROOT)
        assert error == 0
        assert json.loads(document)["lane"] is True
        assert await get(b"user.overlayfs.status", 100) == (-errno.ENODATA, b"")

    play(scene)


# Data


def test_reads_at_every_edge(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file, large = await wire.node(b"file"), await wire.node(b"large")

        async def read(node: int, offset: int, size: int) -> Reply:
            return await wire.ask(Opcode.READ, node, abi.READ_IN.pack(0, offset, size, 0, 0, 0, 0))

        assert await read(file, 0, 100) == (0, b"0123456789")
        assert await read(file, 8, 2) == (0, b"89")
        assert await read(file, 10, 10) == await read(file, 1 << 40, 10) == await read(file, 0, 0) == (0, b"")
        assert (await read(ROOT, 0, 10))[0] == -errno.EISDIR
        assert await read(large, 100, 1 << 20) == (0, b"L" * (1 << 20))
        assert (await read(file, 1 << 63, 10))[0] < 0

    play(scene)


def test_writes_and_their_lengths(play: Play, layers: OverlayOptions) -> None:
    async def scene(wire: Wire) -> None:
        file, large = await wire.node(b"file"), await wire.node(b"large")

        async def write(node: int, offset: int, data: bytes) -> Reply:
            return await wire.ask(Opcode.WRITE, node, abi.WRITE_IN.pack(0, offset, len(data), 0, 0, 0, 0) + data)

        assert await write(file, 2, b"ab") == (0, struct.pack("<II", 2, 0))
        assert await write(file, 0, b"") == (0, bytes(8))
        assert await write(large, 1 << 20, b"X" * 5000) == (0, struct.pack("<II", 5000, 0))
        assert (await write(ROOT, 0, b"x"))[0] == -errno.EISDIR
        _, attributes = await wire.ask(Opcode.GETATTR, large, bytes(16))
        assert struct.unpack_from("<Q", attributes, abi.ATTR_TIMES.size + 8) == (2 << 20,)

    play(scene)
    assert (Path(os.fsdecode(layers.upper or b"")) / "file").read_bytes() == b"01ab456789"
    written = (Path(os.fsdecode(layers.upper or b"")) / "large").read_bytes()
    assert written[(1 << 20) - 1 :][:5002] == b"L" + b"X" * 5000 + b"L"


def test_writes_to_a_file_that_is_copied_up_keep_their_data(play: Play, layers: OverlayOptions) -> None:
    """The buffer they came in is used again while they wait."""

    async def scene(wire: Wire) -> None:
        large = await wire.node(b"large")
        uniques = {
            wire.send(Opcode.WRITE, large, abi.WRITE_IN.pack(0, at * 4, 4, 0, 0, 0, 0) + b"%04d" % at)
            for at in range(100)
        }
        replies = dict([await wire.receive() for _ in range(100)])
        assert replies == dict.fromkeys(uniques, (0, struct.pack("<II", 4, 0)))

    play(scene)
    written = (Path(os.fsdecode(layers.upper or b"")) / "large").read_bytes()
    assert written[:401] == b"".join(b"%04d" % at for at in range(100)) + b"L"


def test_holes_and_nonsense_of_lseek_and_fallocate(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")

        async def seek(node: int, offset: int, whence: int) -> Reply:
            return await wire.ask(Opcode.LSEEK, node, struct.pack("<QqII", 0, offset, whence, 0))

        async def allocate(node: int, offset: int, length: int, mode: int = 0) -> int:
            return (await wire.ask(Opcode.FALLOCATE, node, abi.FALLOCATE_IN.pack(0, offset, length, mode, 0)))[0]

        assert await seek(file, 0, os.SEEK_DATA) == (0, struct.pack("<Q", 0))
        assert await seek(file, 0, os.SEEK_HOLE) == (0, struct.pack("<Q", 10))
        assert await seek(file, 10, os.SEEK_DATA) == await seek(file, -1, os.SEEK_HOLE) == (-errno.ENXIO, b"")
        assert (await seek(file, 0, 99))[0] == -errno.EINVAL
        assert (await seek(ROOT, 0, os.SEEK_DATA))[0] < 0
        assert await allocate(file, 0, 8192) == 0
        assert await allocate(file, 0, 0) == -errno.EINVAL
        assert await allocate(file, 0, 10, mode=1 << 20) == -errno.EOPNOTSUPP
        assert await allocate(ROOT, 0, 10) < 0

    play(scene)


def test_ioctl_of_flags_and_of_nothing_else(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")

        async def ask(command: int, data: bytes, out_size: int, node: int = file) -> Reply:
            head = abi.IOCTL_IN.pack(0, 0, command, 0, len(data), out_size)
            return await wire.ask(Opcode.IOCTL, node, head + data)

        error, body = await ask(GETFLAGS, b"", 4)
        assert (error, len(body)) == (0, abi.IOCTL_OUT.size + 4)
        flags = body[-4:]
        # the kernel takes no more than it has room for: without any, only what says that all went well
        assert wire.forgotten == []
        assert await ask(SETFLAGS, flags, 0) == (0, bytes(abi.IOCTL_OUT.size))
        assert wire.forgotten == [file]
        assert await ask(SETFLAGS, flags[:2], 0) == (-errno.EINVAL, b"")
        assert await ask(0x5401, b"", 60) == (-errno.ENOTTY, b"")
        assert (await ask(GETFLAGS, b"", 4, await wire.node(b"link")))[0] == -errno.ENOTTY

    play(scene)


def test_copy_file_range_in_messages(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file, large = await wire.node(b"file"), await wire.node(b"large")

        async def copy(source: int, start: int, target: int, at: int, length: int) -> Reply:
            body = abi.COPY_FILE_RANGE_IN.pack(0, start, target, 0, at, length, 0)
            return await wire.ask(Opcode.COPY_FILE_RANGE, source, body)

        assert await copy(file, 0, large, 5, 10) == (0, struct.pack("<II", 10, 0))
        assert await copy(file, 8, large, 5, 10) == (0, struct.pack("<II", 2, 0))
        assert await copy(file, 100, large, 5, 10) == (0, bytes(8))
        assert await copy(large, 0, file, 0, 1 << 40) == (0, struct.pack("<II", 2 << 20, 0))
        assert (await copy(large, 0, large, 1, 100))[0] == -errno.EINVAL
        assert (await copy(ROOT, 0, file, 0, 1))[0] == -errno.EISDIR
        assert (await copy(file, 0, ROOT, 0, 1))[0] == -errno.EISDIR
        assert (await copy(file, 0, UNKNOWN, 0, 1))[0] in (-errno.ESTALE, -errno.ENOENT)

    play(scene)


# Directories


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_listing_fits_what_there_is_room_for(opcode: Opcode, play: Play) -> None:
    head = abi.ENTRY_SIZE if opcode is Opcode.READDIRPLUS else 0

    async def scene(wire: Wire) -> None:
        directory = await wire.node(b"d")
        for size in (head + 32, 500, 4096, 1 << 20):
            found: list[bytes] = []
            nodes: list[int] = []
            offset = 0
            while True:
                error, body = await wire.ask(opcode, directory, abi.READ_IN.pack(0, offset, size, 0, 0, 0, 0))
                assert error == 0
                assert len(body) <= size
                if not body:
                    break
                at = 0
                while at < len(body):
                    if head:
                        nodes.append(int.from_bytes(body[at : at + 8], "little"))
                    offset, length, _kind = abi.DIRENT.unpack_from(body, at + head + 8)
                    start = at + head + abi.DIRENT_SIZE
                    found.append(body[start : start + length])
                    at = start + (length + 7 & ~7)
            assert sorted(found) == sorted([b".", b"..", *(b"entry%03d" % number for number in range(100))])
            for node in filter(None, nodes):
                wire.send(Opcode.FORGET, node, struct.pack("<Q", 1))
        assert (await wire.ask(opcode, directory, abi.READ_IN.pack(0, 0, 8, 0, 0, 0, 0))) == (0, b"")
        assert (await wire.ask(opcode, directory, abi.READ_IN.pack(0, 1 << 62, 4096, 0, 0, 0, 0))) == (0, b"")
        file = await wire.node(b"file")
        assert (await wire.ask(opcode, file, abi.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)))[0] == -errno.ENOTDIR
        assert wire.overlay.facts()["inodes"] == 3  # the root, the directory and the file

    play(scene)


# Passing on


def test_more_requests_than_pyfuse3_has_room_for_arrive_in_order(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        body = struct.pack("<Q", ROOT) + b"d\0moved\0"  # pyfuse3 never renames it here
        uniques = [wire.send(Opcode.RENAME, body=body) for _ in range(300)]
        answered = [await wire.receive() for _ in uniques]
        assert sorted(unique for unique, _ in answered) == uniques
        assert [abi.IN_HEADER.unpack_from(request)[2] for request in wire.forwarded] == uniques

    play(scene)


def test_open_is_not_asked_again(play: Play) -> None:
    async def scene(wire: Wire) -> None:
        file = await wire.node(b"file")
        expected = (-errno.ENOSYS, b"") if os.geteuid() == 0 else None
        for opcode, node in ((Opcode.OPEN, file), (Opcode.OPENDIR, ROOT), (Opcode.FLUSH, file)):
            answer = await wire.ask(opcode, node, struct.pack("<IIQQ", 0, 0, 0, 0))
            assert expected is None or answer == expected

    play(scene)
