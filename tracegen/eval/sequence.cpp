// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/sequence.h"

#include <algorithm>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "sim/attention/kernels.h"
#include "tracegen/capture/trace_parts.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kPageFloats = 4096 / sizeof(float);

std::int64_t q_floats(const ModelSpec& m, RowIndex tokens) { return tokens * m.q_width(); }
std::int64_t kv_floats(const ModelSpec& m, RowIndex tokens) { return tokens * m.kv_width(); }
std::int64_t panel_floats(const ModelSpec& m, RowIndex tokens) {
  return kvspan::kernels::padded(tokens) * m.kv_width();
}

// Whole pages, so that layers do not share one.
std::int64_t layer_floats(const ModelSpec& m, RowIndex tokens) {
  const std::int64_t floats =
      q_floats(m, tokens) + 3 * kv_floats(m, tokens) + panel_floats(m, tokens);
  return (floats + kPageFloats - 1) / kPageFloats * kPageFloats;
}

TensorView view_of(const float* data, std::vector<std::int64_t> shape) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= extent;
  return {Dtype::f32, std::move(shape),
          std::as_bytes(std::span(data, static_cast<std::size_t>(elements)))};
}

Metadata metadata(const ModelSpec& model, const SequenceHead& head, RowIndex tokens,
                  const std::vector<std::int32_t>& special_ids) {
  CaptureOptions options;
  options.prompt = std::min(head.prompt, tokens);
  options.spans = head.spans;
  options.source = head.source;
  options.special_ids = special_ids;
  return make_metadata(model, options, tokens, false);
}

// What a trace in memory owns beside the sequence.
struct PromptTensors {
  std::shared_ptr<const ForkedMemory> memory;
  std::vector<std::int32_t> ids;
  std::string text;
  std::vector<std::int64_t> offsets{0};
  std::vector<std::vector<float>> projections;
};

}  // namespace

Sequence::Sequence(const ModelSpec& model, const SequenceHead& head)
    : Sequence(model, head, ForkedMemory(model.layers * layer_floats(model, head.tokens))) {}

Sequence::Sequence(const ModelSpec& model, SequenceHead head, ForkedMemory memory)
    : model_(model),
      head_(std::move(head)),
      memory_(std::make_shared<const ForkedMemory>(std::move(memory))) {
  trace_ = std::make_unique<const Trace>(
      Trace::from_tensors(TensorSet::from_views(metadata(model_, head_, head_.tokens, {}),
                                                views(head_.tokens), memory_),
                          head_.source));
  for (int l = 0; l < model_.layers; ++l) {
    const std::int64_t behind =
        q_floats(model_, head_.tokens) + 2 * kv_floats(model_, head_.tokens);
    float* panels = at(l, behind);
    const auto size = static_cast<std::size_t>(panel_floats(model_, head_.tokens));
    scores_.push_back(std::make_unique<LayerScores>(
        *trace_, l,
        LayerScores::Storage{
            {panels, size},
            {panels + size, static_cast<std::size_t>(kv_floats(model_, head_.tokens))}}));
  }
}

std::unique_ptr<Sequence> Sequence::fork() const {
  return std::unique_ptr<Sequence>(new Sequence(model_, head_, memory_->fork()));
}

float* Sequence::at(int layer, std::int64_t offset) const {
  return memory_->data() + layer * layer_floats(model_, head_.tokens) + offset;
}
float* Sequence::q(int layer, RowIndex row) const { return at(layer, row * model_.q_width()); }
float* Sequence::k(int layer, RowIndex row) const {
  return at(layer, q_floats(model_, head_.tokens) + row * model_.kv_width());
}
float* Sequence::v(int layer, RowIndex row) const {
  return k(layer, row) + kv_floats(model_, head_.tokens);
}

std::map<std::string, TensorView> Sequence::views(RowIndex rows) const {
  std::map<std::string, TensorView> out;
  for (int l = 0; l < model_.layers; ++l) {
    const std::int64_t dim = model_.head_dim;
    out.emplace(layer_tensor(l, "q"), view_of(q(l, 0), {rows, model_.query_heads, dim}));
    out.emplace(layer_tensor(l, "k"), view_of(k(l, 0), {rows, model_.kv_heads, dim}));
    out.emplace(layer_tensor(l, "v"), view_of(v(l, 0), {rows, model_.kv_heads, dim}));
  }
  return out;
}

Trace Sequence::prompt_trace(RowIndex rows, const Text& text, const Checkpoint& projections) const {
  auto owned = std::make_shared<PromptTensors>();
  owned->memory = memory_;
  owned->ids = text.ids;
  for (const std::string& piece : text.pieces) {
    owned->text += piece;
    owned->offsets.push_back(static_cast<std::int64_t>(owned->text.size()));
  }
  std::map<std::string, TensorView> tensors = views(rows);
  for (int l = 0; l < model_.layers; ++l) {
    const WeightMatrix& o = projections.layer(l).o;
    std::vector<float>& wide =
        owned->projections.emplace_back(static_cast<std::size_t>(o.rows * o.columns));
    widen_rows(o, 0, o.rows, wide.data());
    tensors.emplace(layer_tensor(l, "wo"), view_of(wide.data(), {o.rows, o.columns}));
  }
  tensors.emplace("token_ids",
                  TensorView{Dtype::i32, {rows}, std::as_bytes(std::span(owned->ids))});
  tensors.emplace("token_text", TensorView{Dtype::u8,
                                           {static_cast<std::int64_t>(owned->text.size())},
                                           std::as_bytes(std::span(owned->text))});
  tensors.emplace("token_text_offsets",
                  TensorView{Dtype::i64, {rows + 1}, std::as_bytes(std::span(owned->offsets))});
  return Trace::from_tensors(TensorSet::from_views(metadata(model_, head_, rows, text.special_ids),
                                                   std::move(tensors), owned),
                             head_.source);
}

std::int64_t Sequence::bytes(const ModelSpec& model, RowIndex tokens) {
  return model.layers * layer_floats(model, tokens) * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t Sequence::fork_bytes(const ModelSpec& model, RowIndex rows) {
  // Where rows lie side by side a page more, at both ends, and a panel more.
  const RowIndex panels = kvspan::kernels::padded(rows) + kvspan::kernels::kPanel;
  const std::int64_t floats = q_floats(model, rows) + 3 * kv_floats(model, rows) +
                              panels * model.kv_width() +
                              (3 + 2 * std::int64_t{model.kv_heads}) * 2 * kPageFloats;
  return model.layers * floats * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace kvspan::tracegen
