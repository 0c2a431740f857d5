// SPDX-License-Identifier: Apache-2.0
// A trace's K and V of one layer on their way into a pool, in the forms that a policy's store holds
// them in: whole when they are born, otherwise once the ledger says so.
#pragma once

#include <span>
#include <vector>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/kv_pool.h"
#include "gpu_replay/replay/stored_forms.h"
#include "sim/trace/trace.h"

namespace kvspan::gpu_replay {

// The vectors of one layer.
struct LayerVectors {
  LayerVectors(const Trace& trace, int layer);
  //   dim  of a vector; x [tokens, heads, dim]
  [[nodiscard]] std::span<const float> query(int query_head, RowIndex row) const;
  [[nodiscard]] std::span<const float> key(int kv_head, RowIndex token) const;
  [[nodiscard]] std::span<const float> value(int kv_head, RowIndex token) const;

  const TraceMeta* meta;
  std::vector<float> q, k, v;
};

class EntryWriter {
 public:
  // heads: stored ones. What is given must outlive it.
  EntryWriter(const LayerVectors& x, int heads, Element element, StoredForms forms);

  // The bytes of a newborn, in every head.
  void born(KvPool& pool, TokenIndex token) const;
  // An entry is to be written anew when its pass ends.
  void changed(const Step& step) { changed_.push_back(step); }
  void pass_ended(KvPool& pool, RowIndex end);

  // [heads] of what the pool holds; empty: all of it is whole.
  // False: an entry has left whose share of its group's scales others need.
  [[nodiscard]] bool codings(const KvPool& pool, std::span<const HeadTable> tables,
                             std::vector<HeadCoding>& out) const;
  [[nodiscard]] std::span<const EntryFormat> formats() const { return forms_.formats; }
  [[nodiscard]] std::span<const float> k_scale() const { return k_scale_; }  // [heads]
  [[nodiscard]] std::span<const float> v_scale() const { return v_scale_; }

 private:
  static constexpr std::int32_t kAlone = -1;
  struct Grouped {
    std::int32_t group = kAlone, place = 0;
    std::vector<std::byte> bytes;  // of the key
  };
  [[nodiscard]] int kv_head(int head) const { return head * x_->meta->kv_heads / heads_; }
  [[nodiscard]] Grouped& grouped(int head, TokenIndex token) {
    return grouped_[index(head) * index(x_->meta->tokens) + index(token)];
  }
  [[nodiscard]] const Grouped& grouped(int head, TokenIndex token) const {
    return grouped_[index(head) * index(x_->meta->tokens) + index(token)];
  }
  // Keys of these entries become groups, in their order. REQUIRES: whole groups.
  void form_groups(int head, std::span<const TokenIndex> tokens, const VectorFormat& format);
  // Ranks the channels of a head by what the last rows before `end` asked of those that are left.
  void choose_channels(const KvPool& pool, int head, RowIndex end, int left);
  void write(KvPool& pool, int head, TokenIndex token, const EntryFormat& format) const;

  const LayerVectors* x_;
  int heads_;
  Element element_;
  StoredForms forms_;
  std::vector<float> k_scale_, v_scale_;
  std::vector<Step> changed_;
  std::vector<Grouped> grouped_;                    // [heads, tokens], or empty: none ever is
  std::int32_t groups_ = 0;                         // so far
  std::vector<std::vector<std::int16_t>> channel_;  // [heads] see HeadCoding
};

}  // namespace kvspan::gpu_replay
