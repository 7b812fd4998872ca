# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Which tensors a Hugging Face config's model has for a state: hf_models.json, read for one config. layouts.from_hf and hf_view make their types of it.

The tool does the same with the same table (client/cli/layout_hf.cc): what is changed here is changed there.
"""
from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Union

from . import errors

_LAYERS_MAX = 4096
_SIZE_MAX = 1 << 32
_DTYPES = ("float32", "float16", "bfloat16")
# Of finite numbers, in floats, as the tool does; what is not finite then is no size.
_OPERATORS: Mapping[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "product": math.prod,
    "least": min,
    "quotient": lambda of: math.nan if of[1] == 0 else of[0] // of[1],
    "round_up": lambda of: math.ceil(of[0] / of[1]) * of[1],
}


class Transformers(Protocol):
    """What a config of transformers offers."""

    def to_dict(self) -> dict[str, Any]: ...


Config = Union[Mapping[str, Any], Transformers, str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A preset of a family and its parameters, or one tensor.

    family      of layouts; empty: a tensor
    parameters  of the family's function there, or of layouts.Tensor but for `layers`
    """

    family: str
    layers: tuple[int, ...]
    prefix: str
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What a config stands for. view: parameters of statepool.View."""

    model_type: str
    parts: tuple[Part, ...]
    view: Mapping[str, Any]


def read(config: Config, *, dtype: str | None = None, layer_ids: Iterable[int] | None = None) -> Model:
    """As layouts.from_hf says. Raises InvalidArgument (INVALID_LAYOUT), the config's key as field where it is one."""
    keys = _keys_of(config)
    return _Reader(*_text_config(keys, keys), dtype).model(None if layer_ids is None else set(layer_ids))


def models() -> list[str]:
    """Every model_type that is known."""
    return sorted(_table()["models"])


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((importlib.resources.files(__package__) / "hf_models.json").read_text())
    return table


def _finite(number: float) -> float | None:
    try:
        number = float(number)
    except OverflowError:  # an integer beyond floats
        return None
    return number if math.isfinite(number) else None


def _keys_of(config: Config) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, (str, os.PathLike)):
        return config.to_dict()
    path = pathlib.Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        keys = json.loads(path.read_text())
    except OSError as error:
        raise errors.invalid("INVALID_LAYOUT", f"{path} can't be read: {error.strerror}", "config") from None
    except (ValueError, RecursionError) as error:
        raise errors.invalid("INVALID_LAYOUT", f"{path} is no JSON: {error}", "config") from None
    if not isinstance(keys, dict):
        raise errors.invalid("INVALID_LAYOUT", f"{path} has no JSON object", "config")
    return keys


def _entry(model_type: str) -> dict[str, Any] | None:
    """Of the table, completed by that of the model that it is like."""
    entry: dict[str, Any] | None = _table()["models"].get(model_type)
    if entry is None or "like" not in entry:
        return entry
    base = _entry(entry["like"]) or {}
    return base | entry | {"defaults": base.get("defaults", {}) | entry.get("defaults", {})}


def _text_config(keys: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The model whose state it is, its keys, and those of the config around it."""
    model_type = keys.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise errors.invalid("INVALID_LAYOUT", "the config has no model_type", "model_type")
    entry, inner = _entry(model_type), keys.get("text_config")
    if entry is not None and "text_config" in entry:
        if not isinstance(inner, Mapping):
            inner = keys if entry.get("flat") else {}
        named = inner.get("model_type")
        is_named = isinstance(named, str) and named not in ("", model_type)
        return _text_config({**inner, "model_type": named if is_named else entry["text_config"]}, outer)
    if entry is not None:
        return model_type, keys, outer
    if isinstance(inner, Mapping) and inner.get("model_type"):
        return _text_config(inner, outer)
    why = _table()["not_supported"].get(model_type)
    if why is not None:
        raise errors.invalid("INVALID_LAYOUT", f"there is no layout for model_type {model_type!r}: {why}", "model_type")
    raise errors.invalid("INVALID_LAYOUT", f"model_type {model_type!r} has no recurrent state that is known here; known are {', '.join(models())}. Others are "
                         "written with the presets or tensor by tensor", "model_type")


class _Reader:
    def __init__(self, model_type: str, keys: Mapping[str, Any], outer: Mapping[str, Any], dtype: str | None) -> None:
        self._type = model_type
        self._keys = keys
        self._entry = _entry(model_type) or {}
        self._dtype = self._model_dtype(outer, dtype)

    def model(self, wanted: set[int] | None) -> Model:
        parts = []
        is_recurrent = False
        for part in (*self._entry.get("parts", ()), *self._entry.get("tensors", ())):
            layers = self._layers(part.get("layers", self._entry.get("layers")))
            is_recurrent = is_recurrent or bool(layers)
            if layers := tuple(i for i in layers if wanted is None or i in wanted):
                parts.append(self._part(part, layers))
        if not is_recurrent:
            raise self._wrong("layer_types", "has no recurrent layers")
        if not parts:
            raise errors.invalid("INVALID_LAYOUT", f"none of these layers of {self._type} has a recurrent state", "layer_ids")
        names = {f"{part.prefix}conv" if part.family else part.parameters["name"] for part in parts}
        view = dict(self._entry["view"])
        view["axis_orders"] = {name: tuple(order) for name, order in view.get("axis_orders", {}).items() if name in names}
        return Model(self._type, tuple(parts), view)

    def _part(self, part: Mapping[str, Any], layers: tuple[int, ...]) -> Part:
        if "family" not in part:
            return Part("", layers, "", self._tensor(part))
        # In order, so that of several faults the tool names the same.
        parameters = {name: self._dtype_of(value) if name.endswith("_dtype") else self._size(value, name) for name, value in sorted(part["parameters"].items())}
        return Part(part["family"], layers, part.get("prefix", ""), parameters)

    def _tensor(self, tensor: Mapping[str, Any]) -> dict[str, Any]:
        name = tensor["name"]
        initial = self._number(tensor["initial"]) if "initial" in tensor else 0
        if initial is None:
            raise self._wrong(name, f"does not say what {name} is at first")
        return {"name": name, "kind": tensor["kind"], "dtype": self._dtype_of(tensor["dtype"]), "initial": float(initial),
                "axes": {axis: self._size(size, f"{name}.{axis}") for axis, size in tensor["axes"]}, "shard_axis": tensor.get("shard_axis"),
                "sections": [tuple(self._size(s[key], f"a section of {name}") for key in ("size", "groups")) for s in tensor.get("sections", ())]}

    # ---- sizes

    def _key(self, path: str) -> Any:
        value: Any = self._keys if path.split(".")[0] in self._keys else self._entry.get("defaults", {})
        for key in path.split("."):
            if isinstance(value, Mapping):
                value = value.get(key)
            elif isinstance(value, (list, tuple)) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value

    def _number(self, size: Any) -> float | None:
        """None: the config does not have it, or it is no finite number."""
        if isinstance(size, str):
            size = self._key(size)
            size = None if isinstance(size, Mapping) else size
        if not isinstance(size, Mapping):
            return _finite(size) if isinstance(size, (int, float)) and not isinstance(size, bool) else None
        (operator, operands), = size.items()
        numbers = [self._number(operand) for operand in operands]
        known = [n for n in numbers if n is not None]
        if operator == "first":
            return known[0] if known else None
        return _finite(_OPERATORS[operator](known)) if len(known) == len(numbers) else None

    def _size(self, size: Any, what: str, least: int = 1, most: int = _SIZE_MAX) -> int:
        number = self._number(size)
        if number is None or number != int(number) or not least <= number <= most:
            said = "can't be told from the config" if number is None else f"is {number:g}"
            raise self._wrong(size if isinstance(size, str) else what, f"{what} {said}, and must be a whole number {least}..{most}")
        return int(number)

    # ---- dtypes

    def _model_dtype(self, outer: Mapping[str, Any], dtype: str | None) -> str:
        said = [dtype, *(keys.get(key) for keys in (self._keys, outer) for key in ("dtype", "torch_dtype"))]
        name = str(next((d for d in said if d not in (None, "")), "float32")).removeprefix("torch.")
        if name not in _DTYPES:
            raise errors.invalid("INVALID_LAYOUT", f"{name!r} is no dtype of a model: one of {', '.join(_DTYPES)}", "dtype")
        return name

    def _dtype_of(self, dtype: str) -> str:
        return self._dtype if dtype == "model" else dtype

    # ---- layers

    def _layers(self, rules: list[dict[str, Any]]) -> tuple[int, ...]:
        for rule in rules:
            layers = self._layers_by(rule)
            if layers is not None:
                return layers
        return ()

    def _layers_by(self, rule: Mapping[str, Any]) -> tuple[int, ...] | None:
        """None: the rule does not apply."""
        if "all" in rule:
            return tuple(range(self._count(rule["all"])))
        if "in" in rule:
            values = self._key(rule["in"])
            if not isinstance(values, (list, tuple, str)):
                return None
            layers = self._keys.get("num_hidden_layers")
            if rule["in"] == "layer_types" and isinstance(layers, (int, float)) and not isinstance(layers, bool) and layers != len(values):
                raise self._wrong("layer_types", f"is of {len(values)} layers, and num_hidden_layers is {layers:g}")
            count = self._count(rule["repeat_to"]) if "repeat_to" in rule and values else len(values)
            if count > _LAYERS_MAX:
                raise self._wrong(rule["in"], f"has {count} layers, more than {_LAYERS_MAX}")
            return tuple(i for i in range(count) if values[i % len(values)] in rule["values"])
        if "listed" in rule or "not_listed" in rule:
            key = rule.get("listed", rule.get("not_listed"))
            values = self._key(key)
            if not isinstance(values, (list, tuple)):
                return None
            if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
                raise self._wrong(key, f"{key} is no list of numbers")
            listed = {self._size(value, key, rule["first"], _LAYERS_MAX) - rule["first"] for value in values}
            return tuple(sorted(listed)) if "listed" in rule else tuple(i for i in range(self._count(rule["of"])) if i not in listed)
        period, offset = self._size(rule.get("every", rule.get("not_every")), "the period of layers"), self._size(rule["offset"], "the offset of layers", 0)
        return tuple(i for i in range(self._count(rule["of"])) if ("every" in rule) == (i >= rule.get("from", 0) and i % period == offset))

    def _count(self, count: Any) -> int:
        return self._size(count, "the number of layers", 0, _LAYERS_MAX)

    def _wrong(self, field: str, what: str) -> errors.InvalidArgument:
        return errors.invalid("INVALID_LAYOUT", f"this config of {self._type}: {what}", field)
