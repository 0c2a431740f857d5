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

// Entries of one head as numbers.
class Reader {
 public:
  Reader(const DecodeRow& row, int head, const DeviceMemory& memory)
      : row_(&row),
        memory_(&memory),
        table_(&row.tables[index(head)]),
        coding_(row.codings.empty() ? nullptr : &row.codings[index(head)]),
        key_coding_{row.element, row.k_scale[index(head)], {}},
        value_coding_{row.element, row.v_scale[index(head)], {}} {
    if (coding_ != nullptr) key_coding_.channel = coding_->channel;
  }

  void read(std::size_t at, std::span<float> key, std::span<float> value) {
    const EntryFormat format =
        coding_ == nullptr ? EntryFormat{} : row_->formats[coding_->format[at]];
    const auto k_bytes = index(bytes_of(format.k, row_->k_dim, row_->element));
    bytes_.resize(k_bytes + index(bytes_of(format.v, row_->v_dim, row_->element)));
    memory_->read(address(at), bytes_);
    const std::span<const std::byte> bytes(bytes_);
    if (format.k.kind == VectorFormat::Kind::entry_groups) {
      read_table(at - index(coding_->place[at]), format.k);
      decode_grouped(bytes, group_, format.k.bits, key);
    } else {
      decode(bytes.first(k_bytes), format.k, key_coding_, key);
    }
    decode(bytes.subspan(k_bytes), format.v, value_coding_, value);
  }

 private:
  [[nodiscard]] Address address(std::size_t at) const {
    const std::int32_t slot = table_->slots[at];
    return table_->blocks[index(slot / table_->block_size)] +
           slot % table_->block_size * table_->slot_bytes;
  }
  // What the group that begins at slot `first` of the table has in common.
  void read_table(std::size_t first, const VectorFormat& format) {
    if (group_of_ == first) return;
    group_of_ = first;
    group_.resize(index(row_->k_dim) * 4);
    const std::size_t share = group_.size() / index(format.group);
    for (std::size_t i = 0; i < index(format.group); ++i)
      memory_->read(address(first + i) + code_bytes(format, row_->k_dim),
                    std::span(group_).subspan(i * share, share));
  }

  const DecodeRow* row_;
  const DeviceMemory* memory_;
  const HeadTable* table_;
  const HeadCoding* coding_;
  VectorCoding key_coding_, value_coding_;
  std::vector<std::byte> bytes_, group_;
  std::size_t group_of_ = static_cast<std::size_t>(-1);
};

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
  Reader reader(row, head, memory);
  for (std::size_t at = row.first.empty() ? 0 : index(row.first[index(head)]);
       at < row.tables[index(head)].slots.size(); ++at) {
    reader.read(at, key, value);
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
