# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Small random configs of the architectures of transformers whose caches hold recurrent states.

Each function below takes a random generator and gives what its architecture's config class is called with: sizes of their own, so that two that were
confused would be seen, other kernels, groups and patterns of layers each time.
"""
from __future__ import annotations

import random
from typing import Any, Callable

Config = dict[str, Any]
VOCABULARY = 96


def layers_of(rng: random.Random, recurrent: str, other: str, count: int) -> list[str]:
    """A pattern of layers with at least one of each."""
    types = [recurrent, other] + rng.choices([recurrent, other], k=count - 2)
    rng.shuffle(types)
    return types


def common(rng: random.Random, **more: Any) -> Config:
    heads = rng.choice([2, 4])
    return {"vocab_size": VOCABULARY, "num_attention_heads": heads, "num_key_value_heads": heads // rng.choice([1, 2]),
            "hidden_size": heads * rng.choice([8, 16, 24]), "intermediate_size": 40, "max_position_embeddings": 128, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, **more}


def mamba(rng: random.Random) -> Config:
    config = {"vocab_size": VOCABULARY, "hidden_size": rng.choice([16, 24, 40]), "state_size": rng.choice([4, 8, 12]), "num_hidden_layers": rng.randint(1, 4),
              "expand": rng.randint(1, 3), "conv_kernel": rng.randint(2, 5), "time_step_rank": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # A config.json may say another inner size than expand * hidden_size, as falcon-mamba-7b's does.
    return config | ({"intermediate_size": 44} if rng.random() < 0.5 else {})


def mamba2(rng: random.Random) -> Config:
    heads, groups, expand = rng.choice([4, 8]), rng.choice([1, 2, 4]), rng.choice([1, 2])
    hidden = heads * rng.choice([4, 6, 8])
    return {"vocab_size": VOCABULARY, "hidden_size": hidden, "expand": expand, "num_heads": heads, "head_dim": expand * hidden // heads, "n_groups": groups,
            "state_size": rng.choice([8, 12, 16]), "conv_kernel": rng.randint(2, 5), "num_hidden_layers": rng.randint(1, 4), "chunk_size": 8,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bamba_mixer(rng: random.Random, hidden: int) -> Config:
    """As several families call the parameters of Mamba-2."""
    heads, expand = rng.choice([4, 8]), rng.choice([1, 2])
    return {"mamba_n_heads": heads, "mamba_d_head": rng.choice(["auto", expand * hidden // heads]), "mamba_n_groups": rng.choice([1, 2, 4]),
            "mamba_d_state": rng.choice([8, 12, 16]), "mamba_d_conv": rng.randint(2, 5), "mamba_expand": expand, "mamba_chunk_size": 8}


def bamba(rng: random.Random) -> Config:
    config = common(rng, num_hidden_layers=rng.randint(2, 5))
    config |= bamba_mixer(rng, config["hidden_size"])
    return config | {"attn_layer_indices": rng.sample(range(config["num_hidden_layers"]), rng.randint(1, config["num_hidden_layers"] - 1))}


def falcon_h1(rng: random.Random) -> Config:
    config = common(rng, num_hidden_layers=rng.randint(1, 3))
    config |= bamba_mixer(rng, config["hidden_size"])
    heads = config["mamba_n_heads"]
    if rng.random() < 0.5:
        head = rng.choice([6, 10])
        return config | {"mamba_d_ssm": heads * head, "mamba_d_head": rng.choice(["auto", head])}
    return config | {"mamba_d_ssm": None}


def granitemoehybrid(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    config = common(rng, num_hidden_layers=layers, shared_intermediate_size=24, num_local_experts=2, num_experts_per_tok=1)
    config |= bamba_mixer(rng, config["hidden_size"])
    legacy = rng.random() < 0.5
    return config | {"layer_types": layers_of(rng, *(("mamba", "attention") if legacy else ("linear_attention", "full_attention")), layers)}


def nemotron_h(rng: random.Random) -> Config:
    types = layers_of(rng, "linear_attention", "full_attention", rng.randint(2, 4)) + ["mlp"]
    rng.shuffle(types)
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
    config = common(rng, head_dim=8, mamba_num_heads=rng.choice([4, 8]), mamba_head_dim=rng.choice([4, 6]), n_groups=rng.choice([1, 2, 4]),
                    ssm_state_size=rng.choice([8, 12]), conv_kernel=rng.randint(2, 5), chunk_size=8)
    if rng.random() < 0.5:
        return config | {"hybrid_override_pattern": "".join(letters[t] for t in types)}
    return config | {"layers_block_type": types}


def zamba2(rng: random.Random) -> Config:
    layers = rng.randint(2, 4)
    types = layers_of(rng, "linear_attention", "hybrid", layers)
    heads = rng.choice([2, 4])
    return common(rng, num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=layers, layers_block_type=types,
                  mamba_d_state=rng.choice([8, 12]), mamba_d_conv=rng.randint(2, 5), mamba_expand=rng.choice([1, 2]), mamba_ngroups=rng.choice([1, 2]),
                  n_mamba_heads=rng.choice([2, 4]), chunk_size=8, num_mem_blocks=1, adapter_rank=4)


def zamba(rng: random.Random) -> Config:
    layers = rng.randint(3, 5)
    heads = rng.choice([2, 4])
    types = ["hybrid", *layers_of(rng, "linear_attention", "hybrid", layers - 1)]
    return common(rng, num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=layers, layers_block_type=types,
                  n_mamba_heads=rng.choice([1, 2]), mamba_d_state=rng.choice([4, 6]), mamba_d_conv=rng.randint(2, 5),
                  mamba_expand=rng.randint(1, 3), mamba_dt_rank=4, use_mamba_kernels=False)


def jamba(rng: random.Random) -> Config:
    period = rng.randint(2, 4)
    return common(rng, num_hidden_layers=rng.randint(period, 6), attn_layer_period=period, attn_layer_offset=rng.randrange(period), num_experts=2,
                  num_experts_per_tok=1, mamba_d_state=rng.choice([4, 6]), mamba_d_conv=rng.randint(2, 5), mamba_expand=rng.randint(1, 3), mamba_dt_rank=4,
                  use_mamba_kernels=False)


def gated_delta(rng: random.Random) -> Config:
    """As several families call the parameters of a gated delta net."""
    key_heads = rng.choice([1, 2])
    return {"linear_num_key_heads": key_heads, "linear_num_value_heads": key_heads * rng.choice([1, 2, 3]), "linear_key_head_dim": rng.choice([8, 12]),
            "linear_value_head_dim": rng.choice([6, 10]), "linear_conv_kernel_dim": rng.randint(2, 5)}


def qwen3_next(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    config = common(rng, num_hidden_layers=layers, head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
                    shared_expert_intermediate_size=16) | gated_delta(rng)
    if rng.random() < 0.5:
        return config | {"full_attention_interval": rng.randint(2, layers)}
    return config | {"layer_types": layers_of(rng, "linear_attention", "full_attention", layers)}


def qwen3_5(rng: random.Random) -> Config:
    return qwen3_next(rng)


def olmo_hybrid(rng: random.Random) -> Config:
    layers = rng.randint(2, 6)
    config = common(rng, num_hidden_layers=layers)
    if rng.random() < 0.5:
        config |= {"layer_types": layers_of(rng, "linear_attention", "full_attention", layers)}
    if rng.random() < 0.7:
        config |= gated_delta(rng)
    return config


def qwen4_exp(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    types = layers_of(rng, "linear_attention", "qwen_sparse_attention", layers)
    recurrent = [i + 1 for i, t in enumerate(types) if t == "linear_attention"]
    return common(rng, num_hidden_layers=layers, head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, hc_count=2, hc_lowrank=8,
                  shared_expert_intermediate_size=16, layer_types=types, ple_layer_ids=rng.sample(recurrent, rng.randint(0, len(recurrent))),
                  ple_embed_dim=24, ple_conv_kernel_size=rng.randint(2, 4), ngram_size=rng.randint(3, 4), heads_per_ngram=2, ngram_vocab_size_base=50,
                  make_ngram_vocab_size_divisible_by=8, split_ngram_parts=1, eos_token_id=rng.choice([2, [3, 2]]), indexer_n_heads=2, indexer_kv_heads=1,
                  indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=2) | gated_delta(rng)


def kimi_linear(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    types = layers_of(rng, "linear_attention", "full_attention", layers)
    config = common(rng, num_hidden_layers=layers, kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
                    moe_intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, mlp_layer_types=["dense"] * layers)
    config["num_key_value_heads"] = config["num_attention_heads"]
    heads, head_dim, kernel = rng.choice([1, 2, 3]), rng.choice([4, 8]), rng.randint(2, 5)
    if rng.random() < 0.5:  # as checkpoints have it
        return config | {"linear_attn_config": {
            "head_dim": head_dim, "num_heads": heads, "short_conv_kernel_size": kernel,
            "kda_layers": [i + 1 for i, t in enumerate(types) if t == "linear_attention"],
            "full_attn_layers": [i + 1 for i, t in enumerate(types) if t == "full_attention"]}}
    return config | {"layer_types": types, "linear_head_dim": head_dim, "linear_num_heads": heads, "linear_conv_kernel_dim": kernel}


def glm5_next(rng: random.Random) -> Config:
    layers = rng.randint(4, 6)
    config = common(rng, num_hidden_layers=layers, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=0, v_head_dim=8, qk_nope_head_dim=8,
                    moe_intermediate_size=16, n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=1, mlp_layer_types=["dense"] * layers,
                    index_topk=4, index_kpool=2, index_head_dim=8, index_n_heads=2, hc_mult=2)
    config["num_key_value_heads"] = config["num_attention_heads"]
    if rng.random() < 0.5:
        config["layer_types"] = layers_of(rng, "linear_attention", "deepseek_sparse_attention", layers)
    return config | {"linear_head_dim": rng.choice([4, 8]), "linear_num_heads": rng.choice([1, 2, 3]), "linear_conv_kernel_dim": rng.randint(2, 5)}


def lfm2(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    config = common(rng, num_hidden_layers=layers, conv_L_cache=rng.randint(2, 5), block_auto_adjust_ff_dim=False)
    if rng.random() < 0.5:
        return config | {"full_attn_idxs": rng.sample(range(layers), rng.randint(1, layers - 1))}
    return config | {"layer_types": layers_of(rng, "conv", "full_attention", layers)}


def lfm2_moe(rng: random.Random) -> Config:
    layers = rng.randint(2, 5)
    return common(rng, num_hidden_layers=layers, conv_L_cache=rng.randint(2, 5), num_dense_layers=1, num_experts=2, num_experts_per_tok=1,
                  moe_intermediate_size=16, layer_types=layers_of(rng, "conv", "full_attention", layers))


def inkling(rng: random.Random) -> Config:
    layers = rng.randint(1, 3)
    config = common(rng, num_hidden_layers=layers, head_dim=rng.choice([4, 8]), swa_num_attention_heads=2, swa_num_key_value_heads=1,
                    swa_head_dim=rng.choice([4, 8]), sliding_window_size=8, d_rel=2, rel_extent=16, mlp_layer_types=["dense"] * layers,
                    moe_intermediate_size=16, n_routed_experts=2, num_experts_per_tok=1, n_shared_experts=1)
    config[rng.choice(["conv_kernel_size", "sconv_kernel_size"])] = rng.choice([2, 3, 5])
    if rng.random() < 0.5:
        return config | {"local_layer_ids": rng.sample(range(layers), rng.randint(0, layers))}
    return config | {"layer_types": rng.choices(["hybrid", "hybrid_sliding"], k=layers)}


def minimax(rng: random.Random) -> Config:
    layers = rng.randint(2, 4)
    config = common(rng, num_hidden_layers=layers, block_size=4, num_local_experts=2, num_experts_per_tok=1)
    if rng.random() < 0.5:
        config["layer_types"] = layers_of(rng, "linear_attention", "full_attention", layers)
    if rng.random() < 0.5:
        config["head_dim"] = 12
    return config


def recurrent_gemma(rng: random.Random) -> Config:
    blocks = layers_of(rng, "recurrent", "attention", 3)
    config = common(rng, num_hidden_layers=rng.randint(3, 5), conv1d_width=rng.randint(2, 5), block_types=blocks, attention_window_size=16)
    if rng.random() < 0.5:
        config["lru_width"] = config["num_attention_heads"] * 12
    return config


def rwkv(rng: random.Random) -> Config:
    return {"vocab_size": VOCABULARY, "hidden_size": rng.choice([16, 24, 40]), "num_hidden_layers": rng.randint(1, 4), "context_length": 64,
            "bos_token_id": 1, "eos_token_id": 2}


def xlstm(rng: random.Random) -> Config:
    # The model itself takes no others than multiples of 64.
    return {"vocab_size": VOCABULARY, "hidden_size": rng.choice([128, 256]), "num_hidden_layers": rng.randint(1, 3), "num_heads": rng.choice([1, 2, 4]),
            "qk_dim_factor": rng.choice([0.5, 1.0]), "v_dim_factor": rng.choice([1.0, 1.5]), "chunk_size": 8,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def zaya(rng: random.Random) -> Config:
    layers = rng.randint(1, 3)
    heads = rng.choice([2, 4])
    return common(rng, num_attention_heads=heads, num_key_value_heads=2, num_hidden_layers=layers, head_dim=rng.choice([8, 12]), moe_intermediate_size=16,
                  num_experts=2, router_hidden_size=8, cca_time0=rng.randint(2, 4), cca_time1=rng.randint(2, 3), sliding_window=16,
                  layer_types=rng.choices(["hybrid", "hybrid_sliding"], k=layers))


ARCHITECTURES: dict[str, Callable[[random.Random], Config]] = {
    "bamba": bamba, "falcon_h1": falcon_h1, "falcon_mamba": mamba, "glm5_next_text": glm5_next, "granitemoehybrid": granitemoehybrid, "inkling_text": inkling,
    "jamba": jamba, "kimi_linear": kimi_linear, "lfm2": lfm2, "lfm2_moe": lfm2_moe, "mamba": mamba, "mamba2": mamba2, "minimax": minimax,
    "nemotron_h": nemotron_h, "olmo_hybrid": olmo_hybrid, "qwen3_5_text": qwen3_5, "qwen3_5_moe_text": qwen3_5, "qwen3_next": qwen3_next,
    "qwen4_exp_text": qwen4_exp, "recurrent_gemma": recurrent_gemma, "rwkv": rwkv, "xlstm": xlstm, "zamba": zamba, "zamba2": zamba2, "zaya": zaya,
}
"""By model_type."""
