// SPDX-License-Identifier: Apache-2.0
// The command `predict`, as a user runs it: what it prints, writes and refuses.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <set>

#include "sim/run/request.h"
#include "tests/support/program.h"

using namespace kvspan::test;
using Catch::Matchers::Contains;

namespace {

// Every key of objects, but those that are names of layouts.
void collect(const nlohmann::json& json, std::set<std::string>& keys) {
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) {
    if (json.is_object()) keys.insert(key);
    if (key != "layouts") collect(value, keys);
  }
}

}  // namespace

TEST_CASE("predict gives the replay's figures without its trace", "[cli]") {
  const Folder folder;
  const std::string policies =
      "--policy \"snapkv(budget=20%)\" --policy h2o --policy \"chunked(snapkv(budget=10%))\" "
      "--chunk 512 --out ";
  REQUIRE(program("run " + trace("smollm2-passkey.safetensors") + " --fidelity none " + policies +
                  (folder / "run.json"))
              .code == 0);
  REQUIRE(program("predict --model " + trace("smollm2-passkey.safetensors") +
                  " --prompt 1868 --gen 12 " + policies + (folder / "predict.json"))
              .code == 0);
  const nlohmann::json run = read_json(folder / "run.json");
  const nlohmann::json predicted = read_json(folder / "predict.json");
  for (std::size_t i = 0; i < 3; ++i) {
    for (const char* key :
         {"policy", "footprint", "peak_kv", "entry_rows", "peak_bytes", "byte_rows"}) {
      INFO(key);
      CHECK(run["runs"][i][key] == predicted["runs"][i][key]);
    }
  }
}

TEST_CASE("predict bounds what depends on content, and takes measured shares", "[cli]") {
  const Folder folder;
  const std::string policy = "--policy \"write_gate(gate=random)\" --out ";
  const std::string passkey = trace("smollm2-passkey.safetensors");
  REQUIRE(
      program("run " + passkey + " --prompt 900 --fidelity none " + policy + (folder / "run.json"))
          .code == 0);
  const std::string predict = "predict --model " + passkey + " --prompt 900 --gen 980 " + policy;
  const Outcome bound = program(predict + (folder / "bound.json"));
  INFO(bound.text);
  REQUIRE(bound.code == 0);
  CHECK_THAT(bound.text, Contains("<= 100.00 %") && Contains("--calibrate"));
  const Outcome measured =
      program(predict + (folder / "measured.json") + " --calibrate " + (folder / "run.json"));
  INFO(measured.text);
  REQUIRE(measured.code == 0);
  CHECK_THAT(measured.text, Contains("as measured on") && !Contains("<= "));
  const double real = read_json(folder / "run.json")["runs"][0]["footprint"];
  CHECK(read_json(folder / "bound.json")["runs"][0]["exact"] == false);
  CHECK(read_json(folder / "bound.json")["runs"][0]["footprint"] >= real);
  CHECK(read_json(folder / "bound.json")["runs"][0]["basis"] == "upper bound");
  CHECK(read_json(folder / "measured.json")["runs"][0]["basis"] == "measured");
  CHECK(read_json(folder / "measured.json")["runs"][0]["footprint"] == real);
  const Outcome wrong = program(predict + (folder / "x.json") + " --calibrate " + passkey);
  CHECK(wrong.code == 2);
  CHECK_THAT(wrong.text, Contains("is not a result of kvspan run"));
}

TEST_CASE("predict says what fits into a GPU", "[cli]") {
  const Folder folder;
  const std::string model = "predict --model Llama-3.1-70B --prompt 32768 --gen 1024 --chunk 8192 ";
  const Outcome out = program(model + "--gpu-memory 80GiB --tp 4 --batch 8 --kv-dtype fp8 --out " +
                              (folder / "fits.json"));
  INFO(out.text);
  REQUIRE(out.code == 0);
  CHECK_THAT(out.text, Contains("what fits into 4 GPUs of 80.0 GiB"));
  CHECK_THAT(out.text, Contains("2 of 8 KV heads on each GPU"));
  const nlohmann::json json = read_json(folder / "fits.json");
  CHECK(json["accounting"]["kv_bytes"] == 1);
  CHECK(json["model"]["weights"]["parameters"] == 70553706496);
  CHECK(json["gpu"]["tp"] == 4);
  const nlohmann::json full = json["runs"][0]["fit"];
  CHECK(full["kv"] == 33792LL * 163840);
  CHECK(full["request"] == 33792LL * 163840 / 4);
  CHECK(full["fits"] == true);
  CHECK(full["largest_batch"] > 8);
  const Outcome none = program(model + "--gpu-memory 80GiB --out " + (folder / "none.json"));
  CHECK(none.code == 6);
  CHECK_THAT(none.text, Contains("the weights alone do not fit: 131 GiB needed, 72.0 GiB usable; "
                                 "try --tp 2, or --weight-dtype fp8"));
  CHECK(read_json(folder / "none.json")["runs"][0]["fit"].is_null());
  // The model's own windows are a row of the table.
  const Outcome gemma = program("predict --model Gemma-2-9B --prompt 8000");
  CHECK_THAT(gemma.text, Contains("sliding window: 4096 tokens in layers 0,2,4"));
  CHECK_THAT(gemma.text, Contains("\nfull(model_window=evict) "));
}

TEST_CASE("what fits is a bound, or calibrated, wherever the figures are", "[cli]") {
  // The bug: the second table took the uncalibrated bound, and lost its sign.
  const Folder folder;
  const std::string policy = "--policy \"write_gate(gate=random)\" ";
  REQUIRE(program("run " + trace("smollm2-passkey.safetensors") +
                  " --prompt 900 --fidelity none --no-chart " + policy + "--out " +
                  (folder / "run.json"))
              .code == 0);
  const std::string predict = "predict --model Llama-3.1-8B --prompt 8192 --gen 1024 --gpu H100 " +
                              policy + "--out " + (folder / "p.json");
  const Outcome bound = program(predict);
  INFO(bound.text);
  CHECK(bound.code == 0);
  CHECK(std::count(bound.text.begin(), bound.text.end(), '<') >= 8);  // 5 and 3 figures
  CHECK_THAT(bound.text, Contains(" yes ") && Contains(">= "));
  const nlohmann::json most = read_json(folder / "p.json")["runs"][0];
  CHECK(most["fit"]["basis"] == "upper bound");
  const Outcome calibrated = program(predict + " --calibrate " + (folder / "run.json"));
  INFO(calibrated.text);
  CHECK_THAT(calibrated.text, Contains("~ ") && !Contains("<= ") &&
                                  Contains("shares measured on SmolLM2-135M-Instruct (Q4_1), ") &&
                                  Contains(", 900 prompt + 980 generated tokens, whole prompt ("));
  const nlohmann::json json = read_json(folder / "p.json");
  CHECK_THAT(json["calibrated_on"].get<std::string>(), Contains("SmolLM2"));
  const nlohmann::json scaled = json["runs"][0];
  CHECK(scaled["basis"] == "estimate");
  CHECK(scaled["fit"]["basis"] == "estimate");
  CHECK(scaled["peak_bytes"]["decode"] < most["peak_bytes"]["decode"]);
  CHECK(scaled["fit"]["waiting"] == scaled["peak_bytes"]["decode"]);
  CHECK(scaled["fit"]["largest_batch"] > most["fit"]["largest_batch"]);
}

TEST_CASE("every field of predict's result is documented", "[cli]") {
  const Folder folder;
  std::ofstream(folder / "config.json") << R"({"model_type": "gemma4_text", "num_hidden_layers": 2,
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "global_head_dim": 16, "vocab_size": 64, "max_position_embeddings": 256,
    "sliding_window": 8, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
    "dtype": "bfloat16", "layer_types": ["sliding_attention", "full_attention"]})";
  const std::string passkey = trace("smollm2-passkey.safetensors");
  REQUIRE(
      program("run " + passkey + " --policy full --no-chart --out " + (folder / "r.json")).code ==
      0);
  REQUIRE(program("predict --model " + folder.path.string() +
                  " --prompt 100 --gen 2 --policy full --gpu T4 --calibrate " +
                  (folder / "r.json") + " --out " + (folder / "p.json"))
              .code == 0);
  std::set<std::string> keys;
  collect(read_json(folder / "p.json"), keys);
  CHECK(keys.size() > 60);
  const std::string documented = read_text(KVSPAN_TESTS_DIR "/../sim/predict/README.md");
  for (const std::string& key : keys) {
    INFO(key);
    CHECK((documented.find("`" + key + "`") != std::string::npos ||
           documented.find("." + key + "`") != std::string::npos));
  }
}

TEST_CASE("plan serves a stream of requests, and every field of its result is documented",
          "[cli]") {
  const Folder folder;
  std::ofstream(folder / "m.jsonl")
      << R"({"timestamp": 0, "input_length": 1000, "output_length": 30, "hash_ids": [1, 2]})"
      << '\n'
      << R"({"timestamp": 900, "input_length": 900, "output_length": 0, "hash_ids": [1, 3]})"
      << '\n';
  const std::string model = "plan --quiet --model Llama-3.1-8B --gpus 2 --tp 2 --gpu H100 ";
  const Outcome result = program(
      model + "--requests " + (folder / "m.jsonl") +
      " --share-prefixes --find-rate --policy full --policy snapkv --out " + (folder / "p.json"));
  REQUIRE(result.code == 0);
  CHECK_THAT(result.text, Contains("1 replica of 2") && Contains("26.9 % of prompt tokens"));
  const nlohmann::json json = read_json(folder / "p.json");
  // 128 KiB a token, half of it on each GPU: 1,030 tokens in blocks of 16; the other came while it
  // was generated, and brought 912 - 512.
  CHECK(json["policies"][0]["resident_bytes"]["max"] == (1040 + 400) * 65536.0);
  CHECK(json["policies"][0]["completed"] == 2);
  std::set<std::string> keys;
  collect(json, keys);
  const std::string documented = read_text(KVSPAN_TESTS_DIR "/../sim/fleet/README.md") +
                                 read_text(KVSPAN_TESTS_DIR "/../sim/predict/README.md");
  for (const std::string& key : keys) {
    INFO(key);
    CHECK(documented.find(key) != std::string::npos);
  }
  const auto refused = [&](const std::string& options, int code, const std::string& what) {
    const Outcome wrong = program(options);
    CHECK(wrong.code == code);
    CHECK_THAT(wrong.text, Contains(what));
  };
  refused(model, 2, "give --requests FILE, or --prompt");
  refused(model + "--prompt many", 2, "--prompt: found 'many'");
  refused("plan --model Llama-3.1-8B --prompt 10", 2, "--gpu or --gpu-memory is required");
  refused("plan --model Llama-3.1-8B --prompt 10 --gpu H100 --gpus 3 --tp 2", 2,
          "multiple of --tp");
  refused("plan --model Llama-3.1-70B --prompt 10 --gpu T4", 6, "leave no memory for KV");
  refused(model + "--requests " + trace("README.md"), 3, "expected the columns");
}

TEST_CASE("a GPU is given by its name or its size, with a unit", "[cli]") {
  const Folder folder;
  const std::string predict =
      "predict --model Llama-3.1-8B --prompt 1000 --policy full --out " + (folder / "p.json") + " ";
  const auto memory = [&](const std::string& options) {
    const Outcome out = program(predict + options);
    INFO(out.text);
    REQUIRE(out.code == 0);
    return read_json(folder / "p.json")["gpu"]["memory"].get<std::int64_t>();
  };
  constexpr std::int64_t kGiB = std::int64_t{1} << 30;
  CHECK(memory("--gpu-memory 80GiB") == 80 * kGiB);
  CHECK(memory("--gpu-memory 80G") == 80 * kGiB);
  CHECK(memory("--gpu-memory 80GB") == 80'000'000'000);
  CHECK(memory("--gpu-memory '81559 MiB'") == 81559 * (kGiB / 1024));
  const std::int64_t h100 = memory("--gpu H100");
  CHECK(h100 > 79 * kGiB);
  CHECK(h100 < 80 * kGiB);
  CHECK(memory("--gpu 'rtx 4090'") < 24 * kGiB);
  // vLLM's own figures: 131,072 B a token.
  const Outcome out = program(predict + "--gpu-memory 40GiB --gpu-utilization 1 --reserve 2GiB");
  INFO(out.text);
  const nlohmann::json gpu = read_json(folder / "p.json")["gpu"];
  CHECK(gpu["reserve"] == 2 * kGiB);
  CHECK(gpu["left"] ==
        38 * kGiB - gpu["weights"].get<std::int64_t>() - gpu["activations"].get<std::int64_t>());
  CHECK(gpu["kv_cache_tokens"] == gpu["left"].get<std::int64_t>() / 131072);
  CHECK(gpu["max_concurrency"].get<double>() ==
        Approx(gpu["left"].get<double>() / (1000 * 131072.0)));
  CHECK_THAT(out.text, Contains("GPU KV cache size: ") &&
                           Contains("maximum concurrency for 1,000 tokens per request: "));
  fails("predict --model Llama-3.1-8B --prompt 10 --gpu-memory 80", 2,
        "found '80' without a unit, expected memory such as 80GiB");
  fails("predict --model Llama-3.1-8B --prompt 10 --gpu-memory 80GX", 2, "80GiB");
  fails("predict --model Llama-3.1-8B --prompt 10 --gpu H10", 2, "did you mean 'H100'?");
}

TEST_CASE("a request that the model is not for does not fit", "[cli]") {
  const Outcome out = program(
      "predict --model Llama-3.1-8B --prompt 131072 --gen 1024 --policy full --gpu-memory 800GiB");
  INFO(out.text);
  CHECK(out.code == 6);
  CHECK_THAT(out.text, Contains(" no * ") && Contains("none *") &&
                           Contains("the model's limit, 131072 tokens") &&
                           Contains("kvspan: nothing fits"));
  CHECK(program("predict --model Llama-3.1-8B --prompt 131072 --policy full --gpu-memory 800GiB")
            .code == 0);
}

TEST_CASE("what only might fit is no yes", "[cli]") {
  // One request of 4,096 tokens: at most 512 MiB of KV, and 15.0 GiB of weights.
  const std::string predict =
      "predict --model Llama-3.1-8B --prompt 4096 --gen 0 --policy dbudgetkv --gpu-utilization 1 ";
  const Outcome unsure = program(predict + "--gpu-memory 15.75GiB");
  INFO(unsure.text);
  CHECK(unsure.code == 6);
  CHECK_THAT(unsure.text, Contains(" unsure ") && Contains("nothing fits for certain"));
  CHECK(program(predict + "--gpu-memory 17GiB").code == 0);
  const Outcome none = program(predict + "--gpu-memory 0GiB");
  CHECK(none.code == 6);
  CHECK_THAT(none.text, Contains("the weights alone do not fit"));
}

TEST_CASE("models and policies are found as hubs and papers spell them", "[cli]") {
  const auto first = [](const std::string& model) {
    const Outcome out = program("predict --model '" + model + "' --prompt 10 --policy full");
    INFO(out.text);
    CHECK(out.code == 0);
    return out.text.substr(0, out.text.find(':'));
  };
  CHECK(first("meta-llama/Llama-3.1-8B-Instruct") == "Llama-3.1-8B");
  CHECK(first("meta-llama/Meta-Llama-3.1-70B") == "Llama-3.1-70B");
  CHECK(first("meta-llama/Llama-2-7b-chat-hf") == "Llama-2-7B");
  CHECK(first("Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct");
  CHECK(first("google/gemma-2-9b-it") == "Gemma-2-9B");
  CHECK(first("mistralai/Mistral-7B-Instruct-v0.3") == "Mistral-7B-v0.3");
  CHECK(first("Mistral-7B") == "Mistral-7B-v0.1");
  CHECK(first("mistralai/Mixtral-8x7B-Instruct-v0.1") == "Mixtral-8x7B");
  fails("predict --model mistralai/Mistral-7B-Instruct-v0.2 --prompt 10", 2, "did you mean");
  const Outcome papers = program(
      "predict --model Llama-3.1-8B --prompt 1000 --budget 10% --policy SnapKV "
      "--policy StreamingLLM --policy 'Pyramid+SnapKV'");
  INFO(papers.text);
  CHECK(papers.code == 0);
  CHECK_THAT(papers.text, Contains("\nsnapkv(budget=10%) ") &&
                              Contains("\nstreaming_llm(budget=10%) ") &&
                              Contains("\npyramid+snapkv(budget=10%) "));
  CHECK_THAT(program("policies Ada-KV").text, Contains("adakv: "));
  CHECK_THAT(program("run " + trace("tiny-picture.safetensors") + " --policy TOVA --no-chart").text,
             Contains("\ntova"));
}

TEST_CASE("predict lists its models, and shows a few policies unless all are asked for", "[cli]") {
  const Outcome models = program("predict --model '?'");
  CHECK(models.code == 0);
  CHECK_THAT(models.text, Contains("\nLlama-3.1-8B\n") && Contains("\nQwen3-32B\n"));
  const auto policies = [](const std::string& options) {
    const Folder folder;
    REQUIRE(
        program("predict --model Llama-3.1-8B --prompt 1000 --out " + (folder / "p.json") + options)
            .code == 0);
    return read_json(folder / "p.json")["runs"].size();
  };
  CHECK(policies("") == 7);
  CHECK(policies(" --policy all") == kvspan::expand_policies({"all"}, {}).size());
  // Two configurations in one folder are told apart.
  const Folder folder;
  std::ofstream(folder / "a.json") << R"({"model_type": "llama", "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8})";
  CHECK_THAT(program("predict --prompt 10 --model " + (folder / "a.json")).text,
             Contains("a.json: 1 layers"));
}

TEST_CASE("a wrong command line of predict is one line, and exit code 2", "[cli]") {
  fails("predict --model Llama-3.1-8C --prompt 10", 2, "did you mean 'Llama-3.1-8B'?");
  fails("predict --model Llama-3.1-8B --prompt 10 --tp 2", 2,
        "--tp requires --gpu-memory or --gpu");
  fails("predict --model Llama-3.1-8B --prompt 10 --gpu-memory 80GX", 2, "80GiB");
  fails("predict --model Llama-3.1-8B --prompt 10 --gpu-memory 80GiB --tp 3", 2, "2 or 4");
  fails("predict --model Llama-3.1-8B --prompt 10 --kv-dtype fp88", 2, "did you mean 'fp8'?");
  fails("predict --model DeepSeek-V3 --prompt 10 --layout query_head", 2, "latent cache");
  fails("predict --model Llama-3.1-8B", 2, "--prompt is required");
}
