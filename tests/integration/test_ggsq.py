# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""llama.cpp's file of one sequence: the Python package's and the C++ client's readers and writers, over files that are built here byte by byte.

What the files hold is made by tiny models that move their states as llama.cpp's graphs and kernels do, in flat rows of its own order; what the readers must find is
made from the definitions of the layouts' axes, separately. Failures name their seed (STATEPOOL_SEED gives another one)."""
import dataclasses
import os
import pathlib
import random
import re
import struct
import subprocess
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

import statepool
from daemon_process import BINARY
from statepool import ggsq, layouts
from statepool.layouts import Layout, Tensor

SEED = int(os.environ.get("STATEPOOL_SEED", 7))
PROGRAM = BINARY.parent / "tests" / "cpp_sequence_file"
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
TOKENS = [7, 0, 2**31 - 1, 40, 41]  # five: more than any window has taps
LAYERS = 3
REFUSED_BYTES_MAX = 1 << 20  # of memory, for a file that is refused


# ------------------------------------------------------------------------------------------------------------ models

def small(rng):
    """A number that every dtype has exactly, also after a sum of five products with another one and with halves."""
    return float(rng.choice((-2, -1, 0, 1, 2)))


@dataclasses.dataclass
class Model:
    """preset     of a layout with `dtype`
    run(rng)   one layer over the tokens: its rows (r, s) as llama.cpp has them, and its tensors as the layout has them
    """

    preset: Callable[[str], layouts.Preset]
    run: Callable[[random.Random], tuple[list[float], list[float], dict[str, np.ndarray]]]


def convolve(inputs, taps):
    """ggml_concat(conv, transpose(x), 0), of which the last columns are kept: ne[0] is the tap, ne[1] the channel. And what the axes say: window [tap, channel]."""
    channels = len(inputs[0])
    row = [0.0] * (taps * channels)
    for x in inputs:
        columns = [row[taps * c:taps * (c + 1)] + [x[c]] for c in range(channels)]
        row = [value for column in columns for value in column[-taps:]]
    return row, np.array(inputs[-taps:])


def mamba1(rng):
    channels, states, taps = 5, 3, 3
    x = [[small(rng) for _ in range(channels)] for _ in TOKENS]
    b = [[small(rng) for _ in range(states)] for _ in TOKENS]
    row = [0.0] * (channels * states)  # {d_state, 1, d_inner}
    for t in range(len(TOKENS)):
        for c in range(channels):
            for n in range(states):
                row[n + states * c] = 0.5 * row[n + states * c] + x[t][c] * b[t][n]
    ssm = sum(0.5**(len(TOKENS) - 1 - t) * np.einsum("c,n->cn", x[t], b[t]) for t in range(len(TOKENS)))
    conv, window = convolve(x, taps)
    return conv, row, {"conv": window, "ssm": ssm}


def mamba2(rng):
    heads, dim, states, groups, taps = 2, 3, 4, 1, 3
    xbc = [[small(rng) for _ in range(heads * dim + 2 * groups * states)] for _ in TOKENS]
    row = [0.0] * (heads * dim * states)  # {d_state, head_dim, n_head}
    for inputs in xbc:
        x, b = inputs[:heads * dim], inputs[heads * dim:heads * dim + states]
        for h in range(heads):
            for p in range(dim):
                for n in range(states):
                    at = n + states * (p + dim * h)
                    row[at] = 0.5 * row[at] + x[p + dim * h] * b[n]
    ssm = sum(0.5**(len(TOKENS) - 1 - t) * np.einsum("hp,n->hpn", np.reshape(v[:heads * dim], (heads, dim)), v[heads * dim:heads * dim + states])
              for t, v in enumerate(xbc))
    conv, window = convolve(xbc, taps)
    return conv, row, {"conv": window, "ssm": ssm}


def rwkv(inner, outer):
    """s[h][i][j] with i counting `outer` and j `inner`: wkv6 walks keys outside and values inside, wkv7 the other way round."""
    def run(rng):
        heads, size = 2, 4
        att, ffn, k, v = ([[small(rng) for _ in range(heads * size)] for _ in TOKENS] for _ in range(4))
        of = {"key": k, "value": v}
        row = [0.0] * (heads * size * size)
        for t in range(len(TOKENS)):
            for h in range(heads):
                for i in range(size):
                    for j in range(size):
                        at = h * size * size + i * size + j
                        row[at] = 0.5 * row[at] + of[outer][t][h * size + i] * of[inner][t][h * size + j]
        keys, values = (np.reshape(of[name], (len(TOKENS), heads, size)) for name in ("key", "value"))
        wkv = sum(0.5**(len(TOKENS) - 1 - t) * np.einsum(f"hk,hv->h{outer[0]}{inner[0]}", keys[t], values[t]) for t in range(len(TOKENS)))
        return att[-1] + ffn[-1], row, {"att_shift": np.array(att[-1]), "wkv": wkv, "ffn_shift": np.array(ffn[-1])}
    return run


def short_conv(rng):
    conv, window = convolve([[small(rng) for _ in range(6)] for _ in TOKENS], 2)
    return conv, [], {"conv": window}


def model(make, run, conv="conv_dtype", recurrent="recurrent_dtype", **sizes):
    return Model(lambda dtype: make("ggsq", layers=LAYERS, **sizes, **{name: dtype for name in (conv, recurrent) if name}), run)


MODELS = {
    "mamba1": model(layouts.mamba1, mamba1, intermediate_size=5, state_size=3, conv_kernel=4),
    "mamba2": model(layouts.mamba2, mamba2, heads=2, head_dim=3, state_size=4, conv_kernel=4),
    "rwkv6": model(layouts.rwkv6, rwkv(inner="value", outer="key"), "shift_dtype", "wkv_dtype", hidden_size=8, head_size=4),
    "rwkv7": model(layouts.rwkv7, rwkv(inner="key", outer="value"), "shift_dtype", "wkv_dtype", hidden_size=8, head_size=4),
    "short_conv": model(layouts.short_conv, short_conv, recurrent="", channels=6, conv_kernel=3),
}


# ------------------------------------------------------------------------------------------------------------ files

def encode(values, kind):
    if kind == BF16:
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if kind == F32 else 'e'}", *values)


@dataclasses.dataclass
class File:
    """The bytes, and where each field begins: {name: (offset, length)}. Tokens and rows are there too."""

    data: bytes = b""
    fields: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def add(self, name, data):
        self.fields[name] = (len(self.data), len(data))
        self.data += data

    def changed(self, name, data):
        at, length = self.fields[name]
        return self.data[:at] + data + self.data[at + length:]


def file_of(rows, kind=F32, version=3, packed=False, tokens=TOKENS, n_layer=None, layers=None):
    """As section 4 of what llama.cpp's recurrent memory does says: rows is [(r, s)] of the layers that have a state."""
    words = [-1, 1, len(tokens), *tokens, 0] if packed else tokens
    layers = list(range(len(rows))) if layers is None else layers
    file = File()
    file.add("magic", b"qsgg")
    file.add("version", struct.pack("<I", version))
    file.add("n_tokens", struct.pack("<I", len(words)))
    file.add("words", b"".join(struct.pack("<i", word) for word in words))
    file.add("cells", struct.pack("<I", 1))
    file.add("pos", struct.pack("<i", len(tokens) - 1))
    file.add("n_seq", struct.pack("<I", 0))
    file.add("s_trans", struct.pack("<I", 0))
    file.add("n_layer", struct.pack("<I", len(rows) if n_layer is None else n_layer))
    for part, name in enumerate("rs"):
        for layer, of_layer in zip(layers, rows, strict=True):
            row = encode(of_layer[part], kind)
            file.add(f"{name}[{layer}].type", struct.pack("<i", kind if row else F32))
            file.add(f"{name}[{layer}].row_bytes", struct.pack("<Q", len(row)))
            file.add(f"{name}[{layer}]", row)
    return file


def decoded(array):
    """Of bfloat16 its bits are there."""
    return (array.astype("<u4") << 16).view("<f4") if array.dtype == np.uint16 else array


@dataclasses.dataclass
class Case:
    layout: Layout
    rows: list[tuple[list[float], list[float]]]
    tensors: dict[str, np.ndarray]

    def file(self, **options):
        return file_of([row[:2] for row in self.rows], **options)


def case_of(pool, name, dtype="float32"):
    rng = random.Random(SEED)
    layers = [MODELS[name].run(rng) for _ in range(LAYERS)]
    layout = pool.register_layout(MODELS[name].preset(dtype))
    return Case(layout, [layer[:2] for layer in layers], {t: np.stack([layer[2][t] for layer in layers]) for t in layers[0][2]})


@pytest.fixture(scope="module")
def pool(daemon):
    with statepool.connect(daemon.unix_address, timeout=30) as pool:
        yield pool


@pytest.fixture(params=MODELS)
def case(request, pool):
    return case_of(pool, request.param)


@pytest.fixture
def mamba(pool):
    return case_of(pool, "mamba1")


def cpp(tmp_path, layout, files, *, name="unused", n_layer=0, server="", memory_bytes=0):
    """What the C++ program says of these files: [reason, field, message] or ["OK", position], and what it wrote."""
    (tmp_path / "layout").write_bytes(layout.to_proto().SerializeToString())
    lines = []
    for i, file in enumerate(files):
        path = file
        if isinstance(file, bytes):
            path = tmp_path / f"{i}.in"
            path.write_bytes(file)
        lines.append(f"{path}\t{tmp_path / f'{i}.out'}\n")
    environment = {k: v for k, v in os.environ.items() if k != "STATEPOOL_SERVER"} | ({"STATEPOOL_SERVER": server} if server else {})
    # A sanitizer takes terabytes of addresses.
    sanitized = re.search("^STATEPOOL_SANITIZE:STRING=.", (BINARY.parent / "CMakeCache.txt").read_text(), re.M)
    limit = ["prlimit", f"--as={memory_bytes}"] if memory_bytes and not sanitized else []
    done = subprocess.run([*limit, PROGRAM, tmp_path / "layout", name, str(n_layer)], input="".join(lines), text=True, capture_output=True, env=environment,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line.split("\t", 2) for line in done.stdout.splitlines()]
    assert len(said) == len(files)
    return said, [out.read_bytes() if (out := tmp_path / f"{i}.out").exists() else None for i in range(len(files))]


def refused(layout, file, **options):
    """(reason, field) with which Python refuses it."""
    with pytest.raises(statepool.InvalidArgument) as error:
        ggsq.read(file, layout, **options)
    assert error.value.reason and error.value.field and " " in error.value.message
    return error.value.reason, error.value.field


# ------------------------------------------------------------------------------------------------------------ there and back

@pytest.mark.parametrize("packed", (False, True), ids=("plain", "packed"))
@pytest.mark.parametrize("version", (2, 3))
def test_a_file_becomes_a_state_of_the_pool_and_the_same_file_again(pool, case, version, packed, name, tmp_path):
    built = case.file(version=version, packed=packed).data
    path = tmp_path / "slot.bin"
    path.write_bytes(built)

    file = ggsq.read(path, case.layout)
    assert (file.position, list(file.tokens), file.version, file.packed, file.n_layer) == (len(TOKENS), TOKENS, version, packed, LAYERS)
    for tensor, found in case.layout.views(file.data).items():
        np.testing.assert_array_equal(found, case.tensors[tensor], err_msg=f"{tensor}, STATEPOOL_SEED={SEED}")
    assert bytes(ggsq.read(built, case.layout).data) == bytes(file.data)

    pool.set(name, file.data, file.position, layout=case.layout)
    pool.publish_prefix(case.layout, file.tokens, name)
    hit = pool.match_prefix(case.layout, [*file.tokens, 5])
    assert hit.position == len(TOKENS)
    options = {"version": version, "packed": packed}
    for state in (pool.get(name), pool.get(name).data, pool.get(name).tensors):
        ggsq.write(tmp_path / "again.bin", case.layout, state, file.tokens, **options)
        assert (tmp_path / "again.bin").read_bytes() == built
    assert sorted(os.listdir(tmp_path)) == ["again.bin", "slot.bin"]


def test_the_cpp_client_puts_the_same_states_into_the_pool_and_writes_the_same_files(daemon, pool, case, name, tmp_path):
    built = [case.file(version=version, packed=packed).data for version in (2, 3) for packed in (False, True)]
    said, written = cpp(tmp_path, case.layout, built, name=name, server=daemon.unix_address)
    assert said == [["OK", str(len(TOKENS))]] * len(built)
    assert written == built
    assert pool.get(name).data == memoryview(ggsq.read(built[0], case.layout).data)
    assert cpp(tmp_path, case.layout, built)[1] == built  # from an image in small pieces


@pytest.mark.parametrize(("dtype", "kind"), (("float16", F16), ("bfloat16", BF16)))
@pytest.mark.parametrize("name", MODELS)
def test_halves_are_taken_where_the_layout_has_them_too(pool, name, dtype, kind, tmp_path):
    case = case_of(pool, name, dtype)
    built = case.file(kind=kind).data
    file = ggsq.read(built, case.layout)
    for tensor, found in case.layout.views(file.data).items():
        np.testing.assert_array_equal(decoded(found.view("<u2") if dtype == "bfloat16" else found), case.tensors[tensor])
    ggsq.write(tmp_path / "out", case.layout, file.data, file.tokens)
    assert (tmp_path / "out").read_bytes() == built
    assert cpp(tmp_path, case.layout, [built])[1] == [built]
    for other in {F32, F16, BF16, Q8_0, 99} - {kind}:
        changed = case.file(kind=kind).changed("r[0].type", struct.pack("<i", other))
        assert refused(case.layout, changed) == ("LAYOUT_MISMATCH", "r[0].type")
    with pytest.raises(statepool.InvalidArgument, match="layer 0 is Q8_0 in the file and B?F16 in the layout"):
        ggsq.read(case.file(kind=kind).changed("r[0].type", struct.pack("<i", Q8_0)), case.layout)


def test_tensors_find_their_place_by_the_names_of_their_axes(mamba, tmp_path):
    turned = Layout("turned", tuple(Tensor(t.name, t.layers, t.dtype, dict(reversed(t.axes.items())), kind=t.kind) for t in reversed(mamba.layout.tensors)))
    assert [list(t.axes) for t in turned.tensors] == [["state", "channel"], ["channel", "tap"]]
    built = mamba.file().data
    file = ggsq.read(built, turned)
    for tensor, found in turned.views(file.data).items():
        np.testing.assert_array_equal(found, mamba.tensors[tensor].transpose(0, 2, 1))
    ggsq.write(tmp_path / "out", turned, file.data, file.tokens)
    assert (tmp_path / "out").read_bytes() == built
    assert cpp(tmp_path, turned, [built])[1] == [built]


def test_layers_without_a_state_have_no_rows(mamba, tmp_path):
    layers = [1, 2, 5]
    layout = Layout("filtered", tuple(Tensor(t.name, layers, t.dtype, t.axes, kind=t.kind)
                                      for t in mamba.layout.tensors))
    rows = [row[:2] for row in mamba.rows]
    for n_layer in (6, 9):
        built = file_of(rows, layers=layers, n_layer=n_layer).data
        given = None if n_layer == 6 else n_layer
        file = ggsq.read(built, layout, n_layer=given)
        np.testing.assert_array_equal(layout.views(file.data)["conv"], mamba.tensors["conv"])
        ggsq.write(tmp_path / "out", layout, file.data, file.tokens, n_layer=file.n_layer)
        assert (tmp_path / "out").read_bytes() == built
        assert cpp(tmp_path, layout, [built], n_layer=n_layer)[1] == [built]
    built = file_of(rows, layers=layers, n_layer=9).data
    assert refused(layout, built) == ("LAYOUT_MISMATCH", "n_layer")
    assert refused(layout, built, n_layer=5) == ("INVALID_OPTION", "n_layer")
    assert cpp(tmp_path, layout, [built], n_layer=5)[0][0][:2] == ["INVALID_OPTION", "n_layer"]


# ------------------------------------------------------------------------------------------------------------ what is refused

def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


REFUSED = {  # field: (what it is made, the reason, the field that is told)
    "magic": ((u32(0), b"ggsq", u32(0x6767736e)), "INVALID_FILE", "magic"),
    "version": ((u32(0), u32(1), u32(4), u32(2**32 - 1)), "INVALID_FILE", "version"),
    "n_tokens": ((u32(2**32 - 1), u32(2**31), u32(2**20)), "INVALID_FILE", "n_tokens"),
    "cells": ((u32(0), u32(2), u32(2**32 - 1)), "INVALID_FILE", "cells"),
    "pos": ((u32(0), u32(len(TOKENS)), u32(2**31 - 1), u32(2**31), u32(2**32 - 1)), "INVALID_FILE", "pos"),
    "n_seq": ((u32(1), u32(2**32 - 1)), "INVALID_FILE", "n_seq"),
    "s_trans": ((u32(1), u32(2**32 - 1)), "INVALID_FILE", "s_trans"),
    "n_layer": ((u32(0), u32(LAYERS - 1), u32(LAYERS + 1), u32(2**32 - 1)), "LAYOUT_MISMATCH", "n_layer"),
}


def test_every_field_is_verified_and_the_error_names_it(case, tmp_path):
    for version in (2, 3):
        file = case.file(version=version)
        expected = []
        for field, (values, reason, told) in REFUSED.items():
            expected += [(file.changed(field, value), reason, told) for value in values]
        for field in file.fields:
            if field.endswith(".type"):
                expected += [(file.changed(field, struct.pack("<i", value)), "LAYOUT_MISMATCH", field) for value in (F16, Q8_0, BF16, 99, -1)]
            if field.endswith(".row_bytes"):
                size = struct.unpack("<Q", file.data[slice(file.fields[field][0], sum(file.fields[field]))])[0]
                expected += [(file.changed(field, u64(value)), "LAYOUT_MISMATCH", field) for value in (size + 1, size + 4, 2**32 + size, 2**63, 2**64 - 1)]
        said, _ = cpp(tmp_path, case.layout, [data for data, *_ in expected])
        for (data, reason, told), from_cpp in zip(expected, said, strict=True):
            assert refused(case.layout, data) == (reason, told) == tuple(from_cpp[:2])


def test_every_flipped_byte_of_a_field_is_found(case, tmp_path):
    file = case.file()
    flipped = []
    for field, (at, length) in file.fields.items():
        if field == "words" or field[-1] == "]":  # tokens and states: nothing tells those
            continue
        for i in range(at, at + length):
            for bits in (1, 0x80, 0xff):
                if (field, i - at, bits) != ("version", 0, 1):  # 3 becomes 2, which is the same
                    flipped.append(file.data[:i] + bytes([file.data[i] ^ bits]) + file.data[i + 1:])
    said, _ = cpp(tmp_path, case.layout, flipped)
    assert [refused(case.layout, data) for data in flipped] == [tuple(line[:2]) for line in said]


@pytest.mark.parametrize("packed", (False, True), ids=("plain", "packed"))
def test_a_file_that_is_cut_or_too_long_is_refused(case, packed, tmp_path):
    file = case.file(packed=packed)
    head = sum(file.fields["s[0].row_bytes" if "s[0].row_bytes" in file.fields else "n_layer"])
    rng = random.Random(SEED)
    files = [file.data[:n] for n in {*range(head), *(rng.randrange(len(file.data)) for _ in range(50)), len(file.data) - 1}]
    files += [file.data + more for more in (b"\0", b"\0" * 4, file.data, rng.randbytes(1000))]
    said, _ = cpp(tmp_path, case.layout, files)
    for data, from_cpp in zip(files, said, strict=True):
        found = refused(case.layout, data)
        assert found == tuple(from_cpp[:2]) and found[0] == "INVALID_FILE", (len(data), SEED)
        if len(data) > len(file.data):
            assert found[1] == "size"


def test_files_of_noise_are_refused_or_are_states(case, tmp_path):
    rng = random.Random(SEED)
    good = case.file().data
    files = []
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            what = rng.randrange(3)
            at = rng.randrange(len(data))
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                del data[at:at + rng.randint(1, 12)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 12))
            if not data:
                break
        files.append(bytes(data))
    said, _ = cpp(tmp_path, case.layout, files)
    for data, from_cpp in zip(files, said, strict=True):
        try:
            found = ggsq.read(data, case.layout)
        except statepool.InvalidArgument as error:
            assert [error.reason, error.field] == from_cpp[:2], SEED
        else:  # only states, tokens and the version were touched
            assert from_cpp == ["OK", str(len(TOKENS))] and len(data) == len(good) and len(found.tokens) == len(TOKENS), SEED


def test_memory_is_taken_only_for_what_was_verified(mamba, tmp_path):
    file = mamba.file()
    files = [file.changed("n_tokens", u32(2**32 - 1)), file.changed("n_tokens", u32(2**31 - 1)), file.changed("cells", u32(2**32 - 1)),
             file.changed("n_layer", u32(2**32 - 1)), file.changed("r[0].row_bytes", u64(2**62)), file.changed("s[2].row_bytes", u64(2**64 - 1))]
    # Room for so many tokens, and nothing in it: 8 GiB of a hole.
    hole = tmp_path / "hole"
    with hole.open("wb") as out:
        out.write(file.data[:8] + u32(2**31 - 1))
        out.truncate(2**33 + 1000)
    huge = tmp_path / "huge"  # a good file, and a hole behind it
    with huge.open("wb") as out:
        out.write(file.data)
        out.truncate(2**33)
    assert (refused(mamba.layout, hole), refused(mamba.layout, huge)) == (("INVALID_FILE", "cells"), ("INVALID_FILE", "size"))
    tracemalloc.start()
    for data in (*files, hole, huge):
        refused(mamba.layout, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < REFUSED_BYTES_MAX
    # A layout of 2 TiB, and a file that says that it has that.
    vast = Layout("vast", tuple(Tensor(t.name, t.layers, t.dtype, {**t.axes, "channel": 2**38}, kind=t.kind) for t in mamba.layout.tensors))
    of_vast = file.changed("r[0].row_bytes", u64(3 * 4 * 2**38))
    assert refused(vast, of_vast) == ("INVALID_FILE", "r[0]")
    said, _ = cpp(tmp_path, mamba.layout, [*files, hole, huge], memory_bytes=2**30)
    assert [line[0] for line in said].count("OK") == 0 and said[-2][:2] == ["INVALID_FILE", "cells"]
    assert cpp(tmp_path, vast, [of_vast], memory_bytes=2**30)[0][0][:2] == ["INVALID_FILE", "r[0]"]


def test_tokens_must_be_those_that_lead_to_the_state(mamba, tmp_path):
    rows = [row[:2] for row in mamba.rows]
    fewer = file_of(rows).changed("pos", struct.pack("<i", len(TOKENS) + 3))
    none = file_of(rows, tokens=[])
    negative = file_of(rows, tokens=[3, -2, 5])
    packed = file_of(rows, packed=True)

    def payload(*words):
        file = file_of(rows)
        return file.data[:8] + u32(len(words)) + b"".join(struct.pack("<i", w) for w in words) + file.data[sum(file.fields["words"]):]

    cases = [(fewer, "pos"), (none.changed("pos", struct.pack("<i", 0)), "pos"), (none.data, "pos"), (negative.data, "tokens"),
             (payload(-1), "tokens"), (payload(-1, 1, 0), "tokens"), (payload(-1, 2, 5, *TOKENS, 0), "tokens"), (payload(-1, 1, 6, *TOKENS, 0), "tokens"),
             (payload(-1, 1, -1, *TOKENS, 0), "tokens"), (payload(-1, 1, 5, *TOKENS, 0, 0), "tokens"), (payload(-1, 1, 5, *TOKENS, 1, 0, 99), "tokens"),
             (payload(-1, 1, 4, *TOKENS[1:], 0), "pos"), (payload(-1, 1, 5, *TOKENS[:4], -7, 0), "tokens")]
    assert payload(-1, 1, 5, *TOKENS, 0) == packed.data
    said, _ = cpp(tmp_path, mamba.layout, [data for data, _ in cases])
    for (data, field), from_cpp in zip(cases, said, strict=True):
        assert refused(mamba.layout, data) == ("INVALID_FILE", field) == tuple(from_cpp[:2])
    with pytest.raises(statepool.InvalidArgument, match="media"):
        ggsq.read(payload(-1, 1, 5, *TOKENS, 1, 0, 99), mamba.layout)


def test_a_hybrid_s_file_is_refused_and_says_so(mamba, tmp_path):
    file = mamba.file()
    tokens_end = sum(file.fields["words"])
    attention = u32(1) + u32(len(TOKENS)) + b"".join(struct.pack("<iI", i, 0) for i in range(len(TOKENS)))  # streams, cells, {pos, n_seq}
    attention += u32(0) + u32(1) + 2 * (struct.pack("<iQ", F16, 8) + bytes(8 * len(TOKENS)))                # v_trans, n_layer, K and V
    hybrid = file.data[:tokens_end] + attention + file.data[tokens_end:]
    older = file.data[:tokens_end] + attention[4:] + file.data[tokens_end:]  # without streams
    with pytest.raises(statepool.InvalidArgument, match="hybrid's file has the cache of its attention"):
        ggsq.read(hybrid, mamba.layout)
    assert (refused(mamba.layout, hybrid), refused(mamba.layout, older)) == (("INVALID_FILE", "pos"), ("INVALID_FILE", "cells"))
    said, _ = cpp(tmp_path, mamba.layout, [hybrid, older])
    assert [line[:2] for line in said] == [["INVALID_FILE", "pos"], ["INVALID_FILE", "cells"]] and all("hybrid" in line[2] for line in said)


def conv(name="conv", layers=(0, 1), dtype="float32"):
    return Tensor(name, layers, dtype, {"tap": 3, "channel": 4}, kind="conv")


def shift(name, dtype="float32"):
    return Tensor(name, (0, 1), dtype, {"channel": 4}, kind="shift")


def ssm(name="ssm", layers=(0, 1), dtype="float32"):
    return Tensor(name, layers, dtype, {"channel": 4, "state": 2}, kind="recurrent")


LAYOUTS = {  # that no file can have: (what, the field that is told)
    "gated delta net": (lambda: layouts.gated_delta_net("x", layers=2, key_heads=2, key_dim=2, value_heads=2, value_dim=2, conv_dtype="float32"), "delta"),
    "kda": (lambda: layouts.kda("x", layers=2, heads=2, head_dim=2, conv_dtype="float32"), "delta"),
    "kda, three convolutions": (lambda: layouts.kda("x", layers=2, heads=2, head_dim=2, conv_dtype="float32", separate_convs=True), "conv_q"),
    "linear attention": (lambda: layouts.linear_attention("x", layers=2, heads=2, head_dim=2), "tensors"),
    "rwkv4": (lambda: layouts.rwkv4("x", layers=2, hidden_size=4, shift_dtype="float32"), "bb"),
    "two families": (lambda: layouts.hybrid("x", [
        layouts.mamba1(layer_ids=[0, 2], intermediate_size=4, state_size=2, conv_dtype="float32"),
        layouts.short_conv(layer_ids=[1], channels=4, conv_dtype="float32", prefix="short_")]), "layers"),
    "another kind": (lambda: Layout("x", (conv(), Tensor("count", (0, 1), "float32", {"channel": 4}))), "count"),
    "another dtype": (lambda: Layout("x", (conv(dtype="float64"), ssm())), "conv"),
    "an integer": (lambda: Layout("x", (conv(), ssm(dtype="int8"))), "ssm"),
    "other axes": (lambda: Layout("x", (Tensor("conv", (0, 1), "float32", {"tap": 3, "lane": 4}, kind="conv"), ssm())), "conv"),
    "an axis more": (lambda: Layout("x", (conv(), Tensor("ssm", (0, 1), "float32", {"channel": 4, "state": 2, "half": 2}, kind="recurrent"))), "ssm"),
    "two recurrent tensors": (lambda: Layout("x", (conv(), ssm(), ssm("other"))), "other"),
    "two convolutions": (lambda: Layout("x", (conv(), conv("other"), ssm())), "conv"),
    "a convolution and a shift": (lambda: Layout("x", (shift("att_shift"), conv(), ssm())), "att_shift"),
    "three shifts": (lambda: Layout("x", (shift("a"), shift("b"), shift("c"))), "a"),
    "shifts of two dtypes": (lambda: Layout("x", (shift("a"), shift("b", "float16"))), "a"),
    "mamba's matrix with shifts": (lambda: Layout("x", (shift("a"), shift("b"), ssm())), "ssm"),
    "other layers": (lambda: Layout("x", (conv(), ssm(layers=(0,)))), "layers"),
    "no tensors": (lambda: Layout("x", ()), "layers"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_layouts_that_llama_cpp_has_no_file_of_are_refused(pool, mamba, what, tmp_path):
    make, field = LAYOUTS[what]
    made = make()
    layout = made if isinstance(made, Layout) else pool.register_layout(made)
    assert refused(layout, mamba.file().data) == ("UNSUPPORTED_LAYOUT", field)
    with pytest.raises(statepool.InvalidArgument) as error:
        ggsq.write(tmp_path / "out", layout, bytes(layout.state_bytes), TOKENS)
    assert (error.value.reason, error.value.field) == ("UNSUPPORTED_LAYOUT", field)
    assert cpp(tmp_path, layout, [mamba.file().data])[0][0][:2] == ["UNSUPPORTED_LAYOUT", field]


def test_what_can_t_be_written_leaves_the_file_as_it_was(pool, mamba, name, tmp_path):
    path = tmp_path / "slot.bin"
    path.write_bytes(b"before")
    data = ggsq.read(mamba.file().data, mamba.layout).data
    pool.set(name, data, 4, layout=mamba.layout)
    for state, tokens, options, (reason, field) in (
            (pool.get(name), TOKENS, {}, ("INVALID_OPTION", "tokens")),
            (data, [], {}, ("INVALID_OPTION", "tokens")),
            (data, [1, -1], {}, ("INVALID_OPTION", "tokens")),
            (data, [1, 2**31], {}, ("INVALID_OPTION", "tokens")),
            (data, TOKENS, {"version": 4}, ("INVALID_OPTION", "version")),
            (data, TOKENS, {"n_layer": LAYERS - 1}, ("INVALID_OPTION", "n_layer")),
            (data[1:], TOKENS, {}, ("BYTES_LENGTH_MISMATCH", "data")),
            ({"conv": mamba.tensors["conv"].astype("<f4")}, TOKENS, {}, ("TENSORS_MISMATCH", "data"))):
        with pytest.raises(statepool.InvalidArgument) as error:
            ggsq.write(path, mamba.layout, state, tokens, **options)
        assert (error.value.reason, error.value.field) == (reason, field)
    with pytest.raises(OSError):
        ggsq.write(tmp_path / "no such folder" / "slot.bin", mamba.layout, data, TOKENS)
    with pytest.raises(OSError):
        ggsq.write(tmp_path, mamba.layout, data, TOKENS)  # a folder
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["slot.bin"] and not os.path.exists(f"{tmp_path}.part")


def test_a_file_that_can_t_be_read_is_the_system_s_error(mamba, tmp_path):
    with pytest.raises(FileNotFoundError):
        ggsq.read(tmp_path / "none", mamba.layout)
    assert [said[:2] for said in cpp(tmp_path, mamba.layout, [tmp_path / "none", tmp_path])[0]] == [["FILE_FAILED", "path"]] * 2


def test_a_pipe_is_no_file(mamba, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, pathlib.Path("/dev/zero")):
        with pytest.raises(statepool.InvalidArgument, match="INVALID_FILE"):
            ggsq.read(path, mamba.layout)
        assert cpp(tmp_path, mamba.layout, [path])[0][0][0] == "INVALID_FILE"
