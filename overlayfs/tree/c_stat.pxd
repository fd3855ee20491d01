"""What Python's `stat` is in a compiled module that cimports this by that name: the constants and tests of C."""

cdef extern from *:
    """
    #include <sys/stat.h>

    static inline unsigned int overlayfs_format(unsigned int mode)
    {
        return mode & S_IFMT;
    }

    static inline unsigned int overlayfs_mode(unsigned int mode)
    {
        return mode & 07777;
    }
    """
    enum:
        S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK
        S_ISGID, S_ISUID, S_ISVTX
    unsigned int S_IFMT "overlayfs_format"(unsigned int mode) noexcept nogil
    unsigned int S_IMODE "overlayfs_mode"(unsigned int mode) noexcept nogil
    bint S_ISBLK(unsigned int mode) noexcept nogil
    bint S_ISCHR(unsigned int mode) noexcept nogil
    bint S_ISDIR(unsigned int mode) noexcept nogil
    bint S_ISLNK(unsigned int mode) noexcept nogil
    bint S_ISREG(unsigned int mode) noexcept nogil
