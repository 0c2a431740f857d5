// SPDX-License-Identifier: Apache-2.0
// CurDKV: keeps entries by the leverage of their keys and values, approximated by squared norms
// that are normalised within windows of `window` entries: k2 * v2 (leverage=kv_product), one of
// them, or their mean. The first `sinks` tokens rank above all.
// Source: Sengupta et al., arXiv 2509.15038; kvpress CURPress, whose defaults these are (without
// its Gaussian sketch of keys and values, which the paper describes: it is unseeded there, and left
// out here). The last window is normalised by the entries that it has. Where the source gives 0/0
// (a window of zero vectors) the leverage is 0 here. Entries that are ranked together are one
// sequence.
#include <algorithm>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

enum class Leverage : std::uint8_t { product, key, value, mean };

class Cur final : public Scorer {
 public:
  Cur(TokenCount sinks, std::int64_t window, Leverage leverage)
      : sinks_(sinks), window_(window), leverage_(leverage) {}
  Needs needs() const override {
    return {.k = leverage_ != Leverage::value, .v = leverage_ != Leverage::key};
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head(head);
    std::vector<double> k2;
    std::vector<double> v2;
    if (needs().k) k2 = local(keys_.of(view, kv_head, entries));
    if (needs().v) v2 = local(values_.of(view, kv_head, entries));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      switch (leverage_) {
        case Leverage::product:
          out[i] = k2[i] * v2[i];
          break;
        case Leverage::key:
          out[i] = k2[i];
          break;
        case Leverage::value:
          out[i] = v2[i];
          break;
        case Leverage::mean:
          out[i] = (k2[i] + v2[i]) / 2;
          break;
      }
      if (entries[i] < sinks_) out[i] = 2;  // others are at most 1
    }
    round_sums(out);
    return 0;
  }

 private:
  // Shares of the sum of their window.
  [[nodiscard]] std::vector<double> local(std::vector<double> out) const {
    for (std::size_t begin = 0; begin < out.size(); begin += index(window_)) {
      const std::size_t end = std::min(out.size(), begin + index(window_));
      double sum = 0;
      for (std::size_t i = begin; i < end; ++i) sum += out[i];
      for (std::size_t i = begin; i < end && sum > 0; ++i) out[i] /= sum;
    }
    return out;
  }

  TokenCount sinks_;
  std::int64_t window_;
  Leverage leverage_;
  SquaredNorms keys_{Vectors::keys}, values_{Vectors::values};
};

Leverage parse_leverage(const std::string& word) {
  if (word == "key") return Leverage::key;
  if (word == "value") return Leverage::value;
  return word == "kv_avg" ? Leverage::mean : Leverage::product;
}

}  // namespace

PolicyEntry cur() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "cur";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps entries of high leverage, by local norms of key and value";
  entry.source = "Sengupta et al. 2025, arXiv 2509.15038; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "the paper's random sketch is unseeded in kvpress; the local norms are taken here";
  entry.needs = "k and v (leverage=key or value: that one)";
  entry.parameters = {budget_parameter(),
                      {.name = "sinks",
                       .fallback = "4",
                       .unit = "tokens",
                       .help = "first tokens, ranked above all"},
                      {.name = "window",
                       .fallback = "16",
                       .unit = "entries",
                       .help = "norms are shares of their window",
                       .range = {1, 1e9}},
                      {.name = "leverage",
                       .kind = Kind::word,
                       .fallback = "kv_product",
                       .help = "what is ranked",
                       .choices = {"kv_product", "key", "value", "kv_avg"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [sinks = arguments.count("sinks"), window = arguments.count("window"),
                    leverage = parse_leverage(arguments.text("leverage"))](const LayerShape&) {
      return std::make_unique<Cur>(sinks, window, leverage);
    };
    scoring.by_place = true;
    scoring.sharing = Sharing::always;
    return budgeted(arguments, geometry, own(scoring));
  };
  return entry;
}

}  // namespace kvspan::policies
