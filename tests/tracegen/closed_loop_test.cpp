// SPDX-License-Identifier: Apache-2.0
// A model under a policy: what must hold whoever is right about scores; of tiny random models, and
// of the bundled one.
#include "tracegen/eval/closed_loop.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/run/run.h"
#include "tests/support/checkpoint_case.h"
#include "tracegen/capture/trace_parts.h"
#include "tracegen/eval/divergence.h"
#include "tracegen/eval/forked_memory.h"
#include "tracegen/eval/shared_prompt.h"
#include "tracegen/forward/runner.h"
#include "tracegen/forward/stable_dense.h"
#include "tracegen/forward/token_sampling.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;
using testing::minimind;

namespace {

// Of tests/data/tracegen/checkpoints.
const Checkpoint& tiny(const std::string& name) {
  static std::map<std::string, Checkpoint> all;
  const auto found = all.find(name);
  if (found != all.end()) return found->second;
  return all.emplace(name, Checkpoint::open(testing::kFixtures / name)).first->second;
}

// The first `prompt` ids; `reference` more of them are read.
LoopInput input_of(std::vector<std::int32_t> ids, std::size_t prompt, std::int64_t generate) {
  LoopInput input;
  input.name = "ids";
  input.reference.assign(ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end());
  ids.resize(prompt);
  input.prompt.pieces.assign(ids.size(), "x");
  input.prompt.ids = std::move(ids);
  input.generate = generate;
  return input;
}
// Of the tiny models' 48 ids.
LoopInput random_input(std::size_t prompt, std::int64_t generate, std::size_t reference) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(prompt + reference); ++i)
    ids.push_back(static_cast<std::int32_t>(48 * uniform(3, {i})));
  return input_of(std::move(ids), prompt, generate);
}

LoopResult run(const Checkpoint& model, const LoopInput& input,
               const std::vector<std::string>& policies, const LoopOptions& options = {}) {
  std::vector<RecipeSpec> specs;
  for (const std::string& policy : policies) specs.push_back(parse_spec(policy));
  return run_closed_loop(model, input, specs, options);
}

// Which entries a run leaves out, as a model's hook.
class Deaths final : public AttentionHook {
 public:
  Deaths(const ModelSpec& model, const Ledger& ledger) : model_(model), ledger_(ledger) {}
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
    const auto add = [&](const char* name, const float* from, std::int64_t width) {
      std::vector<float>& all = tensors[fmt::format("layers.{}.{}", rows.layer, name)];
      all.insert(all.end(), from, from + rows.rows * width);
    };
    add("q", rows.q, model_.q_width());
    add("k", rows.k, model_.kv_width());
    add("v", rows.v, model_.kv_width());
  }
  std::map<std::string, std::vector<float>> tensors;

 private:
  const ModelSpec& model_;
  const Ledger& ledger_;
  std::vector<std::uint8_t> visible_;
};

// The same rows through the plain forward pass, pass by pass, where keys are hidden as a ledger
// says: logits, and the trace of what was computed.
struct Plain {
  std::vector<float> nll;  // [reference]
  std::optional<Trace> trace;
};
Plain read_plainly(const Checkpoint& model, const Ledger& ledger, const LoopInput& input) {
  const ModelSpec& spec = model.spec();
  std::vector<std::int32_t> ids = input.prompt.ids;
  ids.insert(ids.end(), input.reference.begin(), input.reference.end());
  RunnerOptions options;
  options.tokens = std::ssize(ids);
  options.keep_kv = true;
  const auto runner = make_cpu_runner(model, options);
  Deaths hook(spec, ledger);
  Plain out;
  RowIndex begin = 0;
  for (const RowIndex end : ledger.plan.ends) {
    std::vector<float> hidden(static_cast<std::size_t>((end - begin) * spec.hidden));
    runner->embed({ids.begin() + begin, ids.begin() + end}, hidden);
    for (int l = 0; l < spec.layers; ++l) runner->layer(l, begin, hidden, hook);
    runner->head(hidden, [&](std::int64_t first, std::int64_t rows, const float* logits) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const RowIndex next = begin + first + r + 1;
        if (next < std::ssize(input.prompt.ids) || next >= std::ssize(ids)) continue;
        const auto vocabulary = static_cast<std::size_t>(spec.vocabulary);
        out.nll.push_back(nll_of({logits + static_cast<std::size_t>(r) * vocabulary, vocabulary},
                                 ids[static_cast<std::size_t>(next)]));
      }
    });
    begin = end;
  }
  CaptureOptions meta;
  meta.prompt = std::ssize(input.prompt.ids);
  std::map<std::string, TensorSet::Owned> tensors;
  for (const auto& [name, values] : hook.tensors) {
    const auto bytes = std::as_bytes(std::span(values));
    const std::int64_t heads = name.ends_with("q") ? spec.query_heads : spec.kv_heads;
    tensors.emplace(name, TensorSet::Owned{Dtype::f32,
                                           {std::ssize(ids), heads, spec.head_dim},
                                           {bytes.begin(), bytes.end()}});
  }
  out.trace = Trace::from_tensors(
      TensorSet::from_memory(make_metadata(spec, meta, std::ssize(ids), false), std::move(tensors)),
      "plain");
  return out;
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
  StableDense dense(false);
  StableDense keeping(true);
  dense(x.data(), kRows, w, bias, together.data(), w.rows);
  std::vector<float> alone(static_cast<std::size_t>(w.rows));
  std::vector<float> weights(static_cast<std::size_t>(w.columns));
  for (std::int64_t r = 0; r < kRows; r += 3) {
    // The first call packs, later ones take what was kept.
    keeping(x.data() + r * w.columns, 1, w, bias, alone.data(), w.rows);
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

// A row count that is no whole number of panels or tiles, with heads whose rows are interleaved.
TEST_CASE("weights that stay packed have the bits of those that are widened", "[eval]") {
  WeightMatrix w;
  w.type = GENERATE(WeightType::q4_0, WeightType::q4_1, WeightType::q8_0);
  w.rows = 276;
  w.columns = 96;
  w.rope_heads = 3;
  const std::int64_t block = weight_block_bytes(w.type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(w.rows * w.columns / 32 * block));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    bytes[i] = static_cast<std::byte>(256 * uniform(7, {at}));
    const std::int64_t in_block = at % block;
    // Scales and minima between 2^-7 and 2^-3 in size, of either sign.
    if (in_block == 1 || (w.type == WeightType::q4_1 && in_block == 3))
      bytes[i] = (bytes[i] & std::byte{0x8F}) | std::byte{0x20};
  }
  w.bytes = bytes;
  constexpr std::int64_t kRows = 5;
  std::vector<float> x(static_cast<std::size_t>(kRows * w.columns));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i) * 0.37F);
  std::vector<float> widened(static_cast<std::size_t>(kRows * w.rows));
  StableDense(false)(x.data(), kRows, w, {}, widened.data(), w.rows);
  StableDense keeping(true);
  for (int call = 0; call < 2; ++call) {
    std::vector<float> packed(widened.size());
    keeping(x.data(), kRows, w, {}, packed.data(), w.rows);
    CHECK(packed == widened);
  }
  CHECK(std::ranges::any_of(widened, [](float y) { return std::abs(y) > 0.01F; }));
}

TEST_CASE("the divergence of two predictions is that of pen and paper", "[eval]") {
  const std::vector<float> even{0, 0};
  const std::vector<float> odd{std::log(3.0F), 0};  // 3/4, 1/4
  // 1/2 ln(2/3) + 1/2 ln 2
  CHECK(divergence(even, odd) == Approx(0.14384103622589).epsilon(1e-6));
  // 3/4 ln(3/2) + 1/4 ln(1/2)
  CHECK(divergence(odd, even) == Approx(0.13081203594113).epsilon(1e-6));
  const std::vector<float> shifted{5, 5};
  CHECK(divergence(even, shifted) == Approx(0).margin(1e-15));
}

TEST_CASE("full answers as plain greedy generation does", "[eval]") {
  const Checkpoint& model = tiny(GENERATE(as<std::string>(), "llama", "qwen2", "qwen3"));
  const LoopInput input = random_input(40, 12, 0);
  const LoopResult result = run(model, input, {"full"});
  RunnerOptions options;
  options.tokens = 52;
  options.keep_kv = true;
  const auto runner = make_cpu_runner(model, options);
  AttentionHook nobody;
  std::vector<std::int32_t> plain;
  std::vector<std::int32_t> ids = input.prompt.ids;
  for (RowIndex row = 0; plain.size() < 12;) {
    std::vector<float> hidden(ids.size() * static_cast<std::size_t>(model.spec().hidden));
    runner->embed(ids, hidden);
    for (int l = 0; l < model.spec().layers; ++l) runner->layer(l, row, hidden, nobody);
    row += std::ssize(ids);
    runner->head(
        std::span(hidden).last(static_cast<std::size_t>(model.spec().hidden)),
        [&](std::int64_t, std::int64_t, const float* logits) {
          plain.push_back(Sampler({})({logits, static_cast<std::size_t>(model.spec().vocabulary)}));
        });
    ids = {plain.back()};
  }
  CHECK(result.runs[0].answer == plain);
  CHECK(result.runs[0].run.metrics.footprint == 1);
}

TEST_CASE("policies that act once keep on a model what they keep in a replay", "[eval]") {
  const std::string name = GENERATE(as<std::string>(), "llama", "qwen2", "qwen3");
  const std::vector<std::string> policies{"full",
                                          "snapkv(budget=20%,window=8)",
                                          "pyramidkv(budget=24,window=8)",
                                          "knorm(budget=20%)",
                                          "adakv(snapkv(budget=24,window=8))",
                                          "streaming_llm(budget=32)",
                                          "lava(budget=24)",
                                          "cake(budget=24)",
                                          "quest(budget=32)",
                                          "kivi"};
  const LoopInput input = random_input(120, 0, 40);
  LoopOptions options;
  options.proxies = true;
  const LoopResult result = run(tiny(name), input, policies, options);
  REQUIRE(result.refused.empty());
  // The prompt alone decides: the text behind it is the full cache's in the replay.
  const Plain plain = read_plainly(tiny(name), result.runs[0].run.ledger, input);
  std::vector<RecipeSpec> specs;
  for (const std::string& policy : policies) specs.push_back(parse_spec(policy));
  const std::vector<RunResult> replays = run_policies(*plain.trace, specs, {}, {});
  for (const LoopRun& loop : result.runs) {
    INFO(name << ": " << loop.run.spec);
    const RunResult& replay = replayed(replays, loop.run.spec);
    CHECK(loop.run.ledger.death == replay.ledger.death);
    CHECK(loop.run.metrics.footprint == replay.metrics.footprint);
    CHECK(loop.run.metrics.peak_kv == replay.metrics.peak_kv);
    CHECK(loop.run.metrics.peak_bytes.total == replay.metrics.peak_bytes.total);
    CHECK(loop.nll.size() == 40);
    CHECK(loop.divergence[0] == 0);  // the prompt's last row still has all of it
    REQUIRE(loop.open);
    CHECK(loop.open->agreement == 1);
    CHECK(loop.open->retained == Approx(replay.fidelity->decode->mass_mean).epsilon(1e-5));
  }
  CHECK(result.runs[0].divergence[39] == 0);
  CHECK(result.runs[1].divergence[39] > 0);
}

// The independent way: the plain forward pass, in which keys are hidden as the run's ledger says.
TEST_CASE("what a policy evicts is gone, in attention and in its own later decisions", "[eval]") {
  const std::string name = GENERATE(as<std::string>(), "llama", "qwen2", "qwen3");
  const LoopInput input = random_input(120, 0, 40);
  LoopOptions options;
  EngineOptions engine;
  options.chunk = engine.chunk = 48;
  options.evict_point = engine.evict_point = GENERATE(0, 103);
  const LoopResult result =
      run(tiny(name), input,
          {"full", "h2o(budget=32)", "tova(budget=32)", "chunked(snapkv(budget=12,window=4))",
           "streaming_llm(budget=32)", "scissorhands(budget=32)", "r_kv(budget=32)"},
          options);
  REQUIRE(result.refused.empty());
  for (const LoopRun& loop : result.runs) {
    INFO(name << ": " << loop.run.spec);
    const Plain plain = read_plainly(tiny(name), loop.run.ledger, input);
    REQUIRE(loop.nll.size() == plain.nll.size());
    double worst = 0;
    for (std::size_t i = 0; i < loop.nll.size(); ++i)
      worst = std::max(worst, std::abs(double{loop.nll[i]} - double{plain.nll[i]}));
    CHECK(worst < 1e-4);
    // A replay of that run's own q, k and v decides the same.
    const std::vector<RunResult> again =
        run_policies(*plain.trace, {parse_spec(loop.run.spec)}, engine, Accounting{});
    CHECK(again[0].ledger.death == loop.run.ledger.death);
    CHECK(again[0].metrics.footprint == loop.run.metrics.footprint);
  }
}

TEST_CASE("a policy among others gives what it gives alone", "[eval]") {
  const Checkpoint& model = tiny("qwen3");
  const LoopInput input = random_input(100, 10, 8);
  LoopOptions two;
  two.threads = 2;
  two.chunk = 48;
  const LoopResult together =
      run(model, input,
          {"full", "h2o(budget=24)", "snapkv(budget=24,window=8)", "kivi", "less(budget=24)",
           "quest(budget=24)", "chunked(knorm(budget=10%))", "think+snapkv(budget=24,window=8)"},
          two);
  REQUIRE(together.refused.empty());
  LoopOptions one = two;
  one.threads = 1;
  for (std::size_t i = 1; i < together.runs.size(); ++i) {
    const LoopResult alone = run(model, input, {"full", together.runs[i].run.spec}, one);
    INFO(alone.runs[1].run.spec);
    CHECK(alone.runs[1].answer == together.runs[i].answer);
    CHECK(alone.runs[1].nll == together.runs[i].nll);
    CHECK(alone.runs[1].divergence == together.runs[i].divergence);
    CHECK(alone.runs[1].run.ledger.death == together.runs[i].run.ledger.death);
  }
}

TEST_CASE("an answer that stops ends the ledger, as if the trace had ended there", "[eval]") {
  LoopInput input = random_input(60, 12, 0);
  const LoopResult whole = run(tiny("llama"), input, {"full", "tova(budget=16)"});
  const std::vector<std::int32_t>& answer = whole.runs[1].answer;
  REQUIRE(answer.size() == 12);
  const std::int32_t stop = answer[4];
  const auto length =
      static_cast<std::size_t>(std::ranges::find(answer, stop) - answer.begin()) + 1;
  input.stop = {stop};
  const LoopResult cut = run(tiny("llama"), input, {"full", "tova(budget=16)"});
  CHECK(cut.runs[1].answer.size() == length);
  const Ledger& ledger = cut.runs[1].run.ledger;
  CHECK(ledger.plan.tokens == static_cast<RowIndex>(60 + length));
  CHECK(ledger.plan.ends.back() == ledger.plan.tokens);
  // In steady decode tova holds 16 before a row, and 17 while it attends.
  const double held = 60.0 * 61 / 2 + 17.0 * static_cast<double>(length);
  const auto tokens = static_cast<double>(60 + length);
  CHECK(cut.runs[1].run.metrics.footprint == Approx(held / (tokens * (tokens + 1) / 2)));
}

TEST_CASE("every policy of the catalogue runs on a model, or is refused by name", "[eval]") {
  const LoopInput input = random_input(64, 4, 6);
  std::vector<RecipeSpec> specs = expand_policies({"all"}, {"25%"});
  std::erase_if(specs, [](const RecipeSpec& spec) { return to_text(spec) == "full"; });
  specs.insert(specs.begin(), parse_spec("full"));
  LoopOptions options;
  options.chunk = GENERATE(0, 24);
  const LoopResult result = run_closed_loop(tiny("llama"), input, specs, options);
  CHECK(result.runs.size() + result.refused.size() == specs.size());
  CHECK(result.runs.size() > 3 * result.refused.size());
  for (const Refusal& refusal : result.refused) CHECK_FALSE(refusal.reason.empty());
  for (const LoopRun& run : result.runs) {
    INFO("chunk " << options.chunk << ": " << run.run.spec);
    CHECK(run.answer.size() == 4);
    CHECK(std::all_of(run.nll.begin(), run.nll.end(), [](float x) { return x > 0 && x < 100; }));
    CHECK(run.divergence[0] >= 0);
    CHECK(run.run.metrics.footprint <= 1);
    const Ledger& ledger = run.run.ledger;
    for (int l = 0; l < tiny("llama").spec().layers; ++l) {
      for (int h = 0; h < ledger.heads; ++h) {
        const auto deaths = ledger.deaths(l, h);
        for (std::size_t j = 0; j < static_cast<std::size_t>(ledger.plan.tokens); ++j) {
          if (deaths[j] <= j || deaths[j] > static_cast<std::uint32_t>(ledger.plan.tokens))
            FAIL_CHECK("entry " << j << " dies at " << deaths[j]);
        }
      }
    }
  }
}

TEST_CASE("a share of the memory makes more groups, and changes nothing else", "[eval]") {
  const LoopInput input = random_input(60, 6, 4);
  const std::vector<std::string> policies{"full", "tova(budget=16)", "knorm(budget=20%)", "kivi"};
  LoopOptions options;
  options.threads = 1;
  const LoopResult whole = run(tiny("llama"), input, policies, options);
  options.share = whole.memory_bytes - 1;
  const LoopResult shared = run(tiny("llama"), input, policies, options);
  CHECK(shared.memory_bytes <= options.share);
  for (std::size_t i = 0; i < whole.runs.size(); ++i) {
    CHECK(shared.runs[i].answer == whole.runs[i].answer);
    CHECK(shared.runs[i].nll == whole.runs[i].nll);
    CHECK(shared.runs[i].run.ledger.death == whole.runs[i].run.ledger.death);
  }
  // Neither the prompt nor, a little later, a policy.
  options.share = 1 << 16;
  CHECK_THROWS_AS(run(tiny("llama"), input, policies, options), NeedsMore);
  options.share = whole.memory_bytes / 4;
  CHECK_THROWS_AS(run(tiny("llama"), input, policies, options), NeedsMore);
}

// StreamingLLM's finding: without the first token attention has nowhere to go.
TEST_CASE("MiniMind2 collapses without its sink, and recovers with it", "[eval]") {
  const LoopInput input = input_of(testing::real_ids(44), 20, 0);
  StableDense dense(true);
  LoopOptions options;
  options.dense = &dense;
  const LoopResult result = run(
      minimind(), input,
      {"full", "streaming_llm(sinks=0,window=20)", "streaming_llm(sinks=1,window=19)"}, options);
  const auto perplexity = [&](std::size_t run) {
    double sum = 0;
    for (const float nll : result.runs[run].nll) sum += double{nll};
    return std::exp(sum / 24);
  };
  INFO(fmt::format("perplexity: full {:.1f}, no sink {:.1f}, one sink {:.1f}", perplexity(0),
                   perplexity(1), perplexity(2)));
  CHECK(perplexity(1) > 10 * perplexity(0));
  CHECK(perplexity(2) < 2 * perplexity(0));
}

TEST_CASE("what no model can serve is refused by name", "[eval]") {
  const LoopInput input = random_input(60, 4, 0);
  LoopOptions options;
  options.chunk = 32;
  const LoopResult result =
      run(tiny("llama"), input,
          {"full", "foresightkv(budget=16,scorer=golden)",
           "chunked(snapkv(budget=8,window=4),variant=patched)", "snapkv(budget=16,window=8)"},
          options);
  REQUIRE(result.refused.size() == 2);
  CHECK_THAT(result.refused[0].reason, Contains("foresightkv") && Contains("rows to come"));
  CHECK_THAT(result.refused[1].reason, Contains("variant=patched"));
  CHECK(result.runs.size() == 2);
  options.memory = 1 << 16;
  CHECK_THROWS_WITH(run(tiny("llama"), input, {"full"}, options),
                    Contains("a prompt of 60 tokens takes") && Contains("allows 64.0 KiB"));
}
