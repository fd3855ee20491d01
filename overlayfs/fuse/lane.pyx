# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""How are hot requests taken from the kernel before pyfuse3 sees them?

The lane reads the kernel's descriptor into one buffer, answers out of another, and forwards what it does not answer. A
request is forwarded before the engine has done anything for it, or not at all. A request that waits for a disk becomes
a task. All of it happens on the thread that owns the engine, in one of two loops: `bare`, which has neither tasks nor
pyfuse3 and ends as soon as one of them is needed, and then `looping`, which runs on trio.

Compiled, as C structs are its substance. The hottest requests are answered here; for the others a subclass in Python
has a method `_<opcode>`. Every message is checked for its length before it is read as a struct.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE, PyBytes_Size
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENODATA, ENODEV, ENOENT, ENOSYS, ERANGE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset
from posix.fcntl cimport O_APPEND
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.stat cimport S_ISGID, S_ISUID
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport read, write

from overlayfs.fuse.messages cimport *
from overlayfs.overlay.engine cimport Overlay
from overlayfs.overlay.listing cimport Sink
from overlayfs.overlay.values cimport (
    ASKED_ATIME, ASKED_CTIME, ASKED_GID, ASKED_MODE, ASKED_MTIME, ASKED_SIZE, ASKED_UID, AttributeChanges, Attributes,
    Caller,
)

from overlayfs._log import Log
import os

from overlayfs.fuse import abi
from overlayfs.fuse.abi import Opcode
from overlayfs.fuse.callers import caller_with_groups
from overlayfs.overlay.copyup import Need

cdef extern from "<sched.h>" nogil:
    int sched_yield()

# In a build with AddressSanitizer nobody may read behind a message, nor keep a view of it for later.
cdef extern from * nogil:
    """
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define forbid_access(start, size) ASAN_POISON_MEMORY_REGION(start, size)
    #define allow_access(start, size) ASAN_UNPOISON_MEMORY_REGION(start, size)
    #else
    #define forbid_access(start, size) ((void)0)
    #define allow_access(start, size) ((void)0)
    #endif
    """
    void forbid_access(void *start, size_t size)
    void allow_access(void *start, size_t size)

log = Log(__name__)

RETRY_S = 0.05  # after the kernel or pyfuse3 did not take or give a message

# How `serve_turn` ends: the turn is over; no request has come for a while; none will come; the kernel fails to give one.
TURN_OVER, NOTHING, UNMOUNTED, FAILED = range(4)
cdef enum:
    _TURN_OVER, _NOTHING, _UNMOUNTED, _FAILED

cdef enum:
    _LIMIT = 64  # abi.OPCODE_LIMIT
    _NO_REPLY = -1  # was sent already, comes later, or never

cdef Py_ssize_t _LONGEST = abi.LONGEST_REQUEST
cdef object _DATA = Need.DATA
cdef object _METADATA = Need.METADATA
cdef uint32_t _SETTABLE = (
    ASKED_MODE | ASKED_UID | ASKED_GID | ASKED_SIZE | ASKED_ATIME | ASKED_MTIME | ASKED_CTIME
)
cdef uint64_t _FOR_EVER_S = 10 * 365 * 86400
cdef uint64_t _CROWDED_NS = 200_000  # a sched_yield(2) that takes longer gave the processor to another program
cdef uint64_t _SHORTEST_PAUSE_NS = 50_000_000
cdef uint64_t _LONGEST_PAUSE_NS = 2_000_000_000


class Forwarded(Exception):
    """Raised to forward the request to pyfuse3."""


cdef uint64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef char *_pages() except NULL:
    """Room for the longest message. Memory is taken as messages of that length come."""
    found = mmap(NULL, _LONGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if found == MAP_FAILED:
        raise MemoryError
    return <char *>found


cdef struct _Invalidation:
    fuse_out_header header
    fuse_notify_inval_inode_out body


def invalidate_each(int device_fd, list numbers not None):
    """Send FUSE_NOTIFY_INVAL_INODE for each inode: the kernel drops what it keeps of its attributes and its data. That
    waits for requests, which another thread has to answer. Returns the errnos of those that failed."""
    cdef Py_ssize_t at, count = len(numbers)
    cdef uint64_t *results = <uint64_t *>malloc((count + 1) * sizeof(uint64_t))
    cdef _Invalidation message
    if results is NULL:
        raise MemoryError
    try:
        for at in range(count):
            results[at] = numbers[at]
        memset(&message, 0, sizeof(message))  # from the start of the file to its end
        message.header.len, message.header.error = sizeof(message), FUSE_NOTIFY_INVAL_INODE
        with nogil:
            for at in range(count):
                message.body.ino = results[at]
                results[at] = errno if write(device_fd, &message, sizeof(message)) < 0 else 0
        return [results[at] for at in range(count) if results[at]]
    finally:
        free(results)


cdef class _Listing(Sink)


cdef class Lane:
    """Reads requests, and answers, postpones or forwards each.

    `timeout_s` is how long the kernel may trust names and attributes, None for ever. Not thread-safe.
    """

    cdef readonly Overlay _overlay
    cdef readonly object _channel, _tasks, _copy_ups, _unseen
    cdef public bint counts_opens  # whether the kernel asks for opens
    cdef int _device_fd
    cdef char *_in  # the request; owned
    cdef char *_out  # the reply, its header first; owned
    cdef fuse_in_header *_header
    cdef Py_ssize_t _length  # of the request
    cdef uint64_t _whole_s
    cdef uint64_t _answered[_LIMIT]
    cdef uint64_t _forwarded[_LIMIT]
    cdef uint32_t _rest_ns
    cdef list _table
    cdef bint _expects_event
    cdef bint _may_read_ahead  # a directory was listed, so there may be something to read ahead
    cdef readonly uint64_t poll_ns
    cdef uint64_t _polls_from  # on the monotonic clock, in ns
    cdef uint64_t _pause_ns
    cdef readonly uint64_t pauses  # in which it did not poll, as other programs wanted the processor
    cdef _Listing _names, _entries
    cdef public Py_ssize_t pending  # requests that are answered later
    cdef readonly Py_ssize_t tasks_pending  # those of them that a task answers

    def __cinit__(self):
        self._in, self._out = _pages(), _pages()
        self._header = <fuse_in_header *>self._in

    def __dealloc__(self):
        munmap(self._in, _LONGEST)
        munmap(self._out, _LONGEST)

    def __init__(self, Overlay overlay not None, copy_ups, tasks, channel, poll_us, timeout_s):
        self._overlay, self._copy_ups, self._tasks, self._channel = overlay, copy_ups, tasks, channel
        self._device_fd = channel.device_fd
        self._unseen = overlay.written_unseen
        self.poll_ns = poll_us * 1000
        self._names, self._entries = _Listing(self, False), _ListingWithEntries(self, True)
        seconds = _FOR_EVER_S if timeout_s is None else timeout_s
        self._whole_s, self._rest_ns = int(seconds), int(seconds % 1 * 1e9)
        self._table = [None] * _LIMIT
        for opcode in Opcode:
            self._table[opcode] = getattr(self, f"_{opcode.name.lower()}", None)

    def facts(self):
        """How many requests of each kind came, and who answered them."""
        counts = {
            opcode.name: {"lane": self._answered[<int>opcode], "forwarded": self._forwarded[<int>opcode]}
            for opcode in Opcode
            if self._answered[<int>opcode] or self._forwarded[<int>opcode]
        }
        return {"lane": True, "requests": counts}

    @property
    def unique(self):
        """The number of the request that is being answered."""
        return self._header.unique

    def rest(self):
        """There is nothing to do for a moment."""
        self._overlay.give_memory_back()

    # -- the loop

    def serve_turn(self, uint64_t turn_ns, bint polls):
        """Answer or forward requests until the turn is over or none has come for the time of `polls`.

        TURN_OVER after so many ns, and at once when a task or pyfuse3 has got something to do; NOTHING, UNMOUNTED,
        FAILED.

        While other programs want the processor it does not poll: a sleeper that is woken comes before them, but who
        yields comes after them, milliseconds later.
        """
        cdef uint64_t started = _now_ns(), now = started
        cdef uint64_t last = started, yielded
        cdef Py_ssize_t got
        cdef int failure
        while True:
            with nogil:
                allow_access(self._in, _LONGEST)
                yielded = 0
                while True:
                    got = read(self._device_fd, self._in, _LONGEST)
                    failure = errno if got < 0 else 0
                    now = _now_ns()
                    if yielded and now - yielded >= _CROWDED_NS:
                        self._pause(now)
                    if failure != EAGAIN or not polls or now - last >= self.poll_ns or self._may_read_ahead:
                        break
                    if now < self._polls_from:
                        break
                    yielded = now
                    sched_yield()
            if failure == EAGAIN and self._may_read_ahead and polls and now - last < self.poll_ns:
                self._may_read_ahead = self._read_ahead()
                continue
            if failure == EAGAIN:
                return NOTHING
            if failure == ENODEV:
                return UNMOUNTED
            if failure and failure != EINTR and failure != ENOENT:  # ENOENT: the request was taken back meanwhile
                log.error("cannot read a request yet: %s", os.strerror(failure))
                return FAILED
            self._expects_event = False
            if not failure:
                self._length = got
                forbid_access(self._in + got, _LONGEST - got)
                self._handle()
                forbid_access(self._in, _LONGEST)
                now = _now_ns()
            last = now
            if self._expects_event or now - started >= turn_ns:
                return TURN_OVER

    cdef void _pause(self, uint64_t now) noexcept nogil:
        """Do not poll for a while, which doubles where the last pause has just ended."""
        cdef bint again = now - self._polls_from < self._pause_ns
        self._pause_ns = min(self._pause_ns * 2, _LONGEST_PAUSE_NS) if again else _SHORTEST_PAUSE_NS
        self._polls_from = now + self._pause_ns
        self.pauses += 1

    cdef bint _read_ahead(self):
        """Whether there is more to read ahead; what fails here is nobody's request, and must not end the mount."""
        try:
            return self._overlay.read_ahead()
        except Exception:
            log.exception("reading ahead failed")
            return False

    cdef int _handle(self) except -1:
        """Answer or forward the request in the buffer; whatever happens, the lane goes on."""
        cdef Py_ssize_t length
        cdef uint32_t opcode
        if self._length < <Py_ssize_t>sizeof(fuse_in_header):
            log.error("%d bytes are too few for a request", self._length)
            return 0
        opcode = self._header.opcode
        try:
            length = self._dispatch(opcode)
        except OSError as error:
            self._refuse_this(opcode, error.errno or EIO)
        except Forwarded:
            self._forward(opcode)
            return 0
        except Exception:
            log.exception("%s failed", Opcode(opcode).name)
            self._refuse_this(opcode, EIO)
        else:
            if length >= 0:
                self._send(length)
        self._answered[opcode if opcode < _LIMIT else _LIMIT - 1] += 1
        return 0

    cdef Py_ssize_t _dispatch(self, uint32_t opcode) except -2:
        """How long the reply's body is, _NO_REPLY; below that the errno that is the answer, negative and less
        _NO_REPLY."""
        if opcode == FUSE_LOOKUP:
            return self._lookup()
        if opcode == FUSE_GETATTR:
            return self._getattr()
        if opcode == FUSE_READ:
            return self._read()
        if opcode == FUSE_WRITE:
            return self._write()
        if opcode == FUSE_GETXATTR:
            return self._getxattr()
        if opcode == FUSE_SETATTR:
            return self._setattr()
        if opcode == FUSE_CREATE:
            return self._create()
        if opcode == FUSE_READDIRPLUS:
            return self._readdirplus()
        if opcode == FUSE_READDIR:
            return self._readdir()
        if opcode == FUSE_FORGET:
            return self._forget()
        if opcode == FUSE_BATCH_FORGET:
            return self._batch_forget()
        if opcode == FUSE_MKDIR:
            return self._mkdir()
        if opcode == FUSE_LISTXATTR:
            return self._listxattr()
        if opcode == FUSE_SYMLINK:
            return self._symlink()
        if opcode == FUSE_UNLINK:
            self._overlay.unlink(self._header.nodeid, self._name(0))
            return 0
        if opcode == FUSE_RMDIR:
            self._overlay.rmdir(self._header.nodeid, self._name(0))
            return 0
        return self._call_method(opcode)

    cdef Py_ssize_t _call_method(self, uint32_t opcode) except -2:
        method = self._table[opcode] if opcode < _LIMIT else None
        if method is None:
            raise OSError(ENOSYS, os.strerror(ENOSYS))
        start = self._in + sizeof(fuse_in_header)
        size = self._length - <Py_ssize_t>sizeof(fuse_in_header)
        body = PyMemoryView_FromMemory(start, size, PyBUF_READ)
        return self._reply(method(self._header.nodeid, body, self._asker()))

    # -- decoding

    cdef tuple _asker(self):
        return self._header.uid, self._header.gid, self._header.pid

    cdef void *_struct(self, size_t size) except NULL:
        """The struct of this size after the header; EIO where the message is shorter."""
        if self._length < <Py_ssize_t>(sizeof(fuse_in_header) + size):
            raise OSError(EIO, "a message ends early")
        return self._in + sizeof(fuse_in_header)

    cdef bytes _text(self, size_t offset):
        """The string that the message ends with, after a struct of `offset` bytes; EIO where it does not."""
        cdef char *start = self._in + sizeof(fuse_in_header) + offset
        cdef Py_ssize_t size = self._length - <Py_ssize_t>(sizeof(fuse_in_header) + offset) - 1
        if size < 0 or memchr(start, 0, size + 1) != start + size:
            raise OSError(EIO, "a message ends without a name")
        return PyBytes_FromStringAndSize(start, size)

    cdef bytes _name(self, size_t offset):
        """The same for the name of a directory entry: EIO for a path, which would lead out of the layer."""
        return _checked(self._text(offset))

    # -- encoding

    cdef char *_body(self) noexcept:
        return self._out + sizeof(fuse_out_header)

    cdef Py_ssize_t _reply(self, bytes body) except -2:
        """A body that was made elsewhere, None where there is none now."""
        cdef Py_ssize_t size
        if body is None:
            return _NO_REPLY
        size = PyBytes_GET_SIZE(body)
        if size > _LONGEST - <Py_ssize_t>sizeof(fuse_out_header):
            raise OSError(EIO, "a reply is too long")
        memcpy(self._body(), PyBytes_AS_STRING(body), size)
        return size

    cdef Py_ssize_t _put_entry(self, fuse_entry_out *entry, Attributes found) except -2:
        """A name's inode; the size of the struct."""
        entry.attr = found.attr
        entry.nodeid = entry.attr.ino
        entry.generation = 0
        entry.entry_valid = entry.attr_valid = self._whole_s
        entry.entry_valid_nsec = entry.attr_valid_nsec = self._rest_ns
        if self._unseen and entry.nodeid in self._unseen:  # the name stays true, but not the attributes
            entry.attr_valid = entry.attr_valid_nsec = 0
        return sizeof(fuse_entry_out)

    cdef int _send(self, Py_ssize_t length) except -1:
        """Send the reply whose body is in the buffer."""
        cdef fuse_out_header *header = <fuse_out_header *>self._out
        header.len = sizeof(fuse_out_header) + length
        header.error = 0
        header.unique = self._header.unique
        if write(self._device_fd, self._out, header.len) < 0:
            self._channel.note(header.unique, errno)
        return 0

    cdef int _refuse_this(self, uint32_t opcode, int code) except -1:
        if opcode in (FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT, FUSE_NOTIFY_REPLY):
            return 0
        cdef fuse_out_header header
        header.len = sizeof(fuse_out_header)
        header.error = -code
        header.unique = self._header.unique
        if write(self._device_fd, &header, sizeof(fuse_out_header)) < 0:
            self._channel.note(header.unique, errno)
        return 0

    # -- who answers else

    cdef int _forward(self, uint32_t opcode) except -1:
        self._forwarded[opcode] += 1
        self._expects_event = True
        self._channel.forward(PyBytes_FromStringAndSize(self._in, self._length), has_reply=True)
        return 0

    def _later(self, work):
        """Answer the current request by a task: what the coroutine function `work` returns or raises."""
        unique = self._header.unique
        self.pending += 1
        self.tasks_pending += 1
        self._expects_event = True

        def give_up():
            self.pending -= 1
            self.tasks_pending -= 1
            self._channel.refuse(unique, EIO)

        async def finish():
            try:
                reply = await work()
            except Exception as failure:
                self._refuse(unique, failure)
            else:
                self._channel.answer(unique, reply)
            finally:
                self.pending -= 1
                self.tasks_pending -= 1

        self._tasks.begin(finish, give_up)

    def _refuse(self, unique, failure):
        if not isinstance(failure, OSError):
            log.error("a request failed", exc_info=failure)
        self._channel.refuse(unique, getattr(failure, "errno", None) or EIO)

    # -- inodes

    cdef Py_ssize_t _lookup(self) except -2:
        cdef fuse_entry_out *entry = <fuse_entry_out *>self._body()
        found = self._overlay.find(self._header.nodeid, self._name(0))
        if found is not None:
            return self._put_entry(entry, found)
        memset(entry, 0, sizeof(fuse_entry_out))
        entry.entry_valid, entry.entry_valid_nsec = self._whole_s, self._rest_ns
        return sizeof(fuse_entry_out)

    cdef Py_ssize_t _getattr(self) except -2:
        return self._put_attr(self._overlay.getattr(self._header.nodeid))

    cdef Py_ssize_t _put_attr(self, Attributes found) except -2:
        cdef fuse_attr_out *reply = <fuse_attr_out *>self._body()
        reply.attr = found.attr
        reply.attr_valid, reply.attr_valid_nsec, reply.dummy = self._whole_s, self._rest_ns, 0
        if self._unseen and self._header.nodeid in self._unseen:
            reply.attr_valid = reply.attr_valid_nsec = 0
        return sizeof(fuse_attr_out)

    cdef Py_ssize_t _setattr(self) except -2:
        """utimes(2) without times asks for both as of now; with writeback=1 the kernel sends its own mtime, and a
        ctime."""
        asked = <fuse_setattr_in *>self._struct(sizeof(fuse_setattr_in))
        node, valid = self._header.nodeid, asked.valid
        changes = _changes_of(asked)
        need = _DATA if valid & ASKED_SIZE else _METADATA
        if self._copy_ups.must_wait(node, need, changes.size):
            self._setattr_after_copy_up(node, changes, need, valid, self._asker())
            return _NO_REPLY
        return self._put_attr(self._change_attributes(node, changes, valid, self._asker()))

    cpdef Attributes _change_attributes(self, uint64_t node, AttributeChanges changes, uint32_t valid, tuple asker):
        """What a SETATTR asks for, and the privileges that it takes; `valid` are its FATTR_* bits."""
        cdef Attributes before
        cdef bint groups_count = False
        touches = ASKED_UID | ASKED_GID | ASKED_SIZE
        if not changes.asked & ASKED_MODE and (changes.asked & touches or not changes.asked):
            before = self._overlay.getattr(node)
            if before.attr.mode & (S_ISUID | S_ISGID):
                changes = self._without_privileges(changes, before, valid, asker)
                groups_count = before.attr.mode & S_ISGID and not changes.asked & ASKED_MODE
        asks = caller_with_groups(*asker) if groups_count else Caller(asker[0], asker[1], asker[2])
        return self._overlay.setattr(node, changes, asks)

    cdef Py_ssize_t _forget(self) except -2:
        asked = <fuse_forget_in *>self._struct(sizeof(fuse_forget_in))
        self._overlay.forget(self._header.nodeid, asked.nlookup)
        return _NO_REPLY

    cdef Py_ssize_t _batch_forget(self) except -2:
        cdef Py_ssize_t i, room, count
        head = <fuse_batch_forget_in *>self._struct(sizeof(fuse_batch_forget_in))
        room = self._length - <Py_ssize_t>(sizeof(fuse_in_header) + sizeof(fuse_batch_forget_in))
        count = min(<Py_ssize_t>head.count, room // <Py_ssize_t>sizeof(fuse_forget_one))
        one = <fuse_forget_one *>(<char *>head + sizeof(fuse_batch_forget_in))
        for i in range(count):
            self._overlay.forget(one[i].nodeid, one[i].nlookup)
        return _NO_REPLY

    # -- names

    cdef Caller _caller(self, uint32_t umask):
        return Caller(self._header.uid, self._header.gid, self._header.pid, umask)

    cdef Py_ssize_t _create(self) except -2:
        cdef Py_ssize_t size
        asked = <fuse_create_in *>self._struct(sizeof(fuse_create_in))
        name = self._name(sizeof(fuse_create_in))
        found = self._overlay.create(self._header.nodeid, name, asked.mode, asked.flags, self._caller(asked.umask))
        opened = self._open_created(found.ino, asked.flags)
        size = self._put_entry(<fuse_entry_out *>self._body(), found)
        if PyBytes_Size(opened) != sizeof(fuse_open_out):
            raise ValueError("a reply of the wrong size")
        memcpy(self._body() + size, PyBytes_AS_STRING(opened), sizeof(fuse_open_out))
        return size + sizeof(fuse_open_out)

    cdef Py_ssize_t _mkdir(self) except -2:
        asked = <fuse_mkdir_in *>self._struct(sizeof(fuse_mkdir_in))
        name = self._name(sizeof(fuse_mkdir_in))
        found = self._overlay.mkdir(self._header.nodeid, name, asked.mode, self._caller(asked.umask))
        return self._put_entry(<fuse_entry_out *>self._body(), found)

    cdef Py_ssize_t _symlink(self) except -2:
        cdef char *name = self._in + sizeof(fuse_in_header)
        cdef Py_ssize_t size = self._length - <Py_ssize_t>sizeof(fuse_in_header)
        cdef char *end = <char *>memchr(name, 0, size) if size > 0 else NULL
        if end is NULL:
            raise OSError(EIO, "a message ends without a name")
        target = self._text(end + 1 - name)
        found = self._overlay.symlink(self._header.nodeid, _checked(name[:end - name]), target, self._caller(0))
        return self._put_entry(<fuse_entry_out *>self._body(), found)

    # -- files

    cdef Py_ssize_t _read(self) except -2:
        asked = <fuse_read_in *>self._struct(sizeof(fuse_read_in))
        if asked.size > _LONGEST - <Py_ssize_t>sizeof(fuse_out_header):
            raise OSError(EINVAL, os.strerror(EINVAL))
        room = PyMemoryView_FromMemory(self._body(), asked.size, PyBUF_WRITE)
        count = self._overlay.read_into(self._header.nodeid, asked.offset, room)
        if count is None:
            count = self._read_late(self._header.nodeid, asked.offset, room)
        return _NO_REPLY if count is None else <Py_ssize_t>count

    cdef Py_ssize_t _write(self) except -2:
        asked = <fuse_write_in *>self._struct(sizeof(fuse_write_in))
        if self._length < <Py_ssize_t>(sizeof(fuse_in_header) + sizeof(fuse_write_in)) + asked.size:
            raise OSError(EIO, "a message ends early")
        data = PyMemoryView_FromMemory(<char *>asked + sizeof(fuse_write_in), asked.size, PyBUF_READ)
        node = self._header.nodeid
        self._refuse_protected(node, asked)
        if asked.write_flags & FUSE_WRITE_KILL_SUIDGID or self._copy_ups.must_wait(node, _DATA):
            return self._reply(self._write_after(node, asked.offset, data, asked.write_flags, self._asker()))
        reply = <fuse_write_out *>self._body()
        reply.size, reply.padding = self._overlay.write(node, asked.offset, data), 0
        return sizeof(fuse_write_out)

    cdef int _refuse_protected(self, uint64_t node, fuse_write_in *asked) except -1:
        """EPERM for a write that an immutable or append-only file does not allow."""
        try:
            self._refuse_where_protected(node, asked)
        except PermissionError:
            if asked.write_flags & FUSE_WRITE_CACHE:
                self._drop_pages(node)
            raise
        return 0

    cdef int _refuse_where_protected(self, uint64_t node, fuse_write_in *asked) except -1:
        if not asked.write_flags & FUSE_WRITE_CACHE:
            appended_at = asked.offset if asked.flags & O_APPEND else None
            self._overlay.refuse_write(node, appended_at, opened_unasked=not self.counts_opens)
        elif not self.counts_opens:  # else the open was refused, or came before the flag
            self._overlay.refuse_write(node, None, opened_unasked=True)
        return 0

    # -- directories

    cdef Py_ssize_t _readdirplus(self) except -2:
        return self._list(self._entries)

    cdef Py_ssize_t _readdir(self) except -2:
        return self._list(self._names)

    cdef Py_ssize_t _list(self, _Listing reply) except -2:
        asked = <fuse_read_in *>self._struct(sizeof(fuse_read_in))
        reply.used = 0
        reply.room = min(<Py_ssize_t>asked.size, _LONGEST - <Py_ssize_t>sizeof(fuse_out_header))
        self._overlay.fill(self._header.nodeid, asked.offset, reply)
        self._may_read_ahead = self._may_read_ahead or reply.takes
        return reply.used

    # -- extended attributes

    cdef Py_ssize_t _getxattr(self) except -2:
        asked = <fuse_getxattr_in *>self._struct(sizeof(fuse_getxattr_in))
        name = self._text(sizeof(fuse_getxattr_in))
        value = self._xattr(self._header.nodeid, name, asked.size)
        if value is None:
            self._refuse_this(FUSE_GETXATTR, ENODATA)
            return _NO_REPLY
        return self._sized(value, asked.size)

    cdef Py_ssize_t _listxattr(self) except -2:
        asked = <fuse_getxattr_in *>self._struct(sizeof(fuse_getxattr_in))
        names = self._overlay.listxattr(self._header.nodeid, with_trusted=self._header.uid == 0)
        return self._sized(b"".join([name + b"\0" for name in names]) if names else b"", asked.size)

    cdef Py_ssize_t _sized(self, bytes value, uint32_t size) except -2:
        """The reply to a request for an xattr: its length where that is asked, ERANGE where it has no room."""
        if not size:
            reply = <fuse_getxattr_out *>self._body()
            reply.size, reply.padding = <uint32_t>PyBytes_GET_SIZE(value), 0
            return sizeof(fuse_getxattr_out)
        if PyBytes_GET_SIZE(value) > size:
            raise OSError(ERANGE, os.strerror(ERANGE))
        return self._reply(value)


cdef class _Listing(Sink):
    """The names of a directory, put into the reply of a lane: READDIR."""

    cdef Lane lane
    cdef Py_ssize_t used
    cdef Py_ssize_t room  # in bytes

    def __init__(self, lane, takes):
        super().__init__(takes)
        self.lane = lane

    cpdef bint put(self, bytes name, uint64_t offset, Attributes found, bint can_be_taken) except -1:
        cdef Py_ssize_t size = _padded(sizeof(fuse_dirent) + PyBytes_GET_SIZE(name))
        if self.used + size > self.room:
            return False
        place = <fuse_dirent *>(self.lane._body() + self.used)
        _put_name(place, size - <Py_ssize_t>sizeof(fuse_dirent), name, offset, found)
        self.used += size
        return True


cdef class _ListingWithEntries(_Listing):
    """The names of a directory with each file's attributes: READDIRPLUS."""

    cpdef bint put(self, bytes name, uint64_t offset, Attributes found, bint can_be_taken) except -1:
        cdef Py_ssize_t size = _padded(sizeof(fuse_direntplus) + PyBytes_GET_SIZE(name))
        if self.used + size > self.room:
            return False
        place = <fuse_direntplus *>(self.lane._body() + self.used)
        if can_be_taken:
            self.lane._put_entry(&place.entry_out, found)
        else:  # a name that is listed, but looking it up is an error: the kernel asks
            memset(&place.entry_out, 0, sizeof(fuse_entry_out))
        _put_name(&place.dirent, size - <Py_ssize_t>sizeof(fuse_direntplus), name, offset, found)
        self.used += size
        return True


cdef bytes _checked(bytes name):
    """The name of a directory entry: EIO for a path."""
    if not PyBytes_GET_SIZE(name) or memchr(PyBytes_AS_STRING(name), c'/', PyBytes_GET_SIZE(name)):
        raise OSError(EIO, "a message with a path for a name")
    return name


cdef AttributeChanges _changes_of(fuse_setattr_in *asked):
    cdef AttributeChanges changes = AttributeChanges.__new__(AttributeChanges)
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    changes.asked = asked.valid & _SETTABLE
    changes.asked_mode, changes.asked_uid, changes.asked_gid = asked.mode, asked.uid, asked.gid
    changes.asked_size = asked.size
    is_now = asked.valid & FATTR_ATIME_NOW
    changes.asked_atime = now.tv_sec if is_now else <int64_t>asked.atime
    changes.asked_atimensec = now.tv_nsec if is_now else asked.atimensec
    is_now = asked.valid & FATTR_MTIME_NOW
    changes.asked_mtime = now.tv_sec if is_now else <int64_t>asked.mtime
    changes.asked_mtimensec = now.tv_nsec if is_now else asked.mtimensec
    changes.asked_ctime, changes.asked_ctimensec = <int64_t>asked.ctime, asked.ctimensec
    changes.by_writing = asked.valid & FATTR_ATIME_NOW and asked.valid & (FATTR_MTIME_NOW | FATTR_CTIME)
    return changes


cdef inline Py_ssize_t _padded(Py_ssize_t size) noexcept:
    return (size + 7) & ~7


cdef int _put_name(fuse_dirent *place, Py_ssize_t room, bytes name, uint64_t after, Attributes found) except -1:
    """A directory entry whose name has `room` bytes, padding included."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    place.ino = found.attr.ino
    place.off = after
    place.namelen = size
    place.type = found.attr.mode >> 12 & 0xF
    memcpy(<char *>place + sizeof(fuse_dirent), PyBytes_AS_STRING(name), size)
    memset(<char *>place + sizeof(fuse_dirent) + size, 0, room - size)
    return 0
