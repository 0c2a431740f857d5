// SPDX-License-Identifier: Apache-2.0
// A model under evictors and stores against a brute-force forward pass in doubles that holds
// entries as the papers say: what is quantised, pruned, folded or moved to another place in the
// cache is read so, and the model goes on from it.
#include <algorithm>
#include <cmath>
#include <string>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/random.h"
#include "tests/support/checkpoint_case.h"
#include "tests/twin/closed_loop.h"
#include "tracegen/eval/closed_loop.h"

using namespace kvspan;
using namespace kvspan::tracegen;

namespace {

struct Subject {
  std::string policy;  // the engine's text
  std::string twin;    // the twin's name, its parameters as in the text
  bool by_place = false;
};

// "a(x=1,y=2)+b(z=3)": a.x, a.y, b.z.
twin::stores::Parameters parameters_of(const std::string& text) {
  twin::stores::Parameters out;
  for (const Term& term : parse_spec(text)) {
    for (const Argument& argument : term.arguments)
      out[term.name + "." + argument.key] = argument.values.front();
  }
  return out;
}

// Angles a position, by the rule of llama3's scaling as its configuration has it here.
std::vector<double> llama_frequencies() {
  const double factor = 8, low = 1, high = 4, context = 64;
  std::vector<double> out;
  for (int i = 0; i < 4; ++i) {
    const double plain = std::pow(10000.0, -i / 4.0);
    const double turns = context * plain / (2 * M_PI);  // in the original context
    const double smooth = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    out.push_back(smooth * plain + (1 - smooth) * plain / factor);
  }
  return out;
}

std::vector<double> plain_frequencies() {
  std::vector<double> out;
  for (int i = 0; i < 4; ++i) out.push_back(std::pow(10000.0, -i / 4.0));
  return out;
}

void compare(const std::string& name, const std::vector<double>& frequencies,
             const std::vector<Subject>& subjects, RowIndex chunk) {
  constexpr std::size_t kPrompt = 72, kReference = 24;
  const auto checkpoint = Checkpoint::open(testing::kFixtures / name);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(kPrompt + kReference); ++i)
    ids.push_back(static_cast<std::int32_t>(48 * uniform(11, {i})));
  LoopInput input;
  input.prompt.ids.assign(ids.begin(), ids.begin() + kPrompt);
  input.prompt.pieces.assign(kPrompt, "x");
  input.reference.assign(ids.begin() + kPrompt, ids.end());
  LoopOptions options;
  options.chunk = chunk;
  std::vector<RecipeSpec> specs;
  for (const Subject& subject : subjects) specs.push_back(parse_spec(subject.policy));
  const LoopResult result = run_closed_loop(checkpoint, input, specs, options);
  REQUIRE(result.refused.empty());
  for (std::size_t s = 0; s < subjects.size(); ++s) {
    const LoopRun& run = result.runs[s];
    INFO(name << ", chunk " << chunk << ": " << run.run.spec);
    const twin::Plan plan{static_cast<int>(chunk), static_cast<int>(kPrompt), -1};
    const twin::ClosedLoop want =
        twin::read_closed(checkpoint, frequencies, ids, plan, subjects[s].twin,
                          parameters_of(subjects[s].policy), subjects[s].by_place);
    REQUIRE(want.nll.size() == kReference);
    REQUIRE(run.nll.size() == kReference);
    CHECK(want.held.near_ties == 0);
    CHECK(std::equal(want.held.death.begin(), want.held.death.end(), run.run.ledger.death.begin(),
                     run.run.ledger.death.end(),
                     [](int a, std::uint32_t b) { return a == static_cast<int>(b); }));
    double worst = 0, moved = 0;
    for (std::size_t i = 0; i < kReference; ++i) {
      worst = std::max(worst, std::abs(double{run.nll[i]} - want.nll[i]));
      moved = std::max(moved, std::abs(double{run.nll[i]} - double{result.runs[0].nll[i]}));
    }
    INFO(fmt::format("differs by {:.2g}; from the full cache by {:.2g}; {} roundings near a tie",
                     worst, moved, want.held.near_codes));
    // A rounding that goes the other way in fp32 moves a row, but far less than the store itself.
    CHECK(worst < (want.held.near_codes == 0 ? 2e-5 : std::max(2e-5, moved / 100)));
    if (s > 0) CHECK(moved > 2e-3);  // there was something to see
  }
}

}  // namespace

TEST_CASE("what a store holds otherwise is what the model reads", "[eval][twin]") {
  const std::vector<Subject> subjects{
      {"full", "full"},
      {"kivi(bits=2,group=8,residual=16)", "kivi"},
      {"kivi(bits=4,group=4,residual=8)", "kivi"},
      {"qpruningkv(budget=20%,bits=4,q_group=4)", "qpruningkv"},
      {"think(ratio=50%,window=8,recent=8)", "think"},
      {"mikv(ratio=25%,hi=8,lo=2,group=4)", "mikv"},
      {"less(variant=mean,budget=24)", "less"},
      {"snapkv(budget=40,window=8)+kivi(bits=2,group=8,residual=16)", "snapkv+kivi"},
      {"streaming_llm(sinks=2,window=20)+less(variant=mean)", "streaming_llm+less"}};
  compare("llama", llama_frequencies(), subjects, GENERATE(0, 25));
}

TEST_CASE("keys before their rotation are quantised, and read after it", "[eval][twin]") {
  compare("qwen2", plain_frequencies(),
          {{"full", "full"},
           {"kvquant(bits=2,outliers=12%,codebook=uniform)", "kvquant"},
           {"streaming_llm(sinks=2,window=20)", "streaming_llm+none"}},
          0);
}

TEST_CASE("entries that are numbered by their places in the cache are read there", "[eval][twin]") {
  compare("llama", llama_frequencies(),
          {{"full", "full"},
           {"streaming_llm(sinks=2,window=20)", "streaming_llm+none"},
           {"streaming_llm(sinks=2,window=20,positions=cache)", "streaming_llm+none", true},
           {"streaming_llm(budget=12,positions=cache)", "streaming_llm+none", true}},
          GENERATE(0, 25));
}
