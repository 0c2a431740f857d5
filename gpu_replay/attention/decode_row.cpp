// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/attention/decode_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The softmax of one query head so far: values are weighted by exp(logit - max).
struct Online {
  float max = kNothing, sum = 0;
  // The weight of one more logit; `of` is scaled to the new maximum.
  float add(float logit, std::span<float> of) {
    if (logit > max) {
      const float shrink = std::exp(max - logit);
      for (float& x : of) x *= shrink;
      sum *= shrink;
      max = logit;
    }
    const float weight = std::exp(logit - max);
    sum += weight;
    return weight;
  }
};

float dot(std::span<const float> a, std::span<const float> b) {
  float sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void attend_head(const DecodeRow& row, int head, const DeviceMemory& memory, DecodeResult& out) {
  const int group = row.query_heads / row.heads;
  const std::size_t first = index(head) * index(group);
  const std::size_t k_dim = index(row.k_dim);
  const std::size_t v_dim = index(row.v_dim);
  const auto output_of = [&](std::size_t g) {
    return std::span(out.output).subspan((first + g) * v_dim, v_dim);
  };
  std::vector<Online> online(index(group));
  std::vector<float> key(k_dim), value(v_dim);
  std::vector<std::byte> bytes((k_dim + v_dim) * index(bytes_of(row.element)));
  const std::span<const std::byte> k_bytes =
      std::span(bytes).first(k_dim * index(bytes_of(row.element)));
  const std::span<const std::byte> v_bytes = std::span(bytes).subspan(k_bytes.size());
  const HeadTable& table = row.tables[index(head)];
  for (const std::int32_t slot : table.slots) {
    memory.read(
        table.blocks[index(slot / table.block_size)] + slot % table.block_size * table.slot_bytes,
        bytes);
    decode(k_bytes, row.element, row.k_scale[index(head)], key);
    decode(v_bytes, row.element, row.v_scale[index(head)], value);
    for (std::size_t g = 0; g < index(group); ++g) {
      float logit =
          dot(row.q.subspan((first + g) * k_dim, k_dim), key) * static_cast<float>(row.scale);
      if (row.softcap > 0) {
        const auto cap = static_cast<float>(row.softcap);
        logit = cap * std::tanh(logit / cap);
      }
      const float weight = online[g].add(logit, output_of(g));
      for (std::size_t i = 0; i < v_dim; ++i) output_of(g)[i] += weight * value[i];
    }
  }
  for (std::size_t g = 0; g < index(group); ++g) {
    if (!row.sinks.empty()) (void)online[g].add(row.sinks[first + g], output_of(g));
    if (online[g].sum > 0) {
      for (float& x : output_of(g)) x /= online[g].sum;
    }
    out.lse[first + g] = online[g].max + std::log(online[g].sum);
  }
}

}  // namespace

void attend_on_host(const DecodeRow& row, const DeviceMemory& memory, DecodeResult& out) {
  out.output.assign(index(row.query_heads) * index(row.v_dim), 0);
  out.lse.assign(index(row.query_heads), kNothing);
  for (int head = 0; head < row.heads; ++head) attend_head(row, head, memory, out);
}

}  // namespace kvspan::gpu_replay
