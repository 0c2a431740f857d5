// SPDX-License-Identifier: Apache-2.0
#include "sim/attention/trace_stats.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/error.h"

namespace kvspan {
namespace {

constexpr std::size_t kWindows = 4;  // of the prompt's rows, for persistence
constexpr double kMajority = 0.5;

// Sums over the rows of one phase of one query head.
class RowSums {
 public:
  RowSums(const TraceStats& stats) : stats_(stats) {
    sums_.distance.resize(stats.bins.size());
    sums_.top.resize(std::size(kTopKeys));
    sums_.top_shares.resize(std::size(kTopShares));
    sums_.spans.resize(stats.spans.size());
  }

  // p [first, row]: probabilities of the readable keys.
  void add(RowIndex first, RowIndex row, const float* p, double sink_logit, double residual) {
    ++sums_.rows;
    sums_.sink_logit += sink_logit;
    sums_.residual += residual;
    double entropy = sink_logit > 0 ? -sink_logit * std::log(sink_logit) : 0;
    const auto sinks = stats_.options.sinks;
    const RowIndex local = std::max(sinks, row - stats_.options.window + 1);
    std::int64_t hidden = 0;
    for (RowIndex j = first; j <= row; ++j) {
      const double x = static_cast<double>(p[j - first]);
      if (x <= 0) {
        ++hidden;
        continue;
      }
      entropy -= x * std::log(x);
      if (j >= local) sums_.local += x;
      (j < sinks ? sums_.sink : sums_.distance[distance_bin(row - j)]) += x;
    }
    for (std::size_t s = 0; s < stats_.spans.size(); ++s) {
      const RowIndex end = std::min(stats_.spans[s].end, row + 1);
      for (RowIndex j = std::max(stats_.spans[s].begin, first); j < end; ++j)
        sums_.spans[s] += static_cast<double>(p[j - first]);
    }
    const double least = add_largest(first, row, p);
    // What is hidden lies on keys that have at most the least that is known: fewest, or all of
    // them.
    double entropy_max = entropy;
    if (residual > 0 && hidden > 0) {
      if (least > 0)
        entropy += residual * -std::log(std::min(
                                  1.0, std::max(least, residual / static_cast<double>(hidden))));
      entropy_max += residual * std::log(static_cast<double>(hidden) / residual);
    }
    sums_.entropy += entropy;
    sums_.entropy_max += entropy_max;
    sums_.support += std::exp(entropy);
  }

  [[nodiscard]] RowStats means() const {
    RowStats out = sums_;
    const double n = static_cast<double>(std::max<std::int64_t>(out.rows, 1));
    for (double* value : {&out.sink, &out.local, &out.entropy, &out.entropy_max, &out.support,
                          &out.sink_logit, &out.residual}) {
      *value /= n;
    }
    for (auto* values : {&out.distance, &out.top, &out.top_shares, &out.spans}) {
      for (double& value : *values) value /= n;
    }
    return out;
  }

 private:
  // Coverage of the largest probabilities; returns the least that is above 0.
  double add_largest(RowIndex first, RowIndex row, const float* p) {
    const std::int64_t keys = row + 1 - first;
    const auto of_share = [&](double share) {
      return static_cast<std::int64_t>(std::ceil(share * static_cast<double>(keys)));
    };
    const std::int64_t most =
        std::min(keys, std::max(kTopKeys[std::size(kTopKeys) - 1],
                                of_share(kTopShares[std::size(kTopShares) - 1])));
    sorted_.assign(p, p + keys);
    const auto end = sorted_.begin() + most;
    std::nth_element(sorted_.begin(), end - 1, sorted_.end(), std::greater<>());
    double least = 1;
    for (const float x : sorted_) {
      if (x > 0) least = std::min(least, static_cast<double>(x));
    }
    std::sort(sorted_.begin(), end, std::greater<>());
    sums_of_largest_.resize(static_cast<std::size_t>(most) + 1);
    sums_of_largest_[0] = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(most); ++i)
      sums_of_largest_[i + 1] = sums_of_largest_[i] + static_cast<double>(sorted_[i]);
    const auto largest = [&](std::int64_t k) {
      return sums_of_largest_[static_cast<std::size_t>(std::min(k, most))];
    };
    for (std::size_t i = 0; i < std::size(kTopKeys); ++i) sums_.top[i] += largest(kTopKeys[i]);
    for (std::size_t i = 0; i < std::size(kTopShares); ++i)
      sums_.top_shares[i] += largest(of_share(kTopShares[i]));
    return least;
  }

  const TraceStats& stats_;
  RowStats sums_;
  std::vector<float> sorted_;
  std::vector<double> sums_of_largest_;
};

// The keys below `keys` that received most: at most `count`, none that received nothing; ascending.
std::vector<std::int32_t> hitters(const std::vector<float>& mass, std::int64_t keys,
                                  std::int64_t count) {
  std::vector<std::int32_t> order;
  for (std::int64_t j = 0; j < keys; ++j) {
    if (mass[static_cast<std::size_t>(j)] > 0) order.push_back(static_cast<std::int32_t>(j));
  }
  count = std::min(count, static_cast<std::int64_t>(order.size()));
  const auto at = [&](std::int32_t j) { return mass[static_cast<std::size_t>(j)]; };
  std::partial_sort(
      order.begin(), order.begin() + count, order.end(),
      [&](std::int32_t a, std::int32_t b) { return at(a) != at(b) ? at(a) > at(b) : a < b; });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

// Mass received from a window of rows, compared with what the window before gave.
class Persistence {
 public:
  Persistence(std::int64_t tokens)
      : before_(static_cast<std::size_t>(tokens)), now_(static_cast<std::size_t>(tokens)) {}

  void add(RowIndex first, RowIndex row, const float* p) {
    if (begin_ < 0) begin_ = row;
    for (RowIndex j = first; j <= row; ++j) now_[static_cast<std::size_t>(j)] += p[j - first];
  }

  // Ends the window; its overlap with the one before.
  std::optional<double> finish() {
    std::optional<double> out;
    const auto count =
        static_cast<std::int64_t>(std::ceil(kHitterShare * static_cast<double>(begin_before_)));
    if (begin_ >= 0 && begin_before_ > 0) {
      // Fewer keys than a tenth have mass where most is hidden or underflows: equal numbers count.
      std::vector<std::int32_t> a = hitters(before_, begin_before_, count);
      std::vector<std::int32_t> b = hitters(now_, begin_before_, count);
      const std::size_t k = std::min(a.size(), b.size());
      if (k > 0) {
        a = hitters(before_, begin_before_, static_cast<std::int64_t>(k));
        b = hitters(now_, begin_before_, static_cast<std::int64_t>(k));
        std::vector<std::int32_t> both;
        std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
        out = static_cast<double>(both.size()) / static_cast<double>(k);
      }
    }
    begin_before_ = std::exchange(begin_, -1);
    before_.swap(now_);
    std::fill(now_.begin(), now_.end(), 0.0F);
    return out;
  }

 private:
  std::vector<float> before_, now_;  // [tokens]
  RowIndex begin_before_ = -1, begin_ = -1;
};

HeadClass classify(const HeadStats& head, const TraceStats& stats) {
  double needles = 0;
  for (std::size_t s = 0; s < stats.spans.size(); ++s) {
    if (stats.spans[s].name.starts_with("needle")) needles += head.decode.spans[s];
  }
  if (needles >= kMajority) return HeadClass::retrieval;
  if (head.prompt.sink >= kMajority) return HeadClass::sink;
  if (head.prompt.local >= kMajority) return HeadClass::local;
  if (head.persistence.value_or(0) >= kMajority) return HeadClass::heavy_hitter;
  return HeadClass::broad;
}

struct Sample {
  std::vector<RowIndex> prompt, decode;
};

Sample sample_rows(const Trace& trace, const LayerScores& scores, const TraceStatsOptions& options,
                   int layer) {
  Sample out;
  for (RowIndex row = options.from; row < trace.meta().tokens; ++row) {
    if (scores.has_row(row))
      (row < trace.meta().prompt_tokens ? out.prompt : out.decode).push_back(row);
  }
  if (out.prompt.empty() && out.decode.empty()) {
    throw TraceError(fmt::format("{}: layers.{}.scores.rows holds no row from {} on", trace.name(),
                                 layer, options.from));
  }
  out.prompt = even_sample(out.prompt, options.rows);
  out.decode = even_sample(out.decode, options.rows);
  return out;
}

// All query heads of one KV head: the group is computed together.
void kv_head_stats(const LayerScores& scores, const TraceMeta& meta, const TraceStats& stats,
                   const Sample& sample, int kv_head, std::span<HeadStats> out,
                   const std::function<void()>& tick) {
  const auto group = out.size();
  const std::int64_t keys = kernels::padded(meta.tokens);
  std::vector<float> buffer(group * static_cast<std::size_t>(keys));
  std::vector<float*> pointers;
  for (std::size_t g = 0; g < group; ++g)
    pointers.push_back(buffer.data() + g * static_cast<std::size_t>(keys));
  std::vector<RowTerms> terms(group);
  std::vector<RowSums> prompt(group, RowSums(stats));
  std::vector<RowSums> decode(group, RowSums(stats));
  std::vector<Persistence> persistence(group, Persistence(meta.tokens));
  std::vector<double> sum(group);
  std::vector<int> pairs(group);

  const auto add = [&](RowIndex row, std::vector<RowSums>& sums) {
    scores.compute(kv_head, {{&row, 1}, kernels::padded(row + 1)}, pointers, terms);
    const RowIndex first = scores.first_key(row);
    for (std::size_t g = 0; g < group; ++g) {
      const double whole = terms[g].sum + terms[g].sink;
      double known = terms[g].sink / whole;
      float* p = pointers[g] + first;
      for (RowIndex j = 0; j <= row - first; ++j) {
        p[j] = static_cast<float>(static_cast<double>(p[j]) / whole);
        known += static_cast<double>(p[j]);
      }
      const double residual = scores.is_qkv() ? 0 : std::max(0.0, 1.0 - known);
      sums[g].add(first, row, p, terms[g].sink / whole, residual);
      persistence[g].add(first, row, p);
    }
    tick();
  };

  const std::size_t rows = sample.prompt.size();
  for (std::size_t i = 0; i < rows; ++i) {
    add(sample.prompt[i], prompt);
    // Window w ends with sampled row (w + 1) * rows / kWindows.
    if ((i + 1) * kWindows / rows == i * kWindows / rows) continue;
    for (std::size_t g = 0; g < group; ++g) {
      if (const auto overlap = persistence[g].finish()) {
        sum[g] += *overlap;
        ++pairs[g];
      }
    }
  }
  for (const RowIndex row : sample.decode) add(row, decode);
  for (std::size_t g = 0; g < group; ++g) {
    if (pairs[g] > 0) out[g].persistence = sum[g] / pairs[g];
    if (!sample.decode.empty()) out[g].into_decode = persistence[g].finish();
    out[g].prompt = prompt[g].means();
    out[g].decode = decode[g].means();
    out[g].head_class = classify(out[g], stats);
  }
}

std::vector<int> chosen_layers(const TraceMeta& meta, const std::vector<int>& wanted) {
  std::vector<int> out(static_cast<std::size_t>(meta.layers));
  std::iota(out.begin(), out.end(), 0);
  if (wanted.empty()) return out;
  out.clear();
  for (const int layer : wanted) {
    const auto at = std::find(meta.layer_ids.begin(), meta.layer_ids.end(), layer);
    if (at == meta.layer_ids.end()) {
      throw ConfigError(fmt::format("the trace does not store layer {}; it has [{}]", layer,
                                    fmt::join(meta.layer_ids, ",")));
    }
    out.push_back(static_cast<int>(at - meta.layer_ids.begin()));
  }
  return out;
}

}  // namespace

std::string_view head_class_name(HeadClass head_class) {
  switch (head_class) {
    case HeadClass::retrieval:
      return "retrieval";
    case HeadClass::sink:
      return "sink";
    case HeadClass::local:
      return "local";
    case HeadClass::heavy_hitter:
      return "heavy hitter";
    case HeadClass::broad:
      break;
  }
  return "broad";
}

std::vector<RowIndex> even_sample(const std::vector<RowIndex>& rows, std::int64_t count) {
  const auto all = static_cast<std::int64_t>(rows.size());
  if (all <= count) return rows;
  std::vector<RowIndex> out;
  for (std::int64_t i = 1; i <= count; ++i)
    out.push_back(rows[static_cast<std::size_t>(i * all / count - 1)]);
  return out;
}

std::size_t distance_bin(std::int64_t distance) {
  return std::bit_width(static_cast<std::uint64_t>(distance));
}

TraceStats trace_stats(const Trace& trace, const TraceStatsOptions& options,
                       const std::function<void(double)>& tick) {
  const TraceMeta& meta = trace.meta();
  TraceStats stats;
  stats.options = options;
  if (options.from < 0) stats.options.from = meta.prompt_tokens / 2;
  if (options.rows == 0)
    stats.options.rows = std::clamp<std::int64_t>((1 << 23) / meta.tokens, 16, 512);
  if (stats.options.sinks < 0 || stats.options.window < 1 || stats.options.rows < 1 ||
      stats.options.from >= meta.tokens) {
    throw ConfigError(fmt::format(
        "statistics need sinks >= 0, window >= 1, rows >= 1 and from < {}; found {}, {}, {}, {}",
        meta.tokens, stats.options.sinks, stats.options.window, stats.options.rows,
        stats.options.from));
  }
  for (std::size_t b = 0; b <= distance_bin(meta.tokens - 1); ++b)
    stats.bins.push_back(b == 0 ? 0 : std::int64_t{1} << (b - 1));
  stats.spans = meta.spans;
  const std::vector<int> layers = chosen_layers(meta, options.layers);
  const auto group = static_cast<std::size_t>(meta.query_heads / meta.kv_heads);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerScores scores(trace, layers[i]);
    const Sample sample = sample_rows(trace, scores, stats.options, layers[i]);
    LayerStats out;
    out.layer = meta.layer_ids[static_cast<std::size_t>(layers[i])];
    out.heads.resize(static_cast<std::size_t>(meta.query_heads));
    const auto work = static_cast<double>((sample.prompt.size() + sample.decode.size()) *
                                          static_cast<std::size_t>(meta.kv_heads));
    std::atomic<std::int64_t> done = 0;
    tbb::parallel_for(0, meta.kv_heads, [&](int h) {
      kv_head_stats(scores, meta, stats, sample, h,
                    std::span(out.heads).subspan(static_cast<std::size_t>(h) * group, group), [&] {
                      if (!tick) return;
                      tick((static_cast<double>(i) + static_cast<double>(++done) / work) /
                           static_cast<double>(layers.size()));
                    });
    });
    stats.layers.push_back(std::move(out));
  }
  return stats;
}

}  // namespace kvspan
