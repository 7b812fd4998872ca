# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Layouts: which tensors one model's state consists of, and where each lies in its bytes.

A `Layout` is written tensor by tensor; a `Preset` (mamba1, mamba2, gated_delta_net, kda, linear_attention, short_conv, rwkv4, rwkv4_seed, rwkv5, rwkv6,
rwkv7, and hybrid of these) is made into one by the daemon; from_hf makes either from a Hugging Face config. Pool.register_layout takes
either and returns the registered `Layout`. A `Part` is some of a layout's tensors and layers. Everything
here is immutable and thread-safe, and needs no daemon.
"""
from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from . import _hf, _wire, errors
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from .arenas import View

Kind = Literal["conv", "recurrent", "shift", "other"]
Array = npt.NDArray[Any]

_NUMPY: dict[str, str] = {
    "float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    # numpy has none of these: their bits, unless ml_dtypes can be imported.
    "bfloat16": "<u2", "float8_e4m3": "u1", "float8_e5m2": "u1",
}
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in _NUMPY.items()}
"""The numpy dtype for each dtype of a Tensor. bfloat16 and float8 are uint16 and uint8 unless ml_dtypes can be imported."""
try:
    import ml_dtypes
except ImportError:
    pass
else:
    DTYPES.update(bfloat16=np.dtype(ml_dtypes.bfloat16), float8_e4m3=np.dtype(ml_dtypes.float8_e4m3fn),
                  float8_e5m2=np.dtype(ml_dtypes.float8_e5m2))


@dataclasses.dataclass(frozen=True)
class Section:
    """A stretch of an axis that tensor parallelism divides by itself.

    size    of the axis
    groups  how many equal groups it consists of (heads): each rank gets whole ones. 0: it may be divided anywhere
    shared  with more ranks than groups, neighbouring ranks have a group together; otherwise such a number of ranks is refused
    """

    size: int
    groups: int = 0
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a state, in all the layers that have it.

    name            unique within the layout
    layers          the model's layer indexes that have it, ascending: range(24), [0, 1, 3]
    dtype           "float32", "float16", "bfloat16", "float64", "float8_e4m3", "float8_e5m2", "int8", "uint8", "int16", "int32" or "int64"
    axes            of one layer's tensor, outermost first: {"head": 32, "value": 64, "key": 64}
    kind            "conv" (window of a short convolution, K-1 wide), "recurrent", "shift" (previous activations) or "other"
    initial         what a new sequence has: a number for every element, or the bytes of all layers
    shard_axis      the axis (by name) that tensor parallelism divides; None: every rank holds the whole tensor
    shard_sections  the sections of that axis that are divided each by itself, or their sizes; empty: one section
    """

    name: str
    layers: tuple[int, ...]
    dtype: str
    axes: Mapping[str, int]
    kind: Kind = "other"
    initial: float | bytes = 0.0
    shard_axis: str | None = None
    shard_sections: tuple[Section, ...] = ()

    # Written out so that any iterable will do for the layers and sections.
    def __init__(self, name: str, layers: Iterable[int], dtype: str, axes: Mapping[str, int], kind: Kind = "other",
                 initial: float | bytes = 0.0, shard_axis: str | None = None, shard_sections: Iterable[Section | int] = ()) -> None:
        if shard_axis is not None and shard_axis not in axes:
            raise errors.invalid("INVALID_LAYOUT", f"tensor {name!r} has no axis {shard_axis!r}", "shard_axis")
        values = (name, tuple(layers), dtype, dict(axes), kind, initial, shard_axis,
                  tuple(Section(s) if isinstance(s, int) else s for s in shard_sections))
        for field, value in zip(dataclasses.fields(self), values):
            object.__setattr__(self, field.name, value)

    def __hash__(self) -> int:
        return hash((self.name, self.layers, self.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """[layers, *axes]: that of the arrays of Layout.views and Layout.pack."""
        return (len(self.layers), *self.axes.values())

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """See DTYPES. InvalidArgument for a dtype that this version of the library does not know."""
        try:
            return DTYPES[self.dtype]
        except KeyError:
            raise errors.invalid("INVALID_LAYOUT", f"tensor {self.name!r} has the unknown dtype {self.dtype!r}", "dtype") from None

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return len(self.layers) * self.layer_nbytes

    @property
    def layer_nbytes(self) -> int:
        """Bytes of one layer."""
        return math.prod(self.axes.values()) * self.numpy_dtype.itemsize


class _Block:
    """What a layout and a part of one have in common: bytes that are tensors laid end to end."""

    if TYPE_CHECKING:  # each has them
        @property
        def tensors(self) -> tuple[Tensor, ...]: ...
        @property
        def nbytes(self) -> int: ...

    def views(self, data: _wire.Buffer) -> dict[str, Array]:
        """The tensors as arrays [layers, *axes] over the same memory: nothing is copied.

        They are writable if `data` is (a bytearray, an array), and unaligned where the layout's sizes are odd.
        InvalidArgument (BYTES_LENGTH_MISMATCH) unless `data` has nbytes bytes.
        """
        view = _wire.as_bytes(data)
        self.check_length(len(view))
        out: dict[str, Array] = {}
        at = 0
        for t in self.tensors:
            out[t.name] = np.frombuffer(view, t.numpy_dtype, math.prod(t.shape), at).reshape(t.shape)
            at += t.nbytes
        return out

    def pack(self, tensors: Mapping[str, npt.ArrayLike]) -> bytes:
        """The bytes of these tensors: the inverse of views(), with one copy.

        Needs each tensor and no other, with shape [layers, *axes] and exactly the layout's dtype (bfloat16 and float8 also as
        uint16 and uint8): nothing is cast or broadcast. InvalidArgument otherwise.
        """
        return b"".join(self.pieces(tensors))

    def pieces(self, tensors: Mapping[str, npt.ArrayLike]) -> list[memoryview]:
        """What pack() joins: one flat view per tensor, in order. An array that is not C-contiguous is copied, others are not."""
        names = {t.name for t in self.tensors}
        if names != tensors.keys():
            wrong = sorted(names ^ tensors.keys())
            raise errors.invalid("TENSORS_MISMATCH", f"missing or unknown tensors: {wrong}", "data")
        out: list[memoryview] = []
        for t in self.tensors:
            array = np.asarray(tensors[t.name])
            if not _is_of(array, t):
                raise errors.invalid("TENSORS_MISMATCH", f"tensor {t.name!r} is {array.dtype} {list(array.shape)}, "
                                     f"the layout says {t.dtype} {list(t.shape)}", t.name)
            out.append(_wire.as_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        return out

    def check_length(self, nbytes: int) -> None:
        """InvalidArgument (BYTES_LENGTH_MISMATCH) unless this is the number of bytes."""
        if nbytes != self.nbytes:
            raise errors.invalid("BYTES_LENGTH_MISMATCH", f"there should be {self.nbytes} bytes, not {nbytes}", "data",
                                 expected=self.nbytes, actual=nbytes)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout(_Block):
    """The canonical schema of one model's state. Two layouts are equal when their fingerprints are.

    model_id     whose state this is: a digest of the weights, the quantisation, the adapter. Models of one shape must never mix
    tensors      in the order of their bytes
    aliases      names under which the daemon knows it; empty for one that was not registered
    fingerprint  SHA-256 over its canonical encoding, as 64 hex digits
    state_bytes  length of one image
    """

    model_id: str
    tensors: tuple[Tensor, ...]
    aliases: tuple[str, ...] = ()
    fingerprint: str = ""
    state_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))
            object.__setattr__(self, "state_bytes", sum(t.nbytes for t in self.tensors))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def nbytes(self) -> int:
        """The same as state_bytes."""
        return self.state_bytes

    def part(self, tensors: Iterable[str] | str | None = None, layers: Iterable[int] | None = None) -> Part:
        """These tensors (None: all) in these of the model's layers (None: all), as Pool.get and Pool.set take them.

        Tensors that have none of the layers are left out. InvalidArgument (INVALID_OPTION) for a tensor that the layout lacks, or a layer that
        none of them has.
        """
        names = [tensors] if isinstance(tensors, str) else None if tensors is None else list(tensors)
        wanted = None if layers is None else set(layers)
        if names == [] or wanted == set():
            raise errors.invalid("INVALID_OPTION", "a part has at least one tensor and one layer", "select")
        missing = set(names or ()) - {t.name for t in self.tensors}
        if missing:
            raise errors.invalid("INVALID_OPTION", f"the layout has no tensor {sorted(missing)[0]!r}", "select.tensors")
        chosen = [t for t in self.tensors if names is None or t.name in names]
        if wanted is not None and not wanted <= {i for t in chosen for i in t.layers}:
            raise errors.invalid("INVALID_OPTION", f"not all of the layers {sorted(wanted)} are there", "select.layers")
        cut = [_in_layers(t, wanted) for t in chosen]
        return Part(self, tuple(t for t in cut if t.layers))

    def ranges(self) -> list[tuple[int, int]]:
        """Where the bytes of each tensor lie in the image: (offset, length), in order."""
        return self.part().ranges()

    def to_proto(self) -> pb.Layout:
        """The message that RegisterLayout takes."""
        return pb.Layout(model_id=self.model_id, tensors=[_tensor_to_proto(t) for t in self.tensors])

    @staticmethod
    def from_proto(info: pb.LayoutInfo) -> Layout:
        """A layout as the daemon tells it."""
        return Layout(info.layout.model_id, tuple(_tensor_from_proto(t) for t in info.layout.tensors), tuple(info.aliases),
                      info.fingerprint, info.state_bytes)


@dataclasses.dataclass(frozen=True)
class Part(_Block):
    """Some tensors and layers of a layout. Its bytes are those of the image that belong to them, in the image's order. Made by Layout.part.

    layout   what it is a part of
    tensors  as in the layout, each with those of its layers alone that the part has
    """

    layout: Layout
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def ranges(self) -> list[tuple[int, int]]:
        """Where its bytes lie in the whole image: (offset, length), ascending. Neighbours within a tensor are joined, tensors are not."""
        out: list[tuple[int, int]] = []
        mine = {t.name: set(t.layers) for t in self.tensors}
        at = 0
        for t in self.layout.tensors:
            begin = len(out)
            for layer in t.layers:
                if layer in mine.get(t.name, ()):
                    if len(out) > begin and sum(out[-1]) == at:
                        out[-1] = (out[-1][0], out[-1][1] + t.layer_nbytes)
                    else:
                        out.append((at, t.layer_nbytes))
                at += t.layer_nbytes
        return out


Initial = Mapping[str, "float | bytes | Array"]
"""What tensors of a preset have at first, by name: a number for every element, or the values of all layers, as bytes or as an array [layers, *axes] of exactly
the tensor's dtype. A tuned RWKV time_state is loaded transposed on its last two axes, if that is how its file has it. A layout has at most 64 MiB, these
included: what is larger is stored as a version at position 0, of which sequences are forked."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """Hyper-parameters of a known family; the daemon makes a Layout of them. Made by the functions below, which all take

    layers      how many layers of the model have these tensors; may be left out where layer_ids are given
    layer_ids   which of the model's layers these are, ascending: those of a hybrid, or of a pipeline's stage. None: 0, 1, ..., layers - 1
    initial     in the place of the family's initial values
    prefix      of the tensors' names: for the parts of a hybrid

    and of which the .proto says the formulas. Where a shape is called vLLM's, it is that of a MambaStateShapeCalculator method in vLLM's
    model_executor/layers/mamba/mamba_utils.py, whole: for one rank and no speculative tokens, convolutions [K-1, channels]; a View has the ranks', and num_spec
    more columns. Sizes are in elements; a parameter that makes no sense is refused by the daemon, InvalidArgument (INVALID_LAYOUT).
    """

    proto: pb.LayoutPreset
    arrays: Mapping[str, Array] = dataclasses.field(default_factory=dict, compare=False)
    """Initial values that were given as arrays, for Pool.register_layout to compare with the tensors."""


def mamba1(model_id: str = "", *, layers: int = 0, intermediate_size: int, state_size: int, conv_kernel: int = 4, conv_dtype: str = "bfloat16",
           recurrent_dtype: str = "float32", layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """Mamba: tensors "conv" [layers, conv_kernel-1, intermediate_size] and "ssm" [layers, intermediate_size, state_size]: vLLM's mamba1_state_shape."""
    return _preset(model_id, layer_ids, initial, prefix, "mamba1", pb.Mamba1Preset,
                   layers=layers, intermediate_size=intermediate_size, state_size=state_size, conv_kernel=conv_kernel,
                   conv_dtype=_dtype(conv_dtype), recurrent_dtype=_dtype(recurrent_dtype))


def mamba2(model_id: str = "", *, layers: int = 0, heads: int, head_dim: int, state_size: int, groups: int = 1, conv_kernel: int = 4,
           conv_dtype: str = "bfloat16", recurrent_dtype: str = "float32", layer_ids: Iterable[int] | None = None, initial: Initial | None = None,
           prefix: str = "") -> Preset:
    """Mamba-2: tensors "conv" [layers, conv_kernel-1, heads*head_dim + 2*groups*state_size] and "ssm" [layers, heads, head_dim, state_size].

    vLLM's mamba2_state_shape, whose intermediate_size is heads*head_dim; of a multiple of as many ranks as there are groups each has a group, as by its
    extra_groups_for_head_shards; other numbers that don't divide the groups are refused, for heads of one rank would be of two groups.
    heads is a multiple of groups.
    """
    return _preset(model_id, layer_ids, initial, prefix, "mamba2", pb.Mamba2Preset,
                   layers=layers, heads=heads, head_dim=head_dim, state_size=state_size, groups=groups, conv_kernel=conv_kernel,
                   conv_dtype=_dtype(conv_dtype), recurrent_dtype=_dtype(recurrent_dtype))


def gated_delta_net(model_id: str = "", *, layers: int = 0, key_heads: int, key_dim: int, value_heads: int, value_dim: int, conv_kernel: int = 4,
                    conv_dtype: str = "bfloat16", recurrent_dtype: str = "float32", layer_ids: Iterable[int] | None = None, initial: Initial | None = None,
                    prefix: str = "") -> Preset:
    """Gated delta net: "conv" [layers, conv_kernel-1, 2*key_heads*key_dim + value_heads*value_dim] and "delta" [layers, value_heads, key_dim, value_dim].

    vLLM's gated_delta_net_state_shape, but for "delta", whose axes key and value are in MLC-LLM's order; vLLM's is View(axis_orders={"delta": ["head", "value",
    "key"]}). value_heads is a multiple of key_heads.
    """
    return _preset(model_id, layer_ids, initial, prefix, "gated_delta_net", pb.GatedDeltaNetPreset,
                   layers=layers, key_heads=key_heads, key_dim=key_dim, value_heads=value_heads, value_dim=value_dim, conv_kernel=conv_kernel,
                   conv_dtype=_dtype(conv_dtype), recurrent_dtype=_dtype(recurrent_dtype))


def kda(model_id: str = "", *, layers: int = 0, heads: int, head_dim: int, key_heads: int = 0, key_dim: int = 0, conv_kernel: int = 4,
        conv_dtype: str = "bfloat16", separate_convs: bool = False, layer_ids: Iterable[int] | None = None, initial: Initial | None = None,
        prefix: str = "") -> Preset:
    """Kimi delta attention: "conv" [layers, conv_kernel-1, heads*head_dim + 2*key_heads*key_dim] and "delta" [layers, heads, head_dim, head_dim] (float32).

    key_heads and key_dim are heads and head_dim by default. vLLM's kda_state_shape; with separate_convs, which has "conv_q", "conv_k" and "conv_v" in the
    place of "conv", as older vLLM has it.
    """
    return _preset(model_id, layer_ids, initial, prefix, "kda", pb.KdaPreset,
                   layers=layers, heads=heads, head_dim=head_dim, key_heads=key_heads, key_dim=key_dim, conv_kernel=conv_kernel, conv_dtype=_dtype(conv_dtype),
                   separate_convs=separate_convs)


def linear_attention(model_id: str = "", *, layers: int = 0, heads: int, head_dim: int, recurrent_dtype: str = "float32",
                     layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """Linear (lightning) attention: "kv" [layers, heads, head_dim (key), head_dim (value)].

    vLLM's linear_attention_state_shape; ranks that don't divide the heads, for which it rounds down, are refused.
    """
    return _preset(model_id, layer_ids, initial, prefix, "linear_attention", pb.LinearAttentionPreset,
                   layers=layers, heads=heads, head_dim=head_dim, recurrent_dtype=_dtype(recurrent_dtype))


def short_conv(model_id: str = "", *, layers: int = 0, channels: int, conv_kernel: int = 4, conv_dtype: str = "bfloat16",
               layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """Short convolutions (LFM2): "conv" [layers, conv_kernel-1, channels]: vLLM's short_conv_state_shape."""
    return _preset(model_id, layer_ids, initial, prefix, "short_conv", pb.ShortConvPreset,
                   layers=layers, channels=channels, conv_kernel=conv_kernel, conv_dtype=_dtype(conv_dtype))


def rwkv4(model_id: str = "", *, layers: int = 0, hidden_size: int, attention_size: int = 0, shift_dtype: str = "bfloat16",
          layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """RWKV-4: "att_shift" [layers, hidden_size], "aa", "bb", "pp" [layers, attention_size] (float32; "pp" begins at -1e30), "ffn_shift" [layers, hidden_size].

    attention_size is hidden_size by default. The five vectors of a layer are those of RWKV's own code (ChatRWKV), in its order.
    """
    return _preset(model_id, layer_ids, initial, prefix, "rwkv4", pb.Rwkv4Preset,
                   layers=layers, hidden_size=hidden_size, attention_size=attention_size, shift_dtype=_dtype(shift_dtype))


def rwkv4_seed(model_id: str = "", *, layers: int = 0, hidden_size: int, shift_dtype: str = "bfloat16", layer_ids: Iterable[int] | None = None,
               initial: Initial | None = None, prefix: str = "") -> Preset:
    """What some tools call the state of RWKV-4: "aa", "ab" (float32), "att_x_prev", "ffn_x_prev", each [layers, hidden_size]. Without "pp" no model goes on from it."""
    return _preset(model_id, layer_ids, initial, prefix, "rwkv4_seed", pb.Rwkv4SeedPreset,
                   layers=layers, hidden_size=hidden_size, shift_dtype=_dtype(shift_dtype))


def rwkv5(model_id: str = "", *, layers: int = 0, hidden_size: int, head_size: int = 64, shift_dtype: str = "bfloat16", wkv_dtype: str = "float32",
          layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """RWKV-5: "att_shift" [layers, hidden_size], "wkv" [layers, hidden_size/head_size, head_size (key), head_size (value)], "ffn_shift" [layers, hidden_size].

    The three tensors of a layer are those of RWKV's own code (ChatRWKV), in its order. It keeps the matrices "wkv" in float32, and so does the default: they add
    up over all tokens. Another wkv_dtype is for an engine that keeps them so itself; its states are of another layout then, and never mix with those in float32.
    """
    return _preset(model_id, layer_ids, initial, prefix, "rwkv5", pb.RwkvPreset,
                   **_rwkv(layers, hidden_size, head_size, shift_dtype, wkv_dtype))


def rwkv6(model_id: str = "", *, layers: int = 0, hidden_size: int, head_size: int = 64, shift_dtype: str = "bfloat16", wkv_dtype: str = "float32",
          layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """RWKV-6: as rwkv5."""
    return _preset(model_id, layer_ids, initial, prefix, "rwkv6", pb.RwkvPreset,
                   **_rwkv(layers, hidden_size, head_size, shift_dtype, wkv_dtype))


def rwkv7(model_id: str = "", *, layers: int = 0, hidden_size: int, head_size: int = 64, shift_dtype: str = "bfloat16", wkv_dtype: str = "float32",
          layer_ids: Iterable[int] | None = None, initial: Initial | None = None, prefix: str = "") -> Preset:
    """RWKV-7: as rwkv5, but for "wkv" [layers, hidden_size/head_size, head_size (value), head_size (key)]."""
    return _preset(model_id, layer_ids, initial, prefix, "rwkv7", pb.RwkvPreset,
                   **_rwkv(layers, hidden_size, head_size, shift_dtype, wkv_dtype))


def hybrid(model_id: str, parts: Iterable[Preset], *, initial: Initial | None = None) -> Preset:
    """A model whose layers are of several families: the tensors of these presets, in their order. No two tensors may have one name: give the parts prefixes."""
    return _preset(model_id, None, initial, "", "hybrid", pb.HybridPreset, parts=[part.proto for part in parts])


def from_hf(config: _hf.Config, *, model_id: str = "", layer_ids: Iterable[int] | None = None, dtype: str | None = None,
            initial: Initial | None = None) -> Layout | Preset:
    """What Pool.register_layout takes for a model of Hugging Face's transformers. Needs neither transformers nor the weights.

    config     a config object of transformers, a dict, or the path of a config.json or of its folder
    model_id   whose state it is: a digest of the weights, the quantisation, the adapter
    layer_ids  those of the model's layers that are wanted, a pipeline's stage; layers without a recurrent state among them don't count. None: all
    dtype      of the weights: "bfloat16", "float16" or "float32" (torch's dtypes will do). None: the config's, and float32 if it says nothing
    initial    as for presets

    Keys that are not there are what transformers takes then. A model of one of the presets' families has that preset's layout, the same fingerprint included;
    others are written tensor by tensor. Dtypes are those of transformers' own cache, filled by its PyTorch code: convolutions mostly that of the weights,
    recurrent states mostly float32. A cache of attention in a hybrid is not part of the layout. Raises InvalidArgument (INVALID_LAYOUT) for a model_type that
    is not known, one without recurrent layers, and for sizes that make no sense; the field is the config's key. hf_models.json lists the models, and how each
    is read.
    """
    parts = _hf.read(config, dtype=dtype, layer_ids=layer_ids).parts
    if not parts[0].family:
        return _with_initial(Layout(model_id, tuple(_tensor_of(part) for part in parts)), initial)
    make = {f.__name__: f for f in (mamba1, mamba2, gated_delta_net, kda, linear_attention, short_conv, rwkv4)}
    if len(parts) > 1:
        return hybrid(model_id, [make[p.family](layer_ids=p.layers, prefix=p.prefix, **p.parameters) for p in parts], initial=initial)
    return make[parts[0].family](model_id, layer_ids=parts[0].layers, initial=initial, prefix=parts[0].prefix, **parts[0].parameters)


def hf_view(config: _hf.Config, *, layer_ids: Iterable[int] | None = None) -> View:
    """How transformers' cache has the tensors of from_hf(config, layer_ids=...): in an arena with this view a layer's array [row, ...] has the shape of the
    cache's tensor [batch, ...]. Convolutions have the channels first, and K columns in most models, of which the first is never read.

    RWKV's cache has one tensor for all layers, [batch, channel, layer]: the shape is that of one layer of it.
    """
    from .arenas import View

    return View(**_hf.read(config, layer_ids=layer_ids).view)


def _tensor_of(part: _hf.Part) -> Tensor:
    parameters = dict(part.parameters)
    sections = [Section(size, groups) for size, groups in parameters.pop("sections")]
    return Tensor(layers=part.layers, shard_sections=sections, **parameters)


def _with_initial(layout: Layout, initial: Initial | None) -> Layout:
    values = {name: value if isinstance(value, (int, float)) else _initial_bytes(value) for name, value in (initial or {}).items()}
    check_initial(layout, {name: np.asarray(value) for name, value in (initial or {}).items() if not isinstance(value, (int, float, bytes))})
    if unknown := values.keys() - {t.name for t in layout.tensors}:
        raise errors.invalid("INVALID_LAYOUT", f"initial names no tensor of the layout: {', '.join(sorted(unknown))}", "initial")
    return Layout(layout.model_id, tuple(dataclasses.replace(t, initial=values.get(t.name, t.initial)) for t in layout.tensors))


def without_arrays(preset: Preset) -> pb.LayoutPreset:
    """Its message without the initial values that were given as arrays."""
    out = pb.LayoutPreset()
    out.CopyFrom(preset.proto)
    for name in preset.arrays:
        del out.initial[name]
    return out


def check_initial(layout: Layout, arrays: Mapping[str, Array]) -> None:
    """InvalidArgument (INVALID_LAYOUT) unless these have the shapes and dtypes of the tensors of their names. Names that are no tensor's are left out."""
    for t in layout.tensors:
        if t.name in arrays and not _is_of(arrays[t.name], t):
            array = arrays[t.name]
            raise errors.invalid("INVALID_LAYOUT", f"the initial value is {array.dtype} {list(array.shape)}, the tensor is {t.dtype} {list(t.shape)}",
                                 f'initial["{t.name}"]')


def _is_of(array: Array, t: Tensor) -> bool:
    """Whether an array has the shape and the dtype (bfloat16 and float8 also as their bits) of a tensor."""
    bits = np.dtype(_NUMPY[t.dtype]) if t.dtype in _NUMPY else t.numpy_dtype
    return array.shape == t.shape and array.dtype in (t.numpy_dtype, bits)


def _initial_bytes(value: bytes | Array) -> bytes:
    return value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()


def _preset(model_id: str, layer_ids: Iterable[int] | None, initial: Initial | None, prefix: str, family: str, kind: type[Message],
            **parameters: Any) -> Preset:
    preset = _wire.message(pb.LayoutPreset, "INVALID_LAYOUT", "preset.", model_id=model_id, layer_ids=tuple(layer_ids or ()), prefix=prefix)
    getattr(preset, family).CopyFrom(_wire.message(kind, "INVALID_LAYOUT", f"preset.{family}.", **parameters))
    arrays: dict[str, Array] = {}
    for name, value in (initial or {}).items():
        if isinstance(value, (int, float)):
            preset.initial[name].constant = value
        else:
            preset.initial[name].data = _initial_bytes(value)
            if not isinstance(value, bytes):
                arrays[name] = np.asarray(value)
    return Preset(preset, arrays)


def _rwkv(layers: int, hidden_size: int, head_size: int, shift_dtype: str, wkv_dtype: str) -> dict[str, Any]:
    return {"layers": layers, "hidden_size": hidden_size, "head_size": head_size, "shift_dtype": _dtype(shift_dtype), "wkv_dtype": _dtype(wkv_dtype)}


def _in_layers(t: Tensor, wanted: set[int] | None) -> Tensor:
    if wanted is None or wanted >= set(t.layers):
        return t
    initial = t.initial
    if isinstance(initial, bytes):
        size = len(initial) // len(t.layers)
        initial = b"".join(initial[i * size:(i + 1) * size] for i, layer in enumerate(t.layers) if layer in wanted)
    return Tensor(t.name, [i for i in t.layers if i in wanted], t.dtype, t.axes, t.kind, initial, t.shard_axis, t.shard_sections)


# An enum's value is an int at run time, and a class of its own in the generated types: hence Any.
def _dtype(name: str) -> Any:
    try:
        return pb.DType.Value(name.upper())
    except ValueError:
        raise errors.invalid("INVALID_LAYOUT", f"{name!r} is not a dtype: one of {', '.join(_NUMPY)}", "dtype") from None


def _kind(name: str) -> Any:
    try:
        return pb.TensorKind.Value(name.upper())
    except ValueError:
        raise errors.invalid("INVALID_LAYOUT", f"{name!r} is not a kind of tensor", "kind") from None


def _tensor_to_proto(t: Tensor) -> pb.TensorSpec:
    spec = pb.TensorSpec(name=t.name, kind=_kind(t.kind), layers=t.layers, dtype=_dtype(t.dtype),
                         axes=[pb.Axis(name=name, size=size) for name, size in t.axes.items()])
    if isinstance(t.initial, bytes):
        spec.initial.data = t.initial
    elif t.initial != 0:
        spec.initial.constant = t.initial
    if t.shard_axis is not None:
        spec.sharding.axis = list(t.axes).index(t.shard_axis)
        spec.sharding.sections.extend(s.size for s in t.shard_sections)
        if any(s.groups or s.shared for s in t.shard_sections):
            spec.sharding.section_groups.extend(s.groups for s in t.shard_sections)
            spec.sharding.section_shared.extend(s.shared for s in t.shard_sections)
    return spec


def _tensor_from_proto(spec: pb.TensorSpec) -> Tensor:
    dtypes: Mapping[int, str] = {number: name.lower() for name, number in pb.DType.items()}
    kinds: Mapping[int, Any] = {number: name.lower() for name, number in pb.TensorKind.items()}
    axes = {axis.name: axis.size for axis in spec.axes}
    return Tensor(
        spec.name, spec.layers, dtypes.get(spec.dtype, f"dtype_{spec.dtype}"), axes, kinds.get(spec.kind, "other"),
        spec.initial.data if spec.initial.HasField("data") else spec.initial.constant,
        list(axes)[spec.sharding.axis] if spec.HasField("sharding") else None, _sections(spec.sharding))


def _sections(sharding: pb.Sharding) -> list[Section]:
    count = len(sharding.sections)
    groups, shared = sharding.section_groups or [0] * count, sharding.section_shared or [False] * count
    return [Section(*section) for section in zip(sharding.sections, groups, shared)]


def _fingerprint(layout: Layout) -> str:
    """As the comment of message Layout defines it. The daemon's answer must agree: register_layout checks it."""

    def integer(value: int) -> bytes:
        try:
            return struct.pack("<Q", value)
        except struct.error:
            raise errors.invalid("INVALID_LAYOUT", f"{value!r} is no size and no layer: they are 0..2^64-1", "tensors") from None

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return integer(len(raw)) + raw

    def integers(values: Iterable[int]) -> bytes:
        listed = list(values)
        return integer(len(listed)) + b"".join(map(integer, listed))

    def tensor(t: Tensor) -> bytes:
        out = text(t.name) + integer(_kind(t.kind)) + integers(t.layers) + integer(_dtype(t.dtype)) + integer(len(t.axes))
        out += b"".join(text(name) + integer(size) for name, size in t.axes.items())
        if isinstance(t.initial, bytes):
            out += integer(2) + text(t.initial)
        else:
            out += integer(0) if t.initial == 0 else integer(1) + struct.pack("<d", t.initial)
        if t.shard_axis is None:
            return out + integer(0)
        sections = t.shard_sections or (Section(t.axes[t.shard_axis]),)
        axis = integer(list(t.axes).index(t.shard_axis))
        if all(s.groups in (0, s.size) and not s.shared for s in sections):
            return out + integer(1) + axis + integers(s.size for s in sections)
        return out + integer(2) + axis + integer(len(sections)) + b"".join(integers([s.size, s.groups or s.size, s.shared])[8:] for s in sections)

    encoded = text("statepool.layout.v1") + text(layout.model_id) + integer(len(layout.tensors)) + b"".join(map(tensor, layout.tensors))
    return hashlib.sha256(encoded).hexdigest()
