// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/recorder.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "tracegen/capture/trace_parts.h"
#include "tracegen/capture/trace_writer.h"

namespace kvspan::tracegen {
namespace {

std::string kv_name(int layer, char which) { return fmt::format("kv.{}.{}", layer, which); }

std::span<const float> floats(const float* values, std::int64_t count) {
  return {values, static_cast<std::size_t>(count)};
}

}  // namespace

Recorder::Recorder(const ModelSpec& model, const CaptureOptions& options, WorkFolder& work)
    : model_(model), options_(options), work_(work) {
  stored_.assign(static_cast<std::size_t>(model.layers), -1);
  int next = 0;
  for (const int l : stored_layers(model, options)) stored_[static_cast<std::size_t>(l)] = next++;
  if (options.scores)
    rows_ = score_rows(options.scores->rows, options.prompt, most_tokens(options));
}

void Recorder::reserve(int layer) {
  for (const auto& [name, bytes] : files(layer)) work_.reserve(name, bytes);
  const int at = stored(layer);
  if (at < 0) return;
  if (options_.scores) {
    const std::vector<std::int32_t> rows(rows_.begin(), rows_.end());
    work_.write(tensor_name(at, "scores.rows"), 0, std::as_bytes(std::span(rows)));
  }
  if (options_.wo) record_wo(layer, at);
}

std::string Recorder::missing(int layer) const {
  for (const auto& [name, bytes] : files(layer)) {
    if (work_.bytes(name) < bytes) return name;
  }
  return "";
}

void Recorder::sync(int layer) {
  for (const auto& [name, bytes] : files(layer)) work_.sync(name);
}

void Recorder::restore(int layer, Runner& runner) const {
  std::vector<float> k, v;
  for (std::int64_t first = 0; first < known_tokens(options_); first += kRestoreRows) {
    const std::int64_t rows = std::min(kRestoreRows, known_tokens(options_) - first);
    for (auto [values, which] : {std::pair(&k, 'k'), std::pair(&v, 'v')}) {
      values->resize(static_cast<std::size_t>(rows * model_.kv_width()));
      work_.read(kv_name(layer, which), first * model_.kv_width() * 4,
                 std::as_writable_bytes(std::span(*values)));
    }
    runner.restore({layer, first, rows, nullptr, k.data(), v.data()});
  }
}

void Recorder::begin_replay(int layer, std::int64_t row, std::span<const float> norms) {
  replayed_ = row;
  const int at = stored(layer);
  if (at >= 0 && !norms.empty())
    work_.write(tensor_name(at, "probe.norm"), row * 4, std::as_bytes(norms));
}

Emit Recorder::emit(int layer) {
  Emit out;
  const bool kept = stored(layer) >= 0;
  if (replayed_) {
    out.qkv = kept;
    return out;
  }
  out.qkv = (kept && options_.qkv) || options_.generate > 0;
  if (!kept || !options_.scores) return out;
  out.top_k = static_cast<int>(stored_top_k(options_));
  out.lse = true;
  out.column_mass = options_.scores->column_mass && pass_.has_value();
  return out;
}

void Recorder::on_qkv(const RowsQkv& rows) {
  if (replayed_) {
    const std::int64_t row = *replayed_ + rows.first - options_.replay->at;
    const int at = stored(rows.layer);
    put(at, "probe.q", rows.layer, row, rows.q, rows.rows, model_.q_width());
    put(at, "probe.k", rows.layer, row, rows.k, rows.rows, model_.kv_width());
    return;
  }
  if (options_.generate > 0 && rows.first < known_tokens(options_)) {
    for (const auto& [values, which] : {std::pair(rows.k, 'k'), std::pair(rows.v, 'v')}) {
      work_.write(kv_name(rows.layer, which), rows.first * model_.kv_width() * 4,
                  std::as_bytes(floats(values, rows.rows * model_.kv_width())));
    }
  }
  const int at = stored(rows.layer);
  if (at < 0 || !options_.qkv) return;
  const std::int64_t q_floats = model_.q_width();
  put(at, "q", rows.layer, rows.first, rows.q, rows.rows, q_floats);
  put(at, "k", rows.layer, rows.first, rows.k, rows.rows, model_.kv_width());
  put(at, "v", rows.layer, rows.first, rows.v, rows.rows, model_.kv_width());
}

void Recorder::on_scores(const RowsScores& scores) {
  const int at = stored(scores.layer);
  const std::int64_t heads = model_.query_heads;
  const std::int64_t width = heads * scores.top_k;
  // Runs of rows that are all kept.
  auto row = std::lower_bound(rows_.begin(), rows_.end(), scores.first);
  while (row != rows_.end() && *row < scores.first + scores.rows) {
    const auto begin = row;
    while (row != rows_.end() && *row - *begin == row - begin &&
           *row < scores.first + scores.rows) {
      ++row;
    }
    const std::int64_t slot = begin - rows_.begin();
    const std::int64_t from = *begin - scores.first;
    const std::int64_t count = row - begin;
    put(at, "scores.prob", scores.layer, slot, scores.prob + from * width, count, width);
    work_.write(tensor_name(at, "scores.index"), slot * width * 4,
                std::as_bytes(std::span(scores.index + from * width,
                                        static_cast<std::size_t>(count * width))));
    work_.write(tensor_name(at, "scores.lse"), slot * heads * 4,
                std::as_bytes(floats(scores.lse + from * heads, count * heads)));
  }
}

void Recorder::on_column_mass(int layer, std::int64_t keys, std::span<const float> mass) {
  for (std::int64_t h = 0; h < model_.query_heads; ++h) {
    const std::int64_t row = *pass_ * model_.query_heads + h;
    work_.write(tensor_name(stored(layer), "scores.column_mass"), row * options_.prompt * 4,
                std::as_bytes(floats(mass.data() + h * keys, keys)));
  }
}

std::map<std::string, std::int64_t> Recorder::files(int layer) const {
  const int at = stored(layer);
  const std::int64_t tokens = most_tokens(options_);
  std::map<std::string, std::int64_t> out;
  const auto add = [&out](const std::vector<StoredTensor>& tensors) {
    for (const StoredTensor& t : tensors) out[t.entry.name] = t.stored_bytes();
  };
  if (at >= 0 && options_.qkv) add(qkv_tensors(model_, options_, tokens, at));
  if (at >= 0 && options_.scores) add(score_tensors(model_, options_, tokens, at));
  if (options_.generate > 0) {
    for (const char which : {'k', 'v'})
      out[kv_name(layer, which)] = known_tokens(options_) * model_.kv_width() * 4;
  }
  return out;
}

void Recorder::put(int at, const char* name, int layer, std::int64_t first, const float* values,
                   std::int64_t rows, std::int64_t width) {
  const std::string what = fmt::format("layer {}: {}", layer, name);
  for (std::int64_t i = 0; i < rows * width; i += kPieceFloats) {
    narrow(floats(values + i, std::min(kPieceFloats, rows * width - i)), options_.dtype, what,
           bytes_);
    work_.write(tensor_name(at, name), (first * width + i) * dtype_bytes(options_.dtype), bytes_);
  }
}

void Recorder::record_wo(int layer, int at) {
  const std::int64_t columns = model_.q_width();
  const std::int64_t step = std::max<std::int64_t>(1, kPieceFloats / columns);
  std::vector<float> block;
  for (std::int64_t first = 0; first < model_.hidden; first += step) {
    const std::int64_t rows = std::min(step, model_.hidden - first);
    block.resize(static_cast<std::size_t>(rows * columns));
    options_.wo(layer, first, rows, block.data());
    put(at, "wo", layer, first, block.data(), rows, columns);
  }
}

}  // namespace kvspan::tracegen
