// SPDX-License-Identifier: Apache-2.0
#include "sim/models/model_families.h"

#include <algorithm>
#include <array>

namespace kvspan::config {
namespace {

constexpr bool kTied = true;

// As in the configuration and modelling classes of Hugging Face transformers.
constexpr std::array<Family, 52> kFamilies{{
    {"llama", "LlamaForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"mistral", "MistralForCausalLM", false, 2, Bias::none, QkNorm::none, Windows::required,
     Experts::none, Mixing::attention},
    {"ministral3", "Ministral3ForCausalLM", false, 2, Bias::none, QkNorm::none, Windows::all,
     Experts::none, Mixing::attention},
    {"mixtral", "MixtralForCausalLM", false, 2, Bias::none, QkNorm::none, Windows::all,
     Experts::mixtral, Mixing::attention},
    {"qwen2", "Qwen2ForCausalLM", false, 2, Bias::qkv, QkNorm::none, Windows::from_layer,
     Experts::none, Mixing::attention},
    {"qwen2_vl", "", false, 2, Bias::qkv, QkNorm::none, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_vl_text", "", false, 2, Bias::qkv, QkNorm::none, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_5_vl", "", false, 2, Bias::qkv, QkNorm::none, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_5_vl_text", "", false, 2, Bias::qkv, QkNorm::none, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_moe", "Qwen2MoeForCausalLM", false, 2, Bias::qkv_flag, QkNorm::none,
     Windows::from_layer, Experts::qwen_shared, Mixing::attention},
    {"qwen3", "Qwen3ForCausalLM", false, 2, Bias::by_field, QkNorm::head, Windows::from_layer,
     Experts::none, Mixing::attention},
    {"qwen3_vl_text", "", false, 2, Bias::by_field, QkNorm::head, Windows::none, Experts::none,
     Mixing::attention},
    {"qwen3_moe", "Qwen3MoeForCausalLM", false, 2, Bias::by_field, QkNorm::head,
     Windows::from_layer, Experts::qwen, Mixing::attention},
    {"qwen3_vl_moe_text", "", false, 2, Bias::by_field, QkNorm::head, Windows::none, Experts::qwen,
     Mixing::attention},
    {"qwen3_next", "Qwen3NextForCausalLM", false, 2, Bias::by_field, QkNorm::head, Windows::none,
     Experts::qwen_shared, Mixing::delta},
    {"qwen3_5", "Qwen3_5ForCausalLM", false, 2, Bias::by_field, QkNorm::head, Windows::none,
     Experts::none, Mixing::delta},
    {"qwen3_5_text", "", false, 2, Bias::by_field, QkNorm::head, Windows::none, Experts::none,
     Mixing::delta},
    {"qwen3_5_moe", "Qwen3_5MoeForCausalLM", false, 2, Bias::by_field, QkNorm::head, Windows::none,
     Experts::qwen_shared, Mixing::delta},
    {"qwen3_5_moe_text", "", false, 2, Bias::by_field, QkNorm::head, Windows::none,
     Experts::qwen_shared, Mixing::delta},
    {"gemma", "GemmaForCausalLM", kTied, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"gemma2", "Gemma2ForCausalLM", kTied, 4, Bias::by_field, QkNorm::none, Windows::every_other,
     Experts::none, Mixing::attention},
    {"gemma3_text", "Gemma3ForCausalLM", kTied, 4, Bias::by_field, QkNorm::head,
     Windows::five_to_one, Experts::none, Mixing::attention},
    // Its fields are those of text_config, or, in text-only files, its own.
    {"gemma3", "Gemma3ForConditionalGeneration", kTied, 4, Bias::by_field, QkNorm::head,
     Windows::five_to_one, Experts::none, Mixing::attention},
    {"gemma3n_text", "Gemma3nForCausalLM", kTied, 4, Bias::by_field, QkNorm::head,
     Windows::by_types, Experts::none, Mixing::gemma3n},
    {"gemma4_text", "Gemma4ForCausalLM", kTied, 4, Bias::by_field, QkNorm::head, Windows::by_types,
     Experts::none, Mixing::gemma4},
    {"phi3", "Phi3ForCausalLM", false, 2, Bias::none, QkNorm::none, Windows::all, Experts::none,
     Mixing::attention},
    {"olmo2", "Olmo2ForCausalLM", false, 2, Bias::by_field, QkNorm::full, Windows::none,
     Experts::none, Mixing::attention},
    {"olmo3", "Olmo3ForCausalLM", false, 2, Bias::by_field, QkNorm::full, Windows::by_types,
     Experts::none, Mixing::attention},
    {"smollm3", "SmolLM3ForCausalLM", kTied, 2, Bias::by_field, QkNorm::none, Windows::by_flag,
     Experts::none, Mixing::attention},
    {"seed_oss", "SeedOssForCausalLM", false, 2, Bias::out_apart, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"llama4_text", "Llama4ForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::chunked,
     Experts::llama4, Mixing::attention},
    {"glm", "GlmForCausalLM", false, 2, Bias::qkv_by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"glm4", "Glm4ForCausalLM", false, 4, Bias::qkv_by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"glm4_moe", "Glm4MoeForCausalLM", false, 2, Bias::qkv_by_field, QkNorm::by_field,
     Windows::none, Experts::deepseek_v3, Mixing::attention},
    {"minimax_m2", "MiniMaxM2ForCausalLM", false, 2, Bias::none, QkNorm::full, Windows::none,
     Experts::minimax, Mixing::attention},
    {"hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", false, 2, Bias::by_field, QkNorm::head,
     Windows::none, Experts::none, Mixing::attention},
    {"hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", false, 2, Bias::by_field, QkNorm::head,
     Windows::none, Experts::hunyuan, Mixing::attention},
    {"deepseek_v2", "DeepseekV2ForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::deepseek_v2, Mixing::latent},
    {"deepseek_v3", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"kimi_k2", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"glm4_moe_lite", "Glm4MoeLiteForCausalLM", false, 2, Bias::by_field, QkNorm::none,
     Windows::none, Experts::deepseek_v3, Mixing::latent},
    {"deepseek_v32", "DeepseekV32ForCausalLM", false, 2, Bias::by_field, QkNorm::none,
     Windows::none, Experts::deepseek_v3, Mixing::sparse},
    {"glm_moe_dsa", "GlmMoeDsaForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::deepseek_v3, Mixing::sparse},
    {"kimi_linear", "KimiLinearForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::deepseek_v3, Mixing::kimi},
    {"gpt_oss", "GptOssForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::every_other,
     Experts::gpt_oss, Mixing::attention},
    {"jamba", "JambaForCausalLM", false, 2, Bias::none, QkNorm::none, Windows::none, Experts::jamba,
     Mixing::jamba},
    {"granitemoehybrid", "GraniteMoeHybridForCausalLM", false, 2, Bias::by_field, QkNorm::none,
     Windows::none, Experts::granite, Mixing::granite},
    {"nemotron_h", "NemotronHForCausalLM", false, 1, Bias::none, QkNorm::none, Windows::none,
     Experts::nemotron, Mixing::nemotron},
    {"falcon_h1", "FalconH1ForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::falcon_h1},
    {"lfm2", "Lfm2ForCausalLM", kTied, 2, Bias::none, QkNorm::head, Windows::none, Experts::none,
     Mixing::lfm2},
    {"granite", "GraniteForCausalLM", false, 2, Bias::by_field, QkNorm::none, Windows::none,
     Experts::none, Mixing::attention},
    {"", "", false, 2, Bias::by_field, QkNorm::none, Windows::all, Experts::none, Mixing::unknown},
}};

}  // namespace

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& f : kFamilies) {
    if (*f.model_type != '\0') names.emplace_back(f.model_type);
  }
  return names;
}

const Family* family_of_type(std::string_view model_type) {
  const auto* found = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) {
    return *f.model_type != '\0' && model_type == f.model_type;
  });
  return found == kFamilies.end() ? nullptr : found;
}

const Family* family_of_architecture(std::string_view architecture) {
  const auto* found = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) {
    return *f.architecture != '\0' && architecture == f.architecture;
  });
  return found == kFamilies.end() ? nullptr : found;
}

const Family& unknown_hybrid() { return kFamilies.back(); }

}  // namespace kvspan::config
