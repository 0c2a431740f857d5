// SPDX-License-Identifier: Apache-2.0
// Models as their config.json is written today, and what once went wrong with public ones.
#include <fstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/models/model_config.h"
#include "sim/predict/capacity.h"
#include "tests/support/model_cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::read, test::refusal;
using Json = nlohmann::json;

namespace {

// Bytes of one token in the full cache.
std::int64_t token_bytes(const ModelGeometry& model) {
  return predict_model(parse_spec("full"), model, {1, 0, 0}, {}, nullptr).peak_bytes.total;
}

// The words of one layer, repeated.
Json words(const std::vector<const char*>& period, int layers) {
  Json out = Json::array();
  for (int l = 0; l < layers; ++l)
    out.push_back(period[static_cast<std::size_t>(l) % period.size()]);
  return out;
}

// A file that a report was about: Qwen1.5-7B, for 32,768 tokens.
Json qwen(const char* rope_key, const Json& rope) {
  return {{"model_type", "qwen2"},        {"hidden_size", 4096},
          {"intermediate_size", 11008},   {"num_hidden_layers", 32},
          {"num_attention_heads", 32},    {"num_key_value_heads", 32},
          {"vocab_size", 151936},         {"max_position_embeddings", 32768},
          {"use_sliding_window", false},  {"torch_dtype", "bfloat16"},
          {"tie_word_embeddings", false}, {rope_key, rope}};
}

Json granite_tiny() {
  Json types = Json::array();
  for (int l = 0; l < 40; ++l) types.push_back(l % 10 == 5 ? "full_attention" : "linear_attention");
  return {{"model_type", "granitemoehybrid"},
          {"dtype", "bfloat16"},
          {"hidden_size", 1536},
          {"num_hidden_layers", 40},
          {"num_attention_heads", 12},
          {"num_key_value_heads", 4},
          {"intermediate_size", 512},
          {"shared_intermediate_size", 1024},
          {"num_local_experts", 64},
          {"num_experts_per_tok", 6},
          {"mamba_d_state", 128},
          {"mamba_n_heads", 48},
          {"mamba_d_head", 64},
          {"mamba_n_groups", 1},
          {"mamba_d_conv", 4},
          {"vocab_size", 100352},
          {"tie_word_embeddings", true},
          {"layer_types", types}};
}

// Nemotron 3 Super 120B.
Json nemotron_super() {
  return {
      {"model_type", "nemotron_h"},
      {"hidden_size", 4096},
      {"num_hidden_layers", 88},
      {"hybrid_override_pattern",
       "MEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEME"},
      {"num_attention_heads", 32},
      {"num_key_value_heads", 2},
      {"head_dim", 128},
      {"mamba_num_heads", 128},
      {"mamba_head_dim", 64},
      {"n_groups", 8},
      {"ssm_state_size", 128},
      {"conv_kernel", 4},
      {"n_routed_experts", 512},
      {"num_experts_per_tok", 22},
      {"moe_intermediate_size", 2688},
      {"moe_latent_size", 1024},
      {"n_shared_experts", 1},
      {"moe_shared_expert_intermediate_size", 5376},
      {"vocab_size", 131072},
      {"tie_word_embeddings", false}};
}

// Kimi Linear 48B A3B, as transformers 5 writes it.
Json kimi_linear() {
  Json types =
      words({"linear_attention", "linear_attention", "linear_attention", "full_attention"}, 27);
  types[26] = "full_attention";
  return {{"model_type", "kimi_linear"}, {"hidden_size", 2304},
          {"intermediate_size", 9216},   {"moe_intermediate_size", 1024},
          {"num_hidden_layers", 27},     {"num_attention_heads", 32},
          {"num_key_value_heads", 32},   {"q_lora_rank", nullptr},
          {"kv_lora_rank", 512},         {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64},      {"v_head_dim", 128},
          {"num_experts", 256},          {"num_experts_per_token", 8},
          {"num_shared_experts", 1},     {"first_k_dense_replace", 1},
          {"vocab_size", 163840},        {"tie_word_embeddings", false},
          {"model_max_length", 1048576}, {"linear_num_heads", 32},
          {"linear_head_dim", 128},      {"linear_conv_kernel_dim", 4},
          {"layer_types", types}};
}

Json gemma4(const Json& more) {
  Json config = {{"model_type", "gemma4_text"},
                 {"num_hidden_layers", 6},
                 {"hidden_size", 16},
                 {"intermediate_size", 24},
                 {"num_attention_heads", 8},
                 {"num_key_value_heads", 4},
                 {"head_dim", 16},
                 {"vocab_size", 64},
                 {"max_position_embeddings", 256},
                 {"sliding_window", 8},
                 {"num_kv_shared_layers", 2},
                 {"hidden_size_per_layer_input", 0},
                 {"layer_types", words({"sliding_attention", "full_attention"}, 6)}};
  config.update(more);
  return config;
}

}  // namespace

TEST_CASE("parameters and caches are those of transformers, in every family", "[model]") {
  // Saved by transformers 5.24; tests/sim/models/compare_transformers.py --write.
  const Json references = Json::parse(std::ifstream(KVSPAN_TESTS_DIR "/data/model_configs.json"));
  CHECK(references.size() > 60);
  for (const Json& reference : references) {
    const Json& config = reference["config"];
    INFO(config.dump());
    const ModelGeometry model = read(config);
    CHECK(model.weights.refusal == "");
    CHECK(model.weights.parameters() == reference["parameters"]);
    if (reference["elements"].is_null()) continue;
    CHECK(token_bytes(model) * reference["tokens"].get<std::int64_t>() ==
          reference["elements"].get<std::int64_t>() * 2);
  }
}

TEST_CASE("a model reaches as far as its rotary embedding is scaled", "[model]") {
  // The bug: max_position_embeddings was taken for the limit of a model that YaRN extends.
  const auto limit = [](const char* key, const Json& rope) {
    const ModelGeometry model = read(qwen(key, rope));
    return fmt::format("{} ({})", model.max_context, model.max_context_from);
  };
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    CHECK(limit(key,
                {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}}) ==
          "131072 (yarn: 4 x 32768)");
    CHECK(limit(key, {{"rope_type", "yarn"}, {"factor", 2.5}}) == "81920 (yarn: 2.5 x 32768)");
    CHECK(limit(key, {{"rope_type", "linear"}, {"factor", 8}}) == "262144 (linear: 8 x 32768)");
    CHECK(limit(key, {{"type", "dynamic"}, {"factor", 2}}) == "65536 (dynamic: 2 x 32768)");
    CHECK(limit(key, {{"rope_type", "default"}, {"rope_theta", 1e6}}) ==
          "32768 (max_position_embeddings)");
    // What these fields hold is what was reached.
    CHECK(limit(key, {{"rope_type", "llama3"},
                      {"factor", 8},
                      {"original_max_position_embeddings", 8192}}) ==
          "32768 (max_position_embeddings)");
    CHECK(limit(key, {{"type", "longrope"}, {"factor", 32}}) == "32768 (max_position_embeddings)");
  }
  CHECK(limit("rope_scaling", nullptr) == "32768 (max_position_embeddings)");
  // Of Olmo 3, layers have their own; sliding ones are not scaled.
  CHECK(
      limit(
          "rope_parameters",
          {{"sliding_attention", {{"rope_type", "default"}}},
           {"full_attention",
            {{"rope_type", "yarn"}, {"factor", 8}, {"original_max_position_embeddings", 8192}}}}) ==
      "65536 (yarn: 8 x 8192)");
  Json gemma = qwen("rope_scaling", {{"rope_type", "linear"}, {"factor", 8}});
  gemma["model_type"] = "gemma3_text";
  gemma["sliding_window"] = 512;
  CHECK(read(gemma).max_context == 32768);
  CHECK(read(kimi_linear()).max_context == 1048576);
}

TEST_CASE("numbers that JSON has not are read as Python writes them", "[model]") {
  // The bug: published files of hybrids hold a bare Infinity, and were refused.
  std::string text = qwen("rope_scaling", nullptr).dump();
  text.back() = ',';
  text += R"("time_step_limit": [0.0, Infinity], "low": -Infinity, "eps": NaN,
             "note": "Infinity \" NaN", "NaN": 1})";
  const ModelGeometry model = read_model_config(text, "config.json");
  CHECK(model.max_context == 32768);
  CHECK(model.weights.parameters() > 7000000000);
  CHECK_THROWS_WITH(
      read_model_config(R"({"model_type": "llama", "num_hidden_layers": Infinity})", "c"),
      Contains("'num_hidden_layers' is \"Infinity\""));
  CHECK_THROWS_WITH(read_model_config("{\"a\": Infinit}", "c"), Contains("is not JSON"));
}

TEST_CASE("what a linear layer is follows from the family, whatever it is called", "[model]") {
  // The bug: Granite as transformers 5 writes it was taken for gated delta layers.
  const ModelGeometry granite = read(granite_tiny());
  CHECK(granite.weights.parameters() == 6939037248);
  CHECK(token_bytes(granite) == 8192);
  CHECK(granite.state_bytes == 36 * (3328 * 3 * 2 + 48 * 64 * 128 * 4));
  Json published = granite_tiny();
  for (Json& type : published["layer_types"])
    type = type == "full_attention" ? "attention" : "mamba";
  CHECK(read(published).weights.parameters() == 6939037248);
  // A family that nobody knows, by its fields.
  Json unknown = granite_tiny();
  unknown["model_type"] = "some_hybrid";
  CHECK(read(unknown).state_bytes == granite.state_bytes);
  // Not even its cache, where a latent would be missed.
  unknown["kv_lora_rank"] = 512;
  CHECK_THAT(refusal(unknown), Contains("model_type 'some_hybrid' is not known"));
  // Jamba and LFM2, too.
  Json jamba = {
      {"model_type", "jamba"},    {"num_hidden_layers", 2},
      {"hidden_size", 64},        {"num_attention_heads", 4},
      {"num_key_value_heads", 2}, {"mamba_expand", 2},
      {"mamba_d_state", 16},      {"mamba_d_conv", 4},
      {"mamba_dt_rank", 4},       {"layer_types", {"linear_attention", "full_attention"}}};
  CHECK(read(jamba).state_bytes == 128 * 3 * 2 + 128 * 16 * 4);
}

TEST_CASE("experts are as wide as what they read, by any name", "[model]") {
  // The bug: a latent that the experts share was taken for the width of the model, x 3.8.
  const ModelGeometry nemotron = read(nemotron_super());
  CHECK(nemotron.weights.parameters() == 120668687360);
  CHECK(token_bytes(nemotron) == 8192);
  // The bug: num_experts is num_local_experts where transformers 5 has saved a model.
  Json qwen3 = {{"model_type", "qwen3_moe"},    {"num_hidden_layers", 48},
                {"hidden_size", 2048},          {"intermediate_size", 6144},
                {"num_attention_heads", 32},    {"num_key_value_heads", 4},
                {"vocab_size", 151936},         {"head_dim", 128},
                {"num_local_experts", 128},     {"num_experts_per_tok", 8},
                {"moe_intermediate_size", 768}, {"mlp_only_layers", Json::array()},
                {"decoder_sparse_step", 1},     {"tie_word_embeddings", false}};
  CHECK(read(qwen3).weights.parameters() == 30532122624);
  qwen3["num_experts"] = 128;
  qwen3.erase("num_local_experts");
  CHECK(read(qwen3).weights.parameters() == 30532122624);
  // Which layers have them, as words.
  qwen3["mlp_layer_types"] = words({"dense"}, 48);
  CHECK(read(qwen3).weights.parameters() < 4000000000);
}

TEST_CASE("Kimi Linear is read as published and as transformers 5 writes it", "[model]") {
  const ModelGeometry model = read(kimi_linear());
  CHECK(model.layer_ids == std::vector<int>{3, 7, 11, 15, 19, 23, 26});
  CHECK(token_bytes(model) == 7 * 576 * 2);
  CHECK(model.state_bytes == 20 * (3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4));
  Json published = kimi_linear();
  for (const char* key :
       {"layer_types", "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"})
    published.erase(key);
  published["linear_attn_config"] = {{"full_attn_layers", {4, 8, 12, 16, 20, 24, 27}},
                                     {"num_heads", 32},
                                     {"head_dim", 128},
                                     {"short_conv_kernel_size", 4}};
  const ModelGeometry same = read(published);
  CHECK(same.layer_ids == model.layer_ids);
  CHECK(same.state_bytes == model.state_bytes);
  CHECK(same.weights.parameters() == model.weights.parameters());
}

TEST_CASE("an indexer's key is part of every entry of sparse attention", "[model]") {
  // 61 layers of a latent of 512 + 64, and a key of 128.
  const Json config = {{"model_type", "deepseek_v32"}, {"num_hidden_layers", 61},
                       {"hidden_size", 7168},          {"num_attention_heads", 128},
                       {"kv_lora_rank", 512},          {"qk_rope_head_dim", 64},
                       {"index_head_dim", 128}};
  const ModelGeometry model = read(config);
  CHECK(model.latent);
  CHECK(token_bytes(model) == 61 * (576 + 128) * 2);
  Json shared = config;
  shared["indexer_types"] = words({"full", "shared"}, 61);
  CHECK_THAT(refusal(shared), Contains("layers that share an indexer are not sized"));
}

TEST_CASE("layers that reuse KV hold none, and full layers may have other heads", "[model]") {
  // Layers 0 to 3 hold KV: two sliding ones of 4 heads of 16, two full ones of 2 heads of 32.
  const ModelGeometry model = read(gemma4(
      {{"global_head_dim", 32}, {"num_global_key_value_heads", 2}, {"attention_k_eq_v", true}}));
  CHECK(model.layer_ids == std::vector<int>{0, 1, 2, 3});
  REQUIRE(model.parts.size() == 2);
  CHECK(model.parts[1].layer_ids == std::vector<int>{1, 3});
  CHECK(token_bytes(model) == 2 * (4 * 16 * 2 * 2) + 2 * (2 * 32 * 2 * 2));
  // Without the flag, the number of heads stays; transformers 5 lists the exceptions by layer.
  CHECK(token_bytes(read(gemma4({{"global_head_dim", 32}, {"num_global_key_value_heads", 2}}))) ==
        2 * 256 + 2 * (4 * 32 * 2 * 2));
  CHECK(token_bytes(read(gemma4({{"per_layer_config",
                                  {{"01", {{"head_dim", 32}}},
                                   {"03", {{"head_dim", 32}, {"num_key_value_heads", 1}}}}}}))) ==
        2 * 256 + 4 * 32 * 2 * 2 + 32 * 2 * 2);
  // A policy's figures add up over both kinds of layers: 20 tokens, of which 4 stay of 16.
  const Workload w{16, 4, 0};
  const Prediction full = predict_model(parse_spec("full"), model, w, {}, nullptr);
  const Prediction snap =
      predict_model(parse_spec("snapkv(budget=4,window=2)"), model, w, {}, nullptr);
  CHECK(full.peak_bytes.total == 20 * token_bytes(model));
  CHECK(full.footprint == 1);
  CHECK(full.peak_kv == 1);
  CHECK(snap.basis == Basis::closed_form);
  CHECK(snap.peak_bytes.total == 16 * token_bytes(model));
  CHECK(snap.peak_bytes.decode == 8 * token_bytes(model));
  CHECK(snap.peak_kv == Approx(16 / 20.0));
  // 16 x 17 / 2 rows of the prompt, then 5, 6, 7, 8 of 20 x 21 / 2.
  CHECK(snap.footprint == Approx((136 + 26) / 210.0));
  CHECK(kv_shards(model.parts[1], 4) == 2);
}

TEST_CASE("chunks of attention are windows; every fourth layer sees everything", "[model]") {
  const Json config = {{"model_type", "llama4_text"}, {"num_hidden_layers", 5},
                       {"hidden_size", 64},           {"num_attention_heads", 4},
                       {"num_key_value_heads", 2},    {"attention_chunk_size", 100}};
  const auto windows = [&](const Json& more) {
    Json changed = config;
    changed.update(more);
    return read(changed).sliding_window;
  };
  using Windows = std::vector<std::int64_t>;
  CHECK(windows(Json::object()) == Windows{100, 100, 100, 0, 100});
  CHECK(windows({{"no_rope_layers", Json::array()}}) == Windows{100, 100, 100, 0, 100});
  CHECK(windows({{"no_rope_layers", {1, 0, 1, 1, 0}}}) == Windows{100, 0, 100, 100, 0});
  CHECK(windows({{"layer_types", words({"full_attention", "chunked_attention"}, 5)}}) ==
        Windows{0, 100, 0, 100, 0});
}

TEST_CASE("what a file of today leaves out is refused by name", "[model]") {
  const auto fails = [](const Json& config, const char* why) {
    CHECK_THAT(refusal(config), Contains(why));
  };
  Json config = qwen("rope_scaling", nullptr);
  for (const char* type : {"olmo3", "gemma3n_text", "gemma4_text"}) {
    config["model_type"] = type;
    fails(config, "there is no field 'layer_types'");
  }
  config["model_type"] = "llama4_text";
  fails(config, "there is no field 'attention_chunk_size'");
  config["model_type"] = "deepseek_v32";
  config["kv_lora_rank"] = config["qk_rope_head_dim"] = 8;
  fails(config, "there is no field 'index_head_dim'");
  config["model_type"] = "kimi_linear";
  fails(config, "there is no field 'layer_types' (one word a layer; or 'linear_attn_config'");
  Json nemotron = nemotron_super();
  nemotron["layers_block_type"] = words({"mamba", "moe", "attentoin"}, 88);
  fails(nemotron, "'layers_block_type' names 'attentoin'; did you mean 'attention'?");
  nemotron["layers_block_type"] = words({"mamba"}, 3);
  fails(nemotron, "'layers_block_type' is a list of 3, expected a list of 88 words");
}
