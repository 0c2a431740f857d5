// SPDX-License-Identifier: Apache-2.0
#include "sim/attention/layer_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include <fmt/format.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"

namespace kvspan {
namespace {

using kernels::kPanel;
using kernels::padded;

constexpr std::int64_t kPieceTokens = 1024;  // tokens widened at a time; a multiple of the panel

// Rounding of a stored probability, relative to it.
double rounding_of(Dtype dtype) { return dtype == Dtype::f16 ? 0x1p-11 : 0x1p-24; }
// The same of one that is too small for that: half of the smallest number.
double flush_of(Dtype dtype) { return dtype == Dtype::f16 ? 0x1p-25 : 0x1p-150; }

}  // namespace

struct LayerScores::Impl {
  const Trace* trace = nullptr;
  int layer = 0;
  int group = 0;
  std::int64_t window = 0;
  int first_head = 0, end_head = 0;  // KV heads that are held
  std::int64_t panel_stride = 0;     // floats of one KV head
  std::vector<float> sink_logits;    // [query_heads] or empty
  const ScoreLayer* scores = nullptr;

  Storage storage;  // of somebody else's; else empty

  // Filled by the first who asks.
  mutable std::once_flag keys_loaded, values_loaded;
  mutable std::vector<float>
      panel_store;  // [heads held][padded(tokens) / kPanel, head_dim, kPanel]
  mutable std::vector<float> value_store;  // [kv_heads, tokens, v_dim]

  [[nodiscard]] const TraceMeta& meta() const { return trace->meta(); }
  [[nodiscard]] std::string tensor(const char* name) const {
    return fmt::format("{}: layers.{}.{}", trace->name(), layer, name);
  }

  std::span<const float> panels() const {
    if (!storage.panels.empty()) return storage.panels;
    std::call_once(keys_loaded, [this] {
      panel_store.resize(static_cast<std::size_t>(panel_stride * (end_head - first_head)));
      load_keys(0, meta().tokens, panel_store.data());
    });
    return panel_store;
  }
  std::span<const float> values() const {
    if (!storage.values.empty()) return storage.values;
    std::call_once(values_loaded, [this] {
      value_store.resize(static_cast<std::size_t>(trace->v(layer)->elements()));
      load_values(0, meta().tokens, value_store.data());
    });
    return value_store;
  }
  const float* panel(int kv_head) const {
    return panels().data() + (kv_head - first_head) * panel_stride;
  }

  // Whole panels, from the one of `begin` on.
  void load_keys(RowIndex begin, RowIndex end, float* panels) const {
    const TensorView& k = *trace->k(layer);
    const std::int64_t stride = static_cast<std::int64_t>(meta().kv_heads) * meta().head_dim;
    std::vector<float> piece;
    for (std::int64_t t = begin / kPanel * kPanel; t < end; t += kPieceTokens) {
      const std::int64_t count = std::min(kPieceTokens, end - t);
      piece.resize(static_cast<std::size_t>(count * stride));
      widen(k, t * stride, piece, tensor("k"));
      for (int h = first_head; h < end_head; ++h) {
        kernels::pack_keys(piece.data() + static_cast<std::int64_t>(h) * meta().head_dim, count,
                           stride, meta().head_dim,
                           panels + (h - first_head) * panel_stride + t * meta().head_dim);
      }
    }
  }

  void load_values(RowIndex begin, RowIndex end, float* values) const {
    const TensorView& v = *trace->v(layer);
    const std::int64_t dim = meta().v_head_dim;
    const std::int64_t stride = meta().kv_heads * dim;
    std::vector<float> piece;
    for (std::int64_t t = begin; t < end; t += kPieceTokens) {
      const std::int64_t count = std::min(kPieceTokens, end - t);
      piece.resize(static_cast<std::size_t>(count * stride));
      widen(v, t * stride, piece, tensor("v"));
      for (std::int64_t h = 0; h < meta().kv_heads; ++h) {
        for (std::int64_t i = 0; i < count; ++i) {
          std::copy_n(piece.data() + i * stride + h * dim, dim,
                      values + (h * meta().tokens + t + i) * dim);
        }
      }
    }
  }

  // Softmax of logits that stand in `z`, keys [first, end) readable.
  RowTerms finish(int query_head, RowIndex row, float* z, std::int64_t first, std::int64_t end,
                  std::int64_t key_end) const {
    const kernels::Softmax s = kernels::softmax_terms(z, first, end, key_end);
    if (!std::isfinite(s.max)) {
      throw TraceError(
          fmt::format("{}: row {}, query head {}: a logit is not finite (q.k overflows fp32)",
                      tensor("q"), row, query_head));
    }
    RowTerms out;
    out.terms = z;
    out.sum = s.sum;
    out.max = static_cast<double>(s.max);
    if (!sink_logits.empty()) {
      out.sink = std::exp(static_cast<double>(sink_logits[static_cast<std::size_t>(query_head)]) -
                          out.max);
    }
    return out;
  }

  void logits(std::span<const float* const> q, int kv_head, std::int64_t first_key,
              std::int64_t key_end, float* const* out) const {
    kernels::logits(q.data(), static_cast<std::int64_t>(q.size()), meta().head_dim, panel(kv_head),
                    first_key / kPanel, key_end / kPanel, static_cast<float>(meta().score_scale),
                    static_cast<float>(meta().logit_softcap), out);
  }

  std::vector<float> query(int query_head, RowIndex row) const {
    std::vector<float> q(static_cast<std::size_t>(meta().head_dim));
    widen(*trace->q(layer), (row * meta().query_heads + query_head) * meta().head_dim, q,
          tensor("q"));
    return q;
  }

  RowTerms from_file(int query_head, RowIndex row, std::span<float> out) const {
    const auto at = std::lower_bound(scores->rows.begin(), scores->rows.end(), row);
    const auto r = static_cast<std::int64_t>(at - scores->rows.begin());
    const std::int64_t cell = r * meta().query_heads + query_head;
    std::fill(out.begin(), out.end(), 0.0F);
    RowCut cut;
    double largest = 0;
    double least = 1;
    bool padded_row = false;  // all keys are stored
    const TensorView& stored = scores->dense != nullptr ? *scores->dense : *scores->prob;
    const std::int64_t width = stored.shape[2];
    std::vector<float> values_row(static_cast<std::size_t>(width));
    widen(stored, cell * width, values_row,
          tensor(scores->dense != nullptr ? "scores.dense" : "scores.prob"));
    for (std::int64_t i = 0; i < width; ++i) {
      std::int64_t key = i;
      if (scores->dense == nullptr) {
        std::int32_t index = 0;
        std::memcpy(&index,
                    scores->index->bytes.data() + static_cast<std::size_t>(cell * width + i) * 4,
                    4);
        key = index;
      }
      if (key < 0 || key > row) {
        padded_row = true;
        continue;
      }
      const float p = values_row[static_cast<std::size_t>(i)];
      out[static_cast<std::size_t>(key)] = p;
      cut.captured += static_cast<double>(p);
      cut.keys += p != 0.0F ? 1 : 0;
      largest = std::max(largest, static_cast<double>(p));
      least = std::min(least, static_cast<double>(p));
    }
    cut.relative = rounding_of(stored.dtype);
    cut.absolute = flush_of(stored.dtype);
    const bool all = scores->dense != nullptr || padded_row;
    cut.most = all ? cut.absolute : least * (1 + cut.relative) + cut.absolute;
    RowTerms info;
    info.terms = out.data();
    if (!sink_logits.empty() && scores->lse != nullptr) {
      std::vector<float> lse(1);
      widen(*scores->lse, cell, lse, tensor("scores.lse"));
      info.sink = std::exp(static_cast<double>(sink_logits[static_cast<std::size_t>(query_head)]) -
                           static_cast<double>(lse[0]));
    }
    info.sum = scores->dense != nullptr ? cut.captured : 1.0 - info.sink;
    cut.total = scores->dense != nullptr ? 0.0 : info.sum;
    const double residual = std::max(0.0, 1.0 - info.sink - cut.captured);
    info.slack = residual + cut.relative * largest;
    info.cut = cut;
    return info;
  }
};

LayerScores::LayerScores(const Trace& trace, int layer)
    : LayerScores(trace, layer, 0, trace.meta().kv_heads) {}

LayerScores::LayerScores(const Trace& trace, int layer, Storage storage)
    : LayerScores(trace, layer) {
  impl_->storage = storage;
}

void LayerScores::read(RowIndex begin, RowIndex end) {
  impl_->load_keys(begin, end, impl_->storage.panels.data());
  impl_->load_values(begin, end, impl_->storage.values.data());
}

LayerScores LayerScores::of_kv_head(const Trace& trace, int layer, int kv_head) {
  return {trace, layer, kv_head, kv_head + 1};
}

LayerScores::LayerScores(const Trace& trace, int layer, int first_kv_head, int end_kv_head)
    : impl_(std::make_unique<Impl>()) {
  Impl& self = *impl_;
  const TraceMeta& meta = trace.meta();
  self.trace = &trace;
  self.layer = layer;
  self.group = meta.query_heads / meta.kv_heads;
  self.first_head = first_kv_head;
  self.end_head = end_kv_head;
  if (!meta.sliding_window.empty())
    self.window = meta.sliding_window[static_cast<std::size_t>(layer)];
  self.sink_logits = trace.sink_logits(layer);
  self.panel_stride = padded(meta.tokens) * meta.head_dim;
  if (!trace.is_qkv()) self.scores = &trace.scores(layer);
}

LayerScores::~LayerScores() {
  const Trace& trace = *impl_->trace;
  for (const TensorView* tensor :
       {trace.q(impl_->layer), trace.k(impl_->layer), trace.v(impl_->layer)}) {
    if (tensor != nullptr) trace.tensors().release(*tensor);
  }
}

bool LayerScores::has_row(RowIndex row) const {
  return impl_->scores == nullptr ||
         std::binary_search(impl_->scores->rows.begin(), impl_->scores->rows.end(), row);
}
bool LayerScores::is_qkv() const { return impl_->scores == nullptr; }
RowIndex LayerScores::window() const { return impl_->window; }
std::span<const float> LayerScores::key_panels() const { return impl_->panels(); }
const float* LayerScores::values(int kv_head) const {
  return impl_->values().data() + kv_head * impl_->meta().tokens * impl_->meta().v_head_dim;
}

void LayerScores::compute(int kv_head, const Block& block, std::span<float* const> out,
                          std::span<RowTerms> info) const {
  const Impl& self = *impl_;
  const std::size_t rows = block.rows.size();
  const auto group = static_cast<std::size_t>(self.group);
  if (!is_qkv()) {
    for (std::size_t i = 0; i < group * rows; ++i) {
      const RowIndex row = block.rows[i % rows];
      const int q = kv_head * self.group + static_cast<int>(i / rows);
      if (has_row(row))
        info[i] = self.from_file(q, row, {out[i], static_cast<std::size_t>(block.key_end)});
    }
    return;
  }
  const int dim = self.meta().head_dim;
  std::vector<float> queries(group * rows * static_cast<std::size_t>(dim));
  std::vector<const float*> pointers(group * rows);
  for (std::size_t r = 0; r < rows; ++r) {
    // The query heads of a group lie side by side in a row.
    float* at = queries.data() + r * group * static_cast<std::size_t>(dim);
    widen(*self.trace->q(self.layer),
          (block.rows[r] * self.meta().query_heads + kv_head * self.group) * dim,
          {at, group * static_cast<std::size_t>(dim)}, self.tensor("q"));
    for (std::size_t g = 0; g < group; ++g)
      pointers[g * rows + r] = at + g * static_cast<std::size_t>(dim);
  }
  const std::int64_t first = first_key(block.rows.front()) / kPanel * kPanel;
  self.logits(pointers, kv_head, first, block.key_end, out.data());
  for (std::size_t i = 0; i < group * rows; ++i) {
    const RowIndex row = block.rows[i % rows];
    info[i] = self.finish(kv_head * self.group + static_cast<int>(i / rows), row, out[i],
                          first_key(row), row + 1, block.key_end);
  }
}

RowTerms LayerScores::row(int query_head, RowIndex row, std::span<float> out) const {
  if (!is_qkv()) return impl_->from_file(query_head, row, out);
  std::fill(out.begin() + padded(row + 1), out.end(), 0.0F);
  float* z = out.data();
  RowTerms info;
  rows(query_head, {&row, 1}, {&z, 1}, {&info, 1});
  return info;
}

void LayerScores::rows(int query_head, std::span<const RowIndex> rows, std::span<float* const> out,
                       std::span<RowTerms> info) const {
  std::vector<std::vector<float>> queries;
  std::vector<const float*> pointers;
  for (const RowIndex row : rows) {
    queries.push_back(impl_->query(query_head, row));
    pointers.push_back(queries.back().data());
  }
  const std::int64_t key_end = padded(rows.back() + 1);
  impl_->logits(pointers, query_head / impl_->group, first_key(rows.front()) / kPanel * kPanel,
                key_end, out.data());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RowIndex row = rows[i];
    info[i] = impl_->finish(query_head, row, out[i], first_key(row), row + 1, key_end);
  }
}

void LayerScores::logits(int query_head, RowIndex row, std::span<float> out) const {
  const std::vector<float> q = impl_->query(query_head, row);
  const float* pointer = q.data();
  float* z = out.data();
  impl_->logits({&pointer, 1}, query_head / impl_->group, first_key(row) / kPanel * kPanel,
                padded(row + 1), &z);
}

RowTerms LayerScores::rescued(int query_head, RowIndex row, const float* mask, std::span<float> out,
                              double old_max, double& scale) const {
  const std::vector<float> q = impl_->query(query_head, row);
  const std::int64_t key_end = padded(row + 1);
  const float* pointer = q.data();
  float* z = out.data();
  impl_->logits({&pointer, 1}, query_head / impl_->group, 0, key_end, &z);
  RowTerms info;
  info.terms = z;
  float highest = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = first_key(row); j <= row; ++j) {
    if (mask[j] != 0.0F) highest = std::max(highest, z[j]);
  }
  scale = std::exp(static_cast<double>(highest) - old_max);
  info.max = static_cast<double>(highest);
  for (std::int64_t j = 0; j < static_cast<std::int64_t>(out.size()); ++j) {
    const bool readable = j >= first_key(row) && j <= row && mask[j] != 0.0F;
    z[j] = readable ? std::exp(z[j] - highest) : 0.0F;
    info.sum += static_cast<double>(z[j]);
  }
  if (!impl_->sink_logits.empty()) {
    info.sink = std::exp(
        static_cast<double>(impl_->sink_logits[static_cast<std::size_t>(query_head)]) - info.max);
  }
  return info;
}

RowTerms LayerScores::probe(int query_head, RowIndex row, RowIndex position, RowIndex first,
                            RowIndex end, std::span<float> out) const {
  std::vector<float> q = impl_->query(query_head, row);
  if (const auto& rope = impl_->meta().rope) rotate(*rope, static_cast<double>(position - row), q);
  const std::int64_t key_end = padded(end);
  const float* pointer = q.data();
  float* z = out.data();
  impl_->logits({&pointer, 1}, query_head / impl_->group, first / kPanel * kPanel, key_end, &z);
  std::fill(out.begin() + key_end, out.end(), 0.0F);
  return impl_->finish(query_head, row, z, first, end, key_end);
}

std::vector<float> LayerScores::column_mass(int query_head, std::size_t pass) const {
  if (impl_->scores == nullptr || impl_->scores->column_mass == nullptr) return {};
  const TensorView& mass = *impl_->scores->column_mass;
  std::vector<float> out(static_cast<std::size_t>(mass.shape[2]));
  widen(mass, (static_cast<std::int64_t>(pass) * mass.shape[1] + query_head) * mass.shape[2], out,
        impl_->tensor("scores.column_mass"));
  return out;
}

}  // namespace kvspan
