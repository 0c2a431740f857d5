// SPDX-License-Identifier: Apache-2.0
#include "sim/report/lifetimes_reader.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <functional>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/report/result_metadata.h"
#include "sim/trace/tensor.h"

namespace kvspan {

static_assert(std::endian::native == std::endian::little,
              "tensors are read as they lie in the file");

void LifetimesFile::fail(int run, const char* what, const std::string& found) const {
  throw TraceError(
      fmt::format("{}: tensor '{}': {}", path_text(name_), tensor_name(run, what), found));
}

std::string LifetimesFile::tensor_name(int run, const char* what) const {
  return run_key(static_cast<std::size_t>(run), what);
}

const TensorView* LifetimesFile::find(int run, const char* what) const {
  return tensors_->find(tensor_name(run, what));
}

template <class T>
std::span<const T> LifetimesFile::of_head(int run, const char* what, int layer, int head) const {
  const TensorView* tensor = find(run, what);
  if (tensor == nullptr) return {};
  const Run& of = runs_[static_cast<std::size_t>(run)];
  assert(layer >= 0 && layer < layers() && head >= 0 && head < of.heads);
  const auto index = static_cast<std::size_t>(std::int64_t{layer} * of.heads + head);
  const auto tokens = static_cast<std::size_t>(tokens_);
  return std::span(reinterpret_cast<const T*>(tensor->bytes.data()) + index * tokens, tokens);
}

std::vector<std::int64_t> LifetimesFile::integers(int run, const char* what, std::int64_t low,
                                                  std::int64_t high) const {
  const TensorView* tensor = find(run, what);
  if (tensor == nullptr) return {};
  std::vector<std::int64_t> out(static_cast<std::size_t>(tensor->elements()));
  std::memcpy(out.data(), tensor->bytes.data(), tensor->bytes.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (out[i] < low || out[i] > high)
      fail(run, what, fmt::format("element {} is {}; expected {} to {}", i, out[i], low, high));
  }
  return out;
}

std::span<const std::uint32_t> LifetimesFile::deaths(int run, int layer, int head) const {
  const auto out = of_head<std::uint32_t>(run, "death", layer, head);
  const std::uint32_t* death = out.data();
  const auto tokens = static_cast<std::uint32_t>(tokens_);
  bool bad = false;  // without a branch: a head may be a million tokens
  for (std::uint32_t t = 0; t < tokens; ++t) bad |= (death[t] <= t) | (death[t] > tokens);
  if (!bad) return out;
  for (std::uint32_t t = 0;; ++t) {
    if (out[t] > t && out[t] <= tokens) continue;
    fail(run, "death",
         fmt::format("layer {}, head {}, token {} dies at row {}; expected {} to {}", layer, head,
                     t, out[t], t + 1, tokens));
  }
}

std::span<const float> LifetimesFile::scores(int run, int layer, int head) const {
  return of_head<float>(run, "score", layer, head);
}

std::span<const std::int32_t> LifetimesFile::ranks(int run, int layer, int head) const {
  return of_head<std::int32_t>(run, "rank", layer, head);
}

std::vector<Change> LifetimesFile::changes(int run, int layer) const {
  const TensorView* tensor = find(run, "changes");
  if (tensor == nullptr) return {};
  const Run& of = runs_[static_cast<std::size_t>(run)];
  const std::vector<std::int64_t>& offsets = change_offsets_[static_cast<std::size_t>(run)];
  const std::int64_t end = offsets[static_cast<std::size_t>(layer) + 1];
  std::vector<Change> out;
  for (std::int64_t i = offsets[static_cast<std::size_t>(layer)]; i < end; ++i) {
    const auto field = [&](std::int64_t which, std::int64_t low, std::int64_t high) {
      const std::int64_t value = integer_at(*tensor, i * kChangeFields + which);
      if (value < low || value > high) {
        fail(run, "changes",
             fmt::format("[{}, {}] is {}; expected {} to {}", i, which, value, low, high));
      }
      return value;
    };
    (void)field(0, layer, layer);
    Change change;
    change.row = field(1, out.empty() ? 0 : out.back().row, tokens_);
    change.head = static_cast<int>(field(2, 0, of.heads - 1));
    change.token = static_cast<TokenIndex>(field(3, 0, tokens_ - 1));
    change.representation =
        static_cast<int>(field(4, 0, static_cast<std::int64_t>(of.representations.size()) - 1));
    out.push_back(change);
  }
  return out;
}

std::vector<std::int64_t> LifetimesFile::selected(int run) const {
  const Run& of = runs_[static_cast<std::size_t>(run)];
  return integers(run, "selected", 0, std::int64_t{layers()} * of.heads * tokens_);
}

std::vector<std::int64_t> LifetimesFile::state(int run) const {
  return integers(run, "state", 0, kMostOnce / tokens_);
}

std::span<const std::uint8_t> LifetimesFile::reads(int run, int layer, int head,
                                                   std::size_t sample) const {
  const Run& of = runs_[static_cast<std::size_t>(run)];
  const TensorView* tensor = find(run, "reads");
  assert(tensor != nullptr && sample < of.read_rows.size());
  const auto bytes = static_cast<std::size_t>((tokens_ + 7) / 8);
  const auto stored = static_cast<std::size_t>(std::int64_t{layer} * of.heads + head);
  const std::span all(reinterpret_cast<const std::uint8_t*>(tensor->bytes.data()),
                      tensor->bytes.size());
  const auto out = all.subspan((stored * of.read_rows.size() + sample) * bytes, bytes);
  const RowIndex row = of.read_rows[sample];
  const auto tail =
      out.subspan(static_cast<std::size_t>(row / 8));  // from the byte of the row's own
  auto unborn = static_cast<unsigned>(tail[0]) >> static_cast<unsigned>(row % 8 + 1);
  for (const std::uint8_t byte : tail.subspan(1)) unborn |= byte;
  if (unborn != 0) {
    fail(run, "reads",
         fmt::format("layer {}, head {}: row {} reads a token that is not born", layer, head, row));
  }
  return out;
}

PassPlan LifetimesFile::plan(int run) const {
  const RowIndex evict_point = runs_[static_cast<std::size_t>(run)].evict_point;
  if (find(run, "passes") == nullptr) return make_passes(tokens_, prompt_, evict_point, chunk_);
  PassPlan plan{tokens_, prompt_, evict_point, integers(run, "passes", 1, tokens_)};
  const std::vector<RowIndex>& ends = plan.ends;
  if (std::adjacent_find(ends.begin(), ends.end(), std::greater_equal<>()) != ends.end())
    fail(run, "passes", "its ends do not ascend");
  for (const RowIndex end : {evict_point, prompt_, tokens_}) {
    if (!std::binary_search(ends.begin(), ends.end(), end))
      fail(run, "passes",
           fmt::format("no pass ends at row {}; expected ends at {}, {} and {}", end, evict_point,
                       prompt_, tokens_));
  }
  return plan;
}

Ledger LifetimesFile::shell(int run, int layers) const {
  const Run& of = runs_[static_cast<std::size_t>(run)];
  Ledger ledger;
  ledger.plan = plan(run);
  ledger.layers = layers;
  ledger.model_layers = model_layers_;
  ledger.heads = of.heads;
  ledger.query_heads = query_heads_;
  ledger.representations = of.representations;
  ledger.waits_for_layers = of.waits_for_layers;
  ledger.charge.entry = of.charge.entry;
  ledger.death.reserve(ledger.offset(layers, 0));
  return ledger;
}

// Deaths, changes and the window of one layer.
void LifetimesFile::append(int run, int layer, Ledger& ledger) const {
  for (int head = 0; head < ledger.heads; ++head) {
    const auto of_one = deaths(run, layer, head);
    ledger.death.insert(ledger.death.end(), of_one.begin(), of_one.end());
  }
  ledger.changes.push_back(changes(run, layer));
  if (!window_.empty()) ledger.sliding_window.push_back(window_[static_cast<std::size_t>(layer)]);
}

Ledger LifetimesFile::ledger_of_layer(int run, int layer) const {
  Ledger ledger = shell(run, 1);
  append(run, layer, ledger);
  return ledger;
}

Ledger LifetimesFile::ledger(int run) const {
  const Run& of = runs_[static_cast<std::size_t>(run)];
  Ledger ledger = shell(run, layers());
  ledger.charge.once = of.charge.once;
  ledger.state = state(run);
  ledger.selected = selected(run);
  ledger.read_rows = of.read_rows;
  for (int layer = 0; layer < layers(); ++layer) {
    append(run, layer, ledger);
    for (int head = 0; head < of.heads; ++head) {
      const auto score = scores(run, layer, head);
      ledger.score.insert(ledger.score.end(), score.begin(), score.end());
      const auto rank = ranks(run, layer, head);
      ledger.rank.insert(ledger.rank.end(), rank.begin(), rank.end());
      for (std::size_t sample = 0; sample < of.read_rows.size(); ++sample) {
        const auto bits = reads(run, layer, head, sample);
        ledger.reads.insert(ledger.reads.end(), bits.begin(), bits.end());
      }
    }
  }
  return ledger;
}

}  // namespace kvspan
