// SPDX-License-Identifier: Apache-2.0
#include "sim/report/lifetimes_file.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <functional>
#include <ranges>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/file_checks.h"
#include "sim/trace/trace.h"

namespace kvspan {

static_assert(std::endian::native == std::endian::little,
              "tensors are read as they lie in the file");

namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "kvspan.lifetimes";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kFields = 5;           // layer, row, head, token, representation
constexpr std::int64_t kMostBytes = 1 << 30;  // of one entry, and of what it counts as
constexpr std::int64_t kMostOnce = std::int64_t{1} << 60U;

std::string run_key(std::size_t run, std::string_view what) {
  return fmt::format("runs.{}.{}", run, what);
}

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

LifetimesFile LifetimesFile::open(const std::filesystem::path& path) {
  return from_tensors(TensorSet::open(path), path.string());
}

LifetimesFile LifetimesFile::from_tensors(TensorSet tensors, const std::string& name) {
  LifetimesFile out;
  out.tensors_ = std::make_shared<const TensorSet>(std::move(tensors));
  out.name_ = name;
  const TensorSet& set = *out.tensors_;
  const std::string file = path_text(name);
  const MetaReader meta(set.metadata(), file);
  const TensorChecker check(set, file);
  meta.check_format(kFormat, kVersion);
  out.trace_path_ = meta.text("trace.path");
  out.trace_sha256_ = meta.text("trace.sha256");
  out.tokens_ = meta.integer("tokens", 1, kMaxTokens);
  out.prompt_ = meta.integer("prompt_tokens", 1, out.tokens_);
  out.chunk_ = meta.integer("chunk", 0, kMaxTokens);
  out.model_layers_ = meta.small_integer("model_layers", 1, kMaxTokens);
  for (const std::int64_t id : meta.integers("layer_ids", 0, out.model_layers_ - 1)) {
    if (!out.layer_ids_.empty() && id <= out.layer_ids_.back()) {
      meta.fail("layer_ids", fmt::format("holds {} after {}", id, out.layer_ids_.back()),
                "an ascending list without repeats");
    }
    out.layer_ids_.push_back(static_cast<int>(id));
  }
  if (out.layer_ids_.empty()) meta.fail("layer_ids", "is empty", "the stored layers");
  if (meta.find("sliding_window") != nullptr)
    out.window_ = meta.integers("sliding_window", 0, kMaxTokens);
  if (!out.window_.empty() && out.window_.size() != out.layer_ids_.size()) {
    meta.fail("sliding_window", fmt::format("lists {} layers", out.window_.size()),
              fmt::format("{}, one for each stored layer, or none", out.layers()));
  }
  out.accounting_.kv_bytes = meta.integer("kv_bytes", 1, kMostBytes);
  out.accounting_.layerwise = read_choice(meta, "prefill", "layerwise", "whole");
  out.accounting_.layout = meta.require("layout", "a storage layout");
  try {
    (void)parse_layout(out.accounting_.layout);
  } catch (const ConfigError& error) {
    meta.fail("layout", "is " + in_quotes(out.accounting_.layout), error.what());
  }
  const bool says_query_heads = meta.find("query_heads") != nullptr;
  if (says_query_heads) out.query_heads_ = meta.small_integer("query_heads", 1, kMaxTokens);

  const auto count = meta.integer("runs", 1, static_cast<std::int64_t>(set.tensors().size()));
  const std::int64_t layers = out.layers();
  for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
    const auto key = [r](std::string_view what) { return run_key(r, what); };
    Run run;
    run.policy = meta.require(key("policy"), "a policy specification");
    run.label = meta.require(key("label"), "a label");
    run.klass = meta.require(key("class"), "a class of policies");
    run.bound = read_choice(meta, key("bound"), "true", "false");
    run.evict_at = out.prompt_;
    for (const std::string& where : {std::string("evict_at"), key("evict_at")}) {
      if (meta.find(where) != nullptr) run.evict_at = meta.integer(where, 1, out.prompt_);
    }
    run.representations = read_representations(meta, key("representations"));
    const json charge = meta.parse(key("charge"), R"({"entry", "once"})");
    run.charge.entry = member(meta, key("charge"), charge, "entry", 0, kMostBytes);
    run.charge.once = member(meta, key("charge"), charge, "once", 0, kMostOnce);

    const TensorView& death =
        check.require(key("death"), {layers, kAnyExtent, out.tokens_}, {Dtype::u32});
    if (death.shape[1] > kMostBytes) check.fail(key("death"), "more than 2^30 heads");
    run.heads = static_cast<int>(death.shape[1]);
    const std::vector<std::int64_t>& shape = death.shape;
    static_cast<void>(check.find(key("score"), shape, {Dtype::f32}));
    static_cast<void>(check.find(key("rank"), shape, {Dtype::i32}));
    for (const char* what : {"death", "score", "rank"}) {
      const TensorView* tensor = set.find(key(what));
      if (tensor != nullptr &&
          reinterpret_cast<std::uintptr_t>(tensor->bytes.data()) % alignof(std::uint32_t) != 0) {
        check.fail(key(what), "lies at an odd offset; expected a multiple of 4 bytes");
      }
    }
    run.has_selected = check.find(key("selected"), {out.tokens_}, {Dtype::i64}) != nullptr;
    static_cast<void>(check.find(key("state"), {out.tokens_}, {Dtype::i64}));
    const TensorView* passes = check.find(key("passes"), {kAnyExtent}, {Dtype::i64});
    if (passes != nullptr && passes->shape[0] > out.tokens_) {
      check.fail(key("passes"), fmt::format("{} passes; expected at most {}, the number of tokens",
                                            passes->shape[0], out.tokens_));
    }
    const TensorView* changes = check.find(key("changes"), {kAnyExtent, kFields}, {Dtype::i64});
    const TensorView* rows = check.find(key("read_rows"), {kAnyExtent}, {Dtype::i64});
    if (rows == nullptr && set.find(key("reads")) != nullptr)
      check.fail(key("read_rows"), "is missing beside " + key("reads"));
    if (rows != nullptr) {
      (void)check.require(key("reads"), {layers, run.heads, rows->shape[0], (out.tokens_ + 7) / 8},
                          {Dtype::u8});
    }

    // A layer's changes are the elements from its first one on; each is checked when it is used.
    std::vector<std::int64_t>& offsets = out.change_offsets_.emplace_back();
    const std::int64_t changed = changes == nullptr ? 0 : changes->shape[0];
    offsets.push_back(0);
    for (std::int64_t l = 1; l <= layers; ++l) {
      const auto rest = std::views::iota(offsets.back(), changed);
      const auto first = std::ranges::partition_point(
          rest, [&](std::int64_t i) { return integer_at(*changes, i * kFields) < l; });
      offsets.push_back(first == rest.end() ? changed : *first);
    }
    if (offsets.back() != changed) {
      check.fail(key("changes"),
                 fmt::format("element {} is of layer {}; expected layers 0 to {}", offsets.back(),
                             integer_at(*changes, offsets.back() * kFields), layers - 1));
    }
    if (!says_query_heads) out.query_heads_ = std::max(out.query_heads_, run.heads);
    out.runs_.push_back(std::move(run));
    const int here = static_cast<int>(r);
    out.runs_[r].read_rows = out.integers(here, "read_rows", 0, out.tokens_ - 1);
    const std::vector<RowIndex>& sampled = out.runs_[r].read_rows;
    if (std::adjacent_find(sampled.begin(), sampled.end(), std::greater_equal<>()) != sampled.end())
      out.fail(here, "read_rows", "its rows do not ascend");
  }
  for (std::size_t r = 0; r < out.runs_.size(); ++r) {
    const int heads = out.runs_[r].heads;
    if (out.query_heads_ % heads != 0) {
      check.fail(run_key(r, "death"),
                 fmt::format("has {} heads; expected a divisor of {} query heads", heads,
                             out.query_heads_));
    }
    check_sums(meta, out.runs_[r], r, layers, out.query_heads_, out.tokens_);
  }
  return out;
}

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
      const std::int64_t value = integer_at(*tensor, i * kFields + which);
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
  const RowIndex evict_at = runs_[static_cast<std::size_t>(run)].evict_at;
  if (find(run, "passes") == nullptr) return make_passes(tokens_, prompt_, evict_at, chunk_);
  PassPlan plan{tokens_, prompt_, evict_at, integers(run, "passes", 1, tokens_)};
  const std::vector<RowIndex>& ends = plan.ends;
  if (std::adjacent_find(ends.begin(), ends.end(), std::greater_equal<>()) != ends.end())
    fail(run, "passes", "its ends do not ascend");
  for (const RowIndex end : {evict_at, prompt_, tokens_}) {
    if (!std::binary_search(ends.begin(), ends.end(), end))
      fail(run, "passes",
           fmt::format("no pass ends at row {}; expected ends at {}, {} and {}", end, evict_at,
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
