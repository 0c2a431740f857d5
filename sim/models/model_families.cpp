// SPDX-License-Identifier: Apache-2.0
#include "sim/models/model_families.h"

#include <algorithm>
#include <array>

namespace kvspan::config {
namespace {

constexpr bool kTied = true;
constexpr bool kQkNorm = true;

// As in the configuration and modelling classes of Hugging Face transformers.
constexpr std::array<Family, 23> kFamilies{{
    {"llama", "LlamaForCausalLM", false, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"mistral", "MistralForCausalLM", false, 2, Bias::none, false, Windows::required, Experts::none,
     Mixing::attention},
    {"mixtral", "MixtralForCausalLM", false, 2, Bias::none, false, Windows::all, Experts::mixtral,
     Mixing::attention},
    {"qwen2", "Qwen2ForCausalLM", false, 2, Bias::qkv, false, Windows::from_layer, Experts::none,
     Mixing::attention},
    {"qwen2_moe", "Qwen2MoeForCausalLM", false, 2, Bias::qkv, false, Windows::from_layer,
     Experts::qwen_shared, Mixing::attention},
    {"qwen3", "Qwen3ForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::from_layer,
     Experts::none, Mixing::attention},
    {"qwen3_moe", "Qwen3MoeForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::from_layer,
     Experts::qwen, Mixing::attention},
    {"qwen3_next", "Qwen3NextForCausalLM", false, 2, Bias::by_field, kQkNorm, Windows::none,
     Experts::qwen_shared, Mixing::delta},
    {"gemma", "GemmaForCausalLM", kTied, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"gemma2", "Gemma2ForCausalLM", kTied, 4, Bias::by_field, false, Windows::every_other,
     Experts::none, Mixing::attention},
    {"gemma3_text", "Gemma3ForCausalLM", kTied, 4, Bias::by_field, kQkNorm, Windows::five_to_one,
     Experts::none, Mixing::attention},
    // Its fields are those of text_config, or, in text-only files, its own.
    {"gemma3", "Gemma3ForConditionalGeneration", kTied, 4, Bias::by_field, kQkNorm,
     Windows::five_to_one, Experts::none, Mixing::attention},
    {"phi3", "Phi3ForCausalLM", false, 2, Bias::none, false, Windows::all, Experts::none,
     Mixing::attention},
    {"deepseek_v2", "DeepseekV2ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v2, Mixing::latent},
    {"deepseek_v3", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"kimi_k2", "DeepseekV3ForCausalLM", false, 2, Bias::by_field, false, Windows::none,
     Experts::deepseek_v3, Mixing::latent},
    {"gpt_oss", "GptOssForCausalLM", false, 2, Bias::by_field, false, Windows::every_other,
     Experts::gpt_oss, Mixing::attention},
    {"jamba", "JambaForCausalLM", false, 2, Bias::none, false, Windows::none, Experts::jamba,
     Mixing::jamba},
    {"granitemoehybrid", "GraniteMoeHybridForCausalLM", false, 2, Bias::by_field, false,
     Windows::none, Experts::granite, Mixing::granite},
    {"nemotron_h", "NemotronHForCausalLM", false, 1, Bias::by_field, false, Windows::none,
     Experts::nemotron, Mixing::nemotron},
    {"lfm2", "Lfm2ForCausalLM", kTied, 2, Bias::none, kQkNorm, Windows::none, Experts::none,
     Mixing::lfm2},
    {"granite", "GraniteForCausalLM", false, 2, Bias::by_field, false, Windows::none, Experts::none,
     Mixing::attention},
    {"", "", false, 2, Bias::by_field, false, Windows::all, Experts::none, Mixing::unknown},
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
