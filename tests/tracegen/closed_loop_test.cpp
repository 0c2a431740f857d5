// SPDX-License-Identifier: Apache-2.0
// The model under a policy, of the bundled model: what must hold whoever is right about scores.
#include "tracegen/eval/closed_loop.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"
#include "sim/run/run.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensor_values.h"
#include "tracegen/capture/capture.h"
#include "tracegen/eval/divergence.h"
#include "tracegen/eval/forked_memory.h"
#include "tracegen/forward/runner.h"
#include "tracegen/forward/stable_dense.h"
#include "tracegen/forward/token_sampling.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;

namespace {

const Checkpoint& minimind() {
  static const Checkpoint checkpoint = Checkpoint::open(KVSPAN_MODELS_DIR "/minimind2-small");
  return checkpoint;
}

// Token 1 (bos), then ids of a text of the references.
std::vector<std::int32_t> real_ids(std::size_t count) {
  const TensorSet set = TensorSet::open(KVSPAN_TESTS_DIR "/data/references.safetensors");
  const TensorView& all = *set.find("minimind2.token_ids");
  std::vector<std::int32_t> ids(count);
  std::memcpy(ids.data(), all.bytes.data(), count * 4);
  return ids;
}

// The first `prompt` tokens of the text; `reference` more of them are read.
LoopInput input_of(std::size_t prompt, std::int64_t generate, std::size_t reference) {
  std::vector<std::int32_t> ids = real_ids(prompt + reference);
  LoopInput input;
  input.name = "sherlock";
  input.reference.assign(ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end());
  ids.resize(prompt);
  input.prompt.pieces.assign(ids.size(), "x");
  input.prompt.ids = std::move(ids);
  input.generate = generate;
  return input;
}

LoopResult run(const LoopInput& input, const std::vector<std::string>& policies,
               const LoopOptions& options = {}) {
  std::vector<RecipeSpec> specs;
  for (const std::string& policy : policies) specs.push_back(parse_spec(policy));
  return run_closed_loop(minimind(), input, specs, options);
}

// Which entries a run leaves out, as a model's hook.
class Deaths final : public AttentionHook {
 public:
  explicit Deaths(const Ledger& ledger) : ledger_(ledger) {}
  std::span<const std::uint8_t> visible(int layer, RowIndex first, std::int64_t rows) override {
    const auto keys = static_cast<std::size_t>(first + rows);
    visible_.assign(static_cast<std::size_t>(ledger_.heads) * keys, 0);
    for (int h = 0; h < ledger_.heads; ++h) {
      for (std::size_t j = 0; j < keys; ++j) {
        const bool held = ledger_.deaths(layer, h)[j] > static_cast<std::uint32_t>(first);
        visible_[static_cast<std::size_t>(h) * keys + j] = held ? 1 : 0;
      }
    }
    return visible_;
  }
  Emit emit(int /*layer*/) override { return {.qkv = true}; }
  void on_qkv(const RowsQkv& rows) override {
    const ModelSpec& m = minimind().spec();
    const auto add = [&](const char* name, const float* from, std::int64_t width) {
      std::vector<float>& all = tensors[fmt::format("layers.{}.{}", rows.layer, name)];
      all.insert(all.end(), from, from + rows.rows * width);
    };
    add("q", rows.q, m.q_width());
    add("k", rows.k, m.kv_width());
    add("v", rows.v, m.kv_width());
  }
  std::map<std::string, std::vector<float>> tensors;

 private:
  const Ledger& ledger_;
  std::vector<std::uint8_t> visible_;
};

// The same rows through the plain forward pass, pass by pass, where keys are hidden as the ledger
// says: -ln p of the reference's tokens, and the trace of what was computed.
struct Masked {
  std::vector<float> nll;
  std::optional<Trace> trace;
};
Masked read_under(const Ledger& ledger, const LoopInput& input, const Trace& meta) {
  std::vector<std::int32_t> ids = input.prompt.ids;
  ids.insert(ids.end(), input.reference.begin(), input.reference.end());
  RunnerOptions options;
  options.tokens = std::ssize(ids);
  options.keep_kv = true;
  const auto runner = make_cpu_runner(minimind(), options);
  Deaths hook(ledger);
  Masked out;
  RowIndex begin = 0;
  for (const RowIndex end : ledger.plan.ends) {
    std::vector<float> hidden(static_cast<std::size_t>((end - begin) * minimind().spec().hidden));
    runner->embed({ids.begin() + begin, ids.begin() + end}, hidden);
    for (int l = 0; l < minimind().spec().layers; ++l) runner->layer(l, begin, hidden, hook);
    runner->head(hidden, [&](std::int64_t first, std::int64_t rows, const float* logits) {
      const auto vocabulary = static_cast<std::size_t>(minimind().spec().vocabulary);
      for (std::int64_t r = 0; r < rows; ++r) {
        const RowIndex next = begin + first + r + 1;
        if (next < std::ssize(input.prompt.ids) || next >= std::ssize(ids)) continue;
        out.nll.push_back(nll_of({logits + static_cast<std::size_t>(r) * vocabulary, vocabulary},
                                 ids[static_cast<std::size_t>(next)]));
      }
    });
    begin = end;
  }
  std::map<std::string, TensorSet::Owned> tensors;
  for (const auto& [name, values] : hook.tensors) {
    const TensorView& like = *meta.tensors().find(name);
    const auto bytes = std::as_bytes(std::span(values));
    tensors.emplace(name, TensorSet::Owned{Dtype::f32, like.shape, {bytes.begin(), bytes.end()}});
  }
  out.trace = Trace::from_tensors(
      TensorSet::from_memory(meta.tensors().metadata(), std::move(tensors)), "masked");
  return out;
}

// A trace of prompt and text, with the full cache, for its shapes and metadata.
const Trace& full_trace() {
  static const test::TemporaryFolder folder;
  static const Trace trace = [] {
    CaptureOptions o;
    o.out = folder / "full.safetensors";
    o.dtype = Dtype::f32;
    o.token_ids = real_ids(160);
    o.prompt = 120;
    WorkFolder work(o.out);
    const auto runner = make_cpu_runner(minimind(), runner_options(o, work));
    capture(minimind().spec(), *runner, work, o);
    return Trace::open(o.out);
  }();
  return trace;
}

const RunResult& replayed(const std::vector<RunResult>& runs, const std::string& spec) {
  return *std::ranges::find(runs, spec, &RunResult::spec);
}

}  // namespace

TEST_CASE("a fork sees what stood there, and nobody sees what it writes", "[eval]") {
  ForkedMemory base(3000);
  base.data()[0] = 1;
  base.data()[2999] = 2;
  const ForkedMemory a = base.fork();
  const ForkedMemory b = base.fork();
  CHECK(a.data()[1] == 0);
  a.data()[0] = 7;
  b.data()[2999] = 9;
  CHECK(base.data()[0] == 1);
  CHECK(a.data()[0] == 7);
  CHECK(b.data()[0] == 1);
  CHECK(a.data()[2999] == 2);
  CHECK(b.data()[2999] == 9);
}

TEST_CASE("the dense product of a row does not depend on the rows beside it", "[eval]") {
  const WeightMatrix& w = minimind().layer(0).gate;
  constexpr std::int64_t kRows = 7;
  std::vector<float> x(static_cast<std::size_t>(kRows * w.columns));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i) * 0.37F);
  std::vector<float> bias(static_cast<std::size_t>(w.rows), 0.25F);
  std::vector<float> together(static_cast<std::size_t>(kRows * w.rows));
  stable_dense(x.data(), kRows, w, bias, together.data(), w.rows);
  std::vector<float> alone(static_cast<std::size_t>(w.rows));
  std::vector<float> weights(static_cast<std::size_t>(w.columns));
  for (std::int64_t r = 0; r < kRows; r += 3) {
    stable_dense(x.data() + r * w.columns, 1, w, bias, alone.data(), w.rows);
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + r * w.rows));
    for (std::int64_t o = 0; o < w.rows; o += 97) {
      widen_rows(w, o, 1, weights.data());
      double sum = 0.25;
      for (std::int64_t i = 0; i < w.columns; ++i)
        sum += double{x[static_cast<std::size_t>(r * w.columns + i)]} *
               double{weights[static_cast<std::size_t>(i)]};
      CHECK(double{alone[static_cast<std::size_t>(o)]} == Approx(sum).margin(2e-5));
    }
  }
}

TEST_CASE("the divergence of two predictions is that of pen and paper", "[eval]") {
  const std::vector<float> even{0, 0};
  const std::vector<float> odd{std::log(3.0F), 0};  // 3/4, 1/4
  // 1/2 ln(2/3) + 1/2 ln 2
  CHECK(divergence(even, odd) == Approx(0.14384103622589).epsilon(1e-6));
  // 3/4 ln(3/2) + 1/4 ln(1/2)
  CHECK(divergence(odd, even) == Approx(0.13081203594113).epsilon(1e-6));
  const std::vector<float> shifted{5, 5};
  CHECK(divergence(even, shifted) == 0);
}

TEST_CASE("full answers as plain greedy generation does", "[eval]") {
  const LoopInput input = input_of(120, 12, 0);
  const LoopResult result = run(input, {"full"});
  RunnerOptions options;
  options.tokens = 132;
  options.keep_kv = true;
  const auto runner = make_cpu_runner(minimind(), options);
  AttentionHook nobody;
  std::vector<std::int32_t> plain;
  std::vector<std::int32_t> ids = input.prompt.ids;
  for (RowIndex row = 0; std::ssize(plain) < 12;) {
    std::vector<float> hidden(ids.size() * static_cast<std::size_t>(minimind().spec().hidden));
    runner->embed(ids, hidden);
    for (int l = 0; l < minimind().spec().layers; ++l) runner->layer(l, row, hidden, nobody);
    row += std::ssize(ids);
    runner->head(std::span(hidden).last(static_cast<std::size_t>(minimind().spec().hidden)),
                 [&](std::int64_t, std::int64_t, const float* logits) {
                   plain.push_back(Sampler({})(
                       {logits, static_cast<std::size_t>(minimind().spec().vocabulary)}));
                 });
    ids = {plain.back()};
  }
  CHECK(result.runs[0].answer == plain);
  CHECK(result.runs[0].run.metrics.footprint == 1);
}

TEST_CASE("policies that act once keep on a model what they keep in a replay", "[eval]") {
  const std::vector<std::string> policies{"full",
                                          "snapkv(budget=20%)",
                                          "pyramidkv(budget=24)",
                                          "knorm(budget=20%)",
                                          "adakv(snapkv(budget=24))",
                                          "streaming_llm(budget=32)",
                                          "quest(budget=32)",
                                          "kivi"};
  std::vector<RecipeSpec> specs;
  for (const std::string& policy : policies) specs.push_back(parse_spec(policy));
  const std::vector<RunResult> replays = run_policies(full_trace(), specs, {}, {});
  const LoopResult result = run(input_of(120, 0, 40), policies);
  REQUIRE(result.refused.empty());
  for (const LoopRun& loop : result.runs) {
    INFO(loop.run.spec);
    const RunResult& replay = replayed(replays, loop.run.spec);
    // Who leaves at the prompt's end, and, as nothing else does, all deaths.
    CHECK(loop.run.ledger.death == replay.ledger.death);
    CHECK(loop.run.metrics.footprint == replay.metrics.footprint);
    CHECK(loop.run.metrics.peak_kv == replay.metrics.peak_kv);
    CHECK(loop.run.metrics.peak_bytes.total == replay.metrics.peak_bytes.total);
    CHECK(loop.nll.size() == 40);
    CHECK(loop.divergence[0] == 0);  // the prompt's last row still has all of it
  }
  CHECK(result.runs[0].divergence[39] == 0);
  CHECK(result.runs[5].divergence[39] > 0);
}

// The independent way: the plain forward pass, in which keys are hidden as the run's ledger says.
TEST_CASE("what a policy evicts is gone, in attention and in its own later decisions", "[eval]") {
  const std::string policy = GENERATE(as<std::string>(), "h2o(budget=32)", "tova(budget=32)",
                                      "chunked(snapkv(budget=12))", "streaming_llm(budget=32)");
  INFO(policy);
  const LoopInput input = input_of(120, 0, 40);
  LoopOptions options;
  options.chunk = 48;
  const LoopResult result = run(input, {"full", policy}, options);
  REQUIRE(result.runs.size() == 2);
  const LoopRun& loop = result.runs[1];
  const Masked masked = read_under(loop.run.ledger, input, full_trace());
  REQUIRE(loop.nll.size() == masked.nll.size());
  for (std::size_t i = 0; i < loop.nll.size(); ++i)
    CHECK(loop.nll[i] == Approx(masked.nll[i]).margin(2e-3));
  // A replay of that run's own q, k and v decides the same.
  EngineOptions engine;
  engine.chunk = 48;
  const std::vector<RunResult> again =
      run_policies(*masked.trace, {parse_spec(policy)}, engine, Accounting{});
  CHECK(again[0].ledger.death == loop.run.ledger.death);
  CHECK(again[0].metrics.footprint == loop.run.metrics.footprint);
}

TEST_CASE("a policy among others gives what it gives alone", "[eval]") {
  const LoopInput input = input_of(100, 10, 8);
  const std::vector<std::string> all{"full", "h2o(budget=24)",       "snapkv(budget=24)",
                                     "kivi", "less(h2o(budget=24))", "quest(budget=24)"};
  std::vector<std::string> served{"full"};
  LoopOptions two;
  two.threads = 2;
  const LoopResult together = run(input, all, two);
  for (std::size_t i = 1; i < together.runs.size(); ++i) {
    LoopOptions one;
    one.threads = 1;
    const LoopResult alone = run(input, {"full", together.runs[i].run.spec}, one);
    INFO(alone.runs[1].run.spec);
    CHECK(alone.runs[1].answer == together.runs[i].answer);
    CHECK(alone.runs[1].nll == together.runs[i].nll);
    CHECK(alone.runs[1].divergence == together.runs[i].divergence);
    CHECK(alone.runs[1].run.ledger.death == together.runs[i].run.ledger.death);
  }
}

TEST_CASE("an answer that stops ends the ledger, as if the trace had ended there", "[eval]") {
  LoopInput input = input_of(60, 12, 0);
  const LoopResult whole = run(input, {"full", "tova(budget=16)"});
  const std::vector<std::int32_t>& answer = whole.runs[1].answer;
  REQUIRE(answer.size() == 12);
  const std::int32_t stop = answer[4];
  const auto length =
      static_cast<std::size_t>(std::ranges::find(answer, stop) - answer.begin()) + 1;
  input.stop = {stop};
  const LoopResult cut = run(input, {"full", "tova(budget=16)"});
  CHECK(cut.runs[1].answer.size() == length);
  const Ledger& ledger = cut.runs[1].run.ledger;
  CHECK(ledger.plan.tokens == static_cast<RowIndex>(60 + length));
  CHECK(ledger.plan.ends.back() == ledger.plan.tokens);
  // In steady decode tova holds 16 before a row, and 17 while it attends.
  double held = 60.0 * 61 / 2 + 17.0 * static_cast<double>(length);
  const auto tokens = static_cast<double>(60 + length);
  CHECK(cut.runs[1].run.metrics.footprint == Approx(held / (tokens * (tokens + 1) / 2)));
}

// StreamingLLM's finding: without the first token attention has nowhere to go.
TEST_CASE("MiniMind2 collapses without its sink, and recovers with it", "[eval]") {
  const LoopInput input = input_of(40, 0, 120);
  const LoopResult result =
      run(input, {"full", "streaming_llm(sinks=0,window=40)", "streaming_llm(sinks=1,window=39)"});
  const auto perplexity = [&](std::size_t run) {
    double sum = 0;
    for (const float nll : result.runs[run].nll) sum += double{nll};
    return std::exp(sum / 120);
  };
  INFO(fmt::format("perplexity: full {:.1f}, no sink {:.1f}, one sink {:.1f}", perplexity(0),
                   perplexity(1), perplexity(2)));
  CHECK(perplexity(1) > 10 * perplexity(0));
  CHECK(perplexity(2) < 2 * perplexity(0));
}

TEST_CASE("what no model can serve is refused by name", "[eval]") {
  const LoopInput input = input_of(60, 4, 0);
  LoopOptions options;
  options.chunk = 32;
  const LoopResult result = run(input,
                                {"full", "foresightkv(budget=16,scorer=golden)",
                                 "chunked(snapkv(budget=8),variant=patched)", "snapkv(budget=16)"},
                                options);
  REQUIRE(result.refused.size() == 2);
  CHECK_THAT(result.refused[0].reason, Contains("foresightkv") && Contains("rows to come"));
  CHECK_THAT(result.refused[1].reason, Contains("variant=patched"));
  CHECK(result.runs.size() == 2);
  options.memory = 1 << 20;
  CHECK_THROWS_WITH(run(input, {"full"}, options), Contains("--memory allows 1.00 MiB"));
}
