// SPDX-License-Identifier: Apache-2.0
#include "tracegen/synth/synth.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include <Eigen/Core>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "sim/trace/safetensors.h"
#include "sim/trace/trace.h"
#include "tracegen/synth/portable.h"

namespace kvspan::tracegen {
namespace {

using portable::random_bits;

// First word of every random number's key: what it is for.
enum Stream : std::uint64_t {
  kPlan = 1,
  kWord,        // of a token
  kHitterWord,  // strength of a word, of a token
  kHitterToken,
  kKeyWord,  // code of a word
  kSought,   // code that a row looks for
  kNull,     // what no query reads
  kTopic,
  kNeedle,
  kSpread,
  kValueMean,
  kValueWord,
  kValueToken,
  kHeads,
  kGrid
};

constexpr double kLn2 = 0.69314718055994531;
constexpr int kWordBits = 12;             // vocabulary 4,096
constexpr std::int64_t kTopicBlend = 64;  // tokens over which a topic gives way to the next
constexpr double kTurnMarker = 3;         // strength of the first token of a turn
constexpr std::int64_t kNeedleTokens = 24, kQuestionTokens = 16;
constexpr double kWordNorm = 2, kTopicNorm = 2, kNeedleNorm = 2;  // of keys in the subspace
constexpr double kNullMean = 3;
constexpr std::int64_t kBlockTokens = 1024;
constexpr int kCalibrationRows = 32;

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// `out` of +-size / sqrt(count), one bit each.
void sign_code(std::initializer_list<std::uint64_t> key, double norm, std::span<float> out) {
  const auto size = static_cast<float>(norm / std::sqrt(static_cast<double>(out.size())));
  const std::uint64_t first = random_bits(key);
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    bits = i % 64 == 0 ? random_bits({first, i / 64}) : bits >> 1U;
    out[i] = (bits & 1U) != 0 ? size : -size;
  }
}

// Solves A x = b in place for a symmetric positive definite A [n, n] (Cholesky); A becomes its
// factor. With `factored`, A is one already.
void solve(std::vector<double>& a, std::span<double> b, bool factored) {
  const std::size_t n = b.size();
  for (std::size_t i = 0; i < n && !factored; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = a[i * n + j];
      for (std::size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? std::sqrt(sum) : sum / a[j * n + j];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
    b[i] /= a[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
    b[i] /= a[i * n + i];
  }
}

// The gain at which a rising share reaches `wanted`; the nearest of [-40, 80].
double bisect(double wanted, const std::function<double(double)>& share) {
  double low = -40;
  double high = 80;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (share(middle) < wanted ? low : high) = middle;
  }
  return (low + high) / 2;
}

double sigmoid(double x) { return 1 / (1 + portable::exp(-x)); }

// Subspaces of head_dim, one after the other.
struct Channels {
  int rope = 0;  // rotary pairs (i, i + rope / 2)
  int sink = 0, hitter = 0, null = 0;
  int topic = 0, topics = 0, word = 0, words = 0, needle = 0, needles = 0;  // first, count
  explicit Channels(int head_dim) {
    rope = head_dim / 4 * 2;
    sink = rope;
    hitter = sink + 1;
    null = hitter + 1;
    const int rest = head_dim - null - 1;
    topic = null + 1;
    topics = rest / 4;
    needle = topic + topics;
    needles = rest / 4;
    word = needle + needles;
    words = head_dim - word;
  }
};

double synth_theta(std::int64_t tokens) {
  return static_cast<double>(std::max<std::int64_t>(10000, 8 * tokens));
}

double locality_at(const std::vector<double>& curve, std::int64_t distance) {
  if (curve.empty()) return 0;
  const double x = distance == 0 ? 0 : 1 + portable::log(static_cast<double>(distance)) / kLn2;
  const auto at = std::min(static_cast<std::size_t>(x), curve.size() - 1);
  const std::size_t next = std::min(at + 1, curve.size() - 1);
  return curve[at] + (x - static_cast<double>(at)) * (curve[next] - curve[at]);
}

// Distances with weights, that stand for all of [0, tokens): every one below 2,048, then 1,024 of
// each octave.
struct Grid {
  std::vector<std::int64_t> distance;
  std::vector<double> weight;
  Grid(std::int64_t tokens, std::uint64_t seed, std::int64_t exact, std::int64_t of_octave) {
    for (std::int64_t d = 0; d < std::min(exact, tokens); ++d) add(d, 1);
    for (std::int64_t begin = exact; begin < tokens; begin *= 2) {
      const std::int64_t count = std::min(begin, tokens - begin);
      const std::int64_t points = std::min(count, of_octave);
      const double stratum = static_cast<double>(count) / static_cast<double>(points);
      for (std::int64_t i = 0; i < points; ++i) {
        const double u =
            portable::uniform(random_bits({kGrid, seed, static_cast<std::uint64_t>(begin + i)}));
        add(begin + static_cast<std::int64_t>((static_cast<double>(i) + u) * stratum), stratum);
      }
    }
  }
  void add(std::int64_t d, double w) {
    distance.push_back(d);
    weight.push_back(w);
  }
};

double draw(const HeadKind::Range& range, std::uint64_t bits) {
  return range.first + (range.second - range.first) * portable::uniform(bits);
}

// A layer of a profile of kinds: every kind gets its share of the heads, in random order.
LayerProfile draw_layer(const SynthProfile& profile, const SynthOptions& options,
                        std::uint64_t layer) {
  LayerProfile out;
  out.key_common = profile.key_common;
  const auto heads = static_cast<std::size_t>(options.query_heads);
  const auto bits = [&](std::size_t head, std::uint64_t what) {
    return random_bits({kHeads, options.seed, layer, head, what});
  };
  std::vector<std::size_t> order(heads);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return bits(a, 0) < bits(b, 0); });
  double shares = 0;
  for (const HeadKind& kind : profile.kinds) shares += kind.share;
  const double offset = portable::uniform(random_bits({kHeads, options.seed, layer}));
  out.heads.resize(heads);
  for (std::size_t rank = 0; rank < heads; ++rank) {
    double at = (static_cast<double>(rank) + offset) / static_cast<double>(heads) * shares;
    std::size_t k = 0;
    while (k + 1 < profile.kinds.size() && at >= profile.kinds[k].share)
      at -= profile.kinds[k++].share;
    const HeadKind& kind = profile.kinds[k];
    const std::size_t h = order[rank];
    HeadProfile& head = out.heads[h];
    if (kind.sink) head.sink = draw(*kind.sink, bits(h, 1));
    if (kind.needle) head.needle = draw(*kind.needle, bits(h, 2));
    head.hitters = draw(kind.hitters, bits(h, 3));
    head.content = draw(kind.content, bits(h, 4));
    head.topics = draw(kind.topics, bits(h, 5));
    head.spread = draw(kind.spread, bits(h, 6));
    const double decay = draw(kind.decay, bits(h, 7));
    if (decay == 0) continue;
    head.locality = {0};
    for (std::int64_t d = 1; d < options.tokens; d *= 2)
      head.locality.push_back(-decay * portable::log(1 + static_cast<double>(d)));
  }
  return out;
}

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
        random_bits({kPlan, options.seed, what, static_cast<std::uint64_t>(i)}));
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

struct SynthLayer::Impl {
  SynthOptions options;
  SynthPlan plan;
  Channels channels;
  std::uint64_t stream = 0;         // of the layer
  LayerProfile profile;             // one for each query head
  double root = 0;                  // sqrt(head_dim) = 1 / score_scale
  std::vector<double> frequency;    // [rope / 2], turns per token
  std::vector<float> needle_codes;  // [needles, channels.needles], unit, orthogonal if they can be
  struct Gains {
    std::vector<double> cosines, sines;  // [rope / 2]: locality = sum c cos(w d) + s sin(w d)
    double sink = 0, needle = 0;
  };
  std::vector<Gains> gains;  // [query_heads]

  Impl(const SynthOptions& o, const SynthPlan& p, const SynthProfile& from, int layer)
      : options(o), plan(p), channels(o.head_dim) {
    const int id = options.layer_ids[static_cast<std::size_t>(layer)];
    stream = static_cast<std::uint64_t>(id);
    if (from.layers.empty()) {
      profile = draw_layer(from, options, stream);
    } else {
      profile = from.layers[static_cast<std::size_t>(layer) % from.layers.size()];
      const std::vector<HeadProfile> heads = profile.heads;
      profile.heads.clear();
      for (int h = 0; h < options.query_heads; ++h)
        profile.heads.push_back(heads[static_cast<std::size_t>(h) % heads.size()]);
    }
    root = std::sqrt(static_cast<double>(options.head_dim));
    const double log_theta = portable::log(synth_theta(options.tokens));
    for (int i = 0; i < channels.rope; i += 2)
      frequency.push_back(portable::exp(-log_theta * i / channels.rope) / 6.283185307179586);
    make_needle_codes();
    gains.resize(static_cast<std::size_t>(options.query_heads));
    fit_locality();
    calibrate();
  }

  [[nodiscard]] std::uint64_t bits(Stream what, std::int64_t a, std::int64_t b = 0) const {
    return random_bits(
        {what, options.seed, stream, static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b)});
  }

  // ---- The sequence -----------------------------------------------------------------------------

  // Zipf's law with exponent 1: log-uniform in [1, 4096).
  [[nodiscard]] std::int64_t word(std::int64_t token) const {
    const double u =
        portable::uniform(random_bits({kWord, options.seed, static_cast<std::uint64_t>(token)}));
    return static_cast<std::int64_t>(portable::exp(kWordBits * kLn2 * u));
  }
  [[nodiscard]] bool turn_marker(std::int64_t token) const {
    const auto at = std::lower_bound(plan.turns.begin(), plan.turns.end(), token,
                                     [](const Span& s, std::int64_t t) { return s.begin < t; });
    return token > 0 && at != plan.turns.end() && at->begin == token;
  }
  // Which needle a token is part of, or -1.
  [[nodiscard]] int needle_of(std::int64_t token) const {
    for (std::size_t i = 0; i < plan.needles.size(); ++i) {
      if (token >= plan.needles[i].begin && token < plan.needles[i].end) return static_cast<int>(i);
    }
    return -1;
  }
  // Which needle a row looks for, or -1.
  [[nodiscard]] int asked(std::int64_t row) const {
    const auto needles = static_cast<std::int64_t>(plan.needles.size());
    if (needles > 0 && row >= options.prompt_tokens) {
      return static_cast<int>((row - options.prompt_tokens) * needles /
                              (options.tokens - options.prompt_tokens));
    }
    for (std::size_t i = 0; i < std::min(plan.questions.size(), plan.needles.size()); ++i) {
      if (row >= plan.questions[i].begin && row < plan.questions[i].end) return static_cast<int>(i);
    }
    return -1;
  }

  // ---- Channels of one token ---------------------------------------------------------------------

  [[nodiscard]] double hitter(int kv_head, std::int64_t token) const {
    if (token < kSynthSinks) return 0;
    return std::sqrt(0.5) * (portable::normal(bits(kHitterWord, kv_head, word(token))) +
                             portable::normal(bits(kHitterToken, kv_head, token))) +
           (turn_marker(token) ? kTurnMarker : 0);
  }

  void topic(std::int64_t token, std::span<float> out) const {
    std::fill(out.begin(), out.end(), 0.0F);
    if (plan.topics.empty() || out.empty()) return;
    const auto next = std::upper_bound(
        plan.topics.begin(), plan.topics.end(), token,
        [](std::int64_t t, const SynthPlan::Topic& topic) { return t < topic.begin; });
    const std::int64_t at = next - plan.topics.begin() - 1;
    std::array<float, 256> code{};
    const auto add = [&](std::int64_t segment, double share) {
      const std::span<float> one(code.data(), out.size());
      sign_code({bits(kTopic, plan.topics[static_cast<std::size_t>(segment)].id)}, 1, one);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += static_cast<float>(share) * one[i];
    };
    const std::int64_t since = token - plan.topics[static_cast<std::size_t>(at)].begin;
    const double blend =
        at == 0 ? 1 : std::min(1.0, static_cast<double>(since) / static_cast<double>(kTopicBlend));
    add(at, blend);
    if (blend < 1) add(at - 1, 1 - blend);
  }

  void make_needle_codes() {
    const auto dim = static_cast<std::size_t>(channels.needles);
    needle_codes.resize(plan.needles.size() * dim);
    for (std::size_t n = 0; n < plan.needles.size(); ++n) {
      std::vector<double> code(dim);
      for (std::size_t i = 0; i < dim; ++i)
        code[i] = portable::normal(
            bits(kNeedle, static_cast<std::int64_t>(n), static_cast<std::int64_t>(i)));
      for (std::size_t m = 0; m < n && n < dim; ++m) {  // Gram-Schmidt while there is room
        const float* other = needle_codes.data() + m * dim;
        double along = 0;
        for (std::size_t i = 0; i < dim; ++i) along += code[i] * static_cast<double>(other[i]);
        for (std::size_t i = 0; i < dim; ++i) code[i] -= along * static_cast<double>(other[i]);
      }
      double norm = 0;
      for (const double x : code) norm += x * x;
      for (std::size_t i = 0; i < dim; ++i)
        needle_codes[n * dim + i] = static_cast<float>(code[i] / std::sqrt(norm));
    }
  }
  [[nodiscard]] std::span<const float> needle_code(int needle) const {
    const auto dim = static_cast<std::size_t>(channels.needles);
    return {needle_codes.data() + static_cast<std::size_t>(needle) * dim, dim};
  }

  // Everything of a key but its rotary part; sinks have nothing but the sink channel.
  void key_content(int kv_head, std::int64_t token, std::span<float> k) const {
    std::fill(k.begin(), k.end(), 0.0F);
    const auto sub = [&](int first, int count) {
      return k.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    };
    if (token < kSynthSinks) {
      sub(channels.sink, 1)[0] = 1;
      return;
    }
    sub(channels.hitter, 1)[0] = static_cast<float>(profile.key_common - hitter(kv_head, token));
    sub(channels.null, 1)[0] =
        static_cast<float>(kNullMean + portable::normal(bits(kNull, kv_head, token)));
    topic(token, sub(channels.topic, channels.topics));
    for (float& x : sub(channels.topic, channels.topics)) x *= static_cast<float>(kTopicNorm);
    sign_code({bits(kKeyWord, kv_head, word(token))}, kWordNorm,
              sub(channels.word, channels.words));
    const int needle = needle_of(token);
    if (needle < 0) return;
    for (int i = 0; i < channels.needles; ++i) {
      k[static_cast<std::size_t>(channels.needle) + static_cast<std::size_t>(i)] =
          static_cast<float>(kNeedleNorm) * needle_code(needle)[static_cast<std::size_t>(i)];
    }
  }

  // Everything of a query but its rotary part.
  void query_content(int head, std::int64_t row, std::span<float> q) const {
    std::fill(q.begin(), q.end(), 0.0F);
    const HeadProfile& h = profile.heads[static_cast<std::size_t>(head)];
    const Gains& g = gains[static_cast<std::size_t>(head)];
    const auto sub = [&](int first, int count) {
      return q.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    };
    double sink = g.sink;
    if (h.spread > 0) sink += h.spread * portable::normal(bits(kSpread, head, row));
    // The key's common component adds -hitters * key_common to every key but the sinks.
    sub(channels.sink, 1)[0] = static_cast<float>((sink - h.hitters * profile.key_common) * root);
    sub(channels.hitter, 1)[0] = static_cast<float>(-h.hitters * root);
    if (h.topics != 0) {
      topic(row, sub(channels.topic, channels.topics));
      for (float& x : sub(channels.topic, channels.topics))
        x *= static_cast<float>(h.topics / kTopicNorm * root);
    }
    if (h.content != 0) {
      const double words = channels.words;
      sign_code({bits(kSought, head, row)}, h.content / kWordNorm * root * std::sqrt(words),
                sub(channels.word, channels.words));
    }
    const int needle = asked(row);
    if (needle < 0 || g.needle == 0) return;
    for (int i = 0; i < channels.needles; ++i) {
      q[static_cast<std::size_t>(channels.needle) + static_cast<std::size_t>(i)] =
          static_cast<float>(g.needle / kNeedleNorm * root) *
          needle_code(needle)[static_cast<std::size_t>(i)];
    }
  }

  [[nodiscard]] std::size_t head_index(int kv_head, int of_group) const {
    return static_cast<std::size_t>(kv_head) *
               static_cast<std::size_t>(options.query_heads / options.kv_heads) +
           static_cast<std::size_t>(of_group);
  }

  // ---- Calibration -------------------------------------------------------------------------------

  // Least squares over distances, each octave with the same weight: the wanted curve as a mixture of
  // the rotary frequencies, and a constant that the softmax does not see.
  void fit_locality() {
    const std::size_t pairs = frequency.size();
    const std::size_t n = 2 * pairs + 1;
    const Grid grid(options.tokens, 0, 16, 64);
    std::vector<double> basis(grid.distance.size() * n);
    std::vector<double> weight;
    std::vector<double> matrix(n * n);
    for (std::size_t i = 0; i < grid.distance.size(); ++i) {
      const std::int64_t d = grid.distance[i];
      weight.push_back(d == 0 ? 1
                              : 1 / static_cast<double>(std::min<std::int64_t>(
                                        64, static_cast<std::int64_t>(
                                                std::bit_floor(static_cast<std::uint64_t>(d))))));
      double* row = basis.data() + i * n;
      for (std::size_t p = 0; p < pairs; ++p) {
        const auto [s, c] = portable::sin_cos(frequency[p] * static_cast<double>(d));
        row[p] = c;
        row[pairs + p] = s;
      }
      row[n - 1] = 1;
      for (std::size_t a = 0; a < n; ++a) {
        for (std::size_t b = 0; b <= a; ++b) matrix[a * n + b] += weight[i] * row[a] * row[b];
      }
    }
    for (std::size_t a = 0; a < n; ++a) matrix[a * n + a] += a + 1 < n ? 1e-3 : 1e-9;
    bool factored = false;
    for (std::size_t h = 0; h < gains.size(); ++h) {
      std::vector<double> x(n);
      for (std::size_t i = 0; i < grid.distance.size(); ++i) {
        const double wanted = weight[i] * locality_at(profile.heads[h].locality, grid.distance[i]);
        for (std::size_t a = 0; a < n; ++a) x[a] += wanted * basis[i * n + a];
      }
      solve(matrix, x, factored);
      factored = true;
      gains[h].cosines.assign(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(pairs));
      gains[h].sines.assign(x.begin() + static_cast<std::ptrdiff_t>(pairs), x.end() - 1);
    }
  }

  // Gains of sinks and needles, from rows and keys that are sampled.
  void calibrate() {
    const Grid grid(options.tokens, options.seed, 2048, 1024);
    std::vector<double> waves(grid.distance.size() * frequency.size() * 2);  // cos, sin
    for (std::size_t i = 0; i < grid.distance.size(); ++i) {
      for (std::size_t p = 0; p < frequency.size(); ++p) {
        const auto [s, c] = portable::sin_cos(frequency[p] * static_cast<double>(grid.distance[i]));
        waves[(i * frequency.size() + p) * 2] = c;
        waves[(i * frequency.size() + p) * 2 + 1] = s;
      }
    }
    const std::int64_t end =
        plan.questions.empty() ? options.prompt_tokens : plan.questions.front().begin;
    std::vector<std::int64_t> rows;
    for (int i = 1; i <= kCalibrationRows; ++i)
      rows.push_back(std::max(kSynthSinks, end / 2 + (end - end / 2) * i / kCalibrationRows - 1));
    std::vector<std::int64_t> answers;
    for (std::size_t i = 0; i < plan.needles.size(); ++i) {
      const std::int64_t decode = options.tokens - options.prompt_tokens;
      const auto count = static_cast<std::int64_t>(plan.needles.size());
      const bool in_decode = decode >= count;  // else the question's rows
      const auto n = static_cast<std::int64_t>(i);
      const std::int64_t first = in_decode
                                     ? options.prompt_tokens + (n * decode + count - 1) / count
                                 : i < plan.questions.size() ? plan.questions[i].begin
                                                             : 0;
      const std::int64_t last = in_decode
                                    ? options.prompt_tokens + ((n + 1) * decode + count - 1) / count
                                : i < plan.questions.size() ? plan.questions[i].end
                                                            : 0;
      for (std::int64_t k = 0; k < std::min<std::int64_t>(8, last - first); ++k)
        answers.push_back(first + k * (last - first) / std::min<std::int64_t>(8, last - first));
    }
    tbb::parallel_for(0, options.kv_heads,
                      [&](int kv_head) { calibrate_group(kv_head, grid, waves, rows, answers); });
  }

  // Mass of sums of exp(logit) that a row gives to its keys, without gains of sinks and needles.
  struct Masses {
    double sink_shift = 0;  // of this row, spread
    double needle = 0, rest = 0;
  };

  void calibrate_group(int kv_head, const Grid& grid, const std::vector<double>& waves,
                       const std::vector<std::int64_t>& rows,
                       const std::vector<std::int64_t>& answers) {
    const int group = options.query_heads / options.kv_heads;
    const auto dim = static_cast<std::size_t>(options.head_dim);
    std::vector<std::vector<double>> locality;
    for (int g = 0; g < group; ++g) {
      const Gains& own = gains[head_index(kv_head, g)];
      std::vector<double>& out = locality.emplace_back(grid.distance.size());
      for (std::size_t i = 0; i < out.size(); ++i) {
        const double* wave = waves.data() + i * frequency.size() * 2;
        for (std::size_t p = 0; p < frequency.size(); ++p)
          out[i] += own.cosines[p] * wave[2 * p] + own.sines[p] * wave[2 * p + 1];
      }
    }
    std::vector<float> key(dim);
    std::vector<float> queries(static_cast<std::size_t>(group) * dim);
    const auto measure = [&](std::int64_t row, std::vector<std::vector<Masses>>& out) {
      for (int g = 0; g < group; ++g) {
        const int head = kv_head * group + g;
        query_content(head, row,
                      std::span(queries).subspan(static_cast<std::size_t>(g) * dim, dim));
        Masses& m = out[static_cast<std::size_t>(g)].emplace_back();
        const double spread = profile.heads[static_cast<std::size_t>(head)].spread;
        if (spread > 0) m.sink_shift = spread * portable::normal(bits(kSpread, head, row));
      }
      const int looks_for = asked(row);
      for (std::size_t i = 0; i < grid.distance.size(); ++i) {
        const std::int64_t token = row - grid.distance[i];
        if (token < kSynthSinks) continue;
        key_content(kv_head, token, key);
        const bool needle = looks_for >= 0 && needle_of(token) == looks_for;
        for (int g = 0; g < group; ++g) {
          const auto s = static_cast<std::size_t>(g);
          const HeadProfile& head = profile.heads[head_index(kv_head, g)];
          // Logits are measured without the key's common component, as sinks' are.
          const double z = dot(std::span(queries).subspan(s * dim, dim), key) / root +
                           head.hitters * profile.key_common + locality[s][i];
          (needle ? out[s].back().needle : out[s].back().rest) += grid.weight[i] * portable::exp(z);
        }
      }
    };
    std::vector<std::vector<Masses>> masses(static_cast<std::size_t>(group));
    for (const std::int64_t row : rows) measure(row, masses);
    const double sinks = portable::log(static_cast<double>(kSynthSinks));
    const auto of_sinks = [&](const Masses& m, double gain) {
      return sinks + gain + m.sink_shift - portable::log(std::max(m.rest + m.needle, 1e-300));
    };
    for (int g = 0; g < group; ++g) {
      const auto head = head_index(kv_head, g);
      const std::optional<double>& wanted = profile.heads[head].sink;
      if (!wanted) continue;
      const std::vector<Masses>& seen = masses[static_cast<std::size_t>(g)];
      gains[head].sink = bisect(*wanted, [&](double gain) {
        double sum = 0;
        for (const Masses& m : seen) sum += sigmoid(of_sinks(m, gain));
        return sum / static_cast<double>(seen.size());
      });
    }
    if (answers.empty()) return;
    masses.assign(static_cast<std::size_t>(group), {});
    for (const std::int64_t row : answers) measure(row, masses);
    for (int g = 0; g < group; ++g) {
      const auto head = head_index(kv_head, g);
      const std::optional<double>& wanted = profile.heads[head].needle;
      if (!wanted) continue;
      const std::vector<Masses>& seen = masses[static_cast<std::size_t>(g)];
      gains[head].needle = bisect(*wanted, [&](double gain) {
        double sum = 0;
        for (const Masses& m : seen) {
          const double rest = m.rest + portable::exp(sinks + gains[head].sink + m.sink_shift);
          const double needle = std::max(m.needle, 1e-300);
          sum += sigmoid(gain + portable::log(needle) - portable::log(rest));
        }
        return sum / static_cast<double>(seen.size());
      });
    }
  }
};

SynthLayer::SynthLayer(const SynthOptions& options, const SynthPlan& plan,
                       const SynthProfile& profile, int layer)
    : impl_(std::make_unique<const Impl>(options, plan, profile, layer)) {}
SynthLayer::~SynthLayer() = default;
SynthLayer::SynthLayer(SynthLayer&&) noexcept = default;

const LayerProfile& SynthLayer::profile() const { return impl_->profile; }

void SynthLayer::token(std::int64_t token, std::span<float> q, std::span<float> k,
                       std::span<float> v) const {
  const Impl& self = *impl_;
  const auto dim = static_cast<std::size_t>(self.options.head_dim);
  const std::size_t pairs = self.frequency.size();
  std::array<portable::SinCos, 256> turn{};
  for (std::size_t p = 0; p < pairs; ++p)
    turn[p] = portable::sin_cos(self.frequency[p] * static_cast<double>(token));

  for (int h = 0; h < self.options.kv_heads; ++h) {
    const std::span<float> key = k.subspan(static_cast<std::size_t>(h) * dim, dim);
    self.key_content(h, token, key);
    for (std::size_t p = 0; p < pairs && token >= kSynthSinks; ++p) {
      key[p] = static_cast<float>(turn[p].cos);
      key[pairs + p] = static_cast<float>(turn[p].sin);
    }
    if (v.empty()) continue;
    // A mean, a part of the word and a part of its own; sinks have short values, as in real models.
    const std::span<float> value = v.subspan(static_cast<std::size_t>(h) * dim, dim);
    std::array<float, 1024> part{};
    const std::span<float> one(part.data(), dim);
    const double norm = std::sqrt(static_cast<double>(dim)) * (token < kSynthSinks ? 0.1 : 1);
    sign_code({self.bits(kValueMean, h)}, 0.3 * norm, value);
    sign_code({self.bits(kValueWord, h, self.word(token))}, 0.6 * norm, one);
    for (std::size_t i = 0; i < dim; ++i) value[i] += one[i];
    sign_code({self.bits(kValueToken, h, token)}, 0.6 * norm, one);
    for (std::size_t i = 0; i < dim; ++i) value[i] += one[i];
  }
  for (int h = 0; h < self.options.query_heads; ++h) {
    const std::span<float> query = q.subspan(static_cast<std::size_t>(h) * dim, dim);
    self.query_content(h, token, query);
    const Impl::Gains& gains = self.gains[static_cast<std::size_t>(h)];
    for (std::size_t p = 0; p < pairs; ++p) {
      // (c, -s) rotated by the row: its product with the key (1, 0) is c cos + s sin of the distance.
      const double c = gains.cosines[p] * self.root;
      const double s = -gains.sines[p] * self.root;
      query[p] = static_cast<float>(c * turn[p].cos - s * turn[p].sin);
      query[pairs + p] = static_cast<float>(c * turn[p].sin + s * turn[p].cos);
    }
  }
}

namespace {

Metadata metadata_of(const SynthOptions& o, const SynthPlan& plan, const SynthProfile& profile) {
  nlohmann::json spans = nlohmann::json::array();
  for (const auto* list : {&plan.turns, &plan.needles, &plan.questions}) {
    for (const Span& span : *list)
      spans.push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
  }
  return {
      {"format", "kvspan.trace"},
      {"version", "1"},
      {"layers", std::to_string(o.layers)},
      {"model_layers", std::to_string(o.model_layers)},
      {"layer_ids", nlohmann::json(o.layer_ids).dump()},
      {"query_heads", std::to_string(o.query_heads)},
      {"kv_heads", std::to_string(o.kv_heads)},
      {"head_dim", std::to_string(o.head_dim)},
      {"tokens", std::to_string(o.tokens)},
      {"prompt_tokens", std::to_string(o.prompt_tokens)},
      {"score_scale", fmt::format("{:.17g}", 1 / std::sqrt(static_cast<double>(o.head_dim)))},
      {"rope_theta", fmt::format("{:.0f}", synth_theta(o.tokens))},
      {"rope_dim", std::to_string(Channels(o.head_dim).rope)},
      {"rope_layout", "half"},
      {"special_ids", "[0, 1]"},
      {"spans", spans.dump()},
      {"model", fmt::format("synthetic ({})", profile.name)},
      {"source", fmt::format("synthetic: kvspan synth, profile {}, seed {}", profile.name, o.seed)},
      {"text", "none: words are random numbers"},
      {"licence", "generated data, no text and no weights in it"},
      {"created_by", "kvspan synth"}};
}

// A block of tokens of one layer, as F16.
struct Block {
  std::vector<Eigen::half> q, k, v;
};

Block make_block(const SynthLayer& layer, const SynthOptions& o, std::int64_t first,
                 std::int64_t count) {
  const auto q_size =
      static_cast<std::size_t>(o.query_heads) * static_cast<std::size_t>(o.head_dim);
  const auto k_size = static_cast<std::size_t>(o.kv_heads) * static_cast<std::size_t>(o.head_dim);
  const auto tokens = static_cast<std::size_t>(count);
  Block out;
  out.q.resize(tokens * q_size);
  out.k.resize(tokens * k_size);
  if (o.values) out.v.resize(tokens * k_size);
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, tokens, 64), [&](const auto& range) {
    std::vector<float> q(q_size);
    std::vector<float> k(k_size);
    std::vector<float> v(o.values ? k_size : 0);
    for (std::size_t t = range.begin(); t < range.end(); ++t) {
      layer.token(first + static_cast<std::int64_t>(t), q, k, v);
      const auto narrow = [&](const std::vector<float>& from, std::vector<Eigen::half>& to) {
        std::transform(from.begin(), from.end(),
                       to.begin() + static_cast<std::ptrdiff_t>(t * from.size()),
                       [](float x) { return Eigen::half(x); });
      };
      narrow(q, out.q);
      narrow(k, out.k);
      narrow(v, out.v);
    }
  });
  return out;
}

using Write = std::function<void(const std::string& name, std::int64_t byte_offset,
                                 std::span<const std::byte> bytes)>;

std::vector<SafetensorsWriter::Entry> entries_of(const SynthOptions& o) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (int l = 0; l < o.layers; ++l) {
    const auto name = [l](const char* what) { return fmt::format("layers.{}.{}", l, what); };
    entries.push_back({name("q"), Dtype::f16, {o.tokens, o.query_heads, o.head_dim}});
    entries.push_back({name("k"), Dtype::f16, {o.tokens, o.kv_heads, o.head_dim}});
    if (o.values) entries.push_back({name("v"), Dtype::f16, {o.tokens, o.kv_heads, o.head_dim}});
  }
  entries.push_back({"token_ids", Dtype::i32, {o.tokens}});
  return entries;
}

void generate(const SynthOptions& o, const SynthPlan& plan, const SynthProfile& profile,
              const std::function<void(double)>& tick, const Write& write) {
  for (int l = 0; l < o.layers; ++l) {
    const SynthLayer layer(o, plan, profile, l);
    for (std::int64_t t = 0; t < o.tokens; t += kBlockTokens) {
      const std::int64_t count = std::min(kBlockTokens, o.tokens - t);
      const Block block = make_block(layer, o, t, count);
      const auto put = [&](const char* what, const std::vector<Eigen::half>& values) {
        const auto bytes = std::as_bytes(std::span(values));
        if (bytes.empty()) return;
        write(fmt::format("layers.{}.{}", l, what),
              t * static_cast<std::int64_t>(bytes.size()) / count, bytes);
      };
      put("q", block.q);
      put("k", block.k);
      put("v", block.v);
      if (tick) {
        tick((l + static_cast<double>(t + count) / static_cast<double>(o.tokens)) / o.layers);
      }
    }
    if (l > 0) continue;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(kBlockTokens, o.tokens)));
    for (std::int64_t t = 0; t < o.tokens; t += kBlockTokens) {
      const std::int64_t count = std::min(kBlockTokens, o.tokens - t);
      for (std::int64_t i = 0; i < count; ++i)
        ids[static_cast<std::size_t>(i)] = layer.token_id(t + i);
      write("token_ids", t * 4,
            std::as_bytes(std::span(ids).first(static_cast<std::size_t>(count))));
    }
  }
}

}  // namespace

std::int32_t SynthLayer::token_id(std::int64_t token) const {
  if (token == 0) return 0;
  return impl_->turn_marker(token) ? 1 : static_cast<std::int32_t>(1 + impl_->word(token));
}

void write_synth(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile,
                 const std::filesystem::path& path, const std::function<void(double)>& tick) {
  SafetensorsWriter writer(path, metadata_of(options, plan, profile), entries_of(options));
  generate(options, plan, profile, tick,
           [&](const std::string& name, std::int64_t offset, std::span<const std::byte> bytes) {
             writer.write(name, offset, bytes);
           });
  writer.finish();
}

Trace synth_trace(const SynthOptions& options, const SynthPlan& plan, const SynthProfile& profile) {
  std::map<std::string, TensorSet::Owned> tensors;
  for (const SafetensorsWriter::Entry& entry : entries_of(options)) {
    std::int64_t bytes = dtype_bytes(entry.dtype);
    for (const std::int64_t size : entry.shape) bytes *= size;
    tensors[entry.name] = {entry.dtype, entry.shape,
                           std::vector<std::byte>(static_cast<std::size_t>(bytes))};
  }
  generate(options, plan, profile, {},
           [&](const std::string& name, std::int64_t offset, std::span<const std::byte> bytes) {
             std::memcpy(tensors.at(name).bytes.data() + offset, bytes.data(), bytes.size());
           });
  return Trace::from_tensors(
      TensorSet::from_memory(metadata_of(options, plan, profile), std::move(tensors)),
      "synthetic trace");
}

}  // namespace kvspan::tracegen
