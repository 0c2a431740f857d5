// SPDX-License-Identifier: Apache-2.0
// KVQuant: keys before their rotation and per channel, values per token, to a codebook of 2^bits
// levels ("nuq"); the most extreme `outliers` of the elements are kept as they are, and so is the
// first token. Ranges of the keys' channels and both codebooks are fixed beforehand, those of a
// value's token are taken when it comes. A range goes without floor(outliers / 2 n) of n elements at
// either end, and is held as fp16 centre and half width, which the codebook's [-1, 1] is stretched to;
// an element outside it is an outlier. Every entry is quantised at the end of its pass.
// Source: Hooper et al., arXiv 2401.18079; code SqueezeAILab/KVQuant (quant and deployment trees).
//
// Stand-in ("kvquant-noFisher"): ranges and codebooks come from the first half of the prompt of the
// replayed trace, but for its first token, and the k-means is not weighted by Fisher information; the authors calibrate on 16
// sequences of another corpus. Left out: Q-Norm (2 bits), the cap on outliers per token. Without
// rope_* fields keys are quantised as they stand in the trace, after the rotation.
//
// Bytes of a layer, T tokens, D = KV heads x channels (paper, section 3.6):
//   keys    T D bits/8 + outliers T D 4 + 4 T       + 4 D + 2 x 2^bits
//   values  T D bits/8 + outliers T D 4 + 4 T + 4 T       + 2 x 2^bits
// (outlier: 16-bit value and index; a pointer per token; scale and zero per channel or token). What
// grows with T is spread over the entries so that the sum over the first T of a head is its floor.
// accounting=deploy is the released code: slots for outliers of 8 bytes and, for values, a table of
// 2^bits fp32 per token, all allocated for the whole run.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/quantise.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

// A range: fp16 centre and half width. Elements outside are outliers.
struct Range {
  float low = 0, high = 0, centre = 0, width = 0;
  [[nodiscard]] bool holds(float x) const { return x >= low && x <= high; }
  [[nodiscard]] float normal(float x) const { return width > 0 ? (x - centre) / width : 0.0F; }
};

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

// Levels in [-1, 1], ascending.
using Codebook = std::vector<float>;

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

struct Settings {
  int bits = 4;
  double tails = 0.005;  // outliers at either end
  bool fit = true;
  double bytes = 0;  // of an entry, on average
  [[nodiscard]] std::int64_t bytes_below(RowIndex tokens) const {
    return static_cast<std::int64_t>(std::floor(bytes * static_cast<double>(tokens) + 1e-6));
  }
};

constexpr std::size_t kSamples = 1U << 15U;  // of a k-means

class NonUniform final : public Store {
 public:
  explicit NonUniform(const Settings& settings) : settings_(settings) {}

  void age(const View& view, Decision& out) override {
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

 private:
  static std::vector<float> key_of(const View& view, int head, TokenIndex token) {
    std::vector<float> key = view.key(head, token);
    if (view.rope() != nullptr) rotate(*view.rope(), -static_cast<double>(token), key);
    return key;
  }

  void quantise_key(Rewrite& rewrite) const {
    const std::vector<Range>& ranges = key_ranges_[index(rewrite.kv_head)];
    for (std::size_t c = 0; c < rewrite.k.size(); ++c)
      rewrite.k[c] = held(rewrite.k[c], ranges[c], key_levels_);
  }

  // A token's values share one range over all heads.
  void quantise_value(std::vector<Rewrite>& heads) const {
    std::vector<float> all;
    for (const Rewrite& r : heads) all.insert(all.end(), r.v.begin(), r.v.end());
    const Range range = range_of(all, settings_.tails);
    for (Rewrite& r : heads) {
      for (float& x : r.v) x = held(x, range, value_levels_);
    }
  }

  static float held(float x, const Range& range, const Codebook& levels) {
    return range.holds(x) ? range.centre + range.width * nearest(levels, range.normal(x)) : x;
  }

  // On the first half of the prompt, without the first token.
  void calibrate(const View& view) {
    const LayerShape& shape = view.shape();
    const RowIndex end = std::max<RowIndex>(1, view.pass().evict_at / 2);
    const RowIndex begin = end > 1 ? 1 : 0;
    const auto rows = index(end - begin);
    const auto elements = rows * index(shape.heads);
    const std::size_t key_step =
        1 + elements * index(shape.k_dim) / kSamples;  // every so many elements are a sample
    const std::size_t value_step = 1 + elements * index(shape.v_dim) / kSamples;
    std::vector<float> key_samples;
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
          if (at++ % key_step == 0 && range.holds(x)) key_samples.push_back(range.normal(x));
        }
      }
    }
    std::vector<float> value_samples;
    at = 0;
    for (RowIndex row = begin; row < end; ++row) {
      std::vector<float> all;
      for (int head = 0; head < shape.heads; ++head) {
        const std::vector<float> value = view.value(head, static_cast<TokenIndex>(row));
        all.insert(all.end(), value.begin(), value.end());
      }
      const Range range = range_of(all, settings_.tails);
      for (const float x : all) {
        if (at++ % value_step == 0 && range.holds(x)) value_samples.push_back(range.normal(x));
      }
    }
    const int bits = settings_.bits;
    key_levels_ = settings_.fit ? fit_levels(std::move(key_samples), bits) : uniform_levels(bits);
    value_levels_ =
        settings_.fit ? fit_levels(std::move(value_samples), bits) : uniform_levels(bits);
  }

  Settings settings_;
  std::vector<std::vector<Range>> key_ranges_;  // [heads][channels]
  Codebook key_levels_, value_levels_;
};

// Bytes that come with the entries and beside them.
void set_paper_bytes(Settings& s, const Geometry& g, double outliers, Charge& charge) {
  const double dims = g.k_dim + g.v_dim;
  s.bytes = dims * s.bits / 8 + outliers * dims * 4 + 12.0 / g.kv_heads;
  charge.once = g.layers() * (std::int64_t{4} * g.kv_heads * g.k_dim + (4LL << s.bits));
}

void set_deployed_bytes(Settings& s, const Geometry& g, double outliers, Charge& charge) {
  const auto slots = [&](std::int64_t dim) {  // of a token: two tails, rounded up
    const double tail = outliers / 2 * static_cast<double>(g.kv_heads * dim);
    return 2 * (static_cast<std::int64_t>(std::floor(tail)) + 1);
  };
  const std::int64_t codes =
      (std::int64_t{g.k_dim} * s.bits + 7) / 8 + (std::int64_t{g.v_dim} * s.bits + 7) / 8;
  const std::int64_t token = 8 * (slots(g.k_dim) + slots(g.v_dim)) + (4LL << s.bits);
  s.bytes = static_cast<double>(codes);
  const std::int64_t layers = g.layers();
  charge.once = layers * g.tokens * token;
  charge.during = [=, heads = g.kv_heads, tokens = g.tokens](RowIndex row) {
    return layers * heads * codes * (tokens - row - 1);  // not yet filled
  };
}

}  // namespace

PolicyEntry kvquant() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "kvquant";
  entry.kind = MethodKind::quantisation;
  entry.summary = "keys before rotation per channel, values per token, to a fitted codebook";
  entry.source = "Hooper et al. 2024, arXiv 2401.18079; code SqueezeAILab/KVQuant";
  entry.evidence = "code read";
  entry.differs =
      "the paper's accounting and the released deployment code differ in bytes "
      "(accounting=); codebooks are fitted here without Fisher information";
  entry.needs = "nothing; k, v and the rope_* fields for the error of the output";
  entry.parameters = {
      {.name = "bits",
       .kind = Kind::word,
       .fallback = "4",
       .unit = "bits",
       .help = "of keys and values",
       .choices = {"4", "3", "2"}},
      {.name = "outliers",
       .kind = Kind::amount,
       .fallback = "1%",
       .unit = "% of the elements",
       .help = "kept as they are"},
      {.name = "accounting",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "deploy: the released code's slots and tables, allocated for the whole run",
       .choices = {"paper", "deploy"}},
      {.name = "codebook",
       .kind = Kind::word,
       .fallback = "nuq",
       .help = "nuq: k-means on the prompt's first half; uniform: equal steps",
       .choices = {"nuq", "uniform"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const double outliers = share_argument(arguments, "outliers");
    Recipe recipe;
    Settings s;
    s.bits = std::stoi(arguments.text("bits"));
    s.tails = outliers / 2;
    s.fit = arguments.is("codebook", "nuq");
    if (arguments.is("accounting", "paper")) {
      set_paper_bytes(s, geometry, outliers, recipe.charge);
    } else {
      set_deployed_bytes(s, geometry, outliers, recipe.charge);
    }
    Storing store;
    const std::int64_t full = geometry.entry_bytes();
    const std::int64_t least = s.bytes_below(1);
    store.make = [s](const LayerShape&) { return std::make_unique<NonUniform>(s); };
    store.representations = {{fmt::format("nuq{}", s.bits), least, 0},
                             {fmt::format("nuq{} and one more byte", s.bits), least + 1, 0}};
    store.payload = [s, full](TokenCount entries, const Pass&) {  // the first token is whole
      return entries < 1 ? 0 : full + s.bytes_below(entries) - s.bytes_below(1);
    };
    store.exact = Storing::Exact::without_evictions;
    store.bound = [full, least](TokenCount entries, const Pass&) {
      return entries < 1 ? 0 : std::max(full, least + 1) + (entries - 1) * (least + 1);
    };
    store.alters_vectors = true;
    store.entry_bytes = least + 1;
    recipe.store = own(std::move(store));
    recipe.notes.emplace_back(
        "stand-in: ranges and codebooks from the prompt's first half, k-means without Fisher "
        "information; not the authors' calibration");
    if (geometry.trace != nullptr && geometry.trace->is_qkv() && !geometry.trace->meta().rope)
      recipe.notes.emplace_back("keys are quantised after rotation: the trace lacks rope_*");
    recipe.knob = Knob{"bits", 2, 4, true, [](TokenCount bits) { return std::to_string(bits); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
