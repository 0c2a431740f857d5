// SPDX-License-Identifier: Apache-2.0
// check, info and slice: whatever walks through all values of a trace. Memory is bounded by the
// pieces below, whatever the size of the trace.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/trace/trace.h"
#include "sim/trace/trace_meta.h"

namespace kvspan {

using nlohmann::json;

namespace {

constexpr std::int64_t kPieceElements = 1 << 16;
constexpr std::size_t kPieceBytes = std::size_t{8} << 20U;
// Rounding of stored probabilities: relative per value, and F16 subnormals absolutely.
constexpr double kRelativeSlack = 2e-3;
constexpr double kAbsoluteSlack = 0x1p-25;

std::string layer_tensor(int layer, std::string_view suffix) {
  return fmt::format("layers.{}.{}", layer, suffix);
}

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
    for (const char* suffix : {"q", "k", "v", "wo", "sink_logits"}) check_finite(suffix);
    if (!trace_.is_qkv()) check_scores();
    check_token_ids();
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
    return one_line(trace_.name()) + ": tensor '" + tensor + "'";
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

  void check_token_ids() {
    const TensorView* ids = find("token_ids");
    if (ids == nullptr) return;
    for (std::int64_t i = 0; i < ids->elements(); ++i) {
      const std::int64_t id = integer_at(*ids, i);
      if (id < 0) fail("token_ids", fmt::format("element {} is {}; expected ids >= 0", i, id));
    }
    add(fmt::format("token_ids: {}, all >= 0", ids->elements()));
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

json describe_scores(const Trace& trace) {
  json layers = json::array();
  for (int l = 0; l < trace.meta().layers; ++l) {
    const ScoreLayer& scores = trace.scores(l);
    json layer{{"layer", trace.meta().layer_ids[static_cast<std::size_t>(l)]},
               {"rows", scores.rows.size()},
               {"first_row", scores.rows.front()},
               {"last_row", scores.rows.back()},
               {"layout", scores.dense != nullptr ? "dense" : "largest"},
               {"kept", nullptr},
               {"column_mass", scores.column_mass != nullptr}};
    if (scores.prob != nullptr) layer["kept"] = scores.prob->shape[2];
    layers.push_back(std::move(layer));
  }
  return layers;
}

json describe_rope(const Trace& trace) {
  const std::optional<Rope>& rope = trace.meta().rope;
  if (!rope) return nullptr;
  json out{{"theta", rope->theta},
           {"dim", rope->dim},
           {"layout", rope->interleaved ? "interleaved" : "half"},
           {"scaling", nullptr}};
  const auto scaling = trace.tensors().metadata().find("rope_scaling");
  if (scaling != trace.tensors().metadata().end())
    out["scaling"] = parse_json_strict(scaling->second);
  return out;
}

// One tensor of the slice: the first `rows` rows of the source, and of each its first `kept_bytes`.
struct SliceTensor {
  SafetensorsWriter::Entry entry;
  const TensorView* source = nullptr;
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;
  std::int64_t kept_bytes = 0;
};

class Slicer {
 public:
  Slicer(const Trace& trace, std::int64_t tokens, const std::vector<int>& model_layers)
      : trace_(trace), tokens_(tokens) {
    const TraceMeta& meta = trace.meta();
    if (tokens < 1 || tokens > meta.tokens) {
      throw ConfigError(fmt::format("slice: {} tokens; expected 1 to {}, the tokens of the trace",
                                    tokens, meta.tokens));
    }
    prompt_tokens_ = std::min(meta.prompt_tokens, tokens);
    const std::set<int> wanted(model_layers.begin(), model_layers.end());
    for (int l = 0; l < meta.layers; ++l) {
      const int id = meta.layer_ids[static_cast<std::size_t>(l)];
      if (wanted.empty() || wanted.contains(id)) layers_.push_back(l);
    }
    for (const int id : wanted) {
      if (std::binary_search(meta.layer_ids.begin(), meta.layer_ids.end(), id)) continue;
      throw ConfigError(fmt::format("slice: layer {} is not in the trace; expected model layers {}",
                                    id, fmt::join(meta.layer_ids, ", ")));
    }
  }

  std::vector<std::string> run(const std::filesystem::path& out) {
    Metadata metadata = slice_metadata();
    plan_tensors();
    // Wide elements first, so that every tensor is aligned whatever the number of tokens.
    std::stable_sort(plan_.begin(), plan_.end(), [](const SliceTensor& a, const SliceTensor& b) {
      return dtype_bytes(a.entry.dtype) > dtype_bytes(b.entry.dtype);
    });
    std::vector<SafetensorsWriter::Entry> entries;
    for (const SliceTensor& tensor : plan_) entries.push_back(tensor.entry);
    SafetensorsWriter writer(out, metadata, entries);
    for (const SliceTensor& tensor : plan_) copy(tensor, &writer);
    if (trace_.tensors().find("nll") != nullptr) {
      const float zero = 0;  // the likelihood of the next token, which is cut off
      writer.write("nll", (tokens_ - 1) * std::int64_t{sizeof(zero)},
                   std::as_bytes(std::span(&zero, 1)));
    }
    writer.finish();
    return std::move(lines_);
  }

 private:
  void slice_spans(Metadata* metadata) {
    const auto found = metadata->find("spans");
    if (found == metadata->end()) return;
    json kept = json::array();
    for (json& span : parse_json_strict(found->second)) {  // keeps keys that we do not know
      const auto begin = span["begin"].get<std::int64_t>();
      const auto end = span["end"].get<std::int64_t>();
      const std::string text = fmt::format(
          "span {} [{}, {})", in_quotes(span["name"].get_ref<const std::string&>()), begin, end);
      if (begin >= tokens_) {
        lines_.push_back(fmt::format("{} dropped: only {} tokens are kept", text, tokens_));
        continue;
      }
      if (end > tokens_) {
        lines_.push_back(fmt::format("{} clipped to [{}, {})", text, begin, tokens_));
        span["end"] = tokens_;
      }
      kept.push_back(std::move(span));
    }
    found->second = kept.dump();
  }

  Metadata slice_metadata() {
    const TraceMeta& meta = trace_.meta();
    Metadata out = trace_.tensors().metadata();
    json ids = json::array();
    for (const int l : layers_) ids.push_back(meta.layer_ids[static_cast<std::size_t>(l)]);
    out["layers"] = std::to_string(layers_.size());
    out["layer_ids"] = ids.dump();
    out["model_layers"] = std::to_string(meta.model_layers);
    out["tokens"] = std::to_string(tokens_);
    out["prompt_tokens"] = std::to_string(prompt_tokens_);
    if (const auto window = out.find("sliding_window"); window != out.end()) {
      const json value = parse_json_strict(window->second);
      if (value.is_array()) {
        json list = json::array();
        for (const int l : layers_) list.push_back(value[static_cast<std::size_t>(l)]);
        window->second = list.dump();
      }
    }
    if (!meta.passes.empty()) {
      std::vector<std::int64_t> ends;
      for (const std::int64_t end : meta.passes) {
        if (end < prompt_tokens_) ends.push_back(end);
      }
      ends.push_back(prompt_tokens_);
      passes_ = static_cast<std::int64_t>(ends.size());
      passes_are_whole_ =
          std::binary_search(meta.passes.begin(), meta.passes.end(), prompt_tokens_);
      out["passes"] = json(ends).dump();
    }
    slice_spans(&out);
    return out;
  }

  // Adds the first `rows` elements of the outermost axis of a tensor, if the trace has it.
  void keep_rows(const std::string& from, const std::string& to, std::int64_t rows) {
    const TensorView* source = trace_.tensors().find(from);
    if (source == nullptr) return;
    SliceTensor tensor{{to, source->dtype, source->shape}, source, rows, 0, 0};
    tensor.entry.shape[0] = rows;
    const std::int64_t all = source->shape[0];
    tensor.row_bytes = all == 0 ? 0 : static_cast<std::int64_t>(source->bytes.size()) / all;
    tensor.kept_bytes = tensor.row_bytes;
    plan_.push_back(std::move(tensor));
  }

  // Adds the first `outer` x all x tokens_ elements of a tensor [outer, heads, tokens].
  void keep_columns(const std::string& from, const std::string& to, std::int64_t outer) {
    const TensorView* source = trace_.tensors().find(from);
    if (source == nullptr) return;
    const std::int64_t heads = source->shape[1];
    const std::int64_t bytes = dtype_bytes(source->dtype);
    plan_.push_back({{to, source->dtype, {outer, heads, tokens_}},
                     source,
                     outer * heads,
                     source->shape[2] * bytes,
                     tokens_ * bytes});
  }

  void plan_scores(int from, int to) {
    const std::vector<std::int64_t>& all = trace_.scores(from).rows;
    const auto rows =
        static_cast<std::int64_t>(std::lower_bound(all.begin(), all.end(), tokens_) - all.begin());
    if (rows == 0) {
      throw ConfigError(fmt::format(
          "slice: layer {} has no scores below row {}; expected more than "
          "{} tokens, its first row",
          trace_.meta().layer_ids[static_cast<std::size_t>(from)], tokens_, all.front()));
    }
    for (const char* suffix : {"scores.rows", "scores.prob", "scores.index", "scores.lse"}) {
      keep_rows(layer_tensor(from, suffix), layer_tensor(to, suffix), rows);
    }
    keep_columns(layer_tensor(from, "scores.dense"), layer_tensor(to, "scores.dense"), rows);
    if (trace_.scores(from).column_mass == nullptr) return;
    if (passes_are_whole_) {
      keep_columns(layer_tensor(from, "scores.column_mass"), layer_tensor(to, "scores.column_mass"),
                   passes_);
    } else if (to == 0) {
      lines_.push_back(fmt::format("column_mass dropped: {} tokens cut a prefill pass", tokens_));
    }
  }

  void plan_tensors() {
    int to = 0;
    for (const int from : layers_) {
      for (const char* suffix : {"q", "k", "v"}) {
        keep_rows(layer_tensor(from, suffix), layer_tensor(to, suffix), tokens_);
      }
      for (const char* suffix : {"wo", "sink_logits"}) {
        const TensorView* tensor = trace_.tensors().find(layer_tensor(from, suffix));
        if (tensor != nullptr) {
          keep_rows(layer_tensor(from, suffix), layer_tensor(to, suffix), tensor->shape[0]);
        }
      }
      if (!trace_.is_qkv()) plan_scores(from, to);
      ++to;
    }
    keep_rows("token_ids", "token_ids", tokens_);
    keep_rows("nll", "nll", tokens_);
    if (const TensorView* offsets = trace_.tensors().find("token_text_offsets")) {
      keep_rows("token_text_offsets", "token_text_offsets", tokens_ + 1);
      keep_rows("token_text", "token_text", integer_at(*offsets, tokens_));
    }
  }

  void copy(const SliceTensor& tensor, SafetensorsWriter* writer) {
    const std::span<const std::byte> source = tensor.source->bytes;
    const auto row_bytes = static_cast<std::size_t>(tensor.row_bytes);
    const auto kept_bytes = static_cast<std::size_t>(tensor.kept_bytes);
    const auto rows = static_cast<std::size_t>(tensor.rows);
    std::int64_t written = 0;
    const auto put = [&](std::span<const std::byte> bytes) {
      while (!bytes.empty()) {
        const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
        writer->write(tensor.entry.name, written, piece);
        // Pages that have been copied are given back at once, not when the tensor is complete.
        trace_.tensors().release({Dtype::u8, {}, piece});
        written += static_cast<std::int64_t>(piece.size());
        bytes = bytes.subspan(piece.size());
      }
    };
    if (kept_bytes == row_bytes) {
      put(source.first(rows * row_bytes));
      return;
    }
    std::vector<std::byte> gathered;  // short rows, joined
    for (std::size_t row = 0; row < rows; ++row) {
      const auto kept = source.subspan(row * row_bytes, kept_bytes);
      if (kept.size() >= kPieceBytes) {
        put(kept);
        continue;
      }
      gathered.insert(gathered.end(), kept.begin(), kept.end());
      if (gathered.size() < kPieceBytes && row + 1 < rows) continue;
      writer->write(tensor.entry.name, written, gathered);
      written += static_cast<std::int64_t>(gathered.size());
      gathered.clear();
    }
    trace_.tensors().release(*tensor.source);
  }

  const Trace& trace_;
  std::int64_t tokens_;
  std::int64_t prompt_tokens_ = 0;
  std::int64_t passes_ = 0;
  bool passes_are_whole_ = false;
  std::vector<int> layers_;  // stored layers that are kept
  std::vector<SliceTensor> plan_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> check_trace(const Trace& trace) { return Checker(trace).run(); }

json describe_trace(const Trace& trace) {
  const TraceMeta& meta = trace.meta();
  const TensorSet& set = trace.tensors();
  const auto has = [&set](const char* name) { return set.find(name) != nullptr; };
  json out{{"path", trace.name()},
           {"version", 1},
           {"kind", trace.is_qkv() ? "qkv" : "scores"},
           {"layers", meta.layers},
           {"model_layers", meta.model_layers},
           {"layer_ids", meta.layer_ids},
           {"query_heads", meta.query_heads},
           {"kv_heads", meta.kv_heads},
           {"head_dim", meta.head_dim},
           {"v_head_dim", meta.v_head_dim},
           {"tokens", meta.tokens},
           {"prompt_tokens", meta.prompt_tokens},
           {"score_scale", meta.score_scale},
           {"logit_softcap", nullptr},
           {"sliding_window", meta.sliding_window},
           {"rope", describe_rope(trace)},
           {"passes", meta.passes},
           {"special_ids", meta.special_ids},
           {"model", meta.model},
           {"source", meta.source},
           {"text", meta.text},
           {"licence", meta.licence},
           {"created_by", meta.created_by},
           {"has_v", trace.has_v()},
           {"has_wo", trace.has_wo()},
           {"has_sink_logits", false},
           {"has_token_ids", has("token_ids")},
           {"has_token_text", has("token_text")},
           {"has_nll", has("nll")}};
  if (meta.logit_softcap != 0) out["logit_softcap"] = meta.logit_softcap;
  for (int l = 0; l < meta.layers; ++l) {
    if (has(layer_tensor(l, "sink_logits").c_str())) out["has_sink_logits"] = true;
  }
  const TensorView* values = trace.is_qkv()                     ? trace.q(0)
                             : trace.scores(0).dense != nullptr ? trace.scores(0).dense
                                                                : trace.scores(0).prob;
  out["dtype"] = dtype_name(values->dtype);
  out["scores"] = trace.is_qkv() ? json(nullptr) : describe_scores(trace);
  out["spans"] = json::array();
  for (const Span& span : meta.spans) {
    out["spans"].push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
  }
  std::uint64_t tensor_bytes = 0;
  out["tensors"] = json::array();
  for (const auto& [name, tensor] : set.tensors()) {
    tensor_bytes += tensor.bytes.size();
    out["tensors"].push_back({{"name", name},
                              {"dtype", dtype_name(tensor.dtype)},
                              {"shape", tensor.shape},
                              {"bytes", tensor.bytes.size()}});
  }
  out["tensor_bytes"] = tensor_bytes;
  out["files"] = json::array();
  for (const std::filesystem::path& file : set.files()) {
    std::error_code error;
    const std::uintmax_t bytes = std::filesystem::file_size(file, error);
    out["files"].push_back(
        {{"path", file.string()}, {"bytes", error ? json(nullptr) : json(bytes)}});
  }
  out["metadata"] = set.metadata();
  return out;
}

std::vector<std::string> slice_trace(const Trace& trace, std::int64_t tokens,
                                     const std::vector<int>& model_layers,
                                     const std::filesystem::path& out) {
  return Slicer(trace, tokens, model_layers).run(out);
}

}  // namespace kvspan
