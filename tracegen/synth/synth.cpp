// SPDX-License-Identifier: Apache-2.0
#include "tracegen/synth/synth.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "tracegen/synth/layer.h"

namespace kvspan::tracegen {
namespace {

constexpr int kWordBits = 12;             // vocabulary 4,096
constexpr std::int64_t kTopicBlend = 64;  // tokens over which a topic gives way to the next
constexpr double kTurnMarker = 3;         // strength of the first token of a turn
constexpr double kWordNorm = 2, kTopicNorm = 2, kNeedleNorm = 2;  // of keys in the subspace
constexpr double kNullMean = 3;

double draw(const HeadKind::Range& range, std::uint64_t bits) {
  return range.first + (range.second - range.first) * portable::uniform(bits);
}

}  // namespace

LayerProfile draw_layer(const SynthProfile& profile, const SynthOptions& options,
                        std::uint64_t layer) {
  LayerProfile out;
  out.key_common = profile.key_common;
  const auto heads = static_cast<std::size_t>(options.query_heads);
  const auto bits = [&](std::size_t head, std::uint64_t what) {
    return portable::random_bits({kHeads, options.seed, layer, head, what});
  };
  std::vector<std::size_t> order(heads);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return bits(a, 0) < bits(b, 0); });
  double shares = 0;
  for (const HeadKind& kind : profile.kinds) shares += kind.share;
  const double offset = portable::uniform(portable::random_bits({kHeads, options.seed, layer}));
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

SynthLayer::Impl::Impl(const SynthOptions& o, const SynthPlan& p, const SynthProfile& from,
                       int layer)
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

std::uint64_t SynthLayer::Impl::bits(Stream what, std::int64_t a, std::int64_t b) const {
  return portable::random_bits(
      {what, options.seed, stream, static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b)});
}

std::int64_t SynthLayer::Impl::word(std::int64_t token) const {
  const double u = portable::uniform(
      portable::random_bits({kWord, options.seed, static_cast<std::uint64_t>(token)}));
  return static_cast<std::int64_t>(portable::exp(kWordBits * kLn2 * u));
}

bool SynthLayer::Impl::turn_marker(std::int64_t token) const {
  const auto at = std::lower_bound(plan.turns.begin(), plan.turns.end(), token,
                                   [](const Span& s, std::int64_t t) { return s.begin < t; });
  return token > 0 && at != plan.turns.end() && at->begin == token;
}

int SynthLayer::Impl::needle_of(std::int64_t token) const {
  for (std::size_t i = 0; i < plan.needles.size(); ++i) {
    if (token >= plan.needles[i].begin && token < plan.needles[i].end) return static_cast<int>(i);
  }
  return -1;
}

int SynthLayer::Impl::asked(std::int64_t row) const {
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

double SynthLayer::Impl::hitter(int kv_head, std::int64_t token) const {
  if (token < kSynthSinks) return 0;
  return std::sqrt(0.5) * (portable::normal(bits(kHitterWord, kv_head, word(token))) +
                           portable::normal(bits(kHitterToken, kv_head, token))) +
         (turn_marker(token) ? kTurnMarker : 0);
}

void SynthLayer::Impl::topic(std::int64_t token, std::span<float> out) const {
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

void SynthLayer::Impl::make_needle_codes() {
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

std::span<const float> SynthLayer::Impl::needle_code(int needle) const {
  const auto dim = static_cast<std::size_t>(channels.needles);
  return {needle_codes.data() + static_cast<std::size_t>(needle) * dim, dim};
}

void SynthLayer::Impl::key_content(int kv_head, std::int64_t token, std::span<float> k) const {
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
  sign_code({bits(kKeyWord, kv_head, word(token))}, kWordNorm, sub(channels.word, channels.words));
  const int needle = needle_of(token);
  if (needle < 0) return;
  for (int i = 0; i < channels.needles; ++i) {
    k[static_cast<std::size_t>(channels.needle) + static_cast<std::size_t>(i)] =
        static_cast<float>(kNeedleNorm) * needle_code(needle)[static_cast<std::size_t>(i)];
  }
}

void SynthLayer::Impl::query_content(int head, std::int64_t row, std::span<float> q) const {
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

std::size_t SynthLayer::Impl::head_index(int kv_head, int of_group) const {
  return static_cast<std::size_t>(kv_head) *
             static_cast<std::size_t>(options.query_heads / options.kv_heads) +
         static_cast<std::size_t>(of_group);
}

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
      // (c, -s) rotated by the row: its product with the key (1, 0) is c cos + s sin of the
      // distance.
      const double c = gains.cosines[p] * self.root;
      const double s = -gains.sines[p] * self.root;
      query[p] = static_cast<float>(c * turn[p].cos - s * turn[p].sin);
      query[pairs + p] = static_cast<float>(c * turn[p].sin + s * turn[p].cos);
    }
  }
}

std::int32_t SynthLayer::token_id(std::int64_t token) const {
  if (token == 0) return 0;
  return impl_->turn_marker(token) ? 1 : static_cast<std::int32_t>(1 + impl_->word(token));
}

}  // namespace kvspan::tracegen
