// SPDX-License-Identifier: Apache-2.0
// The forward pass against independent programs: numpy/torch and Hugging Face transformers in fp32.
// tests/data/references.safetensors holds what is needed of their output; with
// KVSPAN_REFERENCE=FOLDER the same tests compare everything. The tests of SmolLM2 are run on
//   demand: KVSPAN_SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf kvspan_tracegen_tests "[smollm2]"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/trace/trace.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {
namespace {

using Ids = std::vector<std::int32_t>;

std::string reference_folder() {
  const char* folder = std::getenv("KVSPAN_REFERENCE");
  return folder == nullptr ? "" : folder;
}

// A tensor as floats or integers.
std::vector<float> floats(const TensorSet& set, const std::string& name) {
  const TensorView* tensor = set.find(name);
  INFO(name);
  REQUIRE(tensor != nullptr);
  std::vector<float> out(static_cast<std::size_t>(tensor->elements()));
  widen(*tensor, 0, out, name);
  return out;
}
Ids integers(const TensorSet& set, const std::string& name) {
  const TensorView* tensor = set.find(name);
  INFO(name);
  REQUIRE(tensor != nullptr);
  Ids out(static_cast<std::size_t>(tensor->elements()));
  REQUIRE(tensor->bytes.size() == out.size() * sizeof(std::int32_t));
  std::memcpy(out.data(), tensor->bytes.data(), tensor->bytes.size());
  return out;
}

// Keeps q, k and v of chosen layers, and the last row's attention of others.
class Keep final : public AttentionHook {
 public:
  struct Qkv {
    std::vector<float> q, k, v;  // [rows, heads, head_dim]
  };
  Keep(const ModelSpec& spec, std::vector<int> layers) : spec_(spec) {
    for (const int l : layers) layers_[l];
  }
  Emit emit(int layer) override { return {.qkv = layers_.contains(layer)}; }
  void on_qkv(const RowsQkv& rows) override {
    const auto append = [&](std::vector<float>& to, const float* from, int heads) {
      to.insert(to.end(), from, from + rows.rows * heads * spec_.head_dim);
    };
    Qkv& kept = layers_.at(rows.layer);
    append(kept.q, rows.q, spec_.query_heads);
    append(kept.k, rows.k, spec_.kv_heads);
    append(kept.v, rows.v, spec_.kv_heads);
  }
  [[nodiscard]] const Qkv& layer(int layer) const { return layers_.at(layer); }

 private:
  const ModelSpec& spec_;
  std::map<int, Qkv> layers_;
};

// What the head gives, row by row.
struct Predictions {
  std::vector<double> lse, nll;
  Ids argmax;
  std::map<std::int64_t, std::vector<float>> rows;  // logits of chosen rows
};

Predictions predictions(const ModelSpec& spec, Runner& runner, std::span<const float> hidden,
                        const Ids& ids, const Ids& logit_rows) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  Predictions out;
  runner.head(hidden, [&](std::int64_t first, std::int64_t rows, const float* logits) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* row = logits + r * spec.vocabulary;
      const float* most = std::max_element(row, row + spec.vocabulary);
      double sum = 0;
      for (std::int64_t i = 0; i < spec.vocabulary; ++i) sum += std::exp(double{row[i]} - *most);
      out.argmax.push_back(static_cast<std::int32_t>(most - row));
      out.lse.push_back(*most + std::log(sum));
      const std::int64_t t = first + r;
      if (t + 1 < tokens)
        out.nll.push_back(out.lse.back() - row[ids[static_cast<std::size_t>(t + 1)]]);
      if (std::find(logit_rows.begin(), logit_rows.end(), t) != logit_rows.end()) {
        out.rows[t] = std::vector<float>(row, row + spec.vocabulary);
      }
    }
  });
  return out;
}

// Layer by layer over all ids, as capture does.
Predictions forward(const Checkpoint& checkpoint, const Ids& ids, AttentionHook& hook,
                    const Ids& logit_rows) {
  const ModelSpec& spec = checkpoint.spec();
  const auto tokens = static_cast<std::int64_t>(ids.size());
  const auto runner = make_cpu_runner(checkpoint, {.tokens = tokens, .scratch = {}});
  std::vector<float> hidden(static_cast<std::size_t>(tokens * spec.hidden));
  runner->embed(ids, hidden);
  for (int l = 0; l < spec.layers; ++l) runner->layer(l, 0, hidden, hook);
  return predictions(spec, *runner, hidden, ids, logit_rows);
}

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value;
  return sum / static_cast<double>(x.size());
}

// max |a - b| / max |b|.
double deviation(std::span<const float> a, std::span<const float> b) {
  double most = 0;
  double scale = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    most = std::max(most, std::abs(double{a[i]} - double{b[i]}));
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return most / scale;
}

// Largest distance in excess of one F16 unit in the last place of the reference.
double beyond_one_ulp(std::span<const float> a, std::span<const float> f16) {
  double most = 0;
  for (std::size_t i = 0; i < f16.size(); ++i) {
    const double size = std::max(std::abs(double{f16[i]}), 6.1e-5);
    const double ulp = std::exp2(std::floor(std::log2(size)) - 10);
    most = std::max(most, std::abs(double{a[i]} - double{f16[i]}) - ulp);
  }
  return most;
}

// The rows of x [tokens, width] that `rows` names.
std::vector<float> pick(const std::vector<float>& x, const Ids& rows, std::int64_t width) {
  std::vector<float> out;
  for (const std::int32_t r : rows) {
    out.insert(out.end(), x.begin() + r * width, x.begin() + (r + 1) * width);
  }
  return out;
}

Ids numbers(int count) {
  Ids out;
  for (int i = 0; i < count; ++i) out.push_back(i);
  return out;
}

}  // namespace

TEST_CASE("everything bundled is listed with its checksum", "[bundled]") {
  const std::filesystem::path folder = KVSPAN_TRACES_DIR;
  std::ifstream file(folder / "README.md");
  const std::string listed((std::istreambuf_iterator<char>(file)), {});
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = std::filesystem::relative(entry.path(), folder).string();
    if (!entry.is_regular_file() || name == "README.md") continue;
    INFO(name);
    CHECK(listed.find('`' + name + '`') != std::string::npos);
    // Programs and pictures follow from the repository itself.
    const std::string kind = entry.path().extension().string();
    if (kind == ".py" || kind == ".svg" || name == "CMakeLists.txt") continue;
    CHECK(listed.find(sha256_of_files({entry.path()})) != std::string::npos);
  }
}

TEST_CASE("MiniMind2's logits, perplexity, q, k and v equal the references", "[reference]") {
  const std::string folder = reference_folder();
  const TensorSet cut = TensorSet::open(KVSPAN_TESTS_DIR "/data/references.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(KVSPAN_MODELS_DIR "/minimind2-small");
  const ModelSpec& spec = checkpoint.spec();
  const Ids ids = integers(cut, "minimind2.token_ids");
  Ids logit_rows = integers(cut, "minimind2.logits.rows");
  std::vector<float> logits = floats(cut, "minimind2.logits");
  if (!folder.empty()) {
    logit_rows = numbers(512);
    logits = floats(TensorSet::open(folder + "/minimind2-logits-512.safetensors"), "logits");
  }
  std::vector<int> layers;
  for (int l = 0; l < spec.layers; ++l) layers.push_back(l);
  Keep keep(spec, layers);
  const Predictions got = forward(checkpoint, ids, keep, logit_rows);

  double worst_logits = 0;
  for (std::size_t i = 0; i < logit_rows.size(); ++i) {
    const std::span expected(logits.data() + static_cast<std::int64_t>(i) * spec.vocabulary,
                             static_cast<std::size_t>(spec.vocabulary));
    worst_logits = std::max(worst_logits, deviation(got.rows.at(logit_rows[i]), expected));
  }
  CHECK(worst_logits < 1e-3);
  const Ids argmax = integers(cut, "minimind2.argmax");
  const std::vector<float> lse = floats(cut, "minimind2.lse");
  for (std::size_t t = 0; t < argmax.size(); ++t) {
    CHECK(got.argmax[t] == argmax[t]);
    CHECK(got.lse[t] == Approx(lse[t]).margin(1e-3));
  }

  const std::vector<float> nll = floats(cut, "minimind2.nll");
  for (std::size_t t = 0; t < got.nll.size(); ++t)
    REQUIRE(got.nll[t] == Approx(nll[t]).margin(2e-3));
  CHECK(fmt::format("{:.3f}", std::exp(mean(got.nll))) == "110.673");  // the reference's own
  const std::vector<double> first(got.nll.begin(), got.nll.begin() + 511);
  CHECK(fmt::format("{:.4f}", mean(first)) == "4.8460");

  const bool all = !folder.empty();
  const TensorSet full =
      all ? TensorSet::open(folder + "/minimind2-sherlock-2048.safetensors") : TensorSet();
  const Ids rows =
      all ? numbers(static_cast<int>(ids.size())) : integers(cut, "minimind2.qkv.rows");
  double worst_qkv = 0;
  for (const int l : layers) {
    for (const char x : {'q', 'k', 'v'}) {
      const Keep::Qkv& kept = keep.layer(l);
      const std::vector<float>& mine = x == 'q' ? kept.q : x == 'k' ? kept.k : kept.v;
      const std::int64_t width =
          std::int64_t{x == 'q' ? spec.query_heads : spec.kv_heads} * spec.head_dim;
      const std::string name = fmt::format("layers.{}.{}", l, x);
      const auto expected = all ? floats(full, name) : floats(cut, "minimind2." + name);
      const auto picked = pick(mine, rows, width);
      REQUIRE(picked.size() == expected.size());
      double scale = 0;
      for (const float value : expected) scale = std::max(scale, std::abs(double{value}));
      worst_qkv = std::max(worst_qkv, beyond_one_ulp(picked, expected) / scale);
    }
  }
  CHECK(worst_qkv < 1e-3);
  WARN(fmt::format("worst deviation: logits {:.1e}, q k v {:.1e} beyond one F16 ulp (limit 1e-3)",
                   worst_logits, worst_qkv));
}

TEST_CASE("every architecture gives the logits, q, k and v of transformers", "[architectures]") {
  // folder or file, and whose expected values; see tests/tracegen/make_fixtures.py
  const std::string path = KVSPAN_TESTS_DIR "/data/tracegen/checkpoints/";
  const auto [name, whose] =
      GENERATE(table<std::string, std::string>({{"llama", "llama/"},
                                                {"llama-linear", "llama-linear/"},
                                                {"llama-yarn", "llama-yarn/"},
                                                {"llama-sharded", "llama-sharded/"},
                                                {"mistral", "mistral/"},
                                                {"qwen2", "qwen2/"},
                                                {"qwen3", "qwen3/"},
                                                {"llama.gguf", "llama/"},
                                                {"qwen2.gguf", "qwen2.gguf."},
                                                {"qwen3.gguf", "qwen3/"}}));
  INFO(name);
  const TensorSet expected = TensorSet::open(path + whose + "expected.safetensors");
  const Checkpoint checkpoint = Checkpoint::open(path + name);
  const ModelSpec& spec = checkpoint.spec();
  const Ids ids = integers(expected, "token_ids");
  std::vector<int> layers;
  for (int l = 0; l < spec.layers; ++l) layers.push_back(l);
  Keep keep(spec, layers);
  const Predictions got = forward(checkpoint, ids, keep, numbers(static_cast<int>(ids.size())));

  const std::vector<float> logits = floats(expected, "logits");
  for (const auto& [t, row] : got.rows) {
    const std::span want(logits.data() + t * spec.vocabulary, row.size());
    CHECK(deviation(row, want) < 2e-5);
  }
  for (const int l : layers) {
    const auto same = [&, layer = l](const char* x, const std::vector<float>& mine) {
      const auto want = floats(expected, fmt::format("layers.{}.{}", layer, x));
      REQUIRE(mine.size() == want.size());
      CHECK(deviation(mine, want) < 2e-5);
    };
    same("q", keep.layer(l).q);
    same("k", keep.layer(l).k);
    same("v", keep.layer(l).v);
  }
}

namespace {

std::string smollm2() {
  const char* path = std::getenv("KVSPAN_SMOLLM2");
  if (path == nullptr) FAIL("KVSPAN_SMOLLM2 must name SmolLM2-135M-Instruct.Q4_1.gguf");
  return path;
}

// The last row's attention of every layer and head, all of it.
class LastRow final : public AttentionHook {
 public:
  LastRow(Keep& keep, std::int64_t tokens) : keep_(keep), tokens_(tokens) {}
  Emit emit(int layer) override {
    return {.qkv = keep_.emit(layer).qkv, .top_k = last_pass_ ? static_cast<int>(tokens_) : 0};
  }
  void on_qkv(const RowsQkv& rows) override { keep_.on_qkv(rows); }
  void on_scores(const RowsScores& rows) override {
    scores_[rows.layer] = {{rows.prob, rows.prob + query_heads * tokens_},
                           {rows.index, rows.index + query_heads * tokens_}};
  }
  std::vector<float> row(int layer) const {
    const auto& [prob, index] = scores_.at(layer);
    std::vector<float> dense(prob.size());
    for (std::size_t i = 0; i < prob.size(); ++i) {
      if (index[i] < 0) continue;
      const std::size_t head = i / static_cast<std::size_t>(tokens_);
      dense[head * static_cast<std::size_t>(tokens_) + static_cast<std::size_t>(index[i])] =
          prob[i];
    }
    return dense;
  }
  void last_pass() { last_pass_ = true; }
  int query_heads = 0;

 private:
  Keep& keep_;
  std::int64_t tokens_;
  bool last_pass_ = false;
  std::map<int, std::pair<std::vector<float>, Ids>> scores_;
};

}  // namespace

TEST_CASE("SmolLM2 at 8,192 tokens equals the reference", "[.][smollm2]") {
  const std::string folder = reference_folder();
  const TensorSet cut = TensorSet::open(KVSPAN_TESTS_DIR "/data/references.safetensors");
  const bool all = !folder.empty();
  const TensorSet full =
      all ? TensorSet::open(folder + "/smollm2-pride-8192-check.safetensors") : TensorSet();
  const Checkpoint checkpoint = Checkpoint::open(smollm2());
  const ModelSpec& spec = checkpoint.spec();
  const Ids ids = integers(cut, "smollm2.token_ids");
  const auto tokens = static_cast<std::int64_t>(ids.size());
  const Ids logit_rows = integers(all ? full : cut, all ? "logits.rows" : "smollm2.logits.rows");
  const auto logits = floats(all ? full : cut, all ? "logits" : "smollm2.logits");

  // The last row is a pass of its own, so that its whole attention can be asked for.
  Keep keep(spec, {0, 14, 29});
  LastRow hook(keep, tokens);
  hook.query_heads = spec.query_heads;
  const auto runner =
      make_cpu_runner(checkpoint, {.tokens = tokens, .keep_kv = true, .scratch = {}});
  std::vector<float> hidden(static_cast<std::size_t>(tokens * spec.hidden));
  runner->embed(ids, hidden);
  const auto last = static_cast<std::size_t>((tokens - 1) * spec.hidden);
  for (int l = 0; l < spec.layers; ++l) runner->layer(l, 0, std::span(hidden).first(last), hook);
  hook.last_pass();
  for (int l = 0; l < spec.layers; ++l) {
    runner->layer(l, tokens - 1, std::span(hidden).subspan(last), hook);
  }
  const Predictions got = predictions(spec, *runner, hidden, ids, logit_rows);

  double worst_logits = 0;
  for (std::size_t i = 0; i < logit_rows.size(); ++i) {
    const std::span want(logits.data() + static_cast<std::int64_t>(i) * spec.vocabulary,
                         static_cast<std::size_t>(spec.vocabulary));
    worst_logits = std::max(worst_logits, deviation(got.rows.at(logit_rows[i]), want));
  }
  CHECK(worst_logits < 1e-3);
  const auto nll = floats(cut, "smollm2.nll");
  for (std::size_t t = 0; t < got.nll.size(); ++t) CHECK(got.nll[t] == Approx(nll[t]).margin(2e-3));
  CHECK(fmt::format("{:.4f}", mean(got.nll)) == "3.0001");
  CHECK(fmt::format("{:.3f}", std::exp(mean(got.nll))) == "20.087");

  double worst_attention = 0;
  const auto attention = floats(all ? full : cut, all ? "attention.row8191" : "smollm2.attention");
  const Ids attention_layers = all ? numbers(30) : integers(cut, "smollm2.attention.layers");
  for (std::size_t i = 0; i < attention_layers.size(); ++i) {
    const std::vector<float> row = hook.row(attention_layers[i]);
    for (std::size_t j = 0; j < row.size(); ++j) {
      const double want = attention[i * row.size() + j];
      worst_attention =
          std::max(worst_attention, std::abs(double{row[j]} - want) - (all ? 0 : want / 1024));
    }
  }
  CHECK(worst_attention < 1e-4);
  double worst_qkv = 0;
  for (const int l : {0, 14, 29}) {
    for (const char x : {'q', 'k', 'v'}) {
      const Keep::Qkv& kept = keep.layer(l);
      const std::vector<float>& mine = x == 'q' ? kept.q : x == 'k' ? kept.k : kept.v;
      const std::string name = fmt::format("layers.{}.{}.last32", l, x);
      const auto want = all ? floats(full, name) : floats(cut, "smollm2." + name);
      const std::span tail(mine.data() + mine.size() - want.size(), want.size());
      double scale = 0;
      for (const float value : want) scale = std::max(scale, std::abs(double{value}));
      worst_qkv = std::max(worst_qkv, beyond_one_ulp(tail, want) / scale);
    }
  }
  CHECK(worst_qkv < 1e-3);
  WARN(fmt::format("worst deviation: logits {:.1e}, attention {:.1e}, q k v {:.1e}", worst_logits,
                   worst_attention, worst_qkv));
}

TEST_CASE("SmolLM2 answers the pass keys, and gives the bundled trace again", "[.][smollm2]") {
  const Checkpoint checkpoint = Checkpoint::open(smollm2());
  const ModelSpec& spec = checkpoint.spec();
  std::ifstream file(KVSPAN_TESTS_DIR "/data/smollm2-passkey.json");
  const nlohmann::json prompts = nlohmann::json::parse(file).at("prompts");
  REQUIRE(prompts.size() == 6);
  const std::string folder = reference_folder();
  const Trace trace = Trace::open(folder.empty() ? KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors"
                                                 : folder + "/smollm2-passkey-1880.safetensors");
  for (std::size_t n = 0; n < prompts.size(); ++n) {
    INFO("prompt " << n);
    const Ids answer = prompts[n].at("generated_ids").get<Ids>();
    Ids ids = prompts[n].at("token_ids").get<Ids>();
    const std::size_t prompt = ids.size();
    const auto most = static_cast<std::int64_t>(prompt + answer.size());
    const auto runner =
        make_cpu_runner(checkpoint, {.tokens = most, .keep_kv = true, .scratch = {}});
    Keep keep(spec, n == 3 ? trace.meta().layer_ids : std::vector<int>());
    std::vector<float> hidden(ids.size() * static_cast<std::size_t>(spec.hidden));
    runner->embed(ids, hidden);
    for (int l = 0; l < spec.layers; ++l) runner->layer(l, 0, hidden, keep);
    while (ids.size() < static_cast<std::size_t>(most)) {
      runner->head(std::span(hidden).last(static_cast<std::size_t>(spec.hidden)),
                   [&](std::int64_t, std::int64_t, const float* logits) {
                     const float* best = std::max_element(logits, logits + spec.vocabulary);
                     ids.push_back(static_cast<std::int32_t>(best - logits));
                   });
      hidden.resize(static_cast<std::size_t>(spec.hidden));
      runner->embed(std::span(ids).last(1), hidden);
      const auto row = static_cast<RowIndex>(ids.size() - 1);
      for (int l = 0; l < spec.layers; ++l) runner->layer(l, row, hidden, keep);
    }
    CHECK(Ids(ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end()) == answer);
    if (n != 3) continue;
    double worst = 0;
    for (int stored = 0; stored < trace.meta().layers; ++stored) {
      const Keep::Qkv& kept = keep.layer(trace.meta().layer_ids[static_cast<std::size_t>(stored)]);
      for (const char x : {'q', 'k', 'v'}) {
        const auto want = floats(trace.tensors(), fmt::format("layers.{}.{}", stored, x));
        const std::vector<float>& mine = x == 'q' ? kept.q : x == 'k' ? kept.k : kept.v;
        REQUIRE(mine.size() == want.size());
        double scale = 0;
        for (const float value : want) scale = std::max(scale, std::abs(double{value}));
        worst = std::max(worst, beyond_one_ulp(mine, want) / scale);
      }
    }
    CHECK(worst < 1e-3);
    WARN(fmt::format("{} layers of the trace: q k v {:.1e} beyond one F16 ulp", trace.meta().layers,
                     worst));
  }
}

}  // namespace kvspan::tracegen
