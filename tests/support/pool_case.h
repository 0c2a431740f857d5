// SPDX-License-Identifier: Apache-2.0
// A pool with random entries in the memory of a GPU, or of the emulation of one, and attention over
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "gpu_replay/cuda/module.h"
#include "gpu_replay/pool/kv_pool.h"

namespace kvspan::test {

using namespace kvspan::gpu_replay;

// Through the entry of the module, whose code is linked into the test.
inline const ReplayModule& device() { return *kvspan_replay_module(); }

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct PoolShapeCase {
  int heads = 1, group = 1, k_dim = 64, v_dim = 64, tokens = 40;
  Element element = Element::f16;
  std::string layout = "paged16_per_head";
  double softcap = 0;
  bool sinks = false;
  double scale = 0.2;
  // Of codes; 0: all entries are whole. Else keys of `group` entries share scales, values those of
  // `group` channels; or `left` channels of a key are there.
  int bits = 0, group_of_codes = 0, left = 0;
  int skip = 0;  // first entries of a head that the row does not read
};

// A pool with random entries, some of which have left; head 0 keeps none or one, as asked.
class PoolCase {
 public:
  PoolCase(const PoolShapeCase& shape, unsigned seed, int left_in_head_0 = -1)
      : shape_(shape),
        random_(seed),
        memory_(device().make_memory(0, 0)),
        arenas_(*memory_),
        bytes_((shape.k_dim + shape.v_dim) * bytes_of(shape.element)),
        pool_({1, shape.heads, shape.heads * shape.group, shape.tokens, representations(shape),
               parse_layout(shape.layout)},
              arenas_),
        entries_(index(shape.heads)),
        scales_(index(shape.heads), shape.element == Element::fp8 ? 0.25F : 1.0F) {
    std::normal_distribution<float> normal;
    for (TokenIndex token = 0; token < shape.tokens; ++token) {
      pool_.append(0, token);
      for (int head = 0; head < shape.heads; ++head) {
        std::vector<float> x(index(shape.k_dim + shape.v_dim));
        std::vector<std::byte> coded(index(bytes_));
        for (float& value : x) value = normal(random_);
        encode(x, shape.element, scales_[0], coded);
        decode(coded, shape.element, scales_[0], x);  // as it is held
        REQUIRE(pool_.write(0, head, token, coded));
        entries_[index(head)].push_back(std::move(x));
      }
    }
    std::vector<Step> steps;
    for (int head = 0; head < shape.heads; ++head) {
      for (TokenIndex token = 0; token < shape.tokens; ++token) {
        const bool leaves = head == 0 && left_in_head_0 >= 0
                                ? token >= left_in_head_0
                                : std::bernoulli_distribution(0.4)(random_);
        if (leaves) steps.push_back({.head = head, .token = token});
      }
    }
    pool_.apply(0, steps, true);
    if (shape.bits > 0) hold_in_forms();
    q_.resize(index(shape.heads * shape.group * shape.k_dim));
    for (float& x : q_) x = normal(random_);
    if (shape.sinks) sinks_.assign(index(shape.heads * shape.group), normal(random_));
    for (int head = 0; head < shape.heads; ++head) tables_.push_back(pool_.table_of(0, head));
    if (shape.bits > 0) list_codings();
    first_.assign(index(shape.heads), shape.skip);
  }

  [[nodiscard]] DecodeRow row() const {
    return {shape_.heads * shape_.group,
            shape_.heads,
            shape_.k_dim,
            shape_.v_dim,
            shape_.element,
            shape_.scale,
            shape_.softcap,
            q_,
            tables_,
            scales_,
            scales_,
            sinks_,
            first_,
            formats_,
            codings_};
  }
  [[nodiscard]] DecodeResult on_device() const {
    DecodeResult out;
    out.output.assign(3, kNan);
    device().attend(row(), out);
    return out;
  }
  // In double; the largest difference of an output or a log-sum-exp.
  [[nodiscard]] double worst(const DecodeResult& found) const {
    double worst = 0;
    const auto differ = [&](double a, double b) {
      const double by = a == b ? 0 : std::fabs(a - b);
      worst = std::max(worst, std::isnan(by) ? std::numeric_limits<double>::infinity() : by);
    };
    for (int h = 0; h < shape_.heads * shape_.group; ++h) {
      std::vector<double> output(index(shape_.v_dim), 0);
      double sum = sinks_.empty() ? 0 : std::exp(double{sinks_[index(h)]});
      const std::vector<TokenIndex> held = pool_.held(0, h / shape_.group);
      for (std::size_t at = index(shape_.skip); at < held.size(); ++at) {
        const TokenIndex token = held[at];
        const std::vector<float>& x = entries_[index(h / shape_.group)][index(token)];
        double logit = 0;
        for (int i = 0; i < shape_.k_dim; ++i)
          logit += shape_.scale * double{q_[index(h * shape_.k_dim + i)]} * double{x[index(i)]};
        if (shape_.softcap > 0) logit = shape_.softcap * std::tanh(logit / shape_.softcap);
        sum += std::exp(logit);
        for (int i = 0; i < shape_.v_dim; ++i)
          output[index(i)] += std::exp(logit) * double{x[index(shape_.k_dim + i)]};
      }
      differ(found.lse[index(h)], std::log(sum));
      for (int i = 0; i < shape_.v_dim; ++i)
        differ(found.output[index(h * shape_.v_dim + i)], sum == 0 ? 0 : output[index(i)] / sum);
    }
    return worst;
  }

 private:
  static std::vector<EntryFormat> formats_of(const PoolShapeCase& shape) {
    using Kind = VectorFormat::Kind;
    const VectorFormat keys{Kind::entry_groups, shape.bits, shape.group_of_codes};
    const VectorFormat values{Kind::channel_groups, shape.bits, shape.group_of_codes};
    const VectorFormat pruned{Kind::channels, 0, 0, shape.left};
    return {{},           {keys, {}},       {keys, values},  {{}, values},
            {pruned, {}}, {pruned, values}, {values, values}};
  }
  static std::vector<Representation> representations(const PoolShapeCase& shape) {
    const auto whole = (shape.k_dim + shape.v_dim) * bytes_of(shape.element);
    std::vector<Representation> out = {{"entry", whole, 0}};
    for (const EntryFormat& format : formats_of(shape)) {
      if (shape.bits == 0 || format == EntryFormat{}) continue;
      out.push_back({"form",
                     bytes_of(format.k, shape.k_dim, shape.element) +
                         bytes_of(format.v, shape.v_dim, shape.element),
                     0});
    }
    return out;
  }

  // Survivors in all forms; entries_ become what they are held as.
  void hold_in_forms() {
    formats_ = formats_of(shape_);
    std::vector<Step> steps;
    for (int head = 0; head < shape_.heads; ++head) {
      const std::vector<TokenIndex> held = pool_.held(0, head);
      const std::size_t grouped =
          held.size() / index(shape_.group_of_codes) * index(shape_.group_of_codes);
      for (std::size_t at = 0; at < held.size(); ++at) {
        const int form =
            std::uniform_int_distribution<int>(at < grouped ? 1 : 3, at < grouped ? 2 : 6)(random_);
        if ((form == 4 || form == 5) && shape_.left == 0) continue;
        steps.push_back({.head = head, .token = held[at], .representation = form});
      }
    }
    pool_.apply(0, steps, true);
    place_.resize(index(shape_.heads));
    for (int head = 0; head < shape_.heads; ++head) {
      channel_.push_back(channels_left());
      write_forms(head);
    }
  }

  // Some of a key's channels, which keep their order.
  std::vector<std::int16_t> channels_left() {
    std::vector<std::int16_t> channel(index(shape_.k_dim), -1);
    std::vector<std::size_t> order(channel.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    std::sort(order.begin(), order.begin() + shape_.left);
    for (int place = 0; place < shape_.left; ++place)
      channel[order[index(place)]] = static_cast<std::int16_t>(place);
    return channel;
  }

  void write_forms(int head) {
    const std::vector<TokenIndex> held = pool_.held(0, head);
    const auto size = index(shape_.group_of_codes);
    const VectorCoding coding{shape_.element, scales_[0], channel_[index(head)]};
    std::vector<std::vector<std::byte>> keys;
    std::vector<std::byte> table;
    for (std::size_t at = 0; at < held.size(); ++at) {
      const EntryFormat& format = formats_[index(pool_.held_as(0, head, held[at]))];
      std::vector<float>& x = entries_[index(head)][index(held[at])];
      const std::span<float> k = std::span(x).first(index(shape_.k_dim));
      const std::span<float> v = std::span(x).subspan(k.size());
      const bool grouped = format.k.kind == VectorFormat::Kind::entry_groups;
      const auto codes = index(code_bytes(format.k, shape_.k_dim));
      place_[index(head)].push_back(grouped ? static_cast<std::int32_t>(at % size) : 0);
      if (grouped && at % size == 0) {
        std::vector<std::span<const float>> group;
        for (std::size_t i = 0; i < size; ++i)
          group.push_back(
              std::span<const float>(entries_[index(head)][index(held[at + i])]).first(k.size()));
        keys = encode_group(group, format.k);
        table.clear();
        for (const auto& key : keys)
          table.insert(table.end(), key.begin() + static_cast<std::ptrdiff_t>(codes), key.end());
      }
      std::vector<std::byte> bytes =
          grouped ? keys[at % size]
                  : std::vector<std::byte>(index(bytes_of(format.k, shape_.k_dim, shape_.element)));
      if (!grouped) encode(k, format.k, coding, bytes);
      std::vector<std::byte> of_value(index(bytes_of(format.v, shape_.v_dim, shape_.element)));
      encode(v, format.v, coding, of_value);
      if (grouped)
        decode_grouped(bytes, table, format.k.bits, k);
      else
        decode(bytes, format.k, coding, k);
      decode(of_value, format.v, coding, v);
      bytes.insert(bytes.end(), of_value.begin(), of_value.end());
      REQUIRE(pool_.write(0, head, held[at], bytes));
    }
  }

  void list_codings() {
    for (int head = 0; head < shape_.heads; ++head) {
      HeadCoding& of = codings_.emplace_back();
      for (const TokenIndex token : tables_[index(head)].tokens)
        of.format.push_back(static_cast<std::uint8_t>(pool_.held_as(0, head, token)));
      of.place = place_[index(head)];
      of.channel = channel_[index(head)];
    }
  }

  PoolShapeCase shape_;
  std::mt19937 random_;
  std::unique_ptr<DeviceMemory> memory_;
  ArenaSet arenas_;
  std::int64_t bytes_;
  KvPool pool_;
  std::vector<std::vector<std::vector<float>>> entries_;  // [heads][tokens] K then V
  std::vector<float> scales_, q_, sinks_;
  std::vector<HeadTable> tables_;
  std::vector<std::int64_t> first_;
  std::vector<EntryFormat> formats_;
  std::vector<HeadCoding> codings_;
  std::vector<std::vector<std::int32_t>> place_;    // [heads][held]
  std::vector<std::vector<std::int16_t>> channel_;  // [heads][k_dim]
};

}  // namespace kvspan::test
