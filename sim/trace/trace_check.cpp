// SPDX-License-Identifier: Apache-2.0
// Memory is bounded by the pieces below, whatever the size of the trace.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_tools.h"

namespace kvspan {

namespace {

constexpr std::int64_t kPieceElements = 1 << 16;
constexpr std::size_t kPieceBytes = std::size_t{8} << 20U;  // before pages are given back
// Rounding of stored probabilities: relative per value, and F16 subnormals absolutely.
constexpr double kRelativeSlack = 2e-3;
constexpr double kAbsoluteSlack = 0x1p-25;

std::string tensor_text(const TensorView& tensor) {
  return fmt::format("{} {}", dtype_name(tensor.dtype), shape_text(tensor.shape));
}

class Checker {
 public:
  explicit Checker(const Trace& trace) : trace_(trace) {}

  std::vector<std::string> run() {
    const TraceMeta& meta = trace_.meta();
    add(fmt::format(
        "metadata: version 1, {} of {} layers, {} query heads, {} KV heads, {} tokens of "
        "which {} are prompt",
        meta.layers, meta.model_layers, meta.query_heads, meta.kv_heads, meta.tokens,
        meta.prompt_tokens));
    add(fmt::format("spans: {}, all inside the tokens; passes: {}", meta.spans.size(),
                    meta.passes.size()));
    if (const std::vector<Probe> probes = probes_of(trace_); !probes.empty()) {
      add(fmt::format("replayed rows: {} in {} passes", probes.back().first + probes.back().rows,
                      probes.size()));
    }
    for (const char* suffix :
         {"q", "k", "v", "wo", "sink_logits", "probe.q", "probe.k", "probe.norm"}) {
      check_finite(suffix);
    }
    if (!trace_.is_qkv()) check_scores();
    check_ids("token_ids");
    check_ids("probe_ids");
    check_nll();
    if (const TensorView* text = trace_.tensors().find("token_text")) {
      add(fmt::format("token_text: {} bytes, offsets ascending", text->bytes.size()));
    }
    list_unknown();
    return std::move(lines_);
  }

 private:
  void add(std::string line) { lines_.push_back(std::move(line)); }

  [[nodiscard]] std::string where(const std::string& tensor) const {
    return path_text(trace_.name()) + ": tensor '" + tensor + "'";
  }
  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const {
    throw TraceError(where(tensor) + ": " + what);
  }
  const TensorView* find(const std::string& name) {
    known_.insert(name);
    return trace_.tensors().find(name);
  }

  // Calls visit(first, values) for pieces of the tensor. Errors: TraceError on NaN or infinity.
  template <typename Visit>
  void for_pieces(const TensorView& tensor, const std::string& name, std::int64_t count,
                  const Visit& visit) {
    const std::string place = where(name);
    const auto element = static_cast<std::size_t>(dtype_bytes(tensor.dtype));
    std::size_t released = 0;
    for (std::int64_t first = 0; first < count; first += kPieceElements) {
      buffer_.resize(static_cast<std::size_t>(std::min(kPieceElements, count - first)));
      widen(tensor, first, buffer_, place);
      visit(first, std::span<const float>(buffer_));
      const std::size_t done = (static_cast<std::size_t>(first) + buffer_.size()) * element;
      if (done - released < kPieceBytes) continue;
      const auto passed = tensor.bytes.subspan(released, done - released);
      trace_.tensors().release({Dtype::u8, {}, passed});
      released = done;
    }
    trace_.tensors().release(tensor);
  }

  void check_finite(const char* suffix) {
    const TensorView* last = nullptr;
    int layers = 0;
    for (int l = 0; l < trace_.meta().layers; ++l) {
      const std::string name = layer_tensor(l, suffix);
      const TensorView* tensor = find(name);
      if (tensor == nullptr) continue;
      for_pieces(*tensor, name, tensor->elements(), [](std::int64_t, std::span<const float>) {});
      last = tensor;
      ++layers;
    }
    if (last != nullptr) {
      add(fmt::format("{}: {} in {} layers, all values finite", suffix, tensor_text(*last),
                      layers));
    }
  }

  void check_scores() {
    double residual = 0;
    std::int64_t rows = 0;
    for (int l = 0; l < trace_.meta().layers; ++l) {
      for (const char* suffix : {"scores.rows", "scores.prob", "scores.index", "scores.dense",
                                 "scores.lse", "scores.column_mass"}) {
        known_.insert(layer_tensor(l, suffix));
      }
      const ScoreLayer& scores = trace_.scores(l);
      rows += static_cast<std::int64_t>(scores.rows.size());
      residual = std::max(
          residual, scores.dense != nullptr ? check_dense(l, scores) : check_largest(l, scores));
      for_pieces(*scores.lse, layer_tensor(l, "scores.lse"), scores.lse->elements(),
                 [](std::int64_t, std::span<const float>) {});
      if (scores.column_mass != nullptr) check_column_mass(l, *scores.column_mass);
    }
    add(fmt::format("scores: {} rows in {} layers, largest residual mass of a row {:.3g}", rows,
                    trace_.meta().layers, residual));
  }

  // First key that a row may read in a layer.
  [[nodiscard]] std::int64_t first_key(int layer, std::int64_t row) const {
    const std::int64_t window = trace_.meta().sliding_window[static_cast<std::size_t>(layer)];
    return window == 0 ? 0 : std::max<std::int64_t>(0, row - window + 1);
  }
  void check_sum(double sum, std::int64_t values, const std::string& name,
                 const std::string& at) const {
    const double limit = 1 + kRelativeSlack + kAbsoluteSlack * static_cast<double>(values);
    if (sum > limit)
      fail(name, fmt::format("{}: probabilities sum to {:.6g}; expected at most 1", at, sum));
  }

  // Returns the largest residual mass.
  double check_dense(int layer, const ScoreLayer& scores) {
    const std::string name = layer_tensor(layer, "scores.dense");
    const std::int64_t tokens = trace_.meta().tokens;
    const std::int64_t heads = trace_.meta().query_heads;
    double sum = 0;
    double residual = 0;
    for_pieces(*scores.dense, name, scores.dense->elements(),
               [&](std::int64_t first, std::span<const float> values) {
                 for (std::size_t i = 0; i < values.size(); ++i) {
                   const std::int64_t element = first + static_cast<std::int64_t>(i);
                   const std::int64_t key = element % tokens;
                   const std::int64_t row =
                       scores.rows[static_cast<std::size_t>(element / tokens / heads)];
                   const bool readable = key <= row && key >= first_key(layer, row);
                   if (values[i] < 0 || (!readable && values[i] > 0)) {
                     fail(name,
                          fmt::format("row {}, key {}: probability {}; expected {}", row, key,
                                      values[i], readable ? ">= 0" : "0, the row cannot read it"));
                   }
                   sum += static_cast<double>(values[i]);
                   if (key == tokens - 1) {
                     check_sum(sum, tokens, name, fmt::format("row {}", row));
                     residual = std::max(residual, 1 - sum);
                     sum = 0;
                   }
                 }
               });
    return residual;
  }

  double check_largest(int layer, const ScoreLayer& scores) {
    const std::string prob_name = layer_tensor(layer, "scores.prob");
    const std::string index_name = layer_tensor(layer, "scores.index");
    const std::int64_t heads = trace_.meta().query_heads;
    const std::int64_t kept = scores.prob->shape[2];
    std::vector<std::int64_t> keys;
    double sum = 0;
    double previous = 0;
    double residual = 0;
    for_pieces(
        *scores.prob, prob_name, scores.prob->elements(),
        [&](std::int64_t first, std::span<const float> values) {
          for (std::size_t i = 0; i < values.size(); ++i) {
            const std::int64_t element = first + static_cast<std::int64_t>(i);
            const std::int64_t slot = element % kept;
            const std::int64_t head = element / kept % heads;
            const std::int64_t row = scores.rows[static_cast<std::size_t>(element / kept / heads)];
            const auto at = [&] {
              return fmt::format("row {}, head {}, element {}", row, head, slot);
            };
            const auto value = static_cast<double>(values[i]);
            if (slot == 0) {
              keys.clear();
              sum = 0;
            }
            if (value < 0 || (slot > 0 && value > previous)) {
              fail(prob_name,
                   fmt::format("{}: probability {}; expected a descending list >= 0", at(), value));
            }
            const std::int64_t key = integer_at(*scores.index, element);
            const bool is_pad = key == -1;
            if (is_pad ? value > 0 : key < first_key(layer, row) || key > row) {
              fail(index_name,
                   fmt::format("{}: key {} with probability {}; expected a key in [{}, {}] "
                               "or -1 with 0",
                               at(), key, value, first_key(layer, row), row));
            }
            if (!is_pad) {
              if (static_cast<std::int64_t>(keys.size()) != slot) {
                fail(index_name, at() + ": key after a -1; expected the pads at the end");
              }
              keys.push_back(key);
            }
            previous = value;
            sum += value;
            if (slot != kept - 1) continue;
            std::sort(keys.begin(), keys.end());
            const auto twice = std::adjacent_find(keys.begin(), keys.end());
            if (twice != keys.end())
              fail(index_name, fmt::format("{}: key {} appears twice", at(), *twice));
            check_sum(sum, kept, prob_name, at());
            residual = std::max(residual, 1 - sum);
          }
        });
    trace_.tensors().release(*scores.index);
    return residual;
  }

  // A pass of c rows spreads a mass of at most c over the keys before its end.
  void check_column_mass(int layer, const TensorView& tensor) {
    const std::string name = layer_tensor(layer, "scores.column_mass");
    const TraceMeta& meta = trace_.meta();
    double sum = 0;
    for_pieces(
        tensor, name, tensor.elements(), [&](std::int64_t first, std::span<const float> values) {
          for (std::size_t i = 0; i < values.size(); ++i) {
            const std::int64_t element = first + static_cast<std::int64_t>(i);
            const std::int64_t key = element % meta.tokens;
            const auto pass = static_cast<std::size_t>(element / meta.tokens / meta.query_heads);
            const std::int64_t end = meta.passes[pass];
            const std::int64_t rows = end - (pass == 0 ? 0 : meta.passes[pass - 1]);
            if (values[i] < 0 || (key >= end && values[i] > 0)) {
              fail(name, fmt::format("pass {}, key {}: mass {}; expected {}", pass, key, values[i],
                                     key < end ? ">= 0" : "0, no row of the pass can read it"));
            }
            sum = (key == 0 ? 0 : sum) + static_cast<double>(values[i]);
            if (key == meta.tokens - 1 && sum > static_cast<double>(rows) * (1 + kRelativeSlack)) {
              fail(name, fmt::format("pass {}: mass {} in all; expected at most its {} rows", pass,
                                     sum, rows));
            }
          }
        });
  }

  void check_ids(const char* name) {
    const TensorView* ids = find(name);
    if (ids == nullptr) return;
    for (std::int64_t i = 0; i < ids->elements(); ++i) {
      const std::int64_t id = integer_at(*ids, i);
      if (id < 0) fail(name, fmt::format("element {} is {}; expected ids >= 0", i, id));
    }
    add(fmt::format("{}: {}, all >= 0", name, ids->elements()));
  }

  // The last value belongs to a token that the trace does not hold, and is ignored.
  void check_nll() {
    const TensorView* nll = find("nll");
    if (nll == nullptr) return;
    const std::int64_t count = trace_.meta().tokens - 1;
    double sum = 0;
    for_pieces(*nll, "nll", count, [&](std::int64_t first, std::span<const float> values) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto value = static_cast<double>(values[i]);
        if (value < -kRelativeSlack) {
          fail("nll", fmt::format("element {} is {}; expected a negative log-likelihood >= 0",
                                  first + static_cast<std::int64_t>(i), value));
        }
        sum += value;
      }
    });
    if (count > 0) {
      add(fmt::format("nll: finite, mean {:.4f} nats over {} tokens",
                      sum / static_cast<double>(count), count));
    }
  }

  // Not an error: a later version or another tool may add tensors.
  void list_unknown() {
    known_.insert({"token_text", "token_text_offsets"});
    std::string names;
    std::size_t count = 0;
    for (const auto& [name, tensor] : trace_.tensors().tensors()) {
      if (known_.contains(name)) continue;
      if (++count <= 4) names += (count == 1 ? "" : ", ") + in_quotes(name);
    }
    if (count > 4) names += ", ...";
    if (count > 0)
      add(fmt::format("not part of the format, not checked: {} tensors ({})", count, names));
  }

  const Trace& trace_;
  std::vector<std::string> lines_;
  std::vector<float> buffer_;
  std::set<std::string> known_;
};

}  // namespace

std::vector<std::string> check_trace(const Trace& trace) { return Checker(trace).run(); }

}  // namespace kvspan
