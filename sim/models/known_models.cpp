// SPDX-License-Identifier: Apache-2.0
#include "sim/models/known_models.h"

#include <array>

namespace kvspan {
namespace {

// From the config.json on each model's public page; of models with a vision part, the text part.
constexpr std::array<KnownModel, 44> kModels{
    {{"Llama-2-7B",
      R"({"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
11008, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
"max_position_embeddings": 4096, "torch_dtype": "float16", "tie_word_embeddings": false})"},
     {"Llama-3.1-8B",
      R"({"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": false})"},
     {"Llama-3.1-70B",
      R"({"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size":
28672, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": false})"},
     {"Llama-3.3-70B",
      R"({"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size":
28672, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": false})"},
     {"Llama-3.1-405B",
      R"({"model_type": "llama", "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size":
53248, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": false})"},
     {"Llama-3.2-1B",
      R"({"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size":
8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "head_dim": 64,
"tie_word_embeddings": true})"},
     {"Llama-3.2-3B",
      R"({"model_type": "llama", "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size":
8192, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "head_dim": 128,
"tie_word_embeddings": true})"},
     {"Mistral-7B-v0.1",
      R"({"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "sliding_window": 4096,
"tie_word_embeddings": false})"},
     {"Mistral-7B-v0.3",
      R"({"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "sliding_window": null,
"tie_word_embeddings": false})"},
     {"Mixtral-8x7B",
      R"({"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "num_local_experts": 8,
"num_experts_per_tok": 2, "tie_word_embeddings": false})"},
     {"Mixtral-8x22B",
      R"({"model_type": "mixtral", "num_hidden_layers": 56, "hidden_size": 6144, "intermediate_size":
16384, "num_attention_heads": 48, "num_key_value_heads": 8, "vocab_size": 32000,
"max_position_embeddings": 65536, "torch_dtype": "bfloat16", "num_local_experts": 8,
"num_experts_per_tok": 2, "tie_word_embeddings": false})"},
     {"Qwen2.5-7B",
      R"({"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size":
18944, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "use_sliding_window": false,
"tie_word_embeddings": false})"},
     {"Qwen2.5-7B-Instruct",
      R"({"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size":
18944, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "use_sliding_window": false,
"tie_word_embeddings": false})"},
     {"Qwen2.5-72B",
      R"({"model_type": "qwen2", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size":
29568, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "use_sliding_window": false,
"tie_word_embeddings": false})"},
     {"Qwen2.5-72B-Instruct",
      R"({"model_type": "qwen2", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size":
29568, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "use_sliding_window": false,
"tie_word_embeddings": false})"},
     {"Qwen3-0.6B",
      R"({"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size":
3072, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": true})"},
     {"Qwen3-1.7B",
      R"({"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size":
6144, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": true})"},
     {"Qwen3-4B",
      R"({"model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size":
9728, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": true})"},
     {"Qwen3-8B",
      R"({"model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size":
12288, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": false})"},
     {"Qwen3-14B",
      R"({"model_type": "qwen3", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size":
17408, "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": false})"},
     {"Qwen3-32B",
      R"({"model_type": "qwen3", "num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size":
25600, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151936,
"max_position_embeddings": 40960, "torch_dtype": "bfloat16", "head_dim": 128,
"use_sliding_window": false, "tie_word_embeddings": false})"},
     {"Qwen3-30B-A3B",
      R"({"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048,
"intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
"vocab_size": 151936, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
"decoder_sparse_step": 1, "tie_word_embeddings": false})"},
     {"Qwen3-235B-A22B",
      R"({"model_type": "qwen3_moe", "num_hidden_layers": 94, "hidden_size": 4096,
"intermediate_size": 12288, "num_attention_heads": 64, "num_key_value_heads": 4,
"vocab_size": 151936, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size":
1536, "decoder_sparse_step": 1, "tie_word_embeddings": false})"},
     {"Qwen3-Next-80B-A3B",
      R"({"model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048,
"intermediate_size": 5120, "num_attention_heads": 16, "num_key_value_heads": 2,
"vocab_size": 151936, "max_position_embeddings": 262144, "torch_dtype": "bfloat16",
"head_dim": 256, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
"linear_value_head_dim": 128, "num_experts": 512, "num_experts_per_tok": 10,
"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step":
1, "tie_word_embeddings": false})"},
     {"Gemma-2-2B",
      R"({"model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size":
9216, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000,
"max_position_embeddings": 8192, "torch_dtype": "bfloat16", "sliding_window": 4096,
"head_dim": 256})"},
     {"Gemma-2-9B",
      R"({"model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "intermediate_size":
14336, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 256000,
"max_position_embeddings": 8192, "torch_dtype": "bfloat16", "sliding_window": 4096,
"head_dim": 256})"},
     {"Gemma-2-27B",
      R"({"model_type": "gemma2", "num_hidden_layers": 46, "hidden_size": 4608, "intermediate_size":
36864, "num_attention_heads": 32, "num_key_value_heads": 16, "vocab_size": 256000,
"max_position_embeddings": 8192, "torch_dtype": "bfloat16", "sliding_window": 4096,
"head_dim": 128})"},
     {"Gemma-3-1B",
      R"({"model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152,
"intermediate_size": 6912, "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size":
262144, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
"sliding_window_pattern": 6, "head_dim": 256, "sliding_window": 512})"},
     {"Gemma-3-4B",
      R"({"model_type": "gemma3_text", "num_hidden_layers": 34, "hidden_size": 2560,
"intermediate_size": 10240, "num_attention_heads": 8, "num_key_value_heads": 4,
"vocab_size": 262208, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
"sliding_window_pattern": 6, "head_dim": 256, "sliding_window": 1024})"},
     {"Gemma-3-12B",
      R"({"model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840,
"intermediate_size": 15360, "num_attention_heads": 16, "num_key_value_heads": 8,
"vocab_size": 262208, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
"sliding_window_pattern": 6, "head_dim": 256, "sliding_window": 1024})"},
     {"Gemma-3-27B",
      R"({"model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376,
"intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 16,
"vocab_size": 262208, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
"sliding_window_pattern": 6, "head_dim": 128, "sliding_window": 1024})"},
     {"Phi-3-mini-4k",
      R"({"model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 3072, "intermediate_size":
8192, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
"max_position_embeddings": 4096, "torch_dtype": "bfloat16", "sliding_window": 2047,
"tie_word_embeddings": false})"},
     {"Phi-3-mini-128k",
      R"({"model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 3072, "intermediate_size":
8192, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "sliding_window": 262144,
"tie_word_embeddings": false})"},
     {"Phi-4",
      R"({"model_type": "phi3", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size":
17920, "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
"max_position_embeddings": 16384, "torch_dtype": "bfloat16", "sliding_window": null,
"tie_word_embeddings": false})"},
     {"DeepSeek-V2-Lite",
      R"({"model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048,
"intermediate_size": 10944, "num_attention_heads": 16, "vocab_size": 102400,
"max_position_embeddings": 163840, "torch_dtype": "bfloat16", "q_lora_rank": null,
"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
"moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
"num_experts_per_tok": 6, "first_k_dense_replace": 1, "tie_word_embeddings": false})"},
     {"DeepSeek-V2",
      R"({"model_type": "deepseek_v2", "num_hidden_layers": 60, "hidden_size": 5120,
"intermediate_size": 12288, "num_attention_heads": 128, "vocab_size": 102400,
"max_position_embeddings": 163840, "torch_dtype": "bfloat16", "q_lora_rank": 1536,
"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
"moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
"num_experts_per_tok": 6, "first_k_dense_replace": 1, "tie_word_embeddings": false})"},
     {"DeepSeek-V3",
      R"({"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
"intermediate_size": 18432, "num_attention_heads": 128, "vocab_size": 129280,
"max_position_embeddings": 163840, "torch_dtype": "bfloat16", "q_lora_rank": 1536,
"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
"moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
"num_experts_per_tok": 8, "first_k_dense_replace": 3, "tie_word_embeddings": false,
"quantization_config": {"quant_method": "fp8"}})"},
     {"gpt-oss-20b",
      R"({"model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "intermediate_size":
2880, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 201088,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "head_dim": 64,
"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias":
true, "quantization_config": {"quant_method": "mxfp4"}, "tie_word_embeddings": false})"},
     {"gpt-oss-120b",
      R"({"model_type": "gpt_oss", "num_hidden_layers": 36, "hidden_size": 2880, "intermediate_size":
2880, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 201088,
"max_position_embeddings": 131072, "torch_dtype": "bfloat16", "head_dim": 64,
"num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias":
true, "quantization_config": {"quant_method": "mxfp4"}, "tie_word_embeddings": false})"},
     {"Jamba-v0.1",
      R"({"model_type": "jamba", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size":
14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
"max_position_embeddings": 262144, "torch_dtype": "bfloat16", "attn_layer_period": 8,
"attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts":
16, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
"mamba_dt_rank": 256, "mamba_conv_bias": true, "mamba_proj_bias": false,
"tie_word_embeddings": false})"},
     {"LFM2-1.2B",
      R"({"model_type": "lfm2", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads":
32, "num_key_value_heads": 8, "vocab_size": 65536, "max_position_embeddings": 128000,
"torch_dtype": "bfloat16", "full_attn_idxs": [2, 5, 8, 10, 12, 14], "conv_L_cache": 3,
"conv_bias": false, "block_ff_dim": 12288, "block_auto_adjust_ff_dim": true,
"block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256})"},
     {"SmolLM2-135M",
      R"({"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size":
1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
"max_position_embeddings": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": true})"},
     {"TinyLlama-1.1B",
      R"({"model_type": "llama", "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size":
5632, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
"max_position_embeddings": 2048, "torch_dtype": "bfloat16", "tie_word_embeddings": false})"},
     {"MiniMind2-Small",
      R"({"model_type": "llama", "num_hidden_layers": 8, "hidden_size": 512, "intermediate_size":
1408, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 6400,
"max_position_embeddings": 32768, "torch_dtype": "bfloat16", "tie_word_embeddings": true})"}}};

}  // namespace

std::span<const KnownModel> known_model_configs() { return kModels; }

}  // namespace kvspan
