// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/entry_writer.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <utility>

namespace kvspan::gpu_replay {
namespace {

using Kind = VectorFormat::Kind;

std::vector<float> widened(const TensorView& tensor, std::int64_t values, const char* name) {
  std::vector<float> out(index(values));
  widen(tensor, 0, out, name);
  return out;
}

std::span<const float> vector_of(const std::vector<float>& x, RowIndex row, int heads, int head,
                                 int dim) {
  return std::span(x).subspan((index(row) * index(heads) + index(head)) * index(dim), index(dim));
}

float largest_of(std::span<const float> x, float so_far) {
  for (const float value : x) so_far = std::max(so_far, std::fabs(value));
  return so_far;
}

void add_squares(std::span<const float> x, std::vector<double>& sums) {
  for (std::size_t c = 0; c < x.size(); ++c) sums[c] += double{x[c]} * double{x[c]};
}

}  // namespace

LayerVectors::LayerVectors(const Trace& trace, int layer)
    : meta(&trace.meta()),
      q(widened(*trace.q(layer), meta->tokens * meta->query_heads * meta->head_dim, "q")),
      k(widened(*trace.k(layer), meta->tokens * meta->kv_heads * meta->head_dim, "k")),
      v(widened(*trace.v(layer), meta->tokens * meta->kv_heads * meta->v_head_dim, "v")) {}

std::span<const float> LayerVectors::query(int query_head, RowIndex row) const {
  return vector_of(q, row, meta->query_heads, query_head, meta->head_dim);
}
std::span<const float> LayerVectors::key(int kv_head, RowIndex token) const {
  return vector_of(k, token, meta->kv_heads, kv_head, meta->head_dim);
}
std::span<const float> LayerVectors::value(int kv_head, RowIndex token) const {
  return vector_of(v, token, meta->kv_heads, kv_head, meta->v_head_dim);
}

EntryWriter::EntryWriter(const LayerVectors& x, int heads, Element element, StoredForms forms)
    : x_(&x), heads_(heads), element_(element), forms_(std::move(forms)), channel_(index(heads)) {
  for (int head = 0; head < heads_; ++head) {
    float k = 0, v = 0;
    for (RowIndex token = 0; token < x.meta->tokens; ++token) {
      k = largest_of(x.key(kv_head(head), token), k);
      v = largest_of(x.value(kv_head(head), token), v);
    }
    k_scale_.push_back(scale_of(k, element_));
    v_scale_.push_back(scale_of(v, element_));
  }
  for (const EntryFormat& format : forms_.formats) {
    if (format.k.kind == Kind::entry_groups) grouped_.resize(index(heads_) * index(x.meta->tokens));
    if (format.k.kind != Kind::channels) continue;
    // Until some are chosen all are there.
    for (auto& channel : channel_) {
      channel.resize(index(x.meta->head_dim));
      std::iota(channel.begin(), channel.end(), std::int16_t{0});
    }
  }
}

void EntryWriter::born(KvPool& pool, TokenIndex token) const {
  for (int head = 0; head < heads_; ++head) write(pool, head, token, forms_.formats[0]);
}

void EntryWriter::write(KvPool& pool, int head, TokenIndex token, const EntryFormat& format) const {
  const std::span<const float> k = x_->key(kv_head(head), token);
  const std::span<const float> v = x_->value(kv_head(head), token);
  const auto k_bytes = index(bytes_of(format.k, std::ssize(k), element_));
  std::vector<std::byte> bytes(k_bytes + index(bytes_of(format.v, std::ssize(v), element_)));
  if (format.k.kind == Kind::entry_groups) {
    const std::vector<std::byte>& key = grouped(head, token).bytes;
    std::copy(key.begin(), key.end(), bytes.begin());
  } else {
    encode(k, format.k, {element_, k_scale_[index(head)], channel_[index(head)]},
           std::span(bytes).first(k_bytes));
  }
  encode(v, format.v, {element_, v_scale_[index(head)], {}}, std::span(bytes).subspan(k_bytes));
  (void)pool.write(0, head, token, bytes);
}

void EntryWriter::pass_ended(KvPool& pool, RowIndex end) {
  for (int head = 0; head < heads_ && !changed_.empty(); ++head) {
    std::vector<TokenIndex> joining;
    const VectorFormat* grouping = nullptr;
    const VectorFormat* pruning = nullptr;
    for (const Step& step : changed_) {
      if (step.head != head) continue;
      const VectorFormat& k = forms_.formats[index(step.representation)].k;
      if (k.kind == Kind::channels) pruning = &k;
      if (k.kind != Kind::entry_groups || grouped(head, step.token).group != kAlone) continue;
      grouping = &k;
      joining.push_back(step.token);
    }
    if (grouping != nullptr) form_groups(head, joining, *grouping);
    if (pruning != nullptr) choose_channels(pool, head, end, pruning->left);
  }
  for (const Step& step : changed_)
    write(pool, step.head, step.token, forms_.formats[index(step.representation)]);
  changed_.clear();
}

void EntryWriter::form_groups(int head, std::span<const TokenIndex> tokens,
                              const VectorFormat& format) {
  assert(std::ssize(tokens) % format.group == 0);
  for (std::size_t first = 0; first < tokens.size(); first += index(format.group), ++groups_) {
    const auto group = tokens.subspan(first, index(format.group));
    std::vector<std::span<const float>> keys;
    for (const TokenIndex token : group) keys.push_back(x_->key(kv_head(head), token));
    std::vector<std::vector<std::byte>> bytes = encode_group(keys, format);
    for (std::size_t i = 0; i < group.size(); ++i)
      grouped(head, group[i]) = {groups_, static_cast<std::int32_t>(i), std::move(bytes[i])};
  }
}

// By mean(q^2) mean(k^2); sums stand for means, since all channels have the same counts.
void EntryWriter::choose_channels(const KvPool& pool, int head, RowIndex end, int left) {
  const int group = x_->meta->query_heads / heads_;
  std::vector<double> rank(index(x_->meta->head_dim), 0.0);
  std::vector<double> keys = rank;
  for (int g = 0; g < group; ++g) {
    for (RowIndex row = std::max<RowIndex>(0, end - forms_.ranking_rows); row < end; ++row)
      add_squares(x_->query(head * group + g, row), rank);
  }
  for (const TokenIndex token : pool.held(0, head))
    add_squares(x_->key(kv_head(head), token), keys);
  for (std::size_t c = 0; c < rank.size(); ++c) rank[c] *= keys[c];
  std::vector<std::size_t> order(rank.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return rank[a] > rank[b]; });
  std::sort(order.begin(), order.begin() + left);
  std::vector<std::int16_t>& channel = channel_[index(head)];
  std::fill(channel.begin(), channel.end(), std::int16_t{-1});
  for (int place = 0; place < left; ++place)
    channel[order[index(place)]] = static_cast<std::int16_t>(place);
}

bool EntryWriter::codings(const KvPool& pool, std::span<const HeadTable> tables,
                          std::vector<HeadCoding>& out) const {
  out.clear();
  if (forms_.all_whole()) return true;
  for (int head = 0; head < heads_; ++head) {
    const std::vector<TokenIndex>& tokens = tables[index(head)].tokens;
    HeadCoding& coding = out.emplace_back();
    coding.channel = channel_[index(head)];
    for (std::size_t at = 0; at < tokens.size(); ++at) {
      const int form = pool.held_as(0, head, tokens[at]);
      coding.format.push_back(static_cast<std::uint8_t>(form));
      const VectorFormat& keys = forms_.formats[index(form)].k;
      coding.place.push_back(0);
      if (keys.kind != Kind::entry_groups) continue;
      const Grouped& of = grouped(head, tokens[at]);
      coding.place.back() = of.place;
      // Tokens ascend, and so do groups: if its first and last stand where they should, so do all.
      const auto first = static_cast<std::int64_t>(at) - of.place;
      const std::int64_t last = first + keys.group - 1;
      if (first < 0 || last >= std::ssize(tokens) ||
          grouped(head, tokens[index(first)]).group != of.group ||
          grouped(head, tokens[index(last)]).group != of.group)
        return false;
    }
  }
  return true;
}

}  // namespace kvspan::gpu_replay
