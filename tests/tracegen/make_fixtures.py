# SPDX-License-Identifier: Apache-2.0
"""Makes the checkpoint fixtures of the C++ tests: tests/data/tracegen/checkpoints.

    python make_fixtures.py [FOLDER]

Every file follows from the seeds below and the versions in requirements.txt.

    NAME/                     a Hugging Face folder: config.json, safetensors
    NAME/expected.safetensors what transformers computes from it in fp32 (eager attention):
                              token_ids I32 [T], logits F32 [T, V], and of every layer l
                              layers.{l}.q F32 [T, query_heads, head_dim] (after the rotation),
                              layers.{l}.k, layers.{l}.v F32 [T, kv_heads, head_dim]
    llama.gguf, qwen3.gguf    the same weights and values as llama/ and qwen3/
    qwen2.gguf                the weights of qwen2/ without its sliding window, which GGUF cannot
                              give by layer; expected values in qwen2.gguf.expected.safetensors
    types.gguf                one matrix TYPE.weight [3, 256] a weight type
    types.safetensors         TYPE F32 [3, 256]: the same dequantised by the gguf package

    folder         tests
    llama          llama3 rotary scaling, attention_bias, mlp_bias, BF16, untied
    llama-linear   linear scaling by the older keys (rope_theta, rope_scaling with "type"), F16,
                   tied, tensors that nobody reads
    llama-yarn     YaRN with its own attention factor, BF16
    llama-sharded  shards and index, matrices BF16 and norms F32, untied, head_dim by division
    mistral        a sliding window of 7 tokens, F32
    qwen2          biases; a window of 7 tokens in layers 1 and 2 of 3, BF16
    qwen3          q and k norms, head_dim that is not hidden / heads, YaRN, F16
"""

import copy
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

TOKENS = 20
VOCABULARY = 48
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


def models(size=None):
    """Name: (class, configuration, dtype of the matrices)."""
    common = {**COMMON, **(size or {})}
    t = transformers
    return {
        "llama": (
            t.LlamaConfig,
            dict(
                common,
                attention_bias=True,
                mlp_bias=True,
                tie_word_embeddings=False,
                rope_parameters=dict(
                    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                    high_freq_factor=4.0, original_max_position_embeddings=64,
                ),
            ),
            torch.bfloat16,
        ),
        "llama-linear": (
            t.LlamaConfig,
            dict(
                common,
                tie_word_embeddings=True,
                rope_parameters=dict(rope_type="linear", rope_theta=20000.0, factor=3.0),
            ),
            torch.float16,
        ),
        "llama-yarn": (
            t.LlamaConfig,
            dict(
                common,
                tie_word_embeddings=True,
                rope_parameters=dict(
                    rope_type="yarn", rope_theta=500.0, factor=4.0, attention_factor=1.3,
                    beta_fast=8.0, beta_slow=1.5, original_max_position_embeddings=64,
                ),
            ),
            torch.bfloat16,
        ),
        "llama-sharded": (
            t.LlamaConfig,
            dict(
                common,
                tie_word_embeddings=False,
                rope_parameters=dict(rope_type="default", rope_theta=10000.0),
            ),
            torch.bfloat16,
        ),
        "mistral": (
            t.MistralConfig,
            dict(
                common,
                tie_word_embeddings=True,
                sliding_window=7,
                rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
            ),
            torch.float32,
        ),
        "qwen2": (
            t.Qwen2Config,
            dict(
                common,
                num_hidden_layers=3,
                tie_word_embeddings=True,
                use_sliding_window=True,
                sliding_window=7,
                max_window_layers=1,
                rope_parameters=dict(rope_type="default", rope_theta=10000.0),
            ),
            torch.bfloat16,
        ),
        "qwen3": (
            t.Qwen3Config,
            dict(
                common,
                head_dim=16,
                tie_word_embeddings=True,
                rope_parameters=dict(
                    rope_type="yarn", rope_theta=10000.0, factor=4.0,
                    original_max_position_embeddings=64,
                ),
            ),
            torch.float16,
        ),
    }


def random_model(config_class, config, dtype, seed):
    """A model whose attention is neither flat nor one-hot, with weights that `dtype` holds."""
    model = transformers.AutoModelForCausalLM.from_config(
        config_class(**config), attn_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise * 1.2 / weight.shape[1] ** 0.5)
            weight.copy_(weight.to(dtype).to(torch.float32))
    return model.eval()


def reference(model, token_ids, **overrides):
    """Logits and post-rotary q, k, v of a model, or of a folder, by transformers in fp32."""
    if not isinstance(model, torch.nn.Module):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model, attn_implementation="eager", dtype=torch.float32, **overrides
        ).eval()
    module = sys.modules[type(model).__module__]
    eager = module.eager_attention_forward
    out = {"token_ids": torch.tensor(token_ids, dtype=torch.int32)}

    def spy(attention, query, key, value, *args, **kwargs):
        for name, rows in (("q", query), ("k", key), ("v", value)):
            # query, key and value are [1, heads, tokens, head_dim]
            out[f"layers.{attention.layer_idx}.{name}"] = rows[0].transpose(0, 1).contiguous()
        return eager(attention, query, key, value, *args, **kwargs)

    module.eager_attention_forward = spy
    try:
        with torch.no_grad():
            ids = torch.tensor([token_ids], dtype=torch.int64)
            out["logits"] = model(ids, use_cache=False).logits[0].float().contiguous()
    finally:
        module.eager_attention_forward = eager
    return out


def stored(model, dtype):
    """The tensors as a checkpoint has them; a tied head is left out."""
    tied = model.config.tie_word_embeddings
    return {
        name: weight.to(dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def write_folder(folder, name, model, dtype):
    folder.mkdir(parents=True)
    model.config.dtype = dtype
    if name == "llama-sharded":
        mixed = copy.deepcopy(model)
        for tensor_name, parameter in mixed.named_parameters():
            if not tensor_name.endswith("norm.weight"):
                parameter.data = parameter.data.to(dtype)
        mixed.save_pretrained(folder, max_shard_size="16KB")
        (folder / "generation_config.json").unlink(missing_ok=True)
    else:
        tensors = stored(model, dtype)
        if name == "llama-linear":
            for layer in range(model.config.num_hidden_layers):
                tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
            tensors["model.causal_mask"] = torch.ones(3, 3, dtype=torch.bool)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)

    def older_keys(config):
        if name in ("llama-linear", "qwen3"):
            rope = config.pop("rope_parameters")
            config["rope_theta"] = rope.pop("rope_theta")
            config["rope_scaling"] = rope
        if name == "llama-linear":
            config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
        if name == "llama-sharded":
            config.pop("head_dim")

    edit_config(folder, older_keys)


GGUF_MODELS = ("llama", "qwen2", "qwen3")  # their names are those of GGUF's architectures


def without_window(layers):
    return dict(use_sliding_window=False, layer_types=["full_attention"] * layers)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{kind}"


def interleave(weight, heads):
    """Rows of each head as convert_hf_to_gguf stores those of q and k of a llama."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def rope_factors(rope, head_dim):
    """Of llama3 scaling, as convert_hf_to_gguf writes them."""
    theta, factor = rope["rope_theta"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for frequency in theta ** -(np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(path, architecture, model, matrix_type):
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"Tiny random {architecture}")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(rope, head_dim))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in stored(model, torch.float32).items():
        data = weight.numpy()
        for projection, count in heads.items():
            if architecture == "llama" and projection in name:
                data = interleave(data, count)
        if data.ndim == 1:
            writer.add_tensor(gguf_name(name), data)
        else:
            writer.add_tensor(
                gguf_name(name), gguf.quants.quantize(data, matrix_type), raw_dtype=matrix_type
            )
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Of the types that the package cannot quantise: bytes before, of, and after a block's fp16 scales.
K_BLOCKS = {"Q4_K": (0, 4, 140), "Q5_K": (0, 4, 172), "Q6_K": (208, 2, 0)}


def random_k_blocks(kind, rows, rng):
    """Any bytes are valid quants; the scales are fp16 of either sign, one of them subnormal."""
    before, scales, after = K_BLOCKS[kind]
    blocks = []
    for row in range(rows):
        values = rng.normal(0, 0.01, scales // 2).astype(np.float16)
        if row == 0:
            values[0] = np.float16(3e-6)
        blocks.append(
            np.concatenate([
                rng.integers(0, 256, before, dtype=np.uint8),
                values.view(np.uint8),
                rng.integers(0, 256, after, dtype=np.uint8),
            ])
        )
    return np.stack(blocks)


def write_types(folder):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(folder / "types.gguf", "types")
    expected = {}
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_BLOCKS):
        number = gguf.GGMLQuantizationType[kind]
        if kind in K_BLOCKS:
            data = random_k_blocks(kind, 3, rng)
        else:
            data = gguf.quants.quantize(rng.normal(0, 1, (3, 256)).astype(np.float32), number)
        writer.add_tensor(f"{kind}.weight", data, raw_dtype=number)
        values = gguf.quants.dequantize(data, number)
        expected[kind] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    finish(writer)
    save_file(expected, folder / "types.safetensors")


def main():
    default = pathlib.Path(__file__).parent.parent / "data" / "tracegen" / "checkpoints"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for seed, (name, (config_class, config, dtype)) in enumerate(models().items()):
        model = random_model(config_class, config, dtype, seed)
        token_ids = np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS).tolist()
        write_folder(out / name, name, model, dtype)
        expected = reference(out / name, token_ids)
        assert torch.equal(expected["logits"], reference(model, token_ids)["logits"]), name
        save_file(expected, out / name / "expected.safetensors")
        if name in GGUF_MODELS:
            kind = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
            write_gguf(out / f"{name}.gguf", name, model, gguf.GGMLQuantizationType[kind])
        if name == "qwen2":
            full = reference(out / name, token_ids, **without_window(config["num_hidden_layers"]))
            assert not torch.equal(full["logits"], expected["logits"])
            save_file(full, out / "qwen2.gguf.expected.safetensors")
    write_types(out)
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
