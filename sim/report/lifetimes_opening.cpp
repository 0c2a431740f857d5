// SPDX-License-Identifier: Apache-2.0
// What LifetimesFile checks when a file is opened: metadata, shapes, types.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/report/lifetimes_reader.h"
#include "sim/report/result_metadata.h"
#include "sim/trace/file_checks.h"
#include "sim/trace/tensor.h"
#include "sim/trace/trace.h"

namespace kvspan {
namespace {

using nlohmann::json;

constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMostBytes = 1 << 30;  // of one entry, and of what it counts as

// The integer `name` of a JSON object.
std::int64_t member(const MetaReader& meta, const std::string& key, const json& object,
                    const char* name, std::int64_t low, std::int64_t high) {
  std::int64_t value = 0;
  if (!object.is_object() || !object.contains(name) || !json_integer(object[name], &value) ||
      value < low || value > high) {
    meta.fail(key, "holds " + json_text(object),
              fmt::format("objects with '{}' in [{}, {}]", name, low, high));
  }
  return value;
}

std::vector<Representation> read_representations(const MetaReader& meta, const std::string& key) {
  const std::string expected = R"(a JSON list of {"name", "device_bytes", "host_bytes"})";
  const json list = meta.parse(key, expected);
  if (!list.is_array() || list.empty()) meta.fail(key, "is " + json_text(list), expected);
  std::vector<Representation> out;
  for (const json& item : list) {
    Representation held;
    held.device_bytes = member(meta, key, item, "device_bytes", 0, kMostBytes);
    held.host_bytes = member(meta, key, item, "host_bytes", 0, kMostBytes);
    if (item.contains("entries"))
      held.entries = static_cast<int>(member(meta, key, item, "entries", -1, kMostBytes));
    if (!item.contains("name") || !item["name"].is_string())
      meta.fail(key, "holds " + json_text(item), expected);
    held.name = item["name"].get<std::string>();
    out.push_back(std::move(held));
  }
  return out;
}

bool read_choice(const MetaReader& meta, const std::string& key, const char* yes, const char* no) {
  const std::string expected = fmt::format("'{}' or '{}'", yes, no);
  const std::string& text = meta.require(key, expected);
  if (text != yes && text != no) meta.fail(key, "is " + in_quotes(text), expected);
  return text == yes;
}

// Sums of all bytes over all rows must fit in 64 bits, whatever the deaths are.
void check_sums(const MetaReader& meta, const LifetimesFile::Run& run, std::size_t r,
                std::int64_t layers, int query_heads, RowIndex tokens) {
  std::int64_t bytes = 0;
  std::int64_t entries = 1;
  for (const Representation& held : run.representations) {
    bytes = std::max(bytes, held.device_bytes + held.host_bytes);
    entries = std::max<std::int64_t>(entries, held.entries);
  }
  const auto n = static_cast<long double>(tokens);
  const long double one =
      static_cast<long double>(bytes) +
      static_cast<long double>(entries) * static_cast<long double>(run.charge.entry + 1);
  const long double all =
      n * (n + 1) / 2 * static_cast<long double>(layers * std::max(query_heads, run.heads)) * one +
      n * static_cast<long double>(run.charge.once);
  if (all > 0x1p62L) {
    meta.fail(run_key(r, "representations"),
              fmt::format("and '{}' give sums of bytes above 2^62", run_key(r, "charge")),
              "sizes that 64 bits can add up");
  }
}

}  // namespace

// Checks a file, part by part, and fills a LifetimesFile with it.
class LifetimesFile::Opening {
 public:
  Opening(LifetimesFile& out, const TensorSet& set, const std::string& file)
      : out_(out), set_(set), meta_(set.metadata(), file), check_(set, file) {}

  void read() {
    meta_.check_format(kLifetimesFormat, kVersion);
    read_trace();
    read_accounting();
    const bool says_query_heads = meta_.find("query_heads") != nullptr;
    if (says_query_heads) out_.query_heads_ = meta_.small_integer("query_heads", 1, kMaxTokens);
    const auto count = meta_.integer("runs", 1, static_cast<std::int64_t>(set_.tensors().size()));
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      Run run = read_run(r);
      check_tensors(run, r);
      out_.change_offsets_.push_back(change_offsets(r));
      if (!says_query_heads) out_.query_heads_ = std::max(out_.query_heads_, run.heads);
      out_.runs_.push_back(std::move(run));
      read_sampled_rows(r);
    }
    for (std::size_t r = 0; r < out_.runs_.size(); ++r) {
      const int heads = out_.runs_[r].heads;
      if (out_.query_heads_ % heads != 0) {
        check_.fail(run_key(r, "death"),
                    fmt::format("has {} heads; expected a divisor of {} query heads", heads,
                                out_.query_heads_));
      }
      check_sums(meta_, out_.runs_[r], r, layers(), out_.query_heads_, out_.tokens_);
    }
  }

 private:
  [[nodiscard]] std::int64_t layers() const { return out_.layers(); }

  void read_trace() {
    out_.trace_path_ = meta_.text("trace.path");
    out_.trace_sha256_ = meta_.text("trace.sha256");
    out_.tokens_ = meta_.integer("tokens", 1, kMaxTokens);
    out_.prompt_ = meta_.integer("prompt_tokens", 1, out_.tokens_);
    out_.chunk_ = meta_.integer("chunk", 0, kMaxTokens);
    out_.model_layers_ = meta_.small_integer("model_layers", 1, kMaxTokens);
    for (const std::int64_t id : meta_.integers("layer_ids", 0, out_.model_layers_ - 1)) {
      if (!out_.layer_ids_.empty() && id <= out_.layer_ids_.back()) {
        meta_.fail("layer_ids", fmt::format("holds {} after {}", id, out_.layer_ids_.back()),
                   "an ascending list without repeats");
      }
      out_.layer_ids_.push_back(static_cast<int>(id));
    }
    if (out_.layer_ids_.empty()) meta_.fail("layer_ids", "is empty", "the stored layers");
    if (meta_.find("sliding_window") != nullptr)
      out_.window_ = meta_.integers("sliding_window", 0, kMaxTokens);
    if (!out_.window_.empty() && out_.window_.size() != out_.layer_ids_.size()) {
      meta_.fail("sliding_window", fmt::format("lists {} layers", out_.window_.size()),
                 fmt::format("{}, one for each stored layer, or none", out_.layers()));
    }
  }

  void read_accounting() {
    out_.accounting_.kv_bytes = meta_.integer("kv_bytes", 1, kMostBytes);
    out_.accounting_.layerwise = read_choice(meta_, "prefill", "layerwise", "whole");
    out_.accounting_.layout = meta_.require("layout", "a storage layout");
    try {
      (void)parse_layout(out_.accounting_.layout);
    } catch (const ConfigError& error) {
      meta_.fail("layout", "is " + in_quotes(out_.accounting_.layout), error.what());
    }
  }

  // The metadata of a run.
  [[nodiscard]] Run read_run(std::size_t r) const {
    const auto key = [r](std::string_view what) { return run_key(r, what); };
    Run run;
    run.policy = meta_.require(key("policy"), "a policy specification");
    run.label = meta_.require(key("label"), "a label");
    run.klass = meta_.require(key("class"), "a class of policies");
    run.bound = read_choice(meta_, key("bound"), "true", "false");
    run.evict_point = out_.prompt_;
    for (const std::string& where : {std::string("evict_at"), key("evict_at")}) {
      if (meta_.find(where) != nullptr) run.evict_point = meta_.integer(where, 1, out_.prompt_);
    }
    run.representations = read_representations(meta_, key("representations"));
    const json charge = meta_.parse(key("charge"), R"({"entry", "once"})");
    run.charge.entry = member(meta_, key("charge"), charge, "entry", 0, kMostBytes);
    run.charge.once = member(meta_, key("charge"), charge, "once", 0, kMostOnce);
    run.waits_for_layers = meta_.find(key("waits_for_layers")) != nullptr &&
                           read_choice(meta_, key("waits_for_layers"), "true", "false");
    return run;
  }

  // Shapes and types of a run's tensors; what they hold is checked when it is asked for.
  void check_tensors(Run& run, std::size_t r) const {
    const auto key = [r](std::string_view what) { return run_key(r, what); };
    const TensorView& death =
        check_.require(key("death"), {layers(), kAnyExtent, out_.tokens_}, {Dtype::u32});
    if (death.shape[1] > kMostBytes) check_.fail(key("death"), "more than 2^30 heads");
    run.heads = static_cast<int>(death.shape[1]);
    static_cast<void>(check_.find(key("score"), death.shape, {Dtype::f32}));
    static_cast<void>(check_.find(key("rank"), death.shape, {Dtype::i32}));
    for (const char* what : {"death", "score", "rank"}) {
      const TensorView* tensor = set_.find(key(what));
      if (tensor != nullptr &&
          reinterpret_cast<std::uintptr_t>(tensor->bytes.data()) % alignof(std::uint32_t) != 0) {
        check_.fail(key(what), "lies at an odd offset; expected a multiple of 4 bytes");
      }
    }
    run.has_selected = check_.find(key("selected"), {out_.tokens_}, {Dtype::i64}) != nullptr;
    static_cast<void>(check_.find(key("state"), {out_.tokens_}, {Dtype::i64}));
    const TensorView* passes = check_.find(key("passes"), {kAnyExtent}, {Dtype::i64});
    if (passes != nullptr && passes->shape[0] > out_.tokens_) {
      check_.fail(key("passes"), fmt::format("{} passes; expected at most {}, the number of tokens",
                                             passes->shape[0], out_.tokens_));
    }
    static_cast<void>(check_.find(key("changes"), {kAnyExtent, kChangeFields}, {Dtype::i64}));
    const TensorView* rows = check_.find(key("read_rows"), {kAnyExtent}, {Dtype::i64});
    if (rows == nullptr && set_.find(key("reads")) != nullptr)
      check_.fail(key("read_rows"), "is missing beside " + key("reads"));
    if (rows != nullptr) {
      (void)check_.require(
          key("reads"), {layers(), run.heads, rows->shape[0], (out_.tokens_ + 7) / 8}, {Dtype::u8});
    }
  }

  // [layers + 1]: a layer's changes are the elements from its first one on; each is checked when it
  // is used.
  [[nodiscard]] std::vector<std::int64_t> change_offsets(std::size_t r) const {
    const TensorView* changes = set_.find(run_key(r, "changes"));
    const std::int64_t changed = changes == nullptr ? 0 : changes->shape[0];
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t l = 1; l <= layers(); ++l) {
      const auto rest = std::views::iota(offsets.back(), changed);
      const auto first = std::ranges::partition_point(
          rest, [&](std::int64_t i) { return integer_at(*changes, i * kChangeFields) < l; });
      offsets.push_back(first == rest.end() ? changed : *first);
    }
    if (offsets.back() != changed) {
      check_.fail(run_key(r, "changes"),
                  fmt::format("element {} is of layer {}; expected layers 0 to {}", offsets.back(),
                              integer_at(*changes, offsets.back() * kChangeFields), layers() - 1));
    }
    return offsets;
  }

  void read_sampled_rows(std::size_t r) {
    const int here = static_cast<int>(r);
    std::vector<RowIndex>& sampled = out_.runs_[r].read_rows;
    sampled = out_.integers(here, "read_rows", 0, out_.tokens_ - 1);
    if (std::adjacent_find(sampled.begin(), sampled.end(), std::greater_equal<>()) != sampled.end())
      out_.fail(here, "read_rows", "its rows do not ascend");
  }

  LifetimesFile& out_;
  const TensorSet& set_;
  MetaReader meta_;
  TensorChecker check_;
};

LifetimesFile LifetimesFile::open(const std::filesystem::path& path) {
  return from_tensors(TensorSet::open(path), path.string());
}

LifetimesFile LifetimesFile::from_tensors(TensorSet tensors, const std::string& name) {
  LifetimesFile out;
  out.tensors_ = std::make_shared<const TensorSet>(std::move(tensors));
  out.name_ = name;
  Opening(out, *out.tensors_, path_text(name)).read();
  return out;
}

}  // namespace kvspan
