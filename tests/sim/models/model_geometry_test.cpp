// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/models/model_config.h"
#include "sim/predict/analytic.h"
#include "sim/predict/capacity.h"
#include "sim/run/run.h"
#include "tests/support/model_cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::read, test::refusal;
using Json = nlohmann::json;

namespace {

// A small model of a family; fields of `more` replace or add, null ones stay null.
Json small(const char* model_type, const Json& more = Json::object()) {
  Json config = {
      {"model_type", model_type}, {"num_hidden_layers", 4},          {"hidden_size", 64},
      {"intermediate_size", 128}, {"num_attention_heads", 4},        {"num_key_value_heads", 2},
      {"vocab_size", 1000},       {"max_position_embeddings", 4096}, {"torch_dtype", "bfloat16"}};
  config.update(more);
  return config;
}

Json without(Json config, const char* key) {
  config.erase(key);
  return config;
}

using Windows = std::vector<std::int64_t>;
using Ids = std::vector<int>;

std::int64_t full_bytes(const ModelGeometry& model, std::int64_t tokens) {
  const Geometry g = geometry_of(model, tokens, 0, 0, 2);
  return predict(make_policy("full", g), g, {}).peak_bytes.total;
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

Capacity capacity_at(const std::string& spec, const ModelGeometry& model, const Workload& w,
                     const Deployment& d) {
  return capacity_of(parse_spec(spec), model, w, {}, d);
}

}  // namespace

TEST_CASE("weights of known models add up to the published number of parameters", "[model]") {
  // Totals of the published checkpoints. gpt-oss: its model card says 20.91 B and 116.83 B.
  // DeepSeek-V3: without 58 x 256 corrections that balance load, buffers of its model.
  const auto& [name, parameters] =
      GENERATE(table<const char*, std::int64_t>({{"Llama-2-7B", 6738415616},
                                                 {"Llama-3.1-8B", 8030261248},
                                                 {"Llama-3.1-70B", 70553706496},
                                                 {"Llama-3.1-405B", 405853388800},
                                                 {"Llama-3.2-1B", 1235814400},
                                                 {"Llama-3.2-3B", 3212749824},
                                                 {"Mistral-7B-v0.1", 7241732096},
                                                 {"Mistral-7B-v0.3", 7248023552},
                                                 {"Mixtral-8x7B", 46702792704},
                                                 {"Qwen2.5-7B", 7615616512},
                                                 {"Qwen2.5-72B", 72706203648},
                                                 {"Qwen3-4B", 4022468096},
                                                 {"Qwen3-8B", 8190735360},
                                                 {"Qwen3-14B", 14768307200},
                                                 {"Qwen3-32B", 32762123264},
                                                 {"Qwen3-30B-A3B", 30532122624},
                                                 {"Qwen3-235B-A22B", 235093634560},
                                                 {"Gemma-2-2B", 2614341888},
                                                 {"Gemma-2-9B", 9241705984},
                                                 {"Gemma-2-27B", 27227128320},
                                                 {"Gemma-3-1B", 999885952},
                                                 {"Phi-3-mini-4k", 3821079552},
                                                 {"Phi-4", 14659507200},
                                                 {"DeepSeek-V2-Lite", 15706484224},
                                                 {"DeepSeek-V2", 235741434880},
                                                 {"DeepSeek-V3", 671026404352},
                                                 {"gpt-oss-20b", 20914757184},
                                                 {"gpt-oss-120b", 116829156672},
                                                 {"Jamba-v0.1", 51570323328},
                                                 {"LFM2-1.2B", 1170340608},
                                                 {"SmolLM2-135M", 134515008},
                                                 {"TinyLlama-1.1B", 1100048384}}));
  INFO(name);
  const ModelGeometry model = load_model(name);
  CHECK(model.weights.refusal.empty());
  CHECK(model.weights.parameters() == parameters);
}

TEST_CASE("weights of families outside the built-in list add up, too", "[model]") {
  CHECK(read({{"model_type", "qwen2_moe"},  // Qwen1.5-MoE-A2.7B
              {"hidden_size", 2048},
              {"num_hidden_layers", 24},
              {"num_attention_heads", 16},
              {"num_key_value_heads", 16},
              {"intermediate_size", 5632},
              {"moe_intermediate_size", 1408},
              {"shared_expert_intermediate_size", 5632},
              {"num_experts", 60},
              {"num_experts_per_tok", 4},
              {"vocab_size", 151936},
              {"decoder_sparse_step", 1},
              {"tie_word_embeddings", false}})
            .weights.parameters() == 14315784192);
  CHECK(read({{"model_type", "gemma"},  // Gemma 7B, whose file leaves out that it is tied
              {"hidden_size", 3072},
              {"num_hidden_layers", 28},
              {"num_attention_heads", 16},
              {"num_key_value_heads", 16},
              {"head_dim", 256},
              {"intermediate_size", 24576},
              {"vocab_size", 256000}})
            .weights.parameters() == 8537680896);
  Json types = Json::array();
  for (int l = 0; l < 40; ++l) types.push_back(l % 10 == 5 ? "attention" : "mamba");
  const ModelGeometry granite = read({{"model_type", "granitemoehybrid"},  // Granite 4.0 H Tiny
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
                                      {"mamba_conv_bias", true},
                                      {"mamba_proj_bias", false},
                                      {"vocab_size", 100352},
                                      {"tie_word_embeddings", true},
                                      {"layer_types", types}});
  CHECK(granite.weights.parameters() == 6939037248);
  CHECK(granite.layer_ids == Ids{5, 15, 25, 35});
  // 36 layers: 3,328 channels x 3 rows in 2 bytes, 48 x 64 x 128 states in 4.
  CHECK(granite.state_bytes == 36 * (3328 * 3 * 2 + 48 * 64 * 128 * 4));
  const ModelGeometry nemotron =
      read({{"model_type", "nemotron_h"},  // Nemotron-H-8B: "8.1 B"
            {"hidden_size", 4096},
            {"num_hidden_layers", 52},
            {"hybrid_override_pattern", "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
            {"num_attention_heads", 32},
            {"num_key_value_heads", 8},
            {"head_dim", 128},
            {"intermediate_size", 21504},
            {"mamba_num_heads", 128},
            {"mamba_head_dim", 64},
            {"n_groups", 8},
            {"ssm_state_size", 128},
            {"conv_kernel", 4},
            {"vocab_size", 131072},
            {"tie_word_embeddings", false}});
  CHECK(nemotron.weights.parameters() / 10000000 == 810);
  CHECK(nemotron.layer_ids == Ids{7, 18, 29, 40});
}

TEST_CASE("the full cache of known models has its published size", "[model]") {
  const auto& [name, tokens, bytes] = GENERATE(table<const char*, std::int64_t, std::int64_t>({
      {"Llama-3.1-70B", 128000, 41943040000},  // 327,680 bytes a token
      {"Llama-3.1-70B", 1000000, 327680000000},
      {"Llama-3.1-8B", 1, 131072},
      {"Qwen3-4B", 32768, 4831838208},  // 4.5 GiB
      {"DeepSeek-V3", 1, 70272},        // 61 layers x 576 x 2
      {"DeepSeek-V2-Lite", 1, 31104},   // 27 x 576 x 2
      {"Gemma-2-9B", 1, 344064},        // 42 x 8 x 256 x 2 x 2
      {"gpt-oss-120b", 1, 73728},       // 36 x 8 x 64 x 2 x 2
      {"Qwen3-Next-80B-A3B", 1, 24576}  // 12 of 48 layers x 2 x 256 x 2 x 2
  }));
  INFO(name);
  CHECK(full_bytes(load_model(name), tokens) == bytes);
}

TEST_CASE("every built-in model is read without a refusal", "[model]") {
  CHECK(known_models().size() >= 30);
  for (const std::string& name : known_models()) {
    INFO(name);
    const ModelGeometry model = load_model(name);
    CHECK(model.name == name);
    CHECK(model.weights.refusal.empty());
    CHECK(!model.weights.dtype.empty());
    CHECK(model.max_context >= 2048);
    CHECK(model.weights.inner > 0);
  }
}

TEST_CASE("sliding layers are those of the family", "[model]") {
  const auto windows = [](const char* type, const Json& more) {
    return read(small(type, more)).sliding_window;
  };
  CHECK(windows("mistral", {{"sliding_window", nullptr}}).empty());
  CHECK(windows("mistral", {{"sliding_window", 100}}) == Windows{100, 100, 100, 100});
  CHECK(windows("phi3", {{"sliding_window", 2047}}) == Windows{2047, 2047, 2047, 2047});
  CHECK(windows("phi3", Json::object()).empty());
  CHECK(windows("gemma2", {{"sliding_window", 9}}) == Windows{9, 0, 9, 0});
  CHECK(windows("gemma3_text", {{"sliding_window", 9}, {"num_hidden_layers", 7}}) ==
        Windows{9, 9, 9, 9, 9, 0, 9});
  CHECK(windows("gemma3_text", {{"sliding_window", 9}, {"sliding_window_pattern", 2}}) ==
        Windows{9, 0, 9, 0});
  CHECK(windows("qwen2", {{"sliding_window", 9}, {"use_sliding_window", false}}).empty());
  CHECK(windows("qwen2",
                {{"sliding_window", 9}, {"use_sliding_window", true}, {"max_window_layers", 3}}) ==
        Windows{0, 0, 0, 9});
  const Json types = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  CHECK(windows("gemma2", {{"sliding_window", 9}, {"layer_types", types}}) == Windows{0, 9, 0, 0});
  const ModelGeometry gpt = load_model("gpt-oss-20b");
  CHECK(gpt.sliding_window.size() == 24);
  CHECK(gpt.sliding_window[0] == 128);
  CHECK(gpt.sliding_window[23] == 0);
  CHECK(describe_windows(load_model("Gemma-3-1B")) ==
        "512 tokens in layers 0-4,6-10,12-16,18-22,24-25 (22 of 26)");
  CHECK(describe_windows(load_model("Llama-3.1-8B")).empty());
}

TEST_CASE("what a runtime holds that frees what has left the windows", "[model]") {
  const ModelGeometry gemma = load_model("Gemma-3-1B");  // 22 sliding layers, 4 full ones
  const Geometry g = geometry_of(gemma, 8192, 1, 1024, 2);
  const auto row_bytes = [](std::int64_t entries) { return entries * 2 * 256 * 2; };
  const Prediction p = predict(make_policy("full(model_window=evict)", g), g, {});
  // The last chunk sees the 511 rows that are still of use.
  CHECK(p.peak_bytes.prefill == row_bytes(4 * 8192 + 22 * (1024 + 511)));
  CHECK(p.peak_bytes.decode == row_bytes(4 * 8193 + 22 * 512));
  CHECK(predict(make_policy("full", g), g, {}).peak_bytes.total == row_bytes(26 * 8193));
}

TEST_CASE("one latent of MLA stands for all heads", "[model]") {
  const ModelGeometry model = load_model("deepseek-v3");
  CHECK(model.latent);
  CHECK(model.kv_heads == 1);
  CHECK(model.query_heads == 128);
  CHECK(model.head_dim == 576);
  CHECK(model.v_head_dim == 0);
  CHECK(geometry_of(model, 1, 0, 0, 2).entry_bytes() == 1152);
}

TEST_CASE("only attention layers of hybrids hold KV; the others keep a constant state", "[model]") {
  const ModelGeometry jamba = load_model("Jamba-v0.1");
  CHECK(jamba.layer_ids == Ids{4, 12, 20, 28});
  CHECK(jamba.state_bytes == 28 * (8192 * 3 * 2 + 8192 * 16 * 4));
  const ModelGeometry qwen = load_model("Qwen3-Next-80B-A3B");
  CHECK(qwen.layer_ids.size() == 12);
  CHECK(qwen.layer_ids.front() == 3);
  CHECK(qwen.state_bytes == 36 * (8192 * 3 * 2 + 32 * 128 * 128 * 4));
  CHECK(load_model("LFM2-1.2B").state_bytes == 10 * 2048 * 2 * 2);
  // The dtype of the state, where the file names it.
  Json config = small("some_hybrid", {{"layer_types", {"mamba", "mamba", "attention", "mamba"}},
                                      {"mamba_n_heads", 4},
                                      {"mamba_d_head", "auto"},
                                      {"mamba_expand", 2},
                                      {"mamba_n_groups", 1},
                                      {"mamba_d_state", 16},
                                      {"mamba_d_conv", 4}});
  CHECK(read(config).state_bytes == 3 * ((128 + 32) * 3 * 2 + 128 * 16 * 4));
  config["mamba_ssm_cache_dtype"] = "bfloat16";
  CHECK(read(config).state_bytes == 3 * ((128 + 32) * 3 * 2 + 128 * 16 * 2));
  // A model_type that nobody knows: its cache can be sized, its weights cannot.
  const ModelGeometry unknown = read(config);
  CHECK(unknown.layer_ids == Ids{2});
  CHECK_THAT(unknown.weights.refusal, Contains("weights of this model_type are not known"));
}

TEST_CASE("the text part of a model with others is read", "[model]") {
  const Json config = {
      {"model_type", "gemma3"},
      {"torch_dtype", "bfloat16"},
      {"vision_config", Json::object()},
      {"text_config", without(small("gemma3_text", {{"sliding_window", 9}}), "torch_dtype")}};
  const ModelGeometry model = read(config);
  CHECK(model.family == "gemma3_text");
  CHECK(model.weights.dtype == "bf16");
  REQUIRE(model.notes.size() == 1);
  CHECK_THAT(model.notes[0], Contains("text part only"));
}

TEST_CASE("what a configuration lacks is refused by name, in one line", "[model]") {
  const auto& [config, expected] = GENERATE(table<Json, const char*>({
      {without(small("llama"), "num_hidden_layers"),
       "'config.json' (llama): there is no field 'num_hidden_layers' (layers, a whole number), and "
       "it is not guessed; built in: Llama-2-7B"},
      {without(small("qwen3"), "num_key_value_heads"), "no field 'num_key_value_heads'"},
      {without(small("llama"), "hidden_size"), "'hidden_size' (width of the model; or 'head_dim'"},
      {without(small("llama"), "model_type"), "no field 'model_type'"},
      {small("lama"), "model_type 'lama' is not known; did you mean 'llama'?"},
      {small("rwkv7"), "model_type 'rwkv7' is not known; known: llama, mistral"},
      {small("gemma5_text"), "its other versions (gemma3_text, gemma4_text) have other sizes"},
      {small("mistral"), "no field 'sliding_window' (tokens that a sliding layer sees; null"},
      {small("gemma2"), "no field 'sliding_window'"},
      {small("gemma3_text"), "built in: Gemma-3-1B, Gemma-3-4B"},
      {small("gpt_oss"), "(gpt_oss): there is no field 'sliding_window'"},
      {small("deepseek_v3"), "no field 'kv_lora_rank'"},
      {small("deepseek_v3", {{"kv_lora_rank", 8}}), "no field 'qk_rope_head_dim'"},
      {small("jamba"), "no field 'attn_layer_offset'"},
      {small("jamba", {{"attn_layer_offset", 1}, {"attn_layer_period", 2}}),
       "no field 'mamba_expand'"},
      {small("qwen3_next"),
       "no field 'layer_types' (one word a layer; or 'full_attention_interval'"},
      {small("qwen3_next", {{"full_attention_interval", 2}}), "no field 'linear_num_key_heads'"},
      {small("granitemoehybrid"), "no field 'layer_types'"},
      {small("lfm2"), "no field 'layer_types'"},
      {small("nemotron_h"), "no field 'hybrid_override_pattern'"},
      {small("nemotron_h", {{"hybrid_override_pattern", "M*M"}}), "has 3 letters, expected 4"},
      {small("nemotron_h", {{"hybrid_override_pattern", "M*MX"}}), "letters of M, *, - and E"},
      {small("qwen3_5",
             {{"layer_types",
               {"linear_attention", "full_attention", "full_attention", "full_attention"}}}),
       "(qwen3_5): there is no field 'linear_num_key_heads'"},
      {small("lfm2", {{"layer_types", {"conv", "conv", "conv", "conv"}}, {"conv_L_cache", 3}}),
       "no layer is attention"},
      {small("qwen3", {{"layer_types", {"full_attention"}}}),
       "'layer_types' is a list of 1, expected a list of 4 words"},
      {small("qwen3", {{"layer_types", {"full_attention", "full_attentoin", "x", "y"}}}),
       "names 'full_attentoin'; did you mean 'full_attention'?"},
      {small("qwen3", {{"layer_types", {1, 2, 3, 4}}}), "'layer_types' holds 1"},
      {small("llama", {{"num_hidden_layers", 0}}),
       "'num_hidden_layers' is 0, expected layers, 1 to"},
      {small("llama", {{"num_hidden_layers", "4"}}), "'num_hidden_layers' is \"4\""},
      {small("llama", {{"num_hidden_layers", 4.5}}), "'num_hidden_layers' is 4.5"},
      {small("llama", {{"num_hidden_layers", 18446744073709551615U}}),
       "'num_hidden_layers' is 18446744073709551615"},
      {small("llama", {{"num_key_value_heads", 3}}),
       "expected a multiple of 'num_key_value_heads' 3"},
      {small("llama", {{"hidden_size", 66}}), "'hidden_size' 66 is no multiple"},
      {small("qwen2", {{"use_sliding_window", 1}, {"sliding_window", 9}}),
       "expected true or false"},
      {Json({1, 2}), "'config.json' is [1,2], expected a JSON object"},
      {Json(), "'config.json' is null"},
  }));
  const std::string text = refusal(config);
  INFO(text);
  CHECK_THAT(text, Contains(expected));
  CHECK(text.find('\n') == std::string::npos);
  CHECK(text.size() < 900);
}

TEST_CASE("what is no JSON is refused in one short line", "[model]") {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("{\"a\": \x01\xff}"), std::string(10000, '['),
        std::string("\xff\xfe\n\n"), "\"" + std::string(100000, 'x')}) {
    try {
      (void)read_model_config(text, "c.json");
      FAIL("accepted");
    } catch (const ConfigError& e) {
      CHECK_THAT(e.what(), Contains("'c.json' is not JSON"));
      CHECK(std::string(e.what()).find('\n') == std::string::npos);
      CHECK(std::string(e.what()).size() < 300);
    }
  }
}

TEST_CASE("a field that only weights need is refused where they are asked for", "[model]") {
  const ModelGeometry model = read(without(small("llama"), "intermediate_size"));
  CHECK(full_bytes(model, 1) == 4 * 2 * 16 * 2 * 2);
  CHECK_THAT(model.weights.refusal, Contains("no field 'intermediate_size'"));
  Deployment d;
  d.gpu_memory = kGiB;
  CHECK_THROWS_WITH(fixed_memory(model, {10, 0, 0}, d), Contains("no field 'intermediate_size'"));
  const ModelGeometry untyped = read(without(small("llama"), "torch_dtype"));
  CHECK_THROWS_WITH(fixed_memory(untyped, {10, 0, 0}, d), Contains("give --weight-dtype bf16|"));
  d.weight_dtype = "fp8";
  CHECK(fixed_memory(untyped, {10, 0, 0}, d).left > 0);
  d.weight_dtype = "fp9";
  CHECK_THROWS_WITH(fixed_memory(untyped, {10, 0, 0}, d), Contains("did you mean 'fp"));
  CHECK_THROWS_WITH(
      fixed_memory(load_model(KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors"), {10, 0, 0}, d),
      Contains("is a trace and says nothing of the model's weights"));
}

TEST_CASE("sizes that no model has are refused, not wrapped around", "[model]") {
  const Json config = small("mixtral", {{"num_hidden_layers", 4096},
                                        {"hidden_size", 1000000},
                                        {"head_dim", 65536},
                                        {"intermediate_size", 1000000},
                                        {"num_local_experts", 1000000},
                                        {"num_experts_per_tok", 1000000}});
  CHECK_THAT(read(config).weights.refusal, Contains("more than 10^15 parameters"));
}

TEST_CASE("the format of a checkpoint is what its file says", "[model]") {
  const auto dtype = [](const Json& more) { return read(small("llama", more)).weights.dtype; };
  CHECK(dtype(Json::object()) == "bf16");
  CHECK(dtype({{"dtype", "float16"}}) == "fp16");
  CHECK(dtype({{"torch_dtype", "float32"}}) == "fp32");
  CHECK(dtype({{"torch_dtype", "float8"}}).empty());
  CHECK(dtype({{"quantization_config", {{"quant_method", "fp8"}}}}) == "fp8");
  CHECK(dtype({{"quantization_config", {{"quant_method", "awq"}, {"bits", 4}}}}) == "int4");
  CHECK(dtype({{"quantization_config", {{"quant_method", "gptq"}, {"bits", 8}}}}) == "int8");
  CHECK(dtype({{"quantization_config", {{"quant_method", "gptq"}, {"bits", 3}}}}).empty());
  CHECK(dtype({{"quantization_config", {{"quant_method", "compressed-tensors"}}}}).empty());
}

TEST_CASE("bytes of weights follow their format, and how they are divided", "[capacity]") {
  const ModelGeometry llama = load_model("Llama-3.1-8B");
  CHECK(weight_bytes(llama, "bf16", 1) == 2 * 8030261248);
  // Embedding and head (2 x 128,256 x 4,096) and norms (65 x 4,096) stay in 16 bits.
  const std::int64_t kept = 2 * 128256 * 4096 + 65 * 4096;
  const std::int64_t matrices = 8030261248 - kept;
  CHECK(weight_bytes(llama, "fp8", 1) == 2 * kept + matrices);
  CHECK(weight_bytes(llama, "int4", 1) == 2 * kept + matrices * 9 / 16);
  CHECK(weight_bytes(llama, "mxfp4", 1) == 2 * 8030261248);  // there are no experts
  // On two GPUs only the norms are there twice; on 16 the K and V of a head, too.
  const std::int64_t norms = 65 * 4096;
  CHECK(weight_bytes(llama, "bf16", 2) == 8030261248 - norms + 2 * norms);
  const std::int64_t kv = 32LL * 4096 * 1024 * 2;
  CHECK(weight_bytes(llama, "bf16", 16) == 2 * ((8030261248 - norms - kv) / 16 + kv / 8 + norms));
  // Published size of gpt-oss-20b's checkpoint: 12.8 GiB.
  CHECK(static_cast<double>(weight_bytes(load_model("gpt-oss-20b"), "mxfp4", 1)) / kGiB ==
        Approx(12.8).margin(0.05));
}

TEST_CASE("activations are the wider of a layer's inside and the logits", "[capacity]") {
  const ModelGeometry llama = load_model("Llama-3.1-8B");
  // gate, up and their product: 3 x 14,336
  CHECK(activation_bytes(llama.weights, 1000, 1, 1) == 1000 * (2 * 4096 + 3 * 14336) * 2);
  CHECK(activation_bytes(llama.weights, 1000, 1, 4) == 1000 * (2 * 4096 + 3 * 14336 / 4) * 2);
  CHECK(activation_bytes(llama.weights, 1, 1, 1) == 128256 * 4);
  CHECK(activation_bytes(llama.weights, 64, 64, 1) == 64 * 128256 * 4);
}

TEST_CASE("what fits is counted from the parts", "[capacity]") {
  const ModelGeometry llama = load_model("Llama-3.1-8B");
  const Workload w{8192, 1024, 2048};
  Deployment d;
  d.gpu_memory = 24 * kGiB;
  d.batch = 4;
  const FixedMemory b = fixed_memory(llama, w, d);
  CHECK(b.usable == static_cast<std::int64_t>(24.0 * kGiB * 0.9));
  CHECK(b.weight_dtype == "bf16");
  CHECK(b.weights == 16060522496);
  CHECK(b.activations == (2048 + 3) * (2 * 4096 + 3 * 14336) * 2);
  CHECK(b.left == b.usable - b.weights - b.activations);
  const Capacity full = capacity_at("full", llama, w, d);
  CHECK(full.kv == 9216 * 131072);
  CHECK(full.overhead == 0);
  CHECK(full.request == 9216 * 131072);
  CHECK(full.total == b.weights + b.activations + 4 * full.request);
  CHECK(full.fits);
  // KV of x tokens a request: 4 x 131,072 x.
  CHECK(full.longest_prompt == b.left / (4 * 131072) - 1024);
  CHECK_FALSE(full.limited_by_model);
  // Another request costs one more row of activations.
  const std::int64_t row = (2 * 4096 + 3 * 14336) * 2;
  CHECK(full.largest_batch == (b.left + 3 * row + row) / (full.request + row));
  // One request prefills beside others that hold their budget.
  const Capacity snap = capacity_at("snapkv(budget=1024)", llama, w, d);
  CHECK(snap.request == 8192 * 131072);
  CHECK(snap.waiting == 2048 * 131072);
  CHECK(snap.total == b.weights + b.activations + snap.request + 3 * snap.waiting);
  // The policy's own bytes count.
  CHECK(capacity_at("h2o(budget=1024)", llama, w, d).overhead > 0);
}

TEST_CASE("the longest context fits and one more token does not; so does the largest batch",
          "[capacity]") {
  const ModelGeometry model = read(small("llama", {{"max_position_embeddings", 300}}));
  const std::int64_t batch = GENERATE(1, 3);
  const std::int64_t chunk = GENERATE(0, 16);
  Workload w{100, 8, chunk};
  Deployment d;
  d.batch = batch;
  d.utilization = 1;
  for (const RecipeSpec& spec :
       expand_policies({"all", "chunked(snapkv(budget=20%,window=4))"}, {})) {
    const Policy policy = make_policy(spec, geometry_of(model, 100, 8, chunk, 2));
    if (!policy.closed_form) continue;
    for (const std::int64_t room : {20000, 60000, 130000, 100000000}) {
      d.gpu_memory = weight_bytes(model, "bf16", 1) + room;
      INFO(policy.spec << ", batch " << batch << ", chunk " << chunk << ", room " << room);
      const Capacity f = capacity_of(spec, model, w, {}, d);
      const auto fits = [&](std::int64_t prompt, std::int64_t requests) {
        Deployment other = d;
        other.batch = requests;
        return capacity_of(spec, model, {prompt, w.generated, w.chunk}, {}, other).fits;
      };
      if (f.longest_prompt > 0) CHECK(fits(f.longest_prompt, batch));
      if (f.limited_by_model) {
        CHECK(f.longest_prompt == 300 - 8);
      } else {
        CHECK_FALSE(fits(f.longest_prompt + 1, batch));
      }
      CHECK(f.fits == (f.largest_batch >= batch));
      if (f.largest_batch > 0) CHECK(fits(w.prompt, f.largest_batch));
      CHECK_FALSE(fits(w.prompt, f.largest_batch + 1));
    }
  }
}

TEST_CASE("KV heads are divided among GPUs, or replicated", "[capacity]") {
  const ModelGeometry llama = load_model("Llama-3.1-8B");  // 32 query heads, 8 KV heads
  CHECK(kv_shards(llama, 1) == 1);
  CHECK(kv_shards(llama, 4) == 4);
  CHECK(kv_shards(llama, 16) == 8);
  CHECK_THROWS_WITH(kv_shards(llama, 3), Contains("tp: 3 GPUs cannot share 32 query heads and 8 KV "
                                                  "heads evenly; the nearest that can: 2 or 4"));
  CHECK_THROWS_WITH(kv_shards(llama, 64), Contains("the nearest that can: 32"));
  CHECK_THROWS_WITH(kv_shards(load_model("Qwen2.5-7B"), 8), Contains("4 or 28"));
  CHECK(kv_shards(load_model("DeepSeek-V3"), 8) == 1);
  const Workload w{1000, 24, 0};
  Deployment d;
  d.gpu_memory = 80 * kGiB;
  const auto request = [&](const char* spec, const ModelGeometry& model, std::int64_t tp) {
    d.tp = tp;
    return capacity_at(spec, model, w, d).request;
  };
  CHECK(request("full", llama, 8) == 1024 * 131072 / 8);
  CHECK(request("full", llama, 16) == 1024 * 131072 / 8);
  // A set of entries for every query head is divided as query heads are.
  CHECK(request("snapkv(group=none,budget=10)", llama, 16) == 1000LL * 131072 * 4 / 16);
  d.weight_dtype = "int4";
  CHECK(request("full", load_model("DeepSeek-V3"), 16) == 1024 * 70272);
  d.weight_dtype = "";
  const ModelGeometry jamba = load_model("Jamba-v0.1");
  CHECK(request("full", jamba, 8) == 1024 * 4 * 8 * 128 * 2 * 2 / 8 + jamba.state_bytes / 8);
}

TEST_CASE("weights that do not fit get advice, and nothing else is computed from them",
          "[capacity]") {
  const ModelGeometry llama = load_model("Llama-3.1-70B");
  Deployment d;
  d.gpu_memory = 80 * kGiB;
  const FixedMemory b = fixed_memory(llama, {1000, 0, 0}, d);
  CHECK(b.left < 0);
  CHECK_THAT(b.advice, Contains("--tp 2") && Contains("--weight-dtype fp8"));
  const Capacity f = capacity_at("full", llama, {1000, 0, 0}, d);
  CHECK_FALSE(f.fits);
  CHECK(f.longest_prompt == 0);
  CHECK(f.largest_batch == 0);
  d.gpu_memory = kGiB / 1024;
  CHECK_THAT(fixed_memory(llama, {1000, 0, 0}, d).advice, Contains("no number of GPUs"));
  // Weights fit, but the whole prompt's activations do not.
  d.gpu_memory = 20 * kGiB;
  CHECK_THAT(fixed_memory(load_model("Llama-3.1-8B"), {131072, 0, 0}, d).advice,
             Contains("a smaller --chunk"));
}

TEST_CASE("formats of KV and shares of memory are checked", "[capacity]") {
  CHECK(kv_dtype_bytes("fp16") == 2);
  CHECK(kv_dtype_bytes("fp8") == 1);
  CHECK(kv_dtype_bytes("int8") == 1);
  CHECK_THROWS_WITH(kv_dtype_bytes("fp88"), Contains("did you mean 'fp8'?"));
  CHECK_THROWS_WITH(kv_dtype_bytes("nvfp4"), Contains("expected one of fp16, bf16"));
  const ModelGeometry llama = load_model("Llama-3.1-8B");
  Deployment d;
  d.gpu_memory = kGiB;
  for (const double share : {0.0, -1.0, 1.5}) {
    d.utilization = share;
    CHECK_THROWS_WITH(fixed_memory(llama, {1, 0, 0}, d), Contains("above 0 and at most 1"));
  }
  d.utilization = 1;
  d.batch = 0;
  CHECK_THROWS_WITH(fixed_memory(llama, {1, 0, 0}, d), Contains("1 or more requests"));
}
