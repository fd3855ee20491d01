# cython: language_level=3, wraparound=False, cdivision=True
"""Which state does the mount keep for each inode that the kernel has looked up?

An `Inode` lives as long as the kernel holds lookups of it, or somebody needs it as the parent of such a one. All
changes happen on the thread that owns the `State`.

Compiled, as an inode holds the attributes as the C struct that the kernel is sent, and as there may be millions.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdlib cimport calloc, free
from posix.stat cimport S_IFDIR, S_IFLNK, S_IFMT

from array import array

from xxhash import xxh3_64_intdigest

from overlayfs.overlay.values cimport Attributes, encoded_device, fuse_attr, may_move_when_read, shown
from overlayfs.tree.syscalls cimport Stat, stat_t

from overlayfs.tree.metadata import CAPABILITY

ROOT = _ROOT

cdef enum:
    _ROOT = 1
    _ELSEWHERE = -1
    _UNREAD = -1
    _FEWEST_SLOTS = 64  # a power of two


cdef bint is_directory(Inode inode) noexcept:
    return inode.kind == S_IFDIR


cpdef uint64_t stable_number(bytes identity, int64_t device, Stat found) except 0:
    """The inode number of a file of a layer in the merged tree: the same at every mount of the layer.

    Derived from the filesystem's identity, the layer's root (`identity` and its `device`) and the file, so that layers
    on different filesystems, or hard-linked with each other, never share a number but by chance (xxh3-64).
    """
    cdef int64_t key[2]
    key[0], key[1] = <int64_t>found.st.st_dev - device, <int64_t>found.st.st_ino
    return (<uint64_t>xxh3_64_intdigest(identity + (<char *>key)[:16]) & 0x7FFFFFFFFFFFFFFF) or 1


cpdef bint is_shown_as_on_disk(Stat found) noexcept:
    """True for a file with one name and some content, whose links and blocks need no second look."""
    cdef stat_t *st = &found.st
    return st.st_nlink == 1 and st.st_size and (st.st_blocks or (st.st_mode & S_IFMT) == S_IFLNK)


cpdef Inode lower_file(uint64_t number, Directory parent, bytes name, int32_t position, Stat found):
    """A file in one of its parent's lowers that is shown as it is on disk."""
    cdef Inode inode = Inode.__new__(Inode)
    inode.attr.ino, inode.kind = number, found.st.st_mode & S_IFMT
    inode.parent, inode.name, inode.position = parent, name, position
    inode.show_as_on_disk(found, 1, found.st.st_blocks)
    return inode


def path_of(Directory directory, bytes name not None):
    """The path of a name from the root of the tree."""
    parts = [name]
    while directory is not None and directory.attr.ino != _ROOT:
        parts.append(directory.name)
        directory = directory.parent
    parts.reverse()
    return b"/".join(parts)


def freeze_files(list files not None):
    """What lay in the upper under its own name is in the topmost of its parent's lowers from now on. Returns those that
    `State.by_real` knows."""
    cdef Inode inode
    shared = []
    for inode in files:
        inode.upper = inode.metacopy = False
        inode.provided_by(0)
        if inode.rare is not None and inode.rare.shared_as is not None:
            shared.append(inode)
    return shared


@cython.no_gc
cdef class Inode:
    """A file of the merged tree that is not a directory, or the part that directories share.

    Invariants: `upper` says that the file is in the upper layer (or, unlinked, was; then `State.orphans` holds its
    descriptor). `parent` and `name` are one name it has, None and empty when it has none; `aliases` are further
    names that were looked up; a hard-linked file may have more, see `names_left`. `lower` is the visible file of the
    lower layers, kept after copy-up only while a metacopy needs its data, and for a file in the index. Such a file
    (`index_name`) is reached through its entry there, whatever names are known. `attributes` is None when they must
    be read again. `xattr_names` are those on disk, None when they must be read.

    Not known to the garbage collector: an inode and its parent refer to each other until `State.discard` or
    `State.close` parts them.
    """

    def __cinit__(self):
        self.position = _ELSEWHERE
        self.protecting = _UNREAD

    def __init__(self, uint64_t number, uint32_t kind, Directory parent, bytes name not None):
        self.attr.ino = number
        self.kind = kind  # stat.S_IFMT bits
        self.parent = parent
        self.name = name

    @property
    def number(self):
        return self.attr.ino

    @property
    def is_directory(self):
        return self.kind == S_IFDIR

    @property
    def is_known(self):
        """Whether its attributes need not be read again."""
        return self.known

    @property
    def attributes(self):
        """The cached attributes, None if they must be read again."""
        return shown(&self.attr) if self.known else None

    @attributes.setter
    def attributes(self, Attributes found):
        cdef uint64_t number = self.attr.ino
        self.known = found is not None
        if found is not None:
            self.attr = found.attr
            self.attr.ino = number

    cpdef show_as_on_disk(self, Stat found, uint32_t links, uint64_t blocks):
        """Its attributes are what a stat of the file on disk says; but for the links and the blocks."""
        cdef fuse_attr *attr = &self.attr
        cdef stat_t *st = &found.st
        attr.size, attr.blocks, attr.blksize = st.st_size, blocks, st.st_blksize
        attr.atime, attr.atimensec = st.st_atim.tv_sec, st.st_atim.tv_nsec
        attr.mtime, attr.mtimensec = st.st_mtim.tv_sec, st.st_mtim.tv_nsec
        attr.ctime, attr.ctimensec = st.st_ctim.tv_sec, st.st_ctim.tv_nsec
        attr.mode, attr.nlink, attr.uid, attr.gid = st.st_mode, links, st.st_uid, st.st_gid
        attr.rdev, attr.flags = encoded_device(st.st_rdev), 0
        self.known = True

    def show_owner(self, uint32_t uid, uint32_t gid, uint32_t mode, uint64_t rdev):
        """Its owner and mode are others than those on disk."""
        self.attr.uid, self.attr.gid, self.attr.mode, self.attr.rdev = uid, gid, mode, encoded_device(rdev)

    def reads_may_move_times(self):
        """Whether a read of the file on disk moves the access time that is known, as relatime has it."""
        return self.known and may_move_when_read(&self.attr)

    @property
    def protection(self):
        """Immutable and append-only, None when they must be read (see protection.flags_of)."""
        return None if self.protecting == _UNREAD else self.protecting

    @protection.setter
    def protection(self, flags):
        self.protecting = _UNREAD if flags is None else flags

    # -- what few inodes have

    cdef Rare _rare(self):
        if self.rare is None:
            self.rare = Rare.__new__(Rare)
        return self.rare

    @property
    def aliases(self):
        """Further names, each with its parent; None for none."""
        return None if self.rare is None else self.rare.aliases

    @aliases.setter
    def aliases(self, list found):
        if found is not None or self.rare is not None:
            self._rare().aliases = found

    @property
    def index_name(self):
        """Its entry in the index, for a file that was hard-linked in a lower layer and copied up."""
        return None if self.rare is None else self.rare.index_name

    @index_name.setter
    def index_name(self, bytes name):
        if name is not None or self.rare is not None:
            self._rare().index_name = name

    @property
    def lost_links(self):
        """Links on disk that are no names in the merged tree; negative: names that are no links on disk."""
        return 0 if self.rare is None else self.rare.lost_links

    @lost_links.setter
    def lost_links(self, int64_t count):
        if count or self.rare is not None:
            self._rare().lost_links = count

    @property
    def shared_as(self):
        """Its keys in State.by_real; None for none."""
        return None if self.rare is None else self.rare.shared_as

    @shared_as.setter
    def shared_as(self, list keys):
        if keys is not None or self.rare is not None:
            self._rare().shared_as = keys

    # -- where it is

    @property
    def lower(self):
        """The visible file of the lower layers."""
        if self.position != _ELSEWHERE:
            return self.parent.lowers[self.position].child(self.name)
        return None if self.rare is None else self.rare.lower

    @lower.setter
    def lower(self, location):
        self.position = _ELSEWHERE
        if location is not None or self.rare is not None:
            self._rare().lower = location

    @property
    def lower_layer(self):
        """The layer that `lower` is in."""
        if self.position != _ELSEWHERE:
            return self.parent.lowers[self.position].layer
        return self.rare.lower.layer

    cpdef provided_by(self, int32_t position):
        """It is the file of its name in one of its parent's lowers: said in a few bytes, as most files are that."""
        self.position = position

    def note_lost_privileges(self):
        """Content or owner change, which takes capabilities away: attributes and capabilities must be read again."""
        self.known = False
        if self.xattr_names is not None and CAPABILITY in self.xattr_names:
            self.xattr_names = None

    # -- names

    def names(self):
        """Every known name with its parent; none for an unlinked file and for the root."""
        found = [] if self.parent is None else [(self.parent, self.name)]
        if self.rare is not None and self.rare.aliases is not None:
            found += self.rare.aliases
        return found

    def names_left(self, st):
        """How many names the merged tree has of the file, known or not; `st` is what stat says of it on disk."""
        return max(st.st_nlink - self.lost_links, 0)

    def add_name(self, Directory parent not None, bytes name not None):
        if self.parent is None:
            self.parent, self.name = parent, name
        elif (parent, name) not in self.names():
            self.aliases = [*(self.aliases or ()), (parent, name)]

    def remove_name(self, Directory parent not None, bytes name not None):
        if self.parent is parent and self.name == name:
            self.lower = self.lower
            aliases = self.aliases
            if aliases:
                self.parent, self.name = aliases[0]
                self.aliases = aliases[1:] or None
            else:
                self.parent, self.name = None, b""
        elif self.rare is not None and self.rare.aliases is not None:
            self.aliases = [alias for alias in self.rare.aliases if alias != (parent, name)] or None


@cython.final
cdef class Rare:
    """What few inodes have: further names, a place of their own in the lower layers, hard links."""


cdef class Listing:
    """The names of a directory in the order they are shown in, each with the offset that resumes after it.

    Offsets only grow, so they stay good while names come and go. Invariant: both are in the same order.
    """

    def __init__(self):
        self.names = []
        self.offsets = array("Q")


@cython.no_gc
cdef class Directory(Inode):
    """A directory: in the upper, in any number of lower layers, or both.

    Invariants: `lowers` are all lower directories merged here, top first, and never change but by `make_opaque`.
    `above` and `below` are what the upper and the merged lowers hold, None until read; `above` is kept current by
    every operation, `below` never changes. Only where lower layers change under the mount, both are looked at anew;
    `seen` is device, number and ctime of each of `lowers` before `below` was read. `children` are the live inodes by
    name. `lower_path` is where the lower layers have this directory, seen without the upper: what a redirect to it
    must say. `listing` is what readers of the directory were shown. `default_acl` is False until it is read.
    `inheritance` is what a directory in the upper hands on, None until it is read. `impure` says that its part in the
    upper has that mark, or cannot have it.
    """

    def __cinit__(self):
        self.lowers = ()
        self.lower_path = b""
        self.children = {}
        self.default_acl = False

    def __init__(self, uint64_t number, Directory parent, bytes name not None):
        Inode.__init__(self, number, S_IFDIR, parent, name)

    def freeze(self, place not None):
        """The upper has become the topmost lower layer, which has the directory at a place; the new upper has none but
        the root."""
        cdef Inode child
        self.upper = self.attr.ino == _ROOT
        for name, child in self.children.items():
            if child.position >= 0 and child.parent is self and not child.upper and child.name == name:
                child.provided_by(child.position + 1)
        self.lowers = (place, *self.lowers)
        self.below = None
        self.forget_upper()

    cpdef forget_upper(self):
        """What its part in the upper holds and hands on is gone."""
        self.above = {}
        self.impure, self.inheritance = False, None


@cython.final
cdef class InodeTable:
    """The inodes by number: a hash table with open addressing that holds nothing but a pointer for each.

    Numbers are hashes, so their low bits say where to look first.
    """

    def __cinit__(self):
        self._rebuild(0)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self._capacity):
            Py_XDECREF(self._slots[i])
        free(self._slots)

    def __len__(self):
        return self._count

    def __contains__(self, uint64_t number):
        return self._slots[self._place(number)] is not NULL

    def __getitem__(self, uint64_t number):
        """KeyError where there is none."""
        found = self.get(number)
        if found is None:
            raise KeyError(number)
        return found

    def values(self):
        """All of them, in no order."""
        return [<object>self._slots[i] for i in range(self._capacity) if self._slots[i] is not NULL]

    def of_upper(self, unnamed):
        """Those that are in the upper and have a name, in no order: directories, files in the index, other files.
        `unnamed` are the numbers of those that are not meant."""
        cdef Py_ssize_t i
        cdef Inode inode
        directories, indexed, files = [], [], []
        for i in range(self._capacity):
            if self._slots[i] is NULL or not (<Inode>self._slots[i]).upper:
                continue
            inode = <Inode>self._slots[i]
            if unnamed and inode.attr.ino in unnamed:
                continue
            if is_directory(inode):
                directories.append(inode)
            elif inode.rare is not None and inode.rare.index_name is not None:
                indexed.append(inode)
            elif inode.parent is not None:
                files.append(inode)
        return directories, indexed, files

    def give_known(self, InodeTable other):
        """Give what the kernel uses and has a name to another table. Returns those of them that are in the upper,
        their numbers, and all without a name but the root. No directory knows its children any more, and what says its
        place as a position in the lowers of the root, which is going to lose some, says it as a path.
        """
        cdef Py_ssize_t i
        cdef Inode inode
        in_upper, numbers, unnamed = [], [], []
        for i in range(self._capacity):
            if self._slots[i] is NULL:
                continue
            inode = <Inode>self._slots[i]
            if is_directory(inode):
                (<Directory>inode).children.clear()
            if inode.parent is None:
                if inode.attr.ino != _ROOT:
                    unnamed.append(inode)
                continue
            if inode.position != _ELSEWHERE and inode.parent.attr.ino == _ROOT:
                inode.lower = inode.lower
            if inode.nlookup or inode.opens:
                other.add(inode)
                if inode.upper:
                    in_upper.append(inode)
                    numbers.append(inode.attr.ino)
        return in_upper, numbers, unnamed

    def clear(self):
        for inode in self.values():
            self.discard((<Inode>inode).attr.ino)

    def shrink(self):
        """Give back the memory of inodes that are gone."""
        self._rebuild(self._count)

    cpdef Inode get(self, uint64_t number):
        """None where there is none."""
        cdef PyObject *found = self._slots[self._place(number)]
        return None if found is NULL else <Inode>found

    cpdef int add(self, Inode inode) except -1:
        """In place of the one of its number, if there is one."""
        cdef Py_ssize_t at
        if self._count * 4 >= self._capacity * 3:
            self._rebuild(self._count * 2)
        at = self._place(inode.attr.ino)
        Py_INCREF(inode)
        if self._slots[at] is NULL:
            self._count += 1
            self._slots[at] = <PyObject *>inode
        else:
            old = <Inode>self._slots[at]
            self._slots[at] = <PyObject *>inode
            Py_DECREF(old)
        return 0

    cpdef int discard(self, uint64_t number) except -1:
        cdef Py_ssize_t at = self._place(number), after, home
        cdef Py_ssize_t mask = self._capacity - 1
        if self._slots[at] is NULL:
            return 0
        gone = <Inode>self._slots[at]
        self._slots[at] = NULL
        self._count -= 1
        after = (at + 1) & mask
        while self._slots[after] is not NULL:  # move what was only pushed on by the one that is gone
            home = <Py_ssize_t>(<Inode>self._slots[after]).attr.ino & mask
            if (after - home) & mask >= (after - at) & mask:
                self._slots[at], self._slots[after] = self._slots[after], NULL
                at = after
            after = (after + 1) & mask
        Py_DECREF(gone)
        return 0

    cdef Py_ssize_t _place(self, uint64_t number) noexcept:
        """The slot that has the inode of this number, or the one that it would get."""
        cdef Py_ssize_t mask = self._capacity - 1
        cdef Py_ssize_t at = <Py_ssize_t>(number & <uint64_t>mask)
        while self._slots[at] is not NULL and (<Inode>self._slots[at]).attr.ino != number:
            at = (at + 1) & mask
        return at

    cdef int _rebuild(self, Py_ssize_t room) except -1:
        """Have slots for so many inodes, and a third more."""
        cdef PyObject **before = self._slots
        cdef Py_ssize_t i, size = self._capacity, capacity = _FEWEST_SLOTS
        while capacity * 3 < room * 4:
            capacity *= 2
        slots = <PyObject **>calloc(capacity, sizeof(PyObject *))
        if slots is NULL:
            raise MemoryError
        self._slots, self._capacity = slots, capacity
        for i in range(size):
            if before[i] is not NULL:
                self._slots[self._place((<Inode>before[i]).attr.ino)] = before[i]
        free(before)
        return 0
