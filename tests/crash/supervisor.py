"""What does one system call of an operation do: run, fail, write less, or never return?

A forked child puts itself under a seccomp filter whose listener the parent holds, so each listed call of
each of its threads waits for the parent's decision.  That is exact (a call is named by its number, and not
executed before the decision) and costs milliseconds a point, where tracing an interpreter's start costs a
second.  Only calls made while the child's gate is armed are recorded.
"""

import ctypes
import fcntl
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from .syscall_table import (
    MUTATING_IOCTLS,
    MUTATING_OPEN_FLAGS,
    PROCESS_CALLS,
    SHORTENABLE,
    SYSCALLS,
    audit_architecture,
)

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP, SYS_PIDFD_GETFD, SYS_COPY_FILE_RANGE, SYS_SENDFILE = 317, 438, 326, 40
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 1 << 3
SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW = 0x7FC00000, 0x7FFF0000
NOTIF_RECV, NOTIF_SEND, NOTIF_CONTINUE = 0xC0502100, 0xC0182101, 1
BPF_LOAD_WORD, BPF_JUMP_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06

NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, nr, arch, instruction pointer, arguments
RESPONSE = struct.Struct("=QqiI")  # id, value, -errno, flags


class Call(NamedTuple):
    """One armed call; `text` names what it was applied to, for messages."""

    name: str
    text: str
    mutates: bool


class Kill:
    """The process dies of SIGKILL before the call is executed."""


class Short:
    """The call transfers one byte only (zero is no short write but an error)."""


class Fail(NamedTuple):
    """The call is not executed and returns this errno."""

    errno: int


class Fault(NamedTuple):
    """What happens at the armed call number `number`."""

    number: int
    action: Kill | Short | Fail


class Ending(Enum):
    RETURNED = auto()
    KILLED = auto()
    DIED = auto()


@dataclass(slots=True)
class Run:
    """What a child did: its armed calls, the steps it completed, how it ended and what it sent."""

    calls: list[Call] = field(default_factory=list)
    completed: int = 0
    ending: Ending = Ending.DIED
    sent: object = None
    struck: Call | None = None


class Gate:
    """The child's side: says which calls count and how far it came.  Shared memory, so it costs no call."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def arm(self) -> None:
        self._memory[0] = 1

    def disarm(self) -> None:
        self._memory[0] = 0

    def completed(self, steps: int) -> None:
        self._memory[1] = steps

    @property
    def is_armed(self) -> bool:
        return bool(self._memory[0])

    @property
    def steps(self) -> int:
        return self._memory[1]

    def close(self) -> None:
        self._memory.close()


def supervise(
    work: Callable[[Gate], object], fault: Fault | None = None, on_sync: Callable[[int], None] | None = None
) -> Run:
    """Fork, run `work(gate)` in the child under the filter with `fault` injected, and collect its result.

    `on_sync` is called before each fsync and fdatasync, armed or not, with a descriptor of the file of its own.
    """
    gate = Gate()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(work, gate, theirs)
    theirs.close()
    try:
        return _Supervisor(pid, gate, ours, fault, on_sync).run()
    finally:
        ours.close()
        gate.close()


def _child(work: Callable[[Gate], object], gate: Gate, channel: socket.socket) -> None:
    code = 1
    try:
        listener = install_filter()
        socket.send_fds(channel, [b"F"], [listener])
        os.close(listener)
        result = work(gate)
        gate.disarm()
        channel.sendall(pickle.dumps(result))  # sendto is not among the filtered calls
        code = 0
    except BaseException:  # noqa: BLE001  told to the parent, which raises
        gate.disarm()
        channel.sendall(pickle.dumps(_Broken(traceback.format_exc())))
    finally:
        channel.close()
        os._exit(code)


class _Broken(NamedTuple):
    """The child's own code, not the engine's, raised: a fault of the test."""

    traceback: str


def install_filter(calls: Iterable[int] = SYSCALLS) -> int:
    """Put the calling process, and all that come from it, under the filter; the descriptor that announces their calls,
    given by number."""
    numbers = sorted(calls)
    code = [struct.pack("=HBBI", BPF_LOAD_WORD, 0, 0, 0)]
    for position, number in enumerate(numbers):
        code.append(struct.pack("=HBBI", BPF_JUMP_EQUAL, len(numbers) - position, 0, number))
    code.append(struct.pack("=HBBI", BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW))
    code.append(struct.pack("=HBBI", BPF_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF))
    buffer = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(buffer)))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = int(_libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification")
    return listener


class _Supervisor:
    """The parent's side of one child: answers its calls until it ends."""

    def __init__(
        self,
        pid: int,
        gate: Gate,
        channel: socket.socket,
        fault: Fault | None,
        on_sync: Callable[[int], None] | None,
    ) -> None:
        self.pid = pid
        self.gate = gate
        self.channel = channel
        self.fault = fault
        self.on_sync = on_sync
        self.outcome = Run()
        self.killed = False
        self.received = b""

    def run(self) -> Run:
        _, descriptors, _, _ = socket.recv_fds(self.channel, 1, 1)
        if not descriptors:
            return self._reap()
        self.listener = descriptors[0]
        pidfd = os.pidfd_open(self.pid)
        self.pidfd = pidfd
        try:
            self._serve()
        finally:
            os.close(self.listener)
            os.close(pidfd)
        return self._reap()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if ready.get(self.channel.fileno(), 0) & select.POLLIN:
                self.received += self.channel.recv(1 << 20)
            if ready.get(self.listener, 0) & select.POLLIN:
                self._answer()
            elif self.pidfd in ready:
                return

    def _reap(self) -> Run:
        while chunk := self.channel.recv(1 << 20):
            self.received += chunk
        _, status = os.waitpid(self.pid, 0)
        outcome = self.outcome
        outcome.completed = self.gate.steps
        if self.killed and os.WIFSIGNALED(status):
            outcome.ending = Ending.KILLED
        elif self.received:
            outcome.ending = Ending.RETURNED
            outcome.sent = pickle.loads(self.received)
        if isinstance(outcome.sent, _Broken):
            raise AssertionError("the supervised code broke:\n" + outcome.sent.traceback)
        return outcome

    def _answer(self) -> None:
        buffer = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, NOTIF_RECV, buffer)
        except (FileNotFoundError, InterruptedError):
            return  # the caller died or was interrupted before we took its call
        ident, tid, _, number, _, _, *arguments = NOTIFICATION.unpack(buffer)
        call = describe(tid, number, arguments)
        if self.on_sync is not None and call.name in ("fsync", "fdatasync"):
            self._tell_of_sync(arguments[0])
        if not self.gate.is_armed or (call.name == "write" and arguments[0] in (1, 2)):  # the log is no point
            self._reply(ident, 0, 0, NOTIF_CONTINUE)
            return
        self.outcome.calls.append(call)
        if self.fault is None or len(self.outcome.calls) - 1 != self.fault.number:
            self._reply(ident, 0, 0, NOTIF_CONTINUE)
            return
        self._strike(ident, tid, call, arguments, self.fault.action)

    def _tell_of_sync(self, descriptor: int) -> None:
        copy = self._borrow(descriptor)
        try:
            assert self.on_sync is not None
            self.on_sync(copy)
        finally:
            os.close(copy)

    def _strike(self, ident: int, tid: int, call: Call, arguments: list[int], action: Kill | Short | Fail) -> None:
        self.outcome.struck = call
        if isinstance(action, Kill):
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)
        elif isinstance(action, Fail):
            self._reply(ident, 0, -action.errno, 0)
        elif call.name not in SHORTENABLE:  # another call than in the run before: it transfers nothing
            self._reply(ident, 0, 0, NOTIF_CONTINUE)
        else:
            self._reply(ident, self._transfer_one_byte(tid, call.name, arguments), 0, 0)

    def _reply(self, ident: int, value: int, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self.listener, NOTIF_SEND, RESPONSE.pack(ident, value, error, flags))
        except FileNotFoundError:
            return  # the caller is gone

    def _transfer_one_byte(self, tid: int, name: str, arguments: list[int]) -> int:
        """Do the call for the child with its own open file descriptions, but for one byte."""
        first = self._borrow(arguments[0])
        second = self._borrow(arguments[2 if name == "copy_file_range" else 1]) if name in _TWO_FILES else -1
        try:
            if name == "write":
                return os.write(first, _peek(tid, arguments[1], 1))
            if name == "pwrite64":
                return os.pwrite(first, _peek(tid, arguments[1], 1), arguments[3])
            if name == "copy_file_range":
                return _copy_one(tid, first, second, arguments[1], arguments[3])
            return _send_one(tid, first, second, arguments[2])
        finally:
            for descriptor in (first, second):
                if descriptor >= 0:
                    os.close(descriptor)

    def _borrow(self, descriptor: int) -> int:
        """A duplicate of the child's descriptor: the same open file description, offset included."""
        copy = int(_libc.syscall(SYS_PIDFD_GETFD, self.pidfd, ctypes.c_int(descriptor & 0xFFFFFFFF), 0))
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return copy


_TWO_FILES = frozenset({"copy_file_range", "sendfile"})


def _copy_one(tid: int, source: int, target: int, source_offset: int, target_offset: int) -> int:
    offset_in = _peek_offset(tid, source_offset)
    offset_out = _peek_offset(tid, target_offset)
    copied = os.copy_file_range(source, target, 1, offset_in, offset_out)
    _poke_offset(tid, source_offset, offset_in, copied)
    _poke_offset(tid, target_offset, offset_out, copied)
    return copied


def _send_one(tid: int, target: int, source: int, offset_pointer: int) -> int:
    offset = _peek_offset(tid, offset_pointer)
    data = os.read(source, 1) if offset is None else os.pread(source, 1, offset)
    sent = os.write(target, data) if data else 0
    _poke_offset(tid, offset_pointer, offset, sent)
    return sent


def _peek(tid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _peek_offset(tid: int, pointer: int) -> int | None:
    return struct.unpack("=q", _peek(tid, pointer, 8))[0] if pointer else None


def _poke_offset(tid: int, pointer: int, offset: int | None, moved: int) -> None:
    if offset is None:
        return
    with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
        memory.seek(pointer)
        memory.write(struct.pack("=q", offset + moved))


def _peek_name(tid: int, address: int) -> str:
    """A path argument; read to the page's end at most, so an unmapped neighbour does no harm."""
    if not address:
        return ""
    size = min(256, mmap.PAGESIZE - address % mmap.PAGESIZE)
    return _peek(tid, address, size).split(b"\0")[0].decode(errors="replace")


def describe(tid: int, number: int, arguments: list[int]) -> Call:
    """A call of a live thread, by its number in the tables."""
    syscall = SYSCALLS.get(number) or PROCESS_CALLS[number]
    try:
        text = "" if syscall.path_argument is None else _peek_name(tid, arguments[syscall.path_argument])
        mutates = syscall.mutates or _mutates_by_arguments(tid, syscall.name, arguments)
    except OSError:  # killed meanwhile
        text, mutates = "?", syscall.mutates
    return Call(syscall.name, text, mutates)


def _mutates_by_arguments(tid: int, name: str, arguments: list[int]) -> bool:
    if name == "ioctl":
        return arguments[1] & 0xFFFFFFFF in MUTATING_IOCTLS
    if name == "openat2":
        return bool(struct.unpack("=Q", _peek(tid, arguments[2], 8))[0] & MUTATING_OPEN_FLAGS)
    if name in ("open", "openat"):
        return bool(arguments[1 if name == "open" else 2] & MUTATING_OPEN_FLAGS)
    return name == "creat"


assert audit_architecture()  # the numbers above are right on this machine only
