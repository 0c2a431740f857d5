// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/replay.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/forward/dense_kernels.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kTail = 8;  // tokens that name where a later chunk starts

void append(std::span<const std::int32_t> from, std::vector<std::int32_t>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

std::int64_t ContextReplay::rows() const {
  std::int64_t sum = 0;
  for (const ReplayPass& pass : passes) sum += std::ssize(pass.ids);
  return sum;
}

std::int64_t ContextReplay::most_rows() const {
  std::int64_t most = 0;
  for (const ReplayPass& pass : passes) most = std::max<std::int64_t>(most, std::ssize(pass.ids));
  return most;
}

std::vector<std::int32_t> ContextReplay::ids() const {
  std::vector<std::int32_t> out;
  for (const ReplayPass& pass : passes) append(pass.ids, out);
  return out;
}

ContextReplay make_replay(std::span<const std::int32_t> ids, std::int64_t begin, std::int64_t end,
                          std::int64_t chunk, const ReplayWords& words) {
  if (begin < 0 || begin >= end || end > std::ssize(ids)) {
    throw ConfigError(
        fmt::format("--replay: the context is [{}, {}), and there are {} tokens; expected at least "
                    "one token between the template's and the question's",
                    begin, end, ids.size()));
  }
  ContextReplay out;
  out.at = end;
  for (std::int64_t from = begin; from < end; from += chunk) {
    ReplayPass pass{from, std::min(end, from + chunk), {}};
    const auto tokens = [&](std::int64_t a, std::int64_t b) {
      return ids.subspan(static_cast<std::size_t>(a), static_cast<std::size_t>(b - a));
    };
    append(from == begin ? words.first : words.later, pass.ids);
    if (from > begin) append(tokens(std::max(from - kTail, begin), from), pass.ids);
    append(words.suffix, pass.ids);
    append(tokens(pass.begin, pass.end), pass.ids);
    out.passes.push_back(std::move(pass));
  }
  return out;
}

std::function<void(int, std::span<const float>, std::span<float>)> norms_of(
    const Checkpoint& checkpoint) {
  return [checkpoint](int layer, std::span<const float> hidden, std::span<float> out) {
    const ModelSpec& spec = checkpoint.spec();
    const LayerWeights& weights = checkpoint.layer(layer);
    std::vector<float> row(static_cast<std::size_t>(spec.hidden));
    for (std::size_t r = 0; r < out.size(); ++r) {
      kernels::rms_norm(hidden.data() + r * row.size(), weights.attention_norm.data(), spec.hidden,
                        spec.norm_eps, row.data());
      double sum = 0;
      for (const float x : row) sum += double{x} * double{x};
      out[r] = static_cast<float>(std::sqrt(sum));
    }
  };
}

}  // namespace kvspan::tracegen
