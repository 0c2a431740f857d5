// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/capture.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/base/build_info.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/forward/runner_common.h"
#include "tracegen/forward/token_sampling.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::int64_t kRestoreRows = 1024;
constexpr std::int64_t kPieceFloats = 1 << 20;  // converted at a time

std::int64_t known_tokens(const CaptureOptions& options) {
  return static_cast<std::int64_t>(options.token_ids.size());
}

std::int64_t most_tokens(const CaptureOptions& options) {
  return known_tokens(options) + options.generate;
}

std::vector<int> stored_layers(const ModelSpec& model, const CaptureOptions& options) {
  if (!options.layers.empty()) return options.layers;
  std::vector<int> all(static_cast<std::size_t>(model.layers));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Ends of the prefill passes.
std::vector<std::int64_t> prompt_passes(const CaptureOptions& options) {
  std::vector<std::int64_t> ends;
  const std::int64_t chunk = options.chunk > 0 ? options.chunk : options.prompt;
  for (std::int64_t end = chunk; end < options.prompt; end += chunk) ends.push_back(end);
  ends.push_back(options.prompt);
  return ends;
}

// Rows of a score trace of `tokens` tokens.
std::vector<std::int64_t> score_rows(const RowChoice& choice, std::int64_t prompt,
                                     std::int64_t tokens) {
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < tokens; ++row) {
    const bool kept = choice.last > 0 ? row >= prompt - choice.last : row % choice.every == 0;
    if (kept || row >= prompt - 1) rows.push_back(row);
  }
  return rows;
}

std::int64_t stored_top_k(const CaptureOptions& options) {
  return std::min<std::int64_t>(options.scores->top_k, most_tokens(options));
}

// ---- What the traces are made of -----------------------------------------------------------------

std::string number(double value) { return fmt::format("{}", value); }

Metadata make_metadata(const ModelSpec& model, const CaptureOptions& options, std::int64_t tokens,
                       bool scores) {
  const std::vector<int> layers = stored_layers(model, options);
  Metadata out{{"format", "kvspan.trace"},
               {"version", "1"},
               {"layers", std::to_string(layers.size())},
               {"query_heads", std::to_string(model.query_heads)},
               {"kv_heads", std::to_string(model.kv_heads)},
               {"head_dim", std::to_string(model.head_dim)},
               {"tokens", std::to_string(tokens)},
               {"prompt_tokens", std::to_string(options.prompt)},
               {"score_scale", number(model.score_scale())},
               {"model", model.name},
               {"source", options.source},
               {"text", options.text},
               {"licence", options.licence},
               {"created_by", fmt::format("kvspan {}", build_info().version)}};
  std::erase_if(out, [](const auto& entry) { return entry.second.empty(); });
  if (static_cast<int>(layers.size()) != model.layers) {
    out["model_layers"] = std::to_string(model.layers);
    out["layer_ids"] = json(layers).dump();
  }
  if (model.rope.dim > 0) {
    out["rope_theta"] = number(model.rope.theta);
    out["rope_dim"] = std::to_string(model.rope.dim);
    out["rope_layout"] = model.rope.interleaved ? "interleaved" : "half";
    if (!model.rope_scaling.empty()) out["rope_scaling"] = model.rope_scaling;
  }
  std::vector<std::int64_t> windows;
  for (const int l : layers) windows.push_back(model.window(l));
  if (std::any_of(windows.begin(), windows.end(), [](std::int64_t w) { return w > 0; }))
    out["sliding_window"] = json(windows).dump();
  if (scores && options.scores->column_mass) out["passes"] = json(prompt_passes(options)).dump();
  if (!options.special_ids.empty()) out["special_ids"] = json(options.special_ids).dump();
  if (!options.spans.empty()) {
    json spans = json::array();
    for (const Span& span : options.spans)
      spans.push_back({{"name", span.name}, {"begin", span.begin}, {"end", span.end}});
    out["spans"] = spans.dump(-1, ' ', false, json::error_handler_t::replace);
  }
  for (auto& [key, value] : out) value = valid_utf8(value);
  return out;
}

std::string tensor(int stored_layer, const char* name) {
  return fmt::format("layers.{}.{}", stored_layer, name);
}

std::vector<StoredTensor> qkv_tensors(const ModelSpec& model, const CaptureOptions& options,
                                      std::int64_t tokens, int stored_layer) {
  const auto heads = [&](const char* name, std::int64_t count) {
    return StoredTensor{
        {tensor(stored_layer, name), options.dtype, {tokens, count, model.head_dim}}};
  };
  std::vector<StoredTensor> out{heads("q", model.query_heads), heads("k", model.kv_heads),
                                heads("v", model.kv_heads)};
  if (options.wo) {
    out.push_back({{tensor(stored_layer, "wo"),
                    options.dtype,
                    {model.hidden, std::int64_t{model.query_heads} * model.head_dim}}});
  }
  return out;
}

std::vector<StoredTensor> score_tensors(const ModelSpec& model, const CaptureOptions& options,
                                        std::int64_t tokens, int stored_layer) {
  const std::int64_t heads = model.query_heads;
  const std::int64_t k = stored_top_k(options);
  const auto rows =
      static_cast<std::int64_t>(score_rows(options.scores->rows, options.prompt, tokens).size());
  std::vector<StoredTensor> out{
      {{tensor(stored_layer, "scores.prob"), options.dtype, {rows, heads, k}}},
      {{tensor(stored_layer, "scores.index"), Dtype::i32, {rows, heads, k}}},
      {{tensor(stored_layer, "scores.lse"), Dtype::f32, {rows, heads}}},
      {{tensor(stored_layer, "scores.rows"), Dtype::i32, {rows}}}};
  if (options.scores->column_mass) {
    const auto passes = static_cast<std::int64_t>(prompt_passes(options).size());
    out.push_back(
        {{tensor(stored_layer, "scores.column_mass"), Dtype::f32, {passes, heads, tokens}},
         options.prompt});
  }
  return out;
}

// The trace of q, k and v, or of scores, for `tokens` tokens.
//   text_bytes   of token_text; -1: the trace has none
TraceParts make_parts(const ModelSpec& model, const CaptureOptions& options, std::int64_t tokens,
                      std::int64_t text_bytes, bool scores) {
  TraceParts out;
  out.metadata = make_metadata(model, options, tokens, scores);
  out.common = {{{"token_ids", Dtype::i32, {tokens}}}, {{"nll", Dtype::f32, {tokens}}}};
  if (text_bytes >= 0) {
    out.common.push_back({{"token_text", Dtype::u8, {text_bytes}}});
    out.common.push_back({{"token_text_offsets", Dtype::i64, {tokens + 1}}});
  }
  const auto layers = static_cast<int>(stored_layers(model, options).size());
  for (int l = 0; l < layers; ++l) {
    out.layers.push_back(scores ? score_tensors(model, options, tokens, l)
                                : qkv_tensors(model, options, tokens, l));
  }
  return out;
}

// ---- Observing the attention ---------------------------------------------------------------------

// Writes what the attention of the stored layers reads and gives into the work folder.
class Recorder : public AttentionHook {
 public:
  Recorder(const ModelSpec& model, const CaptureOptions& options, WorkFolder& work)
      : model_(model), options_(options), work_(work) {
    stored_.assign(static_cast<std::size_t>(model.layers), -1);
    int next = 0;
    for (const int l : stored_layers(model, options)) stored_[static_cast<std::size_t>(l)] = next++;
    if (options.scores)
      rows_ = score_rows(options.scores->rows, options.prompt, most_tokens(options));
  }

  // Room for everything that a layer will give, and what is known before it runs.
  void reserve(int layer) {
    for (const auto& [name, bytes] : files(layer)) work_.reserve(name, bytes);
    const int at = stored(layer);
    if (at < 0) return;
    if (options_.scores) {
      const std::vector<std::int32_t> rows(rows_.begin(), rows_.end());
      work_.write(tensor(at, "scores.rows"), 0, std::as_bytes(std::span(rows)));
    }
    if (options_.wo) record_wo(layer, at);
  }

  // A file of the layer that is not there as reserve() made it; empty: all are.
  [[nodiscard]] std::string missing(int layer) const {
    for (const auto& [name, bytes] : files(layer)) {
      if (work_.bytes(name) < bytes) return name;
    }
    return "";
  }

  // Everything that the layer gave is on the disk.
  void sync(int layer) {
    for (const auto& [name, bytes] : files(layer)) work_.sync(name);
  }

  // The rows that follow are those of prefill pass `pass`, or of none.
  void begin(std::optional<std::int64_t> pass) { pass_ = pass; }

  // Keys and values of the given tokens, as layer() left them.
  void restore(int layer, Runner& runner) const {
    std::vector<float> k, v;
    for (std::int64_t first = 0; first < known_tokens(options_); first += kRestoreRows) {
      const std::int64_t rows = std::min(kRestoreRows, known_tokens(options_) - first);
      for (auto [values, which] : {std::pair(&k, 'k'), std::pair(&v, 'v')}) {
        values->resize(static_cast<std::size_t>(rows * kv_floats()));
        work_.read(kv_name(layer, which), first * kv_floats() * 4,
                   std::as_writable_bytes(std::span(*values)));
      }
      runner.restore({layer, first, rows, nullptr, k.data(), v.data()});
    }
  }

  Emit emit(int layer) override {
    Emit out;
    const bool kept = stored(layer) >= 0;
    out.qkv = (kept && options_.qkv) || options_.generate > 0;
    if (!kept || !options_.scores) return out;
    out.top_k = static_cast<int>(stored_top_k(options_));
    out.lse = true;
    out.column_mass = options_.scores->column_mass && pass_.has_value();
    return out;
  }

  void on_qkv(const RowsQkv& rows) override {
    if (options_.generate > 0 && rows.first < known_tokens(options_)) {
      for (const auto& [values, which] : {std::pair(rows.k, 'k'), std::pair(rows.v, 'v')}) {
        work_.write(kv_name(rows.layer, which), rows.first * kv_floats() * 4,
                    std::as_bytes(floats(values, rows.rows * kv_floats())));
      }
    }
    const int at = stored(rows.layer);
    if (at < 0 || !options_.qkv) return;
    const std::int64_t q_floats = std::int64_t{model_.query_heads} * model_.head_dim;
    put(at, "q", rows.layer, rows.first, rows.q, rows.rows, q_floats);
    put(at, "k", rows.layer, rows.first, rows.k, rows.rows, kv_floats());
    put(at, "v", rows.layer, rows.first, rows.v, rows.rows, kv_floats());
  }

  void on_scores(const RowsScores& scores) override {
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
      work_.write(tensor(at, "scores.index"), slot * width * 4,
                  std::as_bytes(std::span(scores.index + from * width,
                                          static_cast<std::size_t>(count * width))));
      work_.write(tensor(at, "scores.lse"), slot * heads * 4,
                  std::as_bytes(floats(scores.lse + from * heads, count * heads)));
    }
  }

  void on_column_mass(int layer, std::int64_t keys, std::span<const float> mass) override {
    for (std::int64_t h = 0; h < model_.query_heads; ++h) {
      const std::int64_t row = *pass_ * model_.query_heads + h;
      work_.write(tensor(stored(layer), "scores.column_mass"), row * options_.prompt * 4,
                  std::as_bytes(floats(mass.data() + h * keys, keys)));
    }
  }

 private:
  [[nodiscard]] int stored(int layer) const { return stored_[static_cast<std::size_t>(layer)]; }
  [[nodiscard]] std::int64_t kv_floats() const {
    return std::int64_t{model_.kv_heads} * model_.head_dim;
  }
  // Names and sizes of a layer's files.
  [[nodiscard]] std::map<std::string, std::int64_t> files(int layer) const {
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
        out[kv_name(layer, which)] = known_tokens(options_) * kv_floats() * 4;
    }
    return out;
  }
  static std::string kv_name(int layer, char which) {
    return fmt::format("kv.{}.{}", layer, which);
  }
  static std::span<const float> floats(const float* values, std::int64_t count) {
    return {values, static_cast<std::size_t>(count)};
  }

  // Rows of `width` numbers, from row `first` of the tensor, in the trace's type.
  void put(int at, const char* name, int layer, std::int64_t first, const float* values,
           std::int64_t rows, std::int64_t width) {
    const std::string what = fmt::format("layer {}: {}", layer, name);
    for (std::int64_t i = 0; i < rows * width; i += kPieceFloats) {
      narrow(floats(values + i, std::min(kPieceFloats, rows * width - i)), options_.dtype, what,
             bytes_);
      work_.write(tensor(at, name), (first * width + i) * dtype_bytes(options_.dtype), bytes_);
    }
  }

  void record_wo(int layer, int at) {
    const std::int64_t columns = std::int64_t{model_.query_heads} * model_.head_dim;
    const std::int64_t step = std::max<std::int64_t>(1, kPieceFloats / columns);
    std::vector<float> block;
    for (std::int64_t first = 0; first < model_.hidden; first += step) {
      const std::int64_t rows = std::min(step, model_.hidden - first);
      block.resize(static_cast<std::size_t>(rows * columns));
      options_.wo(layer, first, rows, block.data());
      put(at, "wo", layer, first, block.data(), rows, columns);
    }
  }

  const ModelSpec& model_;
  const CaptureOptions& options_;
  WorkFolder& work_;
  std::vector<int> stored_;         // [model layers] index in the trace, -1: not stored
  std::vector<std::int64_t> rows_;  // that a score trace keeps
  std::optional<std::int64_t> pass_;
  std::vector<std::byte> bytes_;
};

std::optional<Nll> mean_of(std::span<const float> nll) {
  if (nll.empty()) return std::nullopt;
  const double sum = std::accumulate(nll.begin(), nll.end(), 0.0);
  return Nll{sum / static_cast<double>(nll.size()), static_cast<std::int64_t>(nll.size())};
}

// ---- The job -------------------------------------------------------------------------------------

// FNV-1a: names the tokens in the journal; nobody attacks it.
std::uint64_t hash_of(std::span<const std::int32_t> ids) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : std::as_bytes(ids))
    hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3U;
  return hash;
}

constexpr double kWorthSyncing = 5;  // seconds of work

// Changes whenever the machine starts; "" where the system does not tell.
std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

// Everything that the result depends on.
json identity_of(const ModelSpec& model, const CaptureOptions& o) {
  const BuildInfo info = build_info();
  json out = json::parse(o.identity);
  out["program"] = fmt::format("{} ({})", info.version, info.git);
  out["token_ids"] = fmt::format("{} {:016x}", known_tokens(o), hash_of(o.token_ids));
  out["--generate"] = {o.generate,       o.sampling.temperature, o.sampling.top_p,
                       o.sampling.top_k, o.sampling.seed,        o.stop.value_or(-1)};
  out["--chunk"] = o.chunk;
  out["--dtype"] = dtype_name(o.dtype);
  out["--emit"] = {o.qkv, o.scores.has_value(), static_cast<bool>(o.wo),
                   valid_utf8(o.scores_out.string())};
  if (o.scores) {
    out["--rows"] = {o.scores->rows.last, o.scores->rows.every};
    out["--keys"] = o.scores->top_k;
    out["--column-mass"] = o.scores->column_mass;
  }
  out["--shards"] = static_cast<int>(o.shards);
  for (const auto& [key, value] : make_metadata(model, o, most_tokens(o), false)) out[key] = value;
  return out;
}

class Job {
 public:
  Job(const ModelSpec& model, Runner& runner, WorkFolder& work, const CaptureOptions& options)
      : model_(model),
        runner_(runner),
        work_(work),
        options_(options),
        recorder_(model, options, work),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic),
        ids_(options.token_ids) {
    journal_["identity"] = identity_of(model, options);
    journal_["layers"] = 0;
    journal_["boot"] = "";
    journal_["prefill_seconds"] = 0.0;
    journal_["decode_seconds"] = 0.0;
  }

  CaptureResult run() {
    open();
    if (!journal_.contains("tokens")) {
      prefill();
      score();
      generate();
      finish();
    }
    return publish();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void say(const std::string& line) const {
    if (options_.say) options_.say(line);
  }

  void open() {
    const std::optional<json> found = work_.journal();
    if (found) {
      const std::string why = obstacle(*found);
      if (why.empty()) {
        journal_ = *found;
        resumed_ = layers_done();
        if (journal_.contains("tokens")) {
          say("resuming: all tokens are there, the trace remains to be written");
        } else if (resumed_ > 0) {
          say(fmt::format("resuming after layer {} of {}", resumed_, model_.layers));
        }
        return;
      }
      say(fmt::format("an interrupted capture cannot be resumed ({}): starting afresh", why));
    }
    work_.clear();
    const std::int64_t needed = plan_capture(model_, options_).work_bytes;
    if (needed > work_.free_bytes()) {
      throw Error(fmt::format("{}: {} are needed there, and {} are free", work_.path().string(),
                              human_bytes(needed), human_bytes(work_.free_bytes())),
                  1);
    }
    work_.write_journal(journal_);
  }

  // Why what an earlier process left cannot be used; empty: it can.
  [[nodiscard]] std::string obstacle(const json& found) const {
    const json& mine = journal_["identity"];
    if (!found.contains("identity") || !found["identity"].is_object())
      return "its journal is damaged";
    std::string changed;
    for (const auto& [key, value] : mine.items()) {
      if (!found["identity"].contains(key) || found["identity"][key] != value)
        changed += (changed.empty() ? "" : ", ") + key;
    }
    if (!changed.empty()) return "these changed: " + changed;
    if (!found.contains("boot") || (found["boot"] != "" && found["boot"] != boot_id()))
      return "the machine has been started since";
    const bool whole = found.contains("tokens");
    if (!is_number(found, "layers", 0, model_.layers) || !is_seconds(found, "prefill_seconds") ||
        !is_seconds(found, "decode_seconds") ||
        (whole && (!is_number(found, "tokens", known_tokens(options_), most_tokens(options_)) ||
                   !is_number(found, "text_bytes", -1, std::numeric_limits<std::int64_t>::max()) ||
                   (found["text_bytes"] >= 0) != static_cast<bool>(options_.piece)))) {
      return "its journal is damaged";
    }
    const std::string missing = whole ? missing_of_traces(found) : missing_of_layers(found);
    return missing.empty() ? "" : missing + " is missing";
  }

  static bool is_number(const json& found, const char* key, std::int64_t least, std::int64_t most) {
    if (!found.contains(key) || !found[key].is_number_integer()) return false;
    const auto value = found[key].get<std::int64_t>();
    return least <= value && value <= most;
  }
  static bool is_seconds(const json& found, const char* key) {
    return found.contains(key) && found[key].is_number() && found[key] >= 0;
  }

  [[nodiscard]] std::string missing_of_layers(const json& found) const {
    const int layers = found["layers"];
    for (int l = 0; l < layers; ++l) {
      if (const std::string name = recorder_.missing(l); !name.empty()) return name;
    }
    const std::int64_t hidden_bytes = known_tokens(options_) * model_.hidden * 4;
    if (layers > 0 && work_.bytes(hidden_name(layers)) < hidden_bytes) return hidden_name(layers);
    return "";
  }

  [[nodiscard]] std::string missing_of_traces(const json& found) const {
    for (const char* name : {"token_ids", "nll"}) {
      if (work_.bytes(name) < found["tokens"].get<std::int64_t>() * 4) return name;
    }
    for (const Product& product : products(found)) {
      const std::string name = missing_part(work_, product.parts, options_.shards, product.path);
      if (!name.empty()) return name;
    }
    return "";
  }

  // A trace that is written at the end.
  struct Product {
    TraceParts parts;
    fs::path path;
  };
  [[nodiscard]] std::vector<Product> products(const json& journal) const {
    std::vector<Product> out;
    for (const bool scores : {false, true}) {
      if (scores ? !options_.scores.has_value() : !options_.qkv) continue;
      out.push_back({make_parts(model_, options_, journal["tokens"], journal["text_bytes"], scores),
                     scores && options_.qkv ? options_.scores_out : options_.out});
    }
    return out;
  }

  [[nodiscard]] int layers_done() const { return journal_["layers"].get<int>(); }
  // Of the states that layer `layer` reads; it writes the other file.
  static std::string hidden_name(int layer) { return fmt::format("hidden.{}", layer % 2); }

  void prefill() {
    const std::int64_t count = known_tokens(options_) * model_.hidden;
    for (std::size_t i = 0; i < 2; ++i)
      hidden_[i].emplace(work_, hidden_name(static_cast<int>(i)), count);
    for (int l = 0; options_.generate > 0 && l < layers_done(); ++l) recorder_.restore(l, runner_);
    if (layers_done() == 0) runner_.embed(ids_, hidden_[0]->values());
    for (int l = layers_done(); l < model_.layers; ++l) prefill_layer(l);
  }

  void prefill_layer(int layer) {
    const auto begin = Clock::now();
    MappedFloats& from = *hidden_[static_cast<std::size_t>(layer % 2)];
    MappedFloats& to = *hidden_[static_cast<std::size_t>((layer + 1) % 2)];
    std::copy(from.values().begin(), from.values().end(), to.values().begin());
    recorder_.reserve(layer);
    std::vector<std::int64_t> ends = prompt_passes(options_);
    const auto prompt_pass_count = static_cast<std::int64_t>(ends.size());
    if (known_tokens(options_) > options_.prompt) ends.push_back(known_tokens(options_));
    std::int64_t first = 0;
    for (std::int64_t pass = 0; pass < static_cast<std::int64_t>(ends.size()); ++pass) {
      const std::int64_t rows = ends[static_cast<std::size_t>(pass)] - first;
      recorder_.begin(pass < prompt_pass_count ? std::optional(pass) : std::nullopt);
      runner_.layer(layer, first, rows_of(to.values(), first, rows), recorder_, [&](double share) {
        const double done = (static_cast<double>(first) + share * static_cast<double>(rows)) /
                            static_cast<double>(known_tokens(options_));
        report_prefill(layer + done);
      });
      first += rows;
    }
    journal_["layers"] = layer + 1;
    const double seconds = add_seconds("prefill_seconds", begin);
    if (seconds >= kWorthSyncing) to.sync();
    save(seconds);
    report_prefill(layer + 1);
  }

  [[nodiscard]] std::span<float> rows_of(std::span<float> hidden, std::int64_t first,
                                         std::int64_t rows) const {
    return hidden.subspan(static_cast<std::size_t>(first * model_.hidden),
                          static_cast<std::size_t>(rows * model_.hidden));
  }

  // The share of this process's part of the prefill, the head included, weighed by multiplications.
  void report_prefill(double layers) const {
    if (!options_.progress) return;
    const double attention = static_cast<double>(model_.head_dim) *
                             (2.0 * (model_.query_heads + model_.kv_heads) * model_.hidden +
                              model_.query_heads * static_cast<double>(known_tokens(options_)));
    const double layer = attention + 3.0 * model_.hidden * model_.intermediate;
    const double head = static_cast<double>(model_.vocabulary) * model_.hidden;
    const double total = (model_.layers - resumed_) * layer + head;
    const double beyond = std::max(0.0, layers - model_.layers);  // of the head
    const double done =
        (std::min<double>(layers, model_.layers) - resumed_) * layer + beyond * head;
    options_.progress("prefill", done / total);
  }

  // nll of all given tokens, and the first prediction of those to come.
  void score() {
    const auto begin = Clock::now();
    const std::int64_t known = known_tokens(options_);
    nll_.assign(static_cast<std::size_t>(known), 0.0F);
    runner_.head(hidden_[static_cast<std::size_t>(model_.layers % 2)]->values(),
                 [&](std::int64_t first, std::int64_t rows, const float* logits) {
                   const auto vocabulary = static_cast<std::size_t>(model_.vocabulary);
                   arena_.execute([&] {
                     tbb::parallel_for(std::int64_t{0}, rows, [&](std::int64_t r) {
                       const auto row = static_cast<std::size_t>(first + r);
                       if (row + 1 == nll_.size()) return;
                       nll_[row] =
                           nll_of({logits + static_cast<std::size_t>(r) * vocabulary, vocabulary},
                                  ids_[row + 1]);
                     });
                   });
                   if (first + rows == known) {
                     const float* last = logits + static_cast<std::size_t>(rows - 1) * vocabulary;
                     logits_.assign(last, last + vocabulary);
                   }
                   report_prefill(model_.layers +
                                  static_cast<double>(first + rows) / static_cast<double>(known));
                 });
    hidden_[0].reset();
    hidden_[1].reset();
    add_seconds("prefill_seconds", begin);
  }

  void generate() {
    const auto begin = Clock::now();
    Sampler sample(options_.sampling);
    std::vector<float> hidden(static_cast<std::size_t>(model_.hidden));
    recorder_.begin(std::nullopt);
    for (std::int64_t i = 0; i < options_.generate; ++i) {
      const std::int32_t token = sample(logits_);
      nll_.back() = nll_of(logits_, token);
      nll_.push_back(0);
      ids_.push_back(token);
      runner_.embed({&token, 1}, hidden);
      const auto row = static_cast<RowIndex>(ids_.size()) - 1;
      for (int l = 0; l < model_.layers; ++l) runner_.layer(l, row, hidden, recorder_);
      if (options_.progress)
        options_.progress("generating",
                          static_cast<double>(i + 1) / static_cast<double>(options_.generate));
      if (token == options_.stop) break;
      if (i + 1 == options_.generate) break;
      runner_.head(hidden, [&](std::int64_t, std::int64_t, const float* logits) {
        logits_.assign(logits, logits + model_.vocabulary);
      });
    }
    add_seconds("decode_seconds", begin);
  }

  // The tensors that belong to all layers; from here on only the trace's form is missing.
  void finish() {
    write_common("token_ids", std::as_bytes(std::span(ids_)));
    write_common("nll", std::as_bytes(std::span(nll_)));
    journal_["text_bytes"] = -1;
    if (options_.piece) {
      std::string text;
      std::vector<std::int64_t> offsets{0};
      for (const std::int32_t id : ids_) {
        text += options_.piece(id);
        offsets.push_back(static_cast<std::int64_t>(text.size()));
      }
      write_common("token_text", std::as_bytes(std::span(text)));
      journal_["text_bytes"] = text.size();
      write_common("token_text_offsets", std::as_bytes(std::span(offsets)));
    }
    if (options_.generate > 0) synced_ = 0;
    journal_["tokens"] = ids_.size();
    save(journal_["prefill_seconds"].get<double>() + journal_["decode_seconds"].get<double>());
  }

  // Journals what is done. Waiting until it is on the disk is worth it only for work of some seconds:
  // without, it survives every end of the process, but not one of the machine, and the journal says so.
  void save(double seconds) {
    const bool durable = seconds >= kWorthSyncing;
    for (; durable && synced_ < layers_done(); ++synced_) recorder_.sync(synced_);
    journal_["boot"] = durable ? "" : boot_id();
    work_.write_journal(journal_);
  }

  void write_common(const std::string& name, std::span<const std::byte> bytes) {
    work_.reserve(name, static_cast<std::int64_t>(bytes.size()));
    work_.write(name, 0, bytes);
    work_.sync(name);
  }

  CaptureResult publish() {
    CaptureResult out;
    const auto tokens = journal_["tokens"].get<std::int64_t>();
    const std::vector<Product> all = products(journal_);
    double begun = 0;  // traces
    for (const Product& product : all) {
      const auto progress = [&](double share) {
        if (options_.progress)
          options_.progress("writing", (begun + share) / static_cast<double>(all.size()));
      };
      for (const fs::path& file :
           publish_trace(work_, product.parts, options_.shards, product.path, progress)) {
        out.files.push_back(file);
        out.bytes += static_cast<std::int64_t>(fs::file_size(file));
      }
      ++begun;
    }
    ids_.resize(static_cast<std::size_t>(tokens));
    nll_.resize(static_cast<std::size_t>(tokens));
    work_.read("token_ids", 0, std::as_writable_bytes(std::span(ids_)));
    work_.read("nll", 0, std::as_writable_bytes(std::span(nll_)));
    work_.remove();

    out.tokens = tokens;
    out.prompt = options_.prompt;
    out.generated.assign(ids_.begin() + known_tokens(options_), ids_.end());
    const std::span predicted = std::span<const float>(nll_).first(nll_.size() - 1);
    const auto split = static_cast<std::size_t>(options_.prompt - 1);
    out.all = mean_of(predicted);
    out.in_prompt = mean_of(predicted.first(split));
    out.after_prompt = mean_of(predicted.subspan(split));
    out.prefill_tokens = known_tokens(options_);
    out.prefill_seconds = journal_["prefill_seconds"];
    out.decode_seconds = journal_["decode_seconds"];
    out.resumed_layers = resumed_;
    return out;
  }

  double add_seconds(const char* key, Clock::time_point begin) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    journal_[key] = journal_[key].get<double>() + seconds;
    return seconds;
  }

  const ModelSpec& model_;
  Runner& runner_;
  WorkFolder& work_;
  const CaptureOptions& options_;
  Recorder recorder_;
  tbb::task_arena arena_;
  json journal_;
  int synced_ = 0;  // layers that are on the disk
  int resumed_ = 0;
  std::array<std::optional<MappedFloats>, 2> hidden_;  // [known tokens, hidden]
  std::vector<std::int32_t> ids_;
  std::vector<float> nll_;     // [ids]
  std::vector<float> logits_;  // [vocabulary], of the last token
};

void check_path(const char* option, const fs::path& path) {
  if (path.extension() != ".safetensors" || path.stem().empty()) {
    throw ConfigError(fmt::format("{}: found '{}', expected a name that ends in .safetensors",
                                  option, path.string()));
  }
  if (fs::is_directory(path))
    throw ConfigError(fmt::format("{}: '{}' is a folder", option, path.string()));
  const fs::path folder = fs::absolute(path).parent_path();
  if (!fs::is_directory(folder))
    throw ConfigError(fmt::format("{}: there is no folder '{}'", option, folder.string()));
}

}  // namespace

void check_capture(const ModelSpec& model, const CaptureOptions& o) {
  check_path("--out", o.out);
  if (!o.qkv && !o.scores) throw ConfigError("--emit: nothing is to be emitted");
  if (o.qkv && o.scores) {
    check_path("--scores-out", o.scores_out);
    if (fs::weakly_canonical(o.scores_out) == fs::weakly_canonical(o.out))
      throw ConfigError("--scores-out: the same file as --out");
  }
  if (o.scores && o.dtype == Dtype::bf16)
    throw ConfigError("--dtype: probabilities are stored as f16 or f32, found bf16");
  if (o.wo && !o.qkv) throw ConfigError("--wo: a score trace does not hold the output projection");
  if (o.token_ids.empty()) throw CheckpointError("the text has no tokens; expected at least one");
  for (std::size_t i = 0; i < o.token_ids.size(); ++i) {
    if (o.token_ids[i] >= 0 && o.token_ids[i] < model.vocabulary) continue;
    throw CheckpointError(fmt::format("token {} has id {}; the vocabulary of {} has ids 0 to {}", i,
                                      o.token_ids[i], model.name, model.vocabulary - 1));
  }
  if (o.prompt < 1 || o.prompt > known_tokens(o)) {
    throw ConfigError(
        fmt::format("--prompt: found {}, and the text has {} tokens", o.prompt, known_tokens(o)));
  }
  if (o.generate < 0 || o.chunk < 0)
    throw ConfigError("--generate and --chunk: expected numbers >= 0");
  for (std::size_t i = 0; i < o.layers.size(); ++i) {
    if (o.layers[i] < 0 || o.layers[i] >= model.layers) {
      throw ConfigError(fmt::format("--layers: found {}, and {} has layers 0 to {}", o.layers[i],
                                    model.name, model.layers - 1));
    }
    if (i > 0 && o.layers[i] <= o.layers[i - 1])
      throw ConfigError("--layers: expected ascending layers, each once");
  }
  for (const Span& span : o.spans) {
    if (span.begin >= 0 && span.begin < span.end && span.end <= known_tokens(o)) continue;
    throw ConfigError(fmt::format("--span: {} is [{}, {}), and there are {} tokens", span.name,
                                  span.begin, span.end, known_tokens(o)));
  }
  if (o.scores && (o.scores->top_k < 1 || o.scores->rows.every < 1 || o.scores->rows.last < 0))
    throw ConfigError("--keys and --rows: expected numbers >= 1");
  const Sampling& s = o.sampling;
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature) || !(s.top_p > 0) || s.top_p > 1 ||
      s.top_k < 0) {
    throw ConfigError("--temperature, --top-p, --top-k: expected T >= 0, 0 < P <= 1, K >= 0");
  }
}

RunnerOptions runner_options(const CaptureOptions& options, const WorkFolder& work) {
  return {.tokens = most_tokens(options),
          .keep_kv = options.generate > 0,
          .scratch = work.scratch(),
          .threads = options.threads,
          .top_k = options.scores ? static_cast<int>(stored_top_k(options)) : 0};
}

CapturePlan plan_capture(const ModelSpec& model, const CaptureOptions& options) {
  CapturePlan out;
  const std::int64_t tokens = most_tokens(options);
  std::int64_t rewritten = 0;  // lies there twice while the trace is written
  for (const bool scores : {false, true}) {
    if (scores ? !options.scores.has_value() : !options.qkv) continue;
    const TraceParts parts = make_parts(model, options, tokens, -1, scores);
    out.trace_bytes += parts.bytes();
    const bool one = options.shards == Shards::one ||
                     (options.shards == Shards::automatic && parts.bytes() < kOneFileBytes);
    rewritten =
        std::max(rewritten, one ? parts.bytes()
                                : parts.bytes() / static_cast<std::int64_t>(parts.layers.size()));
  }
  const std::int64_t hidden = known_tokens(options) * model.hidden * 4;
  const std::int64_t kv = options.generate > 0 ? known_tokens(options) * model.layers * 8 *
                                                     model.kv_heads * model.head_dim
                                               : 0;
  out.work_bytes = out.trace_bytes + rewritten + 2 * hidden + kv;
  // Ids, nll and offsets; logits of a row, twice and sorted; one block of rows in the trace's type.
  out.memory_bytes = tokens * 32 + model.vocabulary * 24 + 3 * 4 * kPieceFloats +
                     2 * kRestoreRows * model.kv_heads * model.head_dim * 4;
  if (options.scores) {
    // Of a wave: probabilities and keys, and the candidates among which they are found; column masses.
    const std::int64_t rows = std::min(kWave, tokens) * model.query_heads;
    out.memory_bytes += rows * (16 * stored_top_k(options) + 4);
    if (options.scores->column_mass) out.memory_bytes += tokens * model.query_heads * 8;
  }
  return out;
}

std::vector<fs::path> capture_files(const ModelSpec& model, const CaptureOptions& options) {
  const std::size_t layers = stored_layers(model, options).size();
  std::vector<fs::path> out = trace_files(options.out, layers, options.shards);
  if (options.qkv && options.scores) {
    const std::vector<fs::path> more = trace_files(options.scores_out, layers, options.shards);
    out.insert(out.end(), more.begin(), more.end());
  }
  return out;
}

CaptureResult capture(const ModelSpec& model, Runner& runner, WorkFolder& work,
                      const CaptureOptions& options) {
  return Job(model, runner, work, options).run();
}

}  // namespace kvspan::tracegen
