// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/first_tokens.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tracegen/forward/token_sampling.h"

namespace kvspan::tracegen {
namespace {

constexpr std::size_t kMostRead = 64;
constexpr std::size_t kLeastRead = 8;

// Of ids[first] and what follows.
double mean_loss(const ModelSpec& model, Runner& runner, std::span<const std::int32_t> ids,
                 std::size_t first) {
  std::vector<float> hidden(ids.size() * static_cast<std::size_t>(model.hidden));
  runner.embed(ids, hidden);
  AttentionHook nobody;
  for (int l = 0; l < model.layers; ++l) runner.layer(l, 0, hidden, nobody);
  double sum = 0;
  const auto vocabulary = static_cast<std::size_t>(model.vocabulary);
  runner.head(hidden, [&](std::int64_t begin, std::int64_t rows, const float* logits) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto next = static_cast<std::size_t>(begin + r) + 1;
      if (next < first || next >= ids.size()) continue;
      sum += static_cast<double>(
          nll_of({logits + static_cast<std::size_t>(r) * vocabulary, vocabulary}, ids[next]));
    }
  });
  return sum / static_cast<double>(ids.size() - first);
}

}  // namespace

std::optional<FirstLoss> misses_bos(const ModelSpec& model, Runner& runner,
                                    std::span<const std::int32_t> ids, std::int32_t bos) {
  const std::size_t tokens = std::min(ids.size(), kMostRead);
  if (tokens < kLeastRead) return std::nullopt;
  FirstLoss loss;
  loss.guessing = std::log(static_cast<double>(model.vocabulary));
  // The same tokens are predicted both times: all but the first, and the last, whose place bos has.
  std::vector<std::int32_t> read(ids.begin(),
                                 ids.begin() + static_cast<std::ptrdiff_t>(tokens - 1));
  loss.tokens = static_cast<std::int64_t>(read.size()) - 1;
  loss.without = mean_loss(model, runner, read, 1);
  if (loss.without <= loss.guessing) return std::nullopt;
  read.insert(read.begin(), bos);
  loss.with_bos = mean_loss(model, runner, read, 2);
  if (loss.with_bos >= loss.guessing) return std::nullopt;
  return loss;
}

}  // namespace kvspan::tracegen
