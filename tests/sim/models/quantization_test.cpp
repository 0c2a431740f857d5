// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/models/model_config.h"
#include "sim/predict/capacity.h"
#include "tests/support/model_cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::read;
using Json = nlohmann::json;

namespace {

// Two layers; a layer's q and output have 64 x 64 elements each, k and v 64 x 32, gate, up and down
// 64 x 128; all of it 65,536 - 29,696.
Json stored_as(const Json& quantization) {
  return {{"model_type", "llama"},       {"num_hidden_layers", 2},
          {"hidden_size", 64},           {"intermediate_size", 128},
          {"num_attention_heads", 4},    {"num_key_value_heads", 2},
          {"vocab_size", 100},           {"dtype", "bfloat16"},
          {"tie_word_embeddings", true}, {"quantization_config", quantization}};
}
constexpr std::int64_t kQuery = 64 * 64, kKey = 64 * 32, kBlock = 3 * 64 * 128;
constexpr std::int64_t kLayer = 2 * kQuery + 2 * kKey + kBlock;
constexpr std::int64_t kRest = 100 * 64 + 5 * 64;  // embedding and norms

// Parameters that are stored in the checkpoint's format; the others are in 16 bits.
std::int64_t quantised(const ModelGeometry& model) {
  std::int64_t sum = 0;
  for (const WeightGroup& group : model.weights.groups)
    sum += group.kind == WeightGroup::Kind::kept ? 0 : group.parameters;
  return sum;
}

std::int64_t quantised(Json quantization, const char* key, const Json& value) {
  quantization[key] = value;
  return quantised(read(stored_as(quantization)));
}

}  // namespace

TEST_CASE("modules that a checkpoint leaves in 16 bits are counted so", "[model]") {
  // The bug: the list of modules was not read.
  const Json fp8 = {{"quant_method", "fp8"}};
  CHECK(quantised(read(stored_as(fp8))) == 2 * kLayer);
  CHECK(weight_bytes(read(stored_as(fp8)), "fp8", 1) == 2 * kLayer + 2 * kRest);
  for (const char* key : {"modules_to_not_convert", "ignore", "ignored_layers", "exclude",
                          "exclude_modules", "llm_int8_skip_modules"}) {
    INFO(key);
    CHECK(quantised(fp8, key, {"lm_head"}) == 2 * kLayer);
    CHECK(quantised(fp8, key, {"model.layers.1.self_attn.q_proj"}) == 2 * kLayer - kQuery);
    CHECK(quantised(fp8, key, {"self_attn"}) == 2 * kBlock);
    CHECK(quantised(fp8, key, {"lm_head", "model.layers.0"}) == kLayer);
    CHECK(quantised(fp8, key, {"k_proj", "v_proj"}) == 2 * (kLayer - 2 * kKey));
    CHECK(quantised(fp8, key, {"language_model.model.layers.0.mlp.down_proj"}) ==
          2 * kLayer - kBlock / 3);
    CHECK(quantised(fp8, key, {"model.layers.0*", "lm_head*"}) == kLayer);
    CHECK(quantised(fp8, key, {"*self_attn*"}) == 2 * kBlock);
    CHECK(quantised(fp8, key, {"model.layers.*.mlp"}) == 2 * (kLayer - kBlock));
    CHECK(quantised(fp8, key, {"re:.*mlp\\.(gate|up|gate_up|down)_proj.*"}) ==
          2 * (kLayer - kBlock));
    CHECK(quantised(fp8, key, {"re:.*layers\\.1\\."}) == kLayer);
    CHECK(quantised(fp8, key, {"re:^language_model\\.model\\.layers\\.0\\."}) == kLayer);
    // A part of a word is no module.
    CHECK(quantised(fp8, key, {"attn", "layers.1.self_attn.q"}) == 2 * kLayer);
    CHECK(quantised(fp8, key, nullptr) == 2 * kLayer);
  }
  CHECK(quantised({{"quant_method", "gptq"}, {"bits", 4}}, "dynamic",
                  {{"-:.*down_proj.*", Json::object()}, {"+:.*up_proj.*", {{"bits", 8}}}}) ==
        2 * kLayer - 2 * kBlock / 3);
}

TEST_CASE("Llama-3.1-405B in fp8 has the weights that a log of vLLM states", "[model]") {
  // Its list: attention of all layers, and the feed-forward blocks of the first and the last.
  Json kept = {"lm_head"};
  for (int l = 0; l < 126; ++l) {
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      kept.push_back("model.layers." + std::to_string(l) + ".self_attn." + name);
  }
  for (const char* layer : {"0", "125"}) {
    for (const char* name : {"gate_proj", "up_proj", "down_proj"})
      kept.push_back(std::string("model.layers.") + layer + ".mlp." + name);
  }
  const ModelGeometry model =
      read({{"model_type", "llama"},
            {"num_hidden_layers", 126},
            {"hidden_size", 16384},
            {"intermediate_size", 53248},
            {"num_attention_heads", 128},
            {"num_key_value_heads", 8},
            {"vocab_size", 128256},
            {"tie_word_embeddings", false},
            {"quantization_config",
             {{"quant_method", "fbgemm_fp8"}, {"modules_to_not_convert", kept}}}});
  CHECK(model.weights.parameters() == 405853388800);
  // 124 feed-forward blocks of 3 x 16,384 x 53,248 in 8 bits.
  const std::int64_t blocks = 124LL * 3 * 16384 * 53248;
  CHECK(weight_bytes(model, "fp8", 1) == 2 * 405853388800 - blocks);
  // vllm issue 6746: 57.75 GiB on each of 8 GPUs, measured as what loading took from the device.
  const double gib = static_cast<double>(weight_bytes(model, "fp8", 8)) / (1 << 30);
  CHECK(gib == Approx(57.75).epsilon(0.02));
}

TEST_CASE("Kimi K2 in 4 bits is as large as its checkpoint", "[model]") {
  // Experts alone are quantised: 594 GB on its page.
  const ModelGeometry model =
      read({{"model_type", "kimi_k2"},
            {"num_hidden_layers", 61},
            {"hidden_size", 7168},
            {"intermediate_size", 18432},
            {"moe_intermediate_size", 2048},
            {"num_attention_heads", 64},
            {"q_lora_rank", 1536},
            {"kv_lora_rank", 512},
            {"qk_nope_head_dim", 128},
            {"qk_rope_head_dim", 64},
            {"v_head_dim", 128},
            {"n_routed_experts", 384},
            {"n_shared_experts", 1},
            {"num_experts_per_tok", 8},
            {"first_k_dense_replace", 1},
            {"vocab_size", 163840},
            {"tie_word_embeddings", false},
            {"quantization_config",
             {{"quant_method", "compressed-tensors"},
              {"ignore",
               {"lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"}},
              {"config_groups",
               {{"group_0",
                 {{"targets", {"Linear"}},
                  {"weights", {{"num_bits", 4}, {"type", "int"}, {"group_size", 32}}}}}}}}}});
  CHECK(quantised(model) == 60LL * 384 * 3 * 7168 * 2048);
  CHECK(static_cast<double>(weight_bytes(model, model.weights.dtype, 1)) / 1e9 ==
        Approx(594).margin(1));
}

TEST_CASE("formats of checkpoints are read, and unknown ones named", "[model]") {
  const auto format = [](const Json& quantization) {
    const ModelWeights weights = read(stored_as(quantization)).weights;
    return weights.dtype + weights.unknown_dtype;
  };
  const auto tensors = [&](const char* type, int bits) {
    return format(
        {{"quant_method", "compressed-tensors"},
         {"config_groups",
          {{"group_0",
            {{"weights", {{"type", type}, {"num_bits", bits}}}, {"targets", {"Linear"}}}}}}});
  };
  CHECK(tensors("float", 8) == "fp8");
  CHECK(tensors("int", 8) == "int8");
  CHECK(tensors("int", 4) == "int4");
  CHECK(tensors("float", 4) == "nvfp4");
  CHECK(tensors("int", 2) == "'int' of 2 bits");
  CHECK(format({{"quant_method", "modelopt"}, {"quant_algo", "FP8"}}) == "fp8");
  CHECK(format({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}}) == "nvfp4");
  CHECK(format({{"quant_method", "modelopt"}, {"quant_algo", "FP6"}}) ==
        "quant_algo 'FP6' of modelopt");
  CHECK(format({{"quant_method", "quark"},
                {"global_quant_config", {{"weight", {{"dtype", "fp8_e4m3"}}}}}}) == "fp8");
  CHECK(format({{"quant_method", "quark"}}) == "weights of '' by quark");
  CHECK(format({{"quant_method", "auto-round"}, {"bits", 4}}) == "int4");
  CHECK(format({{"quant_method", "gptq"}, {"bits", 3}}) == "quant_method 'gptq' with 3 bits");
  CHECK(format({{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}}) == "int4");
  CHECK(format({{"quant_method", "aqlm"}}) == "quant_method 'aqlm'");
  // Only what the groups target.
  const Json some = {
      {"quant_method", "compressed-tensors"},
      {"config_groups",
       {{"group_0",
         {{"weights", {{"type", "float"}, {"num_bits", 8}}}, {"targets", {"re:.*mlp.*"}}}}}}};
  CHECK(quantised(read(stored_as(some))) == 2 * kBlock);
  CHECK(weight_bytes(read(stored_as({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}})),
                     "nvfp4", 1) == 2 * kLayer * 9 / 16 + 2 * kRest);
  Deployment d;
  d.gpu_memory = std::int64_t{1} << 30;
  CHECK_THROWS_WITH(
      fixed_memory(read(stored_as({{"quant_method", "gptq"}, {"bits", 3}})), {10, 0, 0}, d),
      Contains("names a format of weights that is not known: quant_method 'gptq' with "
               "3 bits; give --weight-dtype bf16|"));
}
