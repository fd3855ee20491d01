# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What is the CRC-64 of the data of a file? That of ISO 3309, as Go's hash/crc64 has it.

Compiled, as no library of Python has this polynomial. Eight bytes at a time by eight tables ("slicing by 8").
Callable from any thread.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint64_t le64toh(uint64_t word)

cdef uint64_t POLYNOMIAL = 0xD800000000000000ULL
cdef uint64_t[8][256] tables


cdef void fill_tables() noexcept nogil:
    cdef int byte, table, bit
    cdef uint64_t value
    for byte in range(256):
        value = byte
        for bit in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        tables[0][byte] = value
    for table in range(1, 8):
        for byte in range(256):
            value = tables[table - 1][byte]
            tables[table][byte] = tables[0][value & 0xFF] ^ (value >> 8)


fill_tables()


def crc64(const uint8_t[::1] data, uint64_t before=0):
    """The checksum of the data; `before` is that of the data in front of it."""
    cdef uint64_t found = ~before
    cdef Py_ssize_t size = data.shape[0]
    if size == 0:
        return before
    with nogil:
        found = update(found, &data[0], size)
    return ~found


cdef uint64_t update(uint64_t found, const uint8_t *data, Py_ssize_t size) noexcept nogil:
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, data, 8)
        found ^= le64toh(word)
        found = (
            tables[7][found & 0xFF]
            ^ tables[6][(found >> 8) & 0xFF]
            ^ tables[5][(found >> 16) & 0xFF]
            ^ tables[4][(found >> 24) & 0xFF]
            ^ tables[3][(found >> 32) & 0xFF]
            ^ tables[2][(found >> 40) & 0xFF]
            ^ tables[1][(found >> 48) & 0xFF]
            ^ tables[0][found >> 56]
        )
        data += 8
        size -= 8
    while size > 0:
        found = tables[0][(found ^ data[0]) & 0xFF] ^ (found >> 8)
        data += 1
        size -= 1
    return found
