# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""layouts.from_hf and hf_view against the caches that transformers fills: every architecture with three small random configs, in float32 and bfloat16.

A cache goes through a daemon: into rows of an arena with the view of hf_view, from there to canonical states, and from these into rows of another arena. With
what is there the model must go on exactly as with the cache itself.
"""
from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import small_models
import statepool
import torch
from statepool import layouts
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedConfig

torch.set_num_threads(1)  # such small models are slower with more
BATCH = 2
CASES = [(model_type, seed) for model_type in small_models.ARCHITECTURES for seed in range(3)]
# Where the states of a layer are: the names of conv_states and of recurrent_states, by their number.
GATED = (["conv"], ["delta"])
SSM = (["conv"], ["ssm"])
NAMES = {
    "bamba": SSM, "falcon_h1": SSM, "falcon_mamba": SSM, "granitemoehybrid": SSM, "jamba": SSM, "mamba": SSM, "mamba2": SSM, "nemotron_h": SSM, "zamba": SSM,
    "zamba2": SSM, "glm5_next_text": GATED, "kimi_linear": GATED, "olmo_hybrid": GATED, "qwen3_5_text": GATED, "qwen3_5_moe_text": GATED, "qwen3_next": GATED,
    "qwen4_exp_text": (["conv", "ple_inputs", "ple_tokens"], ["delta"]), "lfm2": (["conv"], []), "lfm2_moe": (["conv"], []),
    "zaya": (["conv"], ["delayed_value"]),
}
INKLING = {"hybrid": ["k_conv", "v_conv", "attn_conv", "mlp_conv"], "hybrid_sliding": ["swa_k_conv", "swa_v_conv", "attn_conv", "mlp_conv"]}


class Model:
    """A model with random weights, and what it keeps between two calls."""

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.config = config
        try:
            self.module = AutoModelForCausalLM.from_config(self.config, dtype=dtype).eval()
        except ValueError:  # the language model of one that sees and hears as well
            self.module = AutoModel.from_config(self.config, dtype=dtype).eval()
        # What this one says at every forward has no place beside the tokens: the cache of its attention is given to it.
        self.state = {"past_key_values": DynamicCache(config=self.config)} if config.model_type == "recurrent_gemma" else {}

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """What it says after these tokens: logits, or hidden states."""
        with torch.no_grad():
            output = self.module(input_ids=tokens, use_cache=True, **self.state)
        for name in ("past_key_values", "cache_params", "state"):
            if output.get(name) is not None:
                self.state = {name: output[name]}
        return output[0]

    def fork(self) -> Model:
        return copy.deepcopy(self)

    def tensors(self) -> dict[str, dict[int, torch.Tensor]]:
        """The cache's tensors by our names and layers, batch first: views of its memory."""
        found: dict[str, dict[int, torch.Tensor]] = {}

        def add(name: str, layer: int, tensor: torch.Tensor | None) -> None:
            if tensor is not None:
                found.setdefault(name, {})[layer] = tensor

        kind = self.config.model_type
        if kind == "rwkv":
            for name, tensor in zip(("ffn_shift", "att_shift", "aa", "bb", "pp"), self.state["state"]):
                for layer in range(tensor.shape[2]):
                    add(name, layer, tensor[:, :, layer])
        elif kind == "xlstm":
            for layer, state in self.state["cache_params"].rnn_state.items():
                for name, tensor in zip("cnm", state):
                    add(name, layer, tensor)
        elif kind == "minimax":
            for layer, tensor in enumerate(self.state["past_key_values"].linear_cache):
                add("kv", layer, tensor if len(tensor) else None)
        elif kind == "recurrent_gemma":
            for layer, block in enumerate(self.module.model.layers):
                if hasattr(block.temporal_block, "rg_lru"):
                    add("conv", layer, block.temporal_block.conv1d_state)
                    add("lru", layer, block.temporal_block.rg_lru.recurrent_states)
        else:
            for layer, states in enumerate(next(iter(self.state.values())).layers):
                convs, recurrent = (INKLING[self.config.layer_types[layer]], []) if kind == "inkling_text" else NAMES[kind]
                for number, tensor in getattr(states, "conv_states", {}).items():
                    if tensor is not None:
                        add(convs[number], layer, tensor)
                for number, tensor in getattr(states, "recurrent_states", {}).items():
                    if tensor is not None:
                        add(recurrent[number], layer, tensor)
        return found


def small_config(model_type: str, seed: int) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **small_models.ARCHITECTURES[model_type](random.Random(f"{model_type} {seed}")))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Its bits, for a dtype that numpy has not."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def tokens(seed: int, count: int) -> torch.Tensor:
    return torch.randint(3, small_models.VOCABULARY - 6, (BATCH, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type,seed", CASES)
def test_a_cache_has_the_shapes_and_dtypes_of_its_layout_and_goes_on_after_a_way_through_the_daemon(pool, model_type, seed, dtype):
    model = Model(small_config(model_type, seed), getattr(torch, dtype))
    model.read(tokens(seed, 7))
    cache = model.tensors()
    assert cache

    config = model.config.to_dict()
    layout = pool.register_layout(layouts.from_hf(config, model_id=f"{model_type} {seed}", dtype=dtype))
    assert {t.name: list(t.layers) for t in layout.tensors} == {name: sorted(by_layer) for name, by_layer in cache.items()}
    view = layouts.hf_view(config)
    names = [f"{model_type}/{seed}/{dtype}/{row}" for row in range(BATCH)]
    with pool.open_arena(layout, rows=BATCH, view=view) as arena:
        for name, by_layer in cache.items():
            for layer, tensor in by_layer.items():
                rows = bits(arena[name][layer])
                assert rows.shape == tuple(tensor.shape), (name, layer)
                assert rows.dtype == as_numpy(tensor).dtype, (name, layer)
                rows[...] = as_numpy(tensor)
        arena.store({row: statepool.StoreItem(name, 7, whole_row=True) for row, name in enumerate(names)})

    # The canonical state: convolutions by tap, and no more of them than is read.
    for row, name in enumerate(names):
        state = pool.get(name).tensors
        for t in layout.tensors:
            order = tuple(view.axis_orders.get(t.name, t.axes))
            for at, layer in enumerate(t.layers):
                expected = as_numpy(cache[t.name][layer][row])
                if t.kind == "conv":
                    expected = expected[..., -t.axes["tap"]:]
                assert np.array_equal(bits(state[t.name][at]).transpose([list(t.axes).index(axis) for axis in order]), expected), (t.name, layer)

    other = model.fork()
    with pool.open_arena(layout, rows=BATCH, view=view) as arena:
        arena.load(dict(enumerate(names)))
        for name, by_layer in other.tensors().items():
            for layer, tensor in by_layer.items():
                tensor.fill_(99)  # nothing of it is left
                tensor.copy_(torch.from_numpy(bits(arena[name][layer]).copy()).view(tensor.dtype))
    for count in (1, 1, 3):
        following = tokens(count, count)
        assert torch.equal(model.read(following), other.read(following))


@pytest.mark.parametrize("model_type", small_models.ARCHITECTURES)
def test_each_number_of_a_config_is_heeded_as_transformers_heeds_it(pool, model_type):
    """A config.json says everything, also what others would follow from: each number of it is another one for once, alone."""
    base = small_config(model_type, 0).to_dict()
    compared = 0
    for key, value in sorted(base.items()):
        if key.endswith("_token_id") or key in ("vocab_size", "dtype") or isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            continue
        for other in (24,) if value is None else (value * 2, value + 1):
            config = {**base, key: other}
            if (config.get("linear_num_value_heads") or 0) % (config.get("linear_num_key_heads") or 1):
                continue  # a gated delta net of no meaning, which some take and we refuse
            try:
                model = Model(AutoConfig.for_model(**config), torch.float32)
                model.read(tokens(1, 7))
            except Exception:  # it makes no such model of it
                continue
            cache = {name: {layer: tuple(tensor.shape[1:]) for layer, tensor in by_layer.items()} for name, by_layer in model.tensors().items()}
            layout = pool.register_layout(layouts.from_hf(config, model_id=f"{model_type} {key} {other}", dtype="float32"))
            pool.delete_layout(layout)
            view = layouts.hf_view(config)
            ours = {}
            for t in layout.tensors:
                axes = {**t.axes, "tap": t.axes["tap"] + view.conv_padding} if t.kind == "conv" else t.axes
                ours[t.name] = dict.fromkeys(t.layers, tuple(axes[axis] for axis in view.axis_orders.get(t.name, t.axes)))
            assert ours == cache, f"{key}: {other} in the place of {value}"
            compared += 1
    assert compared >= 10

