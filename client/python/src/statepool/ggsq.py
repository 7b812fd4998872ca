# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""llama.cpp's file of one sequence ('ggsq', llama_state_seq_save_file) of a purely recurrent model, to and from images of a layout.

    file = ggsq.read("slot.bin", layout)
    pool.set("chat/42", file.data, file.position, layout=layout)
    pool.publish_prefix(layout, file.tokens, "chat/42")
    ggsq.write("slot.bin", layout, pool.get("chat/42"), file.tokens)

What the file has, all little-endian:

    u32 magic 0x67677371, u32 version        2 or 3: for these models the same
    u32 n, i32 tokens[n]                     or, since llama-server keeps media, its words: -1, 1, count, the tokens, 0 (no media)
    u32 cells                                1
    i32 pos, u32 n_seq                       the last token's index, 0
    u32 s_trans, u32 n_layer                 0, all layers of the model
    R, for each layer that has a state:      i32 type, u64 row bytes, the row
    S, likewise                              a model without such a part has type F32 and a row of 0 bytes

How a layout's tensors lie in a layer's rows:

    R  one CONV, [channel, tap], the oldest tap first, where presets have [tap, channel]; or one or two SHIFT [channel], in the layout's order: att_shift, ffn_shift
    S  one RECURRENT: [channel, state], [head, head_dim, state], or of RWKV [head, key, value] or [head, value, key], whichever the layout has

Types are F32, F16 and BF16, and the layout's dtype must be the same: nothing is converted. llama.cpp itself has F32 alone, so presets want conv_dtype="float32",
shift_dtype="float32".

Tensors find their place by the names of their axes, in whatever order the layout has these. There is neither a checksum nor a model's name in such a file: flipped
bits of a state, and a state of another model of the same shape, can't be told.

Refused are hybrids: the cache of their attention is before the states, a layout does not describe it, and without it llama.cpp does not take the file; with them
every model whose layers have delta nets or linear attention, and whose layers have states of several kinds. No function of this module needs a daemon; all are
thread-safe.
"""
from __future__ import annotations

import dataclasses
import io
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _wire, errors
from .layouts import Layout, Tensor
from .names import State

MAGIC = 0x67677371
VERSIONS = (2, 3)

_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
_TYPE_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
               15: "Q8_K", 20: "IQ4_NL", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_MARKER, _PAYLOAD_VERSION, _PAYLOAD_WORDS = -1, 1, 4  # of llama-server, beside its tokens
_POSITION_MAX = 2**31 - 1
_HYBRID = "A hybrid's file has the cache of its attention here, which no layout describes"


@dataclasses.dataclass(frozen=True)
class SequenceFile:
    """What a file has.

    data      the image, Layout.state_bytes long: what Pool.set takes, and Layout.views
    position  tokens consumed: llama.cpp's pos + 1
    tokens    those, `position` of them
    version   2 or 3
    packed    the tokens are written as llama-server does it
    n_layer   layers of the model, with those that have no state
    """

    data: npt.NDArray[np.uint8]
    position: int
    tokens: tuple[int, ...]
    version: int
    packed: bool
    n_layer: int


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A layout's tensor within the rows: its bytes are `shape`, transposed by `order` of what the layout has."""

    tensor: Tensor
    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Part:
    """R or S: the row of a layer is its pieces, end to end."""

    name: str
    type: int
    row_bytes: int
    pieces: tuple[_Piece, ...]


def read(file: str | os.PathLike[str] | _wire.Buffer, layout: Layout, *, n_layer: int | None = None) -> SequenceFile:
    """The state in a file, as an image of `layout`.

    file     its path, or its bytes
    layout   what it must fit, with the dtypes of the file
    n_layer  layers of the model. None: the layout's last one is the model's last

    Every field is verified before memory is taken for the state: at most the tokens' is before. Raises InvalidArgument (field: the file's, "r[3].row_bytes"):
      INVALID_FILE        it ends early or late, is not of this format and a version above, or is a hybrid's; its tokens are not as many as its position says
      LAYOUT_MISMATCH     n_layer, a type or a row's size is not the layout's (metadata: expected, actual)
      UNSUPPORTED_LAYOUT  no such file can have this layout's tensors (field: the tensor, or "layers")
      INVALID_OPTION      n_layer
    and OSError.
    """
    parts = _parts_of(layout)
    n_layer = _n_layer(layout, n_layer)
    if isinstance(file, (str, os.PathLike)):
        if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):  # a pipe's open() would wait for who writes
            raise errors.invalid("INVALID_FILE", f"{os.fspath(file)} is no regular file", "file")
        with open(file, "rb") as opened:
            return _Reader(opened, os.fstat(opened.fileno()).st_size).read(layout, parts, n_layer)
    view = _wire.as_bytes(file)
    return _Reader(_Bytes(view), len(view)).read(layout, parts, n_layer)


def write(file: str | os.PathLike[str], layout: Layout, state: State | _wire.Buffer | Mapping[str, npt.ArrayLike], tokens: Iterable[int], *, version: int = 3,
          packed: bool = False, n_layer: int | None = None) -> None:
    """Writes a state as llama_state_seq_save_file would. What read() gave comes out as it was, byte for byte, with the same options.

    file     its path. What was there is replaced when all is written; one writer at a time
    state    of `layout`: what Pool.get gave, an image, or all tensors by name
    tokens   that lead to the state, 0..2^31-1 each; at least one. There are as many as its position
    version  llama.cpp takes its own alone
    packed   as llama-server writes the tokens now; it reads both. For llama_state_seq_load_file without a server: False
    n_layer  as for read

    InvalidArgument: UNSUPPORTED_LAYOUT; INVALID_OPTION (tokens, version, n_layer); BYTES_LENGTH_MISMATCH, TENSORS_MISMATCH (state). OSError. What was there stays then.
    """
    parts = _parts_of(layout)
    n_layer = _n_layer(layout, n_layer)
    if version not in VERSIONS:
        raise errors.invalid("INVALID_OPTION", f"version {version} is not known here: {' or '.join(map(str, VERSIONS))}", "version")
    tokens = list(tokens)
    if not tokens or len(tokens) > _POSITION_MAX or any(not 0 <= token < 2**31 for token in tokens):
        raise errors.invalid("INVALID_OPTION", "a file has the tokens that lead to its state, at least one, 0..2^31-1 each", "tokens")
    if isinstance(state, State):
        if state.position != len(tokens):
            raise errors.invalid("INVALID_OPTION", f"{len(tokens)} tokens don't lead to position {state.position}", "tokens")
        state = state.data if len(state.data) else state.tensors
    views = layout.views(layout.pack(state) if isinstance(state, Mapping) else state)

    words = [_MARKER, _PAYLOAD_VERSION, len(tokens), *tokens, 0] if packed else tokens
    part_file = f"{os.fspath(file)}.part"
    try:
        with open(part_file, "wb") as out:
            out.write(struct.pack(f"<III{len(words)}i", MAGIC, version, len(words), *words))
            out.write(struct.pack("<IiIII", 1, len(tokens) - 1, 0, 0, n_layer))
            for part in parts:
                for i in range(len(layout.tensors[0].layers)):
                    out.write(struct.pack("<iQ", part.type, part.row_bytes))
                    for piece in part.pieces:
                        bits = _bits(views[piece.tensor.name][i])
                        out.write(_wire.as_bytes(np.ascontiguousarray(bits.transpose(piece.order)).reshape(-1)))
        os.replace(part_file, file)
    except BaseException:
        try:
            os.unlink(part_file)
        except FileNotFoundError:
            pass
        raise


class _Bytes(io.RawIOBase):
    """A buffer as a file, without a copy of it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        piece = self._view[self._at:self._at + len(buffer)]
        buffer[:len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class _Reader:
    """Goes through a file once to verify its fields, and then takes the rows."""

    def __init__(self, file: io.BufferedReader | _Bytes, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0

    def read(self, layout: Layout, parts: tuple[_Part, ...], n_layer: int) -> SequenceFile:
        version = self._head()
        (words,) = self._take("<I", "n_tokens")
        if words > (self._size - self._at) // 4:
            raise _invalid("n_tokens", f"the file has {self._size} bytes, not room for {words} tokens")
        tokens_at = self._at
        packed = words > 0 and self._peek("<i")[0] == _MARKER
        count = self._packed_count(words) if packed else words
        self._at = tokens_at + 4 * words
        self._cell(count)
        (actual,) = self._take("<I", "n_layer")
        if actual != n_layer:
            raise _mismatch("n_layer", f"the file is of a model of {actual} layers, this one has {n_layer}", n_layer, actual)
        rows = self._rows(layout, parts)
        if self._at != self._size:
            raise _invalid("size", f"{self._size - self._at} bytes are behind the last row")
        tokens = self._tokens(tokens_at + (12 if packed else 0), count)

        data = np.empty(layout.state_bytes, np.uint8)
        views = layout.views(data)
        for (part, i), at in rows.items():
            for piece in part.pieces:
                stored = np.empty(piece.shape, f"u{piece.tensor.numpy_dtype.itemsize}")
                self._fill(at, stored)
                _bits(views[piece.tensor.name][i]).transpose(piece.order)[...] = stored
                at += stored.nbytes
        return SequenceFile(data, count, tokens, version, packed, n_layer)

    def _head(self) -> int:
        (magic,) = self._take("<I", "magic")
        if magic != MAGIC:
            raise _invalid("magic", f"the file begins with {magic:#010x}, not {MAGIC:#010x}: it is not one of llama.cpp's files of a sequence")
        (version,) = self._take("<I", "version")
        if version not in VERSIONS:
            raise _invalid("version", f"version {version} is not known here: {' or '.join(map(str, VERSIONS))}")
        return int(version)

    def _packed_count(self, words: int) -> int:
        """Of llama-server's tokens, of which the marker was seen."""
        if words < _PAYLOAD_WORDS:
            raise _invalid("tokens", f"llama-server's tokens take {_PAYLOAD_WORDS} words and more, not {words}")
        _, version, count = self._peek("<iiI")
        if version != _PAYLOAD_VERSION:
            raise _invalid("tokens", f"version {version} of llama-server's tokens is not known here: {_PAYLOAD_VERSION}")
        end = self._at
        self._at = end + 4 * min(3 + count, words - 1)
        (media,) = self._peek("<I")
        if count > words - _PAYLOAD_WORDS or (media == 0 and count != words - _PAYLOAD_WORDS):
            raise _invalid("tokens", f"llama-server's {words} words don't hold {count} tokens and nothing else")
        if media:
            raise _invalid("tokens", f"there are media among the tokens ({media}), which are more positions than tokens")
        return int(count)

    def _cell(self, count: int) -> None:
        (cells,) = self._take("<I", "cells")
        if cells != 1:
            raise _invalid("cells", f"a sequence of a recurrent model is one cell, not {cells}. {_HYBRID}")
        (pos,) = self._take("<i", "pos")
        if pos < 0 or pos + 1 != count:
            raise _invalid("pos", f"the last token is at {pos}, and the file has {count} tokens. llama.cpp writes whichever it is given, but only those that lead to "
                           f"the state tell what it is. {_HYBRID}")
        (n_seq,) = self._take("<I", "n_seq")
        if n_seq != 0:
            raise _invalid("n_seq", f"a file of one sequence names none, this one {n_seq}. {_HYBRID}")
        (transposed,) = self._take("<I", "s_trans")
        if transposed != 0:
            raise _invalid("s_trans", "S is transposed, which llama.cpp does not write")

    def _rows(self, layout: Layout, parts: tuple[_Part, ...]) -> dict[tuple[_Part, int], int]:
        """Where each row begins, by the part and the layer's index. It lies within the file."""
        rows = {}
        for part in parts:
            for i, layer in enumerate(layout.tensors[0].layers):
                field = f"{part.name}[{layer}]"
                (kind,) = self._take("<i", f"{field}.type")
                if kind != part.type:
                    expected, actual = _type_name(part.type), _type_name(kind)
                    raise _mismatch(f"{field}.type", f"layer {layer} is {actual} in the file and {expected} in the layout", expected, actual)
                (row_bytes,) = self._take("<Q", f"{field}.row_bytes")
                if row_bytes != part.row_bytes:
                    raise _mismatch(f"{field}.row_bytes", f"layer {layer} has {row_bytes} bytes in the file and {part.row_bytes} in the layout",
                                    part.row_bytes, row_bytes)
                if row_bytes > self._size - self._at:
                    raise _invalid(field, f"the file ends within layer {layer}")
                rows[part, i] = self._at
                self._at += row_bytes
        return rows

    def _tokens(self, at: int, count: int) -> tuple[int, ...]:
        tokens = np.empty(count, "<i4")
        self._fill(at, tokens)
        if (tokens < 0).any():
            raise _invalid("tokens", f"token {int(np.argmax(tokens < 0))} is negative")
        return tuple(tokens.tolist())

    def _take(self, form: str, field: str) -> tuple[Any, ...]:
        if struct.calcsize(form) > self._size - self._at:
            raise _invalid(field, f"the file ends after {self._size} bytes, within or before its {field}")
        values = self._peek(form)
        self._at += struct.calcsize(form)
        return values

    def _peek(self, form: str) -> tuple[Any, ...]:
        """REQUIRES: it lies within the file."""
        found = np.empty(struct.calcsize(form), np.uint8)
        self._fill(self._at, found)
        return struct.unpack(form, found.data)

    def _fill(self, at: int, array: npt.NDArray[Any]) -> None:
        view = _wire.as_bytes(array.reshape(-1))
        self._file.seek(at)
        done = 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise _invalid("size", "the file became shorter while it was read")
            done += got


def _n_layer(layout: Layout, given: int | None) -> int:
    least = layout.tensors[0].layers[-1] + 1
    if given is not None and not least <= given < 2**32:
        raise errors.invalid("INVALID_OPTION", f"the layout's last layer is {least - 1}: a model of {given} layers can't have it", "n_layer")
    return least if given is None else given


def _parts_of(layout: Layout) -> tuple[_Part, ...]:
    """R and S. UNSUPPORTED_LAYOUT where llama.cpp has no such state."""
    rolling = [t for t in layout.tensors if t.kind in ("conv", "shift")]
    recurrent = [t for t in layout.tensors if t.kind == "recurrent"]
    shifts = [t for t in rolling if t.kind == "shift"]
    if not layout.tensors or not layout.tensors[0].layers:
        raise _unsupported("layers", "the layout has no layers")
    for t in layout.tensors:
        if t.kind == "other":
            raise _unsupported(t.name, f"tensor {t.name!r} is neither CONV, SHIFT nor RECURRENT, and llama.cpp has nothing else")
        if t.dtype not in _TYPES:
            raise _unsupported(t.name, f"tensor {t.name!r} is {t.dtype}: a file has float32, float16 or bfloat16")
        if t.layers != layout.tensors[0].layers:
            raise _unsupported("layers", "the layers have different tensors, and llama.cpp has the same in all that have a state")
    if len(rolling) not in ((1, 2) if shifts else (1,)) or (shifts and rolling != shifts) or len({t.dtype for t in rolling}) > 1:
        raise _unsupported(rolling[0].name if rolling else "tensors", "llama.cpp has one convolution, or one or two shift states of one dtype, in each layer")
    if len(recurrent) > 1:
        raise _unsupported(recurrent[1].name, "llama.cpp has one recurrent tensor in each layer")
    if shifts:
        return _part("r", rolling, [("channel",)]), _part("s", recurrent, [("head", "key", "value"), ("head", "value", "key")])
    return _part("r", rolling, [("channel", "tap")]), _part("s", recurrent, [("channel", "state"), ("head", "head_dim", "state")])


def _part(name: str, tensors: list[Tensor], known: list[tuple[str, ...]]) -> _Part:
    pieces = []
    for t in tensors:
        axes = tuple(t.axes)
        found = axes if axes in known else next((k for k in known if set(k) == set(axes) and len(k) == len(axes)), None)
        if found is None:
            raise _unsupported(t.name, f"tensor {t.name!r} has the axes {', '.join(axes)}; here llama.cpp has {' or '.join(map(', '.join, known))}. Delta nets and "
                               "linear attention it has in hybrids alone")
        order = tuple(axes.index(axis) for axis in found)
        pieces.append(_Piece(t, tuple(t.axes[axis] for axis in found), order))
    return _Part(name, _TYPES[tensors[0].dtype] if tensors else _TYPES["float32"], sum(t.layer_nbytes for t in tensors), tuple(pieces))


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.view(f"u{array.dtype.itemsize}")


def _type_name(kind: int) -> str:
    return _TYPE_NAMES.get(kind, f"type {kind}")


def _invalid(field: str, message: str) -> errors.InvalidArgument:
    return errors.invalid("INVALID_FILE", message, field)


def _mismatch(field: str, message: str, expected: object, actual: object) -> errors.InvalidArgument:
    return errors.invalid("LAYOUT_MISMATCH", message, field, expected=expected, actual=actual)


def _unsupported(field: str, message: str) -> errors.InvalidArgument:
    return errors.invalid("UNSUPPORTED_LAYOUT", message, field)
