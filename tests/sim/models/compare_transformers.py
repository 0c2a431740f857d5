#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what `kvspan predict` reads from config.json with transformers itself.

Of every family: the default configuration and random small ones, saved by transformers. Parameters
must equal those of its model, built without storage; KV elements those that its cache holds after a
forward pass of a small model (sliding windows longer than the text). Prints one line a family.

  usage: compare_transformers.py KVSPAN [--seed S] [--variants N] [--write FILE] [FAMILY ...]

--write keeps the default and the last variant of every family, with transformers' numbers: the
references of families_test.cpp (tests/data/model_configs.json). Needs torch and transformers 5.24 (other versions know other families). Not run in CI.
"""
import argparse
import json
import os
import random
import subprocess
import tempfile

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TOKENS = 7


def dense(r, layers=None):
    heads = r.choice([2, 4])
    return {"num_hidden_layers": layers or r.choice([2, 4, 5]), "hidden_size": 16 * r.choice([1, 2, 3]),
            "intermediate_size": r.choice([24, 40]), "num_attention_heads": heads,
            "num_key_value_heads": r.choice([1, heads]), "head_dim": r.choice([8, 16]),
            "vocab_size": r.choice([64, 96]), "tie_word_embeddings": r.choice([True, False]),
            "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def flags(r, *names):
    return {name: r.choice([True, False]) for name in names}


def latent(r):
    return {"q_lora_rank": r.choice([12, 20]), "kv_lora_rank": 16, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4, "v_head_dim": r.choice([6, 8])}


def routed(r):
    return {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": r.choice([1, 2]),
            "moe_intermediate_size": r.choice([8, 12]), "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": r.choice([0, 1])}


def multi(c):  # latent attention has a KV head a query head on paper
    return {**c, "num_key_value_heads": c["num_attention_heads"]}


def without(c, *names):
    return {k: v for k, v in c.items() if k not in names}


def three_axes(c):  # RoPE of time, height and width shares the pairs of a head
    pairs = c["hidden_size"] // c["num_attention_heads"] // 2
    sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return {**c, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
                                     "mrope_section": sections}}


def gated_delta(r):
    return {"linear_num_key_heads": 2, "linear_num_value_heads": r.choice([2, 4]),
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}


def experts(r):
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": r.choice([8, 12])}


def typed(c, kinds, r, last=None):
    types = [r.choice(kinds) for _ in range(c["num_hidden_layers"])]
    types[-1] = last or types[-1]
    return {**c, "layer_types": types, "sliding_window": 64}


def gemma(r, gemma4):
    c = dense(r, layers=6)
    types = ["sliding_attention", "full_attention"] * 3
    c.update(layer_types=types, sliding_window=64, num_kv_shared_layers=r.choice([0, 2]),
             hidden_size_per_layer_input=r.choice([4, 8]), vocab_size_per_layer_input=64,
             tie_word_embeddings=True, **flags(r, "attention_bias"))
    if not gemma4:
        c.update(intermediate_size=[24] * 6, activation_sparsity_pattern=[0.0] * 6, laurel_rank=4,
                 altup_num_inputs=r.choice([2, 3]))
        return c
    c.update(global_head_dim=r.choice([8, 32]), num_global_key_value_heads=1,
             **flags(r, "attention_k_eq_v", "use_double_wide_mlp"))
    if r.choice([True, False]):
        c.update(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=8)
    return c


def hybrid(r, kinds, **more):
    c = dense(r, layers=4)
    return {**c, "layer_types": [kinds[0], kinds[1], kinds[0], kinds[1]], **more}


def mamba2(r):
    return {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
            "mamba_d_conv": 4, **flags(r, "mamba_conv_bias", "mamba_proj_bias")}


FAMILIES = {
    "llama": lambda r: {**dense(r), **flags(r, "attention_bias", "mlp_bias")},
    "mistral": lambda r: {**dense(r), "sliding_window": r.choice([None, 64])},
    "mixtral": lambda r: {**dense(r), "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": lambda r: without(dense(r), "head_dim"),
    "qwen2_vl_text": lambda r: three_axes(without(dense(r), "head_dim")),
    "qwen2_5_vl_text": lambda r: three_axes(without(dense(r), "head_dim")),
    "qwen2_moe": lambda r: {**without(dense(r), "head_dim"), **experts(r), **flags(r, "qkv_bias")},
    "qwen3": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "qwen3_moe": lambda r: {**dense(r), **without(experts(r), "shared_expert_intermediate_size"),
                            **flags(r, "attention_bias"), "decoder_sparse_step": r.choice([1, 2])},
    "qwen3_next": lambda r: {**hybrid(r, ["linear_attention", "full_attention"]), **gated_delta(r),
                             **experts(r)},
    "qwen3_5_text": lambda r: {**hybrid(r, ["linear_attention", "full_attention"]),
                               **gated_delta(r)},
    "qwen3_5_moe_text": lambda r: {**hybrid(r, ["linear_attention", "full_attention"]),
                                   **gated_delta(r), **experts(r)},
    "qwen3_vl_text": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "qwen3_vl_moe_text": lambda r: {**dense(r),
                                    **without(experts(r), "shared_expert_intermediate_size"),
                                    **flags(r, "attention_bias")},
    "gemma2": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "gemma3_text": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "gemma3n_text": lambda r: gemma(r, False),
    "gemma4_text": lambda r: gemma(r, True),
    "phi3": lambda r: without(dense(r), "head_dim"),
    "olmo2": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "olmo3": lambda r: typed({**dense(r), **flags(r, "attention_bias")},
                             ["sliding_attention", "full_attention"], r),
    "smollm3": lambda r: {**dense(r), **flags(r, "attention_bias", "mlp_bias")},
    "seed_oss": lambda r: {**dense(r), **flags(r, "attention_bias", "attention_out_bias")},
    "ministral3": lambda r: dense(r),
    "llama4_text": lambda r: {**dense(r, layers=4), "num_local_experts": 4, "num_experts_per_tok": 1,
                              "intermediate_size_mlp": 32, "attention_chunk_size": 64,
                              "interleave_moe_layer_step": r.choice([1, 2]),
                              **flags(r, "attention_bias")},
    "glm": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "glm4": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "glm4_moe": lambda r: {**dense(r), **routed(r), **flags(r, "attention_bias", "use_qk_norm")},
    "glm4_moe_lite": lambda r: {**multi(without(dense(r), "head_dim")), **latent(r),
                                **without(routed(r), "first_k_dense_replace"),
                                **flags(r, "attention_bias")},
    "glm_moe_dsa": lambda r: {**multi(without(dense(r), "head_dim")), **latent(r), **routed(r),
                              "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
    "deepseek_v2": lambda r: {**multi(without(dense(r), "head_dim")), **latent(r), **routed(r),
                              **flags(r, "attention_bias")},
    "deepseek_v3": lambda r: {**multi(without(dense(r), "head_dim")), **latent(r), **routed(r),
                              **flags(r, "attention_bias")},
    "deepseek_v32": lambda r: {**multi(without(dense(r), "head_dim")), **latent(r), **routed(r),
                               "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
    "kimi_linear": lambda r: {**multi(without(dense(r, layers=4), "head_dim")), **latent(r),
                              "q_lora_rank": None, "linear_num_heads": 2, "linear_head_dim": 8,
                              "linear_conv_kernel_dim": 4, "num_experts": 4,
                              "num_experts_per_token": 2, "num_shared_experts": r.choice([1, 2]),
                              "moe_intermediate_size": 8, "num_expert_group": 1, "topk_group": 1,
                              "layer_types": ["linear_attention", "full_attention"] * 2,
                              **flags(r, "attention_bias")},
    "minimax_m2": lambda r: {**dense(r), "num_local_experts": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": lambda r: {**dense(r), **flags(r, "attention_bias")},
    "hunyuan_v1_moe": lambda r: {**dense(r), "num_experts": 4, "moe_topk": 2,
                                 **flags(r, "attention_bias")},
    "gpt_oss": lambda r: {**dense(r, layers=4), "num_local_experts": 4, "num_experts_per_tok": 2,
                          **flags(r, "attention_bias")},
    "jamba": lambda r: {**without(dense(r, layers=4), "head_dim"), "attn_layer_period": 2,
                        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0,
                        "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4,
                        "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
                        "use_mamba_kernels": False, **flags(r, "mamba_conv_bias")},
    "granitemoehybrid": lambda r: {**without(hybrid(r, ["linear_attention", "full_attention"]),
                                             "head_dim"),
                                   **mamba2(r), "num_local_experts": r.choice([0, 4]),
                                   "num_experts_per_tok": 2, "shared_intermediate_size": 16,
                                   "hidden_size": 16, "mamba_expand": 2,
                                   **flags(r, "attention_bias")},
    "nemotron_h": lambda r: {**without(dense(r), "num_hidden_layers"),
                             "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
                             "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1,
                             "ssm_state_size": 8, "conv_kernel": 4, "n_routed_experts": 4,
                             "num_experts_per_tok": 2, "n_shared_experts": r.choice([1, 2]),
                             "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1,
                             "moe_shared_expert_intermediate_size": 12, "use_mamba_kernels": False,
                             "moe_latent_size": r.choice([None, 8]),
                             **flags(r, "attention_bias", "use_bias", "mlp_bias")},
    "falcon_h1": lambda r: {**dense(r), **mamba2(r), "mamba_d_ssm": 32, "mamba_expand": 2,
                            **flags(r, "attention_bias", "mlp_bias", "projectors_bias",
                                    "mamba_rms_norm")},
    "lfm2": lambda r: {**without(hybrid(r, ["conv", "full_attention"]), "head_dim"),
                       "conv_L_cache": 3, "block_auto_adjust_ff_dim": False,
                       **flags(r, "conv_bias")},
    "granite": lambda r: {**without(dense(r), "head_dim"), **flags(r, "attention_bias", "mlp_bias")},
}


# Default configurations that no model has: heads that do not divide the width, no experts a token,
# no attention layer.
NO_DEFAULT = {"glm4_moe", "deepseek_v2", "granitemoehybrid"}


def has_head(config):  # the text part of a model with vision has none of its own
    return type(config) in AutoModelForCausalLM._model_mapping


def build(config):
    kind = AutoModelForCausalLM if has_head(config) else AutoModel
    return kind.from_config(config, attn_implementation="eager").eval()


def parameters(config):
    with torch.device("meta"):
        model = build(config)
    tied = has_head(config) or getattr(config, "tie_word_embeddings", False)
    head = 0 if tied else config.vocab_size * config.hidden_size
    return sum(p.numel() for p in model.parameters()) + head


def cache_elements(config):
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        cache = model(torch.arange(3, 3 + TOKENS)[None], use_cache=True).past_key_values
    sum_ = 0
    for layer in cache.layers:
        for name in ("keys", "values", "indexer_keys", "index_keys"):
            tensor = getattr(layer, name, None)
            if torch.is_tensor(tensor):
                sum_ += tensor.numel()
    return sum_


def predicted(kvspan, config, folder):
    config.save_pretrained(folder)
    out = os.path.join(folder, "out.json")
    done = subprocess.run([kvspan, "predict", "--model", folder, "--prompt", str(TOKENS), "--policy",
                           "full", "--out", out], capture_output=True, text=True)
    if done.returncode != 0:
        return None, None, done.stderr.strip()
    result = json.load(open(out))
    weights = result["model"]["weights"]
    return (weights["parameters"] if weights else None), result["runs"][0]["peak_bytes"]["kv"] // 2, ""


# What says nothing of sizes.
UNUSED = {"transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
          "initializer_range", "use_cache", "rms_norm_eps", "output_router_logits", "pretraining_tp",
          "router_aux_loss_coef", "router_jitter_noise", "activation_sparsity_pattern", "eod_token_id",
          "hidden_act", "hidden_activation", "norm_topk_prob", "time_step_limit", "time_step_min",
          "time_step_max", "time_step_floor", "topk_method", "n_group", "topk_group", "sep_token_id",
          "attention_multiplier", "embedding_multiplier", "residual_multiplier", "key_multiplier",
          "lm_head_multiplier", "attention_in_multiplier", "attention_out_multiplier",
          "ssm_in_multiplier", "ssm_out_multiplier"}


def reference(folder, found, held):
    config = json.load(open(os.path.join(folder, "config.json")))
    config = {k: v for k, v in config.items() if k not in UNUSED}
    return {"config": config, "parameters": found, "tokens": TOKENS, "elements": held}


def compare(kvspan, family, r, variants, references):
    checked = {"parameters": 0, "cache": 0}
    for variant in range(1 if family in NO_DEFAULT else 0, variants + 1):
        settings = FAMILIES[family](r) if variant else {}
        try:
            config = CONFIG_MAPPING[family](**settings)
            found = parameters(config)
        except Exception as error:  # transformers refuses its own default, or the combination
            if variant:
                print(f"{family}: transformers refuses {settings}: {error!r:.200}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            ours, elements, error = predicted(kvspan, config, folder)
            if ours != found:
                print(f"{family} differs: {found} parameters, kvspan {ours} {error} {settings}")
                return False
            checked["parameters"] += 1
            if not variant:
                references.append(reference(folder, found, None))
                continue
            try:
                held = cache_elements(config)
            except Exception as error:  # what has weights need not run on this machine
                print(f"{family}: no forward pass: {error!r:.120}")
                continue
            if held != elements:
                print(f"{family} differs: cache of {held} elements, kvspan {elements} {settings}")
                return False
            checked["cache"] += 1
            if variant == variants:
                references.append(reference(folder, found, held))
    print(f"{family}: equal parameters of {checked['parameters']}, caches of {checked['cache']}")
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kvspan")
    parser.add_argument("families", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--write")
    options = parser.parse_args()
    r = random.Random(options.seed)
    references = []
    equal = [compare(options.kvspan, family, r, options.variants, references)
             for family in options.families or FAMILIES]
    if options.write:
        with open(options.write, "w") as out:
            out.write("[\n" + ",\n".join(json.dumps(entry) for entry in references) + "\n]\n")
    raise SystemExit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
