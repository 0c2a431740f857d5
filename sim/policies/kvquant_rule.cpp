// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/kvquant_rule.h"

#include <algorithm>
#include <utility>

#include "sim/policies/shared/quantise.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

// The range without floor(tails * n) elements at either end. Reorders values.
Range range_of(std::span<float> values, double tails) {
  const auto n = std::ssize(values);
  const auto cut = std::min<std::ptrdiff_t>(
      static_cast<std::ptrdiff_t>(tails * static_cast<double>(n)), (n - 1) / 2);
  std::nth_element(values.begin(), values.begin() + cut, values.end());
  const float low = values[index(cut)];
  std::nth_element(values.begin() + cut, values.begin() + (n - 1 - cut), values.end());
  const float high = values[index(n - 1 - cut)];
  return {low, high, round_half((low + high) / 2), round_half((high - low) / 2)};
}

float nearest(const Codebook& levels, float x) {
  const auto above = std::lower_bound(levels.begin(), levels.end(), x);
  if (above == levels.begin()) return *above;
  if (above == levels.end()) return levels.back();
  return *above - x < x - *(above - 1) ? *above : *(above - 1);
}

Codebook uniform_levels(int bits) {
  Codebook out;
  const int last = (1 << bits) - 1;
  for (int i = 0; i <= last; ++i)
    out.push_back(2.0F * static_cast<float>(i) / static_cast<float>(last) - 1.0F);
  return out;
}

// One-dimensional k-means (Lloyd) from quantiles, over sorted samples and their prefix sums.
Codebook fit_levels(std::vector<float> samples, int bits) {
  if (samples.empty()) return uniform_levels(bits);
  std::sort(samples.begin(), samples.end());
  std::vector<double> sums = {0.0};
  for (const float x : samples) sums.push_back(sums.back() + static_cast<double>(x));
  const std::size_t count = std::size_t{1} << static_cast<unsigned>(bits);
  Codebook levels(count);
  for (std::size_t i = 0; i < count; ++i)
    levels[i] = samples[(2 * i + 1) * samples.size() / (2 * count)];
  for (int round = 0; round < 40; ++round) {
    const Codebook old = levels;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto end =
          i + 1 == count
              ? samples.size()
              : index(std::upper_bound(samples.begin(), samples.end(), (old[i] + old[i + 1]) / 2) -
                      samples.begin());
      if (end > begin)
        levels[i] =
            static_cast<float>((sums[end] - sums[begin]) / static_cast<double>(end - begin));
      begin = std::max(begin, end);
    }
    if (levels == old) break;
  }
  for (float& level : levels) level = round_half(level);
  return levels;
}

constexpr std::size_t kSamples = 1U << 15U;  // of a k-means
// Every so many elements are a sample.
std::size_t sample_step(int elements, RowIndex rows) {
  return 1 + index(elements * rows) / kSamples;
}

std::vector<float> key_of(const View& view, int head, TokenIndex token) {
  std::vector<float> key = view.key(head, token);
  if (view.rope() != nullptr) rotate(*view.rope(), -static_cast<double>(token), key);
  return key;
}

float held(float x, const Range& range, const Codebook& levels) {
  return range.holds(x) ? range.centre + range.width * nearest(levels, range.normal(x)) : x;
}

}  // namespace

void NonUniform::age(const View& view, Decision& out) {
  const Pass& pass = view.pass();
  const LayerShape& shape = view.shape();
  const std::int64_t least = static_cast<std::int64_t>(std::floor(settings_.bytes + 1e-6));
  std::vector<std::vector<char>> alive(index(shape.heads), std::vector<char>(index(pass.rows())));
  for (int head = 0; head < shape.heads; ++head) {
    const Alive all(view, head, out);
    for (const TokenIndex t :
         all.from(static_cast<TokenIndex>(std::max<RowIndex>(1, pass.begin)))) {
      const std::int64_t bytes = settings_.bytes_below(t + 1) - settings_.bytes_below(t);
      out.changes.push_back({pass.end, head, t, bytes > least ? 2 : 1});
      alive[index(head)][index(t - pass.begin)] = 1;
    }
  }
  if (!view.measures_output()) return;
  if (key_levels_.empty()) calibrate(view);
  for (RowIndex row = std::max<RowIndex>(1, pass.begin); row < pass.end; ++row) {
    const auto token = static_cast<TokenIndex>(row);
    std::vector<Rewrite> held;
    for (int head = 0; head < shape.heads; ++head)
      held.push_back({head, token, key_of(view, head, token), view.value(head, token)});
    quantise_value(held);
    for (Rewrite& rewrite : held) {
      if (alive[index(rewrite.kv_head)][index(row - pass.begin)] == 0) continue;
      quantise_key(rewrite);
      if (view.rope() != nullptr) rotate(*view.rope(), static_cast<double>(row), rewrite.k);
      out.rewrites.push_back(std::move(rewrite));
    }
  }
}

void NonUniform::quantise_key(Rewrite& rewrite) const {
  const std::vector<Range>& ranges = key_ranges_[index(rewrite.kv_head)];
  for (std::size_t c = 0; c < rewrite.k.size(); ++c)
    rewrite.k[c] = held(rewrite.k[c], ranges[c], key_levels_);
}

void NonUniform::quantise_value(std::vector<Rewrite>& heads) const {
  std::vector<float> all;
  for (const Rewrite& r : heads) all.insert(all.end(), r.v.begin(), r.v.end());
  const Range range = range_of(all, settings_.tails);
  for (Rewrite& r : heads) {
    for (float& x : r.v) x = held(x, range, value_levels_);
  }
}

void NonUniform::calibrate(const View& view) {
  const RowIndex end = std::max<RowIndex>(1, view.pass().evict_point / 2);
  const RowIndex begin = end > 1 ? 1 : 0;
  key_levels_ = key_codebook(view, begin, end);
  value_levels_ = value_codebook(view, begin, end);
}

Codebook NonUniform::key_codebook(const View& view, RowIndex begin, RowIndex end) {
  const LayerShape& shape = view.shape();
  const std::size_t step = sample_step(shape.heads * shape.k_dim, end - begin);
  std::vector<float> samples;
  std::size_t at = 0;
  for (int head = 0; head < shape.heads; ++head) {
    std::vector<std::vector<float>> channels(index(shape.k_dim));
    for (RowIndex row = begin; row < end; ++row) {
      const std::vector<float> key = key_of(view, head, static_cast<TokenIndex>(row));
      for (std::size_t c = 0; c < key.size(); ++c) channels[c].push_back(key[c]);
    }
    key_ranges_.emplace_back();
    for (std::vector<float>& channel : channels) {
      const Range range = range_of(channel, settings_.tails);
      key_ranges_.back().push_back(range);
      for (const float x : channel) {
        if (at++ % step == 0 && range.holds(x)) samples.push_back(range.normal(x));
      }
    }
  }
  return settings_.fit ? fit_levels(std::move(samples), settings_.bits)
                       : uniform_levels(settings_.bits);
}

Codebook NonUniform::value_codebook(const View& view, RowIndex begin, RowIndex end) const {
  const LayerShape& shape = view.shape();
  const std::size_t step = sample_step(shape.heads * shape.v_dim, end - begin);
  std::vector<float> samples;
  std::size_t at = 0;
  for (RowIndex row = begin; row < end; ++row) {
    std::vector<float> all;
    for (int head = 0; head < shape.heads; ++head) {
      const std::vector<float> value = view.value(head, static_cast<TokenIndex>(row));
      all.insert(all.end(), value.begin(), value.end());
    }
    const Range range = range_of(all, settings_.tails);
    for (const float x : all) {
      if (at++ % step == 0 && range.holds(x)) samples.push_back(range.normal(x));
    }
  }
  return settings_.fit ? fit_levels(std::move(samples), settings_.bits)
                       : uniform_levels(settings_.bits);
}

}  // namespace kvspan::policies
