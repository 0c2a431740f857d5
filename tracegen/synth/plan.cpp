// SPDX-License-Identifier: Apache-2.0
// What is asked for, completed and checked, and where things are in the sequence.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/trace/trace.h"
#include "tracegen/synth/channels.h"
#include "tracegen/synth/synth.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kNeedleTokens = 24, kQuestionTokens = 16;

}  // namespace

SynthOptions checked(SynthOptions o) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError("synth: " + what);
  };
  require(o.tokens >= 16 && o.tokens <= kMaxTokens,
          fmt::format("--tokens {}; 16 to {} are possible", o.tokens, kMaxTokens));
  if (o.prompt_tokens == 0) o.prompt_tokens = o.tokens - o.tokens / 16;
  require(o.prompt_tokens >= 8 && o.prompt_tokens <= o.tokens,
          fmt::format("--prompt {}; 8 to {} (--tokens) are possible", o.prompt_tokens, o.tokens));
  require(o.layers >= 1 && o.layers <= 1024,
          fmt::format("--layers {}; 1 to 1024 are possible", o.layers));
  require(o.head_dim >= 16 && o.head_dim <= 1024 && o.head_dim % 4 == 0,
          fmt::format("--head-dim {}; a multiple of 4 from 16 to 1024 is needed", o.head_dim));
  require(
      o.kv_heads >= 1 && o.query_heads <= 1024 && o.query_heads >= o.kv_heads &&
          o.query_heads % o.kv_heads == 0,
      fmt::format("--query-heads {} is no multiple of --kv-heads {}", o.query_heads, o.kv_heads));
  require(o.needles >= 0 && o.turns >= 0 && o.topics >= 0,
          "--needles, --turns and --topics are 0 or more");
  if (o.layer_ids.empty()) {
    o.layer_ids.resize(static_cast<std::size_t>(o.layers));
    std::iota(o.layer_ids.begin(), o.layer_ids.end(), 0);
  }
  o.model_layers = std::max({o.model_layers, o.layers, o.layer_ids.back() + 1});
  return o;
}

SynthPlan draw_plan(const SynthOptions& options) {
  SynthPlan plan;
  const std::int64_t questions = options.needles * kQuestionTokens;
  const std::int64_t text = options.prompt_tokens - questions;
  const std::int64_t slot = options.needles > 0 ? text * 8 / 10 / options.needles : 0;
  const std::int64_t parts = std::max(options.turns, options.topics);
  if ((options.needles > 0 && slot < kNeedleTokens + 1) || (parts > 0 && text / parts < 8)) {
    throw ConfigError(fmt::format(
        "synth: a prompt of {} tokens is too short for {} needles of {} tokens, {} turns and {} "
        "topics",
        options.prompt_tokens, options.needles, kNeedleTokens, options.turns, options.topics));
  }
  const auto random = [&](std::uint64_t what, std::int64_t i) {
    return portable::uniform(
        portable::random_bits({kPlan, options.seed, what, static_cast<std::uint64_t>(i)}));
  };
  const auto number = [](const char* name, std::int64_t i, int of) {
    return of > 1 ? fmt::format("{} {}", name, i + 1) : std::string(name);
  };
  for (int i = 0; i < options.needles; ++i) {
    const std::int64_t begin =
        text / 10 + i * slot +
        static_cast<std::int64_t>(random(1, i) * static_cast<double>(slot - kNeedleTokens));
    plan.needles.push_back({number("needle", i, options.needles), begin, begin + kNeedleTokens});
    const std::int64_t question = text + i * kQuestionTokens;
    plan.questions.push_back(
        {number("question", i, options.needles), question, question + kQuestionTokens});
  }
  // Equal parts of [0, end), each boundary moved by up to a quarter of a part.
  const auto cuts = [&](std::uint64_t what, int count, std::int64_t end) {
    std::vector<std::int64_t> out;
    for (int i = 0; i < count; ++i) {
      const double at = i + (i == 0 ? 0 : (random(what, i) - 0.5) / 2);
      out.push_back(static_cast<std::int64_t>(at / count * static_cast<double>(end)));
    }
    return out;
  };
  const std::vector<std::int64_t> turns = cuts(2, options.turns, options.prompt_tokens);
  for (std::size_t i = 0; i < turns.size(); ++i) {
    plan.turns.push_back({number("turn", static_cast<std::int64_t>(i), options.turns), turns[i],
                          i + 1 < turns.size() ? turns[i + 1] : options.prompt_tokens});
  }
  const std::vector<std::int64_t> topics = cuts(3, options.topics, options.tokens);
  for (std::size_t i = 0; i < topics.size(); ++i) {
    const auto index = static_cast<int>(i);
    const bool returns = i > 1 && random(4, index) < 0.25;
    plan.topics.push_back(
        {topics[i], returns ? static_cast<int>(random(5, index) * index) : index});
  }
  return plan;
}

}  // namespace kvspan::tracegen
