# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Layouts from the config.json of well-known models, by the Python package and by the tool, without transformers. That they are those of transformers' caches:
tests/hf."""
import json
import subprocess

import pytest

import statepool
from daemon_process import BINARY
from statepool import layouts

TOOL = BINARY.parent / "statepool"
MAMBA2 = {"model_type": "mamba2", "head_dim": 64, "state_size": 128, "num_hidden_layers": 64, "conv_kernel": 4}
GRANITE = ["mamba"] * 5 + (["attention"] + ["mamba"] * 9) * 3 + ["attention"] + ["mamba"] * 4
NEMOTRON = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
KIMI = {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
        "kda_layers": [i for i in range(1, 27) if i % 4]}

# What decides in the published config.json of each, and how many decimal MB a state has: convolutions in two bytes, recurrences in four.
MODELS = {
    "LFM2 1.2B": (0.08, {"model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "conv_L_cache": 3, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}),
    "RWKV-4 169m": (0.15, {"model_type": "rwkv", "hidden_size": 768, "attention_hidden_size": 768, "num_hidden_layers": 12}),
    "Mamba-130m": (2.58, {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "conv_kernel": 4, "expand": 2}),
    "Mamba-1.4b": (13.76, {"model_type": "mamba", "hidden_size": 2048, "num_hidden_layers": 48, "state_size": 16, "conv_kernel": 4, "expand": 2}),
    "Mamba-2.8b": (22.94, {"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64, "state_size": 16, "conv_kernel": 4, "expand": 2}),
    "Falcon-Mamba-7B": (36.7, {"model_type": "falcon_mamba", "hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 64, "state_size": 16,
                                 "conv_kernel": 4, "expand": 16}),
    "Kimi-Linear-48B": (43.42, {"model_type": "kimi_linear", "num_hidden_layers": 27, "linear_attn_config": KIMI}),
    "Qwen3.5-35B-A3B": (64.39, {"model_type": "qwen3_5_moe", "text_config": {
        "model_type": "qwen3_5_moe_text", "num_hidden_layers": 40, "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32}}),
    "Qwen3-Next-80B": (77.27, {
        "model_type": "qwen3_next", "num_hidden_layers": 48, "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32}),
    "Nemotron-H-8B": (102.14, {"model_type": "nemotron_h", "hybrid_override_pattern": NEMOTRON, "num_hidden_layers": 52, "mamba_num_heads": 128,
                               "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4}),
    "Granite-4 H-Small": (152.82, {"model_type": "granitemoehybrid", "layer_types": GRANITE, "num_hidden_layers": 40, "hidden_size": 4096, "mamba_n_heads": 128,
                                   "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2}),
    "Mamba2-2.7b": (169.84, {**MAMBA2, "hidden_size": 2560, "num_heads": 80, "n_groups": 1}),
    "Codestral Mamba": (272.37, {**MAMBA2, "hidden_size": 4096, "num_heads": 128, "n_groups": 8, "time_step_limit": [0.0, float("inf")]}),
    # Half of what engines hold: transformers keeps this one in the weights' dtype.
    "MiniMax-Text-01": (146.8, {"model_type": "minimax", "num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128,
                                "layer_types": [("full" if (i + 1) % 8 == 0 else "linear") + "_attention" for i in range(80)]}),
}


@pytest.fixture(scope="module")
def pool(daemon):
    with statepool.connect(daemon.address) as pool:
        yield pool


def tool(*args, config, server="unix:/nonexistent/socket"):
    """The config on stdin, as Python writes it. No daemon is asked unless its address is given."""
    return subprocess.run([TOOL, f"--server={server}", "-o", "json", "layout", "from-hf", "-", *args], input=json.dumps(config), capture_output=True, text=True,
                          timeout=60)


@pytest.mark.parametrize("model", MODELS)
def test_a_well_known_model_has_its_size_and_one_layout_by_python_and_tool(pool, daemon, tmp_path, model):
    megabytes, config = MODELS[model]
    config = {**config, "torch_dtype": "bfloat16"}
    layout = pool.register_layout(layouts.from_hf(config, model_id=model))
    assert round(layout.state_bytes / 1e6, 2) == megabytes
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert pool.register_layout(layouts.from_hf(str(tmp_path), model_id=model)) == layout

    answer = json.loads(tool(f"--model-id={model}", config=config).stdout)
    assert answer["state_bytes"] == layout.state_bytes == sum(t["tensor_bytes"] for t in answer["tensors"])
    (tmp_path / "layout.json").write_text(json.dumps(answer))  # a FILE for layout register
    registered = subprocess.run([TOOL, f"--server={daemon.address}", "-o", "json", "layout", "register", tmp_path / "layout.json"], check=True,
                                capture_output=True, text=True, timeout=60)
    assert json.loads(registered.stdout)["layout"] == layout.fingerprint
    alias = model.replace(" ", "-")
    made = json.loads(tool(f"--model-id={model}", "--register", f"--alias={alias}", config=config, server=daemon.address).stdout)
    assert (made["layout"], made["aliases"]) == (layout.fingerprint, [alias])


def test_a_model_of_a_family_has_the_layout_of_its_preset(pool):
    for model, preset in {
            "Mamba-2.8b": layouts.mamba1("m", layers=64, intermediate_size=5120, state_size=16),
            "Codestral Mamba": layouts.mamba2("m", layers=64, heads=128, head_dim=64, state_size=128, groups=8),
            "Kimi-Linear-48B": layouts.kda("m", layer_ids=[i for i in range(26) if i % 4 != 3], heads=32, head_dim=128),
            "Qwen3-Next-80B": layouts.gated_delta_net("m", layer_ids=[i for i in range(48) if i % 4 != 3], key_heads=16, key_dim=128, value_heads=32,
                                                      value_dim=128),
            "RWKV-4 169m": layouts.rwkv4("m", layers=12, hidden_size=768),
            "LFM2 1.2B": layouts.short_conv("m", layer_ids=[0, 1, 3, 4, 6, 7, 9, 11, 13, 15], channels=2048, conv_kernel=3)}.items():
        assert pool.register_layout(layouts.from_hf(MODELS[model][1], model_id="m", dtype="bfloat16")) == pool.register_layout(preset), model


def test_a_model_of_no_family_is_written_tensor_by_tensor():
    config = {"model_type": "recurrent_gemma", "num_hidden_layers": 5, "hidden_size": 2560, "num_attention_heads": 10, "dtype": "bfloat16"}
    layout = layouts.from_hf(config, model_id="m", initial={"lru": 0.5})
    assert [(t.name, t.layers, t.dtype, dict(t.axes), t.initial, t.shard_axis) for t in layout.tensors] == [
        ("conv", (0, 1, 3, 4), "bfloat16", {"tap": 3, "channel": 2560}, 0, "channel"), ("lru", (0, 1, 3, 4), "float32", {"channel": 2560}, 0.5, "channel")]
    with pytest.raises(statepool.InvalidArgument) as error:
        layouts.from_hf(config, initial={"ssm": 1})
    assert error.value.field == "initial"


@pytest.mark.parametrize("config,field,part", [
    ({"model_type": "llama"}, "model_type", "known are bamba, "),
    ({"model_type": "mimi"}, "model_type", "the codec's convolutions"),
    ({"hidden_size": 8}, "model_type", "no model_type"),
    ({"model_type": "sees", "text_config": {"model_type": "llama"}}, "model_type", "'llama'"),
    ({"model_type": "mamba", "state_size": 0}, "state_size", "is 0, and must be a whole number 1..4294967296"),
    ({"model_type": "mamba", "state_size": 1.5}, "state_size", "is 1.5"),
    ({"model_type": "mamba", "state_size": "16"}, "state_size", "can't be told"),
    ({"model_type": "mamba", "state_size": None}, "state_size", "can't be told"),
    ({"model_type": "mamba", "hidden_size": 1 << 40}, "intermediate_size", "and must be"),
    ({"model_type": "mamba", "num_hidden_layers": 5000}, "num_hidden_layers", "0..4096"),
    ({"model_type": "mamba", "num_hidden_layers": 0}, "layer_types", "no recurrent layers"),
    ({"model_type": "lfm2"}, "layer_types", "no recurrent layers"),
    ({"model_type": "lfm2", "layer_types": ["full_attention"] * 5000}, "layer_types", "has 5000 layers"),
    ({"model_type": "lfm2", "full_attn_idxs": ["a"]}, "full_attn_idxs", "no list of numbers"),
    ({"model_type": "lfm2", "num_hidden_layers": 2, "full_attn_idxs": [{}]}, "full_attn_idxs", "no list of numbers"),
    ({"model_type": "lfm2", "num_hidden_layers": 2, "full_attn_idxs": [{"least": []}]}, "full_attn_idxs", "no list of numbers"),
    ({"model_type": "kimi_linear", "linear_attn_config": {"kda_layers": [{"sum": [1, 2]}]}}, "linear_attn_config.kda_layers", "no list of numbers"),
    ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period", "is 0"),
    ({"model_type": "kimi_linear", "linear_attn_config": {"kda_layers": [0]}}, "linear_attn_config.kda_layers", "is 0, and must be a whole number 1..4096"),
    ({"model_type": "xlstm", "qk_dim_factor": 1e308}, "c.key", "c.key can't be told"),
    ({"model_type": "zamba2", "n_mamba_heads": 0, "mamba_d_state": 0}, "head_dim", "head_dim can't be told"),
    ({"model_type": ""}, "model_type", "no model_type"),
    ({"model_type": "zamba", "n_mamba_heads": 0}, "n_mamba_heads", "a section of conv is 0"),
    ({"model_type": "qwen4_exp_text", "ple_layer_ids": [1]}, "ple_tokens", "does not say what ple_tokens is at first"),
    ({"model_type": "qwen3_next", "num_hidden_layers": 3, "layer_types": ["linear_attention"] * 4}, "layer_types", "is of 4 layers, and num_hidden_layers is 3"),
    ({"model_type": "mamba", "dtype": "int8"}, "dtype", "one of float32, float16, bfloat16"),
])
def test_what_makes_no_sense_is_refused_in_the_same_words_by_python_and_tool(config, field, part):
    with pytest.raises(statepool.InvalidArgument) as refused:
        layouts.from_hf(config)
    assert (refused.value.reason, refused.value.field) == ("INVALID_LAYOUT", field) and part in refused.value.message
    done = tool(config=config)
    error = json.loads(done.stderr)
    assert (done.returncode, done.stdout, error["reason"], error["field"], error["message"]) == (2, "", "USAGE", field, refused.value.message)


def test_a_number_beyond_floats_is_refused():
    with pytest.raises(statepool.InvalidArgument):
        layouts.from_hf({"model_type": "mamba", "state_size": 10**400})
    assert tool(config={"model_type": "mamba", "state_size": 10**400}).returncode == 2


def test_what_is_no_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    for path, part in ((tmp_path, "no JSON object"), (tmp_path / "absent.json", "can't be read")):
        with pytest.raises(statepool.InvalidArgument) as refused:
            layouts.from_hf(path)
        assert refused.value.field == "config" and part in refused.value.message
    for config in ([1], "text"):
        done = tool(config=config)
        assert done.returncode == 2 and json.loads(done.stderr)["field"] == "CONFIG"


def test_a_config_that_is_nested_too_deep_is_refused_at_once():
    def nested(levels):
        return f'{{"model_type": "mamba", "text": "[[[[\\"[[[[", "a": {"[" * levels}{"]" * levels}}}'

    single = f"""{{'"': 1, 'a': {"[" * 20000}{"]" * 20000}}}"""  # protobuf takes these quotes, too
    for text, code in ((nested(29), 0), (nested(30), 2), (nested(100_000), 2), ("[" * 100_000, 2), (single, 2)):
        done = subprocess.run([TOOL, "layout", "from-hf", "-", "-o", "json"], input=text, capture_output=True, text=True, timeout=10)
        assert done.returncode == code and (code == 0 or "deeper than 30 levels" in json.loads(done.stderr)["message"])


def test_the_tool_registers_only_what_has_an_owner():
    config = MODELS["Mamba-130m"][1]
    for args, field in ((["--register"], "--model-id"), (["--alias=a"], "--alias"), (["--dtype=int8"], "--dtype")):
        done = tool(*args, config=config)
        assert (done.returncode, json.loads(done.stderr)["field"]) == (2, field)


def test_people_see_the_sizes():
    done = subprocess.run([TOOL, "layout", "from-hf", "-"], input=json.dumps(MODELS["Mamba-2.8b"][1]), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "state_bytes" in done.stdout and "ssm" in done.stdout
