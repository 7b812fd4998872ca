# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's memory in this process, that of arenas and of direct leases: the addresses it lies at, and the socket that it comes through.

Linux only; imported when there is some."""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import socket
import weakref
from typing import Any, NamedTuple

from . import errors
from .v1 import statepool_pb2 as pb

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_POPULATE = 0x8000
_SEALS = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
_F_GET_SEALS = 1034
_ANSWER_BYTES_MAX = 65536

_REFUSALS = {"TOKEN_INVALID": "UNAUTHENTICATED", "PEER_REFUSED": "PERMISSION_DENIED", "PEER_UNKNOWN": "FAILED_PRECONDITION",
             "TOO_MANY_CONNECTIONS": "RESOURCE_EXHAUSTED", "NO_DESCRIPTORS": "RESOURCE_EXHAUSTED"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


class Range:
    """Addresses that are this object's for as long as it lives; what is mapped there may change. numpy makes arrays of it, which keep it alive.

    Nothing may be read or written before the first put(). Afterwards there is always memory, whatever fails. Not thread-safe.
    """

    def __init__(self, nbytes: int) -> None:
        """Exhausted when the process has no room."""
        self.nbytes = nbytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.address = _map(None, nbytes, _PROT_NONE, flags, -1)
        # Not at exit: whoever still uses an array then must not crash.
        weakref.finalize(self, _libc.munmap, self.address, nbytes).atexit = False
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (self.address, False)}

    def put(self, fd: int) -> None:
        """Maps the memory that `fd` is, shared and with all its pages, in place of what was there. After Exhausted it is as after vacate()."""
        try:
            _map(self.address, self.nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE, fd)
        except errors.Exhausted:
            self.vacate()
            raise

    def vacate(self) -> None:
        """Zeros of this process's own in place of what was there."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        _map(self.address, self.nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1)


class Connected(NamedTuple):
    """What the daemon's socket gave for a token. The descriptors are the caller's to close; a direct lease has none."""

    lease: socket.socket
    fd: int | None = None  # of an arena's memory
    mapped_bytes: int = 0  # of that memory, on a GPU
    flags_fd: int | None = None  # of its flag words, if it has some
    flag_bytes: int = 0


def connect(opened: pb.Arena | pb.DirectLease, timeout: float) -> Connected:
    """Connects for this arena or direct lease. timeout: seconds.

    Unavailable (SOCKET_UNREACHABLE) when the daemon is on another machine, or gone; what the daemon refuses (TOKEN_INVALID, PEER_REFUSED, PEER_UNKNOWN,
    TOO_MANY_CONNECTIONS); StatepoolError (BAD_MEMORY, BAD_ANSWER) for what would not be safe to use.
    """
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds: list[int] = []
    try:
        try:
            lease.settimeout(max(timeout, 0.001))
            lease.connect(address_of(opened.socket))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused already: the answer says why
                lease.send(opened.token)
            try:
                answer, fds, _, _ = socket.recv_fds(lease, _ANSWER_BYTES_MAX, 4, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:  # told once, before the answer that is there
                answer, fds, _, _ = socket.recv_fds(lease, _ANSWER_BYTES_MAX, 4, socket.MSG_CMSG_CLOEXEC)
            lease.settimeout(None)
        except OSError as failure:
            raise errors.made("UNAVAILABLE", "SOCKET_UNREACHABLE", f"{opened.socket}: {failure}; this needs the daemon on this machine",
                              "socket") from failure
        if isinstance(opened, pb.DirectLease):
            _check(opened.socket, answer, fds, {"lease": opened.lease, "incarnation": opened.incarnation}, 0)
            return Connected(lease)
        told = _check(opened.socket, answer, fds, {"arena": opened.arena, "bytes": str(opened.bytes), "incarnation": opened.incarnation},
                      2 if opened.flag_words else 1)
        flags_fd, flag_bytes = None, 4 * opened.flag_words
        if flag_bytes:
            check_memory(fds[1], flag_bytes)
            flags_fd = fds[1]
        if not is_gpu(opened.device):
            check_memory(fds[0], opened.bytes)
            fd, fds = fds[0], []
            return Connected(lease, fd, 0, flags_fd, flag_bytes)
        mapped_bytes = told.get("mapped_bytes")
        if not isinstance(mapped_bytes, int) or mapped_bytes < opened.bytes:
            raise errors.made("INTERNAL", "BAD_MEMORY", f"{mapped_bytes!r} bytes of a GPU's memory are no arena of {opened.bytes}", "mapped_bytes")
        fd, fds = fds[0], []
        return Connected(lease, fd, mapped_bytes, flags_fd, flag_bytes)
    except BaseException:
        lease.close()
        raise
    finally:
        for fd in fds:
            os.close(fd)


class Pieces:
    """Memory of the daemon's that comes in pieces, mapped side by side in the order in which they come. Not thread-safe.

    address           to read at
    writable_address  to write at as well; None: it is for reading alone. What is writable has all its pages there, and is not in the children of this
                      process. Otherwise pages come with their first use
    """

    def __init__(self, nbytes: int, writable: bool) -> None:
        """Exhausted when the process has no room."""
        self.nbytes = nbytes
        self._mapped = 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.address = _map(None, nbytes, _PROT_NONE, flags, -1)
        self.writable_address: int | None = None
        if writable:
            try:
                self.writable_address = _map(None, nbytes, _PROT_NONE, flags, -1)
            except errors.StatepoolError:
                self.unmap()
                raise

    def add(self, fd: int, nbytes: int) -> None:
        """Maps the next piece, shared: the first nbytes of the memory that `fd` is. REQUIRES: there is room. Exhausted; StatepoolError (BAD_MEMORY)."""
        check_memory(fd, nbytes)
        _map(self.address + self._mapped, nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd)
        if self.writable_address is not None:
            at = self.writable_address + self._mapped
            _map(at, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE, fd)
            _libc.madvise(at, nbytes, mmap.MADV_DONTFORK)
        self._mapped += nbytes

    def finish(self) -> None:
        """All pieces are there."""

    def unmap(self) -> None:
        """REQUIRES: nobody uses what is mapped there."""
        _libc.munmap(self.address, self.nbytes)
        if self.writable_address is not None:
            _libc.munmap(self.writable_address, self.nbytes)


def check_memory(fd: int, nbytes: int) -> None:
    """StatepoolError (BAD_MEMORY) unless it has so many bytes, and can't lose them."""
    size = os.fstat(fd).st_size
    if size < nbytes:
        raise errors.made("INTERNAL", "BAD_MEMORY", f"the daemon's memory has {size} bytes, not {nbytes}", "bytes", expected=nbytes, actual=size)
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0  # no memfd
    if seals & _SEALS != _SEALS:
        raise errors.made("INTERNAL", "BAD_MEMORY", f"the daemon's memory could shrink or grow under us: its seals are {seals:#x}")


def address_of(path: str) -> str:
    """A socket's path as the operating system takes it: "@name" is one in the abstract namespace."""
    return "\0" + path[1:] if path.startswith("@") else path


def is_here(path: str) -> bool:
    """Whether there is such a socket on this machine."""
    if not path.startswith("@"):
        return os.path.exists(path)
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
            return any(line.rstrip("\n").endswith(" " + path) for line in sockets)
    except OSError:
        return True  # who can't tell may try


def is_gpu(device: str) -> bool:
    """Whether arenas of this device are in a GPU's memory."""
    return device.startswith("cuda:")


def _check(path: str, answer: bytes, fds: list[int], expected: dict[str, str], fds_expected: int) -> Any:
    """What the socket answered."""
    if not answer:
        raise errors.made("UNAVAILABLE", "SOCKET_UNREACHABLE", f"{path}: the daemon hung up", "socket")
    try:
        told: Any = json.loads(answer)
        reason = told.get("reason")
    except (ValueError, AttributeError) as failure:
        raise errors.made("INTERNAL", "BAD_ANSWER", f"the daemon's socket answered {answer[:100]!r}", "socket") from failure
    if reason:
        raise errors.made(_REFUSALS.get(reason, "UNKNOWN"), str(reason), str(told.get("message", "")), "token")
    actual = {key: str(told.get(key)) for key in expected}
    if actual != expected or len(fds) != fds_expected:
        raise errors.made("INTERNAL", "BAD_ANSWER", f"the daemon's socket answered {actual} and {len(fds)} descriptors, not {expected} and "
                          f"{fds_expected}", "socket")
    return told


def _map(address: int | None, nbytes: int, protection: int, flags: int, fd: int) -> int:
    found: int | None = _libc.mmap(address, nbytes, protection, flags, fd, 0)
    if found is None or found == _MAP_FAILED:
        code = ctypes.get_errno()
        raise errors.made("RESOURCE_EXHAUSTED", "MAPPING_FAILED", f"mmap of {nbytes} bytes: {os.strerror(code)}")
    return found
