// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/trace/probes.h"
#include "sim/trace/trace_tools.h"

namespace kvspan {

using nlohmann::json;

namespace {

constexpr std::size_t kPieceBytes = std::size_t{8} << 20U;

// A capture of some layers says so behind the model's name, ", layers 7,14,18 of 30"; a slice of it
// keeps others.
std::string with_layers(const std::string& model, const std::vector<int>& ids) {
  constexpr std::string_view kMark = ", layers ";
  constexpr std::string_view kOf = " of ";
  const std::size_t mark = model.rfind(kMark);
  if (mark == std::string::npos) return model;
  const std::size_t begin = mark + kMark.size();
  const std::size_t end = model.find_first_not_of("0123456789,", begin);
  if (end == begin || end == std::string::npos || !model.substr(end).starts_with(kOf)) return model;
  const std::string count = model.substr(end + kOf.size());
  if (count.empty() || count.find_first_not_of("0123456789") != std::string::npos) return model;
  return fmt::format("{}{}{}{}", model.substr(0, begin), fmt::join(ids, ","), kOf, count);
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

  // Replayed rows read all tokens before them.
  void slice_probes(Metadata* metadata) {
    std::int64_t before = 0;
    for (const Probe& probe : probes_of(trace_)) {
      before = std::max(before, probe.at);
      probe_rows_ += probe.rows;
    }
    if (before <= tokens_) return;
    probe_rows_ = 0;
    metadata->erase("probes");
    lines_.push_back(
        fmt::format("replayed rows dropped: they were asked after {} tokens, and only {} are kept",
                    before, tokens_));
  }

  Metadata slice_metadata() {
    const TraceMeta& meta = trace_.meta();
    Metadata out = trace_.tensors().metadata();
    std::vector<int> ids;
    for (const int l : layers_) ids.push_back(meta.layer_ids[static_cast<std::size_t>(l)]);
    out["layers"] = std::to_string(layers_.size());
    out["layer_ids"] = json(ids).dump();
    if (const auto model = out.find("model"); model != out.end())
      model->second = with_layers(model->second, ids);
    out["model_layers"] = std::to_string(meta.model_layers);
    out["tokens"] = std::to_string(tokens_);
    out["prompt_tokens"] = std::to_string(prompt_tokens_);
    for (const char* key : {"sliding_window", "cache_elements"}) {
      const auto found = out.find(key);
      const json value = found == out.end() ? json() : parse_json_strict(found->second);
      if (!value.is_array()) continue;
      json list = json::array();
      for (const int l : layers_) list.push_back(value[static_cast<std::size_t>(l)]);
      found->second = list.dump();
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
    slice_probes(&out);
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
      for (const char* suffix : {"probe.q", "probe.k", "probe.norm"}) {
        if (probe_rows_ > 0)
          keep_rows(layer_tensor(from, suffix), layer_tensor(to, suffix), probe_rows_);
      }
      if (!trace_.is_qkv()) plan_scores(from, to);
      ++to;
    }
    keep_rows("token_ids", "token_ids", tokens_);
    keep_rows("nll", "nll", tokens_);
    if (probe_rows_ > 0) keep_rows("probe_ids", "probe_ids", probe_rows_);
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
  std::int64_t probe_rows_ = 0;  // that are kept
  std::vector<int> layers_;      // stored layers that are kept
  std::vector<SliceTensor> plan_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> slice_trace(const Trace& trace, std::int64_t tokens,
                                     const std::vector<int>& model_layers,
                                     const std::filesystem::path& out) {
  return Slicer(trace, tokens, model_layers).run(out);
}

}  // namespace kvspan
