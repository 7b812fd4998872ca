# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The table of architectures against the installed transformers: it has all of them, with transformers' defaults; and tool and Python read it alike.

An architecture is recurrent here if its code (modeling_*.py) fills a cache's convolution or recurrent states, says of a model that it is stateful, or defines a
cache of its own. Each must be in hf_models.json: among the models, or among those that are not supported, with the reason.
"""
from __future__ import annotations

import ast
import json
import os
import pathlib
import random
import subprocess

import pytest
import small_models
import statepool
import transformers
from google.protobuf import json_format
from statepool import _hf, layouts
from statepool.v1 import statepool_pb2 as pb
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / os.environ.get("STATEPOOL_BUILD", "build/release") / "statepool"
TABLE = json.loads((pathlib.Path(_hf.__file__).parent / "hf_models.json").read_text())
# Of what is found in a recurrent architecture's folder: configs of other parts than the language model.
NOT_LANGUAGE = ("_vision", "_audio")


def keeps_states(code: str) -> bool:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr in ("update_conv_state", "update_recurrent_state"):
            return True
        if isinstance(node, ast.ClassDef) and node.name.endswith("Cache"):
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "_is_stateful" for t in node.targets):
            return bool(ast.literal_eval(node.value))
    return False


def recurrent_folders() -> list[str]:
    folder = pathlib.Path(transformers.__file__).parent / "models"
    return sorted({path.parent.name for path in folder.glob("*/modeling_*.py") if keeps_states(path.read_text())})


FOLDERS = recurrent_folders()


def test_the_search_finds_what_is_known():
    assert {"mamba", "rwkv", "xlstm", "recurrent_gemma", "minimax", "lfm2", "inkling", "deepseek_v4"} <= set(FOLDERS)
    assert "llama" not in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recurrent_architecture_is_in_the_table(folder):
    types = [t for t in CONFIG_MAPPING if model_type_to_module_name(t) == folder and not t.endswith(NOT_LANGUAGE)]
    known = TABLE["models"].keys() | TABLE["not_supported"].keys()
    assert folder in TABLE["not_supported"] or types and set(types) <= known, f"{folder}: {set(types) - known} are not in hf_models.json"


def test_the_table_has_nothing_that_transformers_does_not_have():
    assert TABLE["models"].keys() <= set(CONFIG_MAPPING)
    assert TABLE["models"].keys() - {t for t, entry in TABLE["models"].items() if "text_config" in entry} == small_models.ARCHITECTURES.keys()


def registered(pool, config, **options):
    return pool.register_layout(layouts.from_hf(config, **options))


# Configs that say nothing have no recurrent layers here.
LAYERS = {"lfm2": {"full_attn_idxs": [1]}, "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
          "lfm2_vl": {"text_config": {"model_type": "lfm2", "full_attn_idxs": [1]}}}


@pytest.mark.parametrize("model_type", sorted(TABLE["models"]))
def test_what_a_config_does_not_say_is_as_in_transformers(pool, model_type):
    said = LAYERS.get(model_type, {})
    layout = registered(pool, CONFIG_MAPPING[model_type](**said), model_id=model_type)
    assert registered(pool, {"model_type": model_type, **said}, model_id=model_type) == layout


@pytest.mark.parametrize("model_type", sorted(small_models.ARCHITECTURES))
@pytest.mark.parametrize("seed", range(3))
def test_tool_and_python_make_one_layout_of_one_config(pool, tmp_path, model_type, seed):
    said = small_models.ARCHITECTURES[model_type](random.Random(f"{model_type} {seed}"))
    config = AutoConfig.for_model(model_type, **said)
    layout = registered(pool, config, model_id="m", dtype="bfloat16")
    assert registered(pool, {"model_type": model_type, "dtype": "torch.bfloat16", **said}, model_id="m") == layout  # keys as its user gives them
    config.save_pretrained(tmp_path)
    assert registered(pool, tmp_path, model_id="m", dtype="bfloat16") == layout  # and as transformers writes them
    answer = json.loads(subprocess.run([TOOL, "-o", "json", "layout", "from-hf", tmp_path / "config.json", "--model-id=m", "--dtype=bfloat16"],
                                       check=True, capture_output=True, text=True).stdout)
    made = layouts.Layout.from_proto(pb.LayoutInfo(layout=json_format.ParseDict(answer["schema"], pb.Layout())))
    assert made == layout and answer["state_bytes"] == layout.state_bytes


def test_a_config_around_another_has_its_layout(pool):
    inner = {"model_type": "qwen3_5_text", "num_hidden_layers": 4, "dtype": "bfloat16"}
    layout = registered(pool, inner, model_id="m")
    plain = {k: v for k, v in inner.items() if k not in ("model_type", "dtype")}
    for config in ({"model_type": "qwen3_5", "text_config": inner}, {"model_type": "qwen3_5", "text_config": plain, "dtype": "bfloat16"},
                   {"model_type": "qwen3_5", "text_config": plain | {"model_type": "qwen3_5"}, "dtype": "bfloat16"},
                   {"model_type": "any_that_sees", "text_config": inner}):
        assert registered(pool, config, model_id="m") == layout


def test_a_config_around_none_has_its_keys_in_itself_where_transformers_reads_them_there(pool):
    for model_type, text in (("glm5_next", "glm5_next_text"), ("qwen3_5", "qwen3_5_text")):
        said = {"num_hidden_layers": 8, "linear_num_heads": 2, "linear_num_value_heads": 16}
        layout = registered(pool, CONFIG_MAPPING[model_type](**said), model_id="m")
        assert registered(pool, {"model_type": model_type, **said}, model_id="m") == layout
        assert (registered(pool, {"model_type": text, **said}, model_id="m") == layout) == (model_type == "glm5_next")


def test_a_tensor_that_is_written_out_has_the_presets_fingerprint(pool):
    said = {"num_hidden_layers": 8, "linear_num_key_heads": 4, "ple_layer_ids": None, "eos_token_id": None}
    written = layouts.from_hf({"model_type": "qwen4_exp_text", **said}, model_id="m")
    assert isinstance(written, layouts.Layout)
    preset = layouts.from_hf({"model_type": "qwen3_5_text", **said}, model_id="m")
    assert isinstance(preset, layouts.Preset)
    assert pool.register_layout(preset) == written


def test_the_tokens_before_the_first_are_ends_of_sequences():
    for eos, first in ((7, 7), ([3, 2], 3)):  # as Qwen4ExpTextNGramEmbedding takes it
        layout = layouts.from_hf({"model_type": "qwen4_exp_text", "ple_layer_ids": [2], "eos_token_id": eos})
        assert {t.name: (t.layers, t.initial) for t in layout.tensors if t.name.startswith("ple_")} == {"ple_inputs": ((1,), 0), "ple_tokens": ((1,), first)}


def test_transformers_is_the_one_that_the_table_was_made_with():
    assert transformers.__version__ == (REPOSITORY / "tests/hf/requirements.txt").read_text().split("transformers==")[1].split()[0]


def test_a_stage_has_its_layers_alone(pool):
    config = {"model_type": "qwen3_next", "num_hidden_layers": 8}
    layout = registered(pool, config, model_id="m", layer_ids=range(2, 6), initial={"delta": 1})
    assert [(t.name, t.layers, t.initial) for t in layout.tensors] == [("conv", (2, 4, 5), 0), ("delta", (2, 4, 5), 1)]
    with pytest.raises(statepool.InvalidArgument) as error:
        layouts.from_hf(config, layer_ids=[3, 7])
    assert error.value.field == "layer_ids"
