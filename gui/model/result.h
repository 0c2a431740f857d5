// SPDX-License-Identifier: Apache-2.0
// An opened result, as views read it: an immutable value, shared by all who show it. It comes from
// a result JSON and the timeline and lifetimes files that belong to it, or from any one of them;
// what none of them holds is absent, never guessed.
#pragma once

#include <QString>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "gui/model/series.h"
#include "sim/trace/safetensors.h"

namespace kvspan {
class LifetimesFile;
}

namespace kvspan::gui {

struct Evaluation;

// What a result says of its trace.
struct TraceInfo {
  std::string path, sha256, model;
  int model_layers = 0;
  std::vector<int> layer_ids;  // [layers] the model's index of each stored layer
  int query_heads = 0, kv_heads = 0, head_dim = 0;  // 0: not said
  RowIndex tokens = 0, prompt = 0;
  [[nodiscard]] int layers() const { return static_cast<int>(layer_ids.size()); }
};

struct Run {
  std::string policy;  // canonical
  std::string label;   // short
  std::string klass;
  bool bound = false;
  // Of kvspan replay: the policy, canonical, whose decisions a pool was taken through; `bytes` is
  // the memory that was measured behind it. Empty: simulated.
  std::string replayed;
  std::vector<std::string> notes;
  int heads = 0;                            // stored; 0: not said
  const nlohmann::json* figures = nullptr;  // the run in the result JSON; null: there is none
  // Totals over layers and heads; null where absent. bytes = KV + overhead; mass in [0, 1].
  SeriesPtr entries, bytes, overhead, host, active, mass;
  std::vector<Polygon> heads_over_time;  // [layers * heads], or empty
  std::int64_t newborn_bytes = 0;        // device bytes of an entry as born; 0: not said
  bool one_representation = true;        // every entry costs newborn_bytes
};

// Of a measured run, in the place of layouts: what was predicted, what the pool's blocks and slots
// took, the most memory behind them, and that as the device says.
inline constexpr const char* kPredicted = "predicted";
inline constexpr const char* kPool = "pool";
inline constexpr const char* kBacked = "backed";
inline constexpr const char* kDevice = "device says";

struct Result {
  std::filesystem::path path;  // of the file that was opened
  TraceInfo trace;
  RowIndex chunk = 0;
  std::int64_t kv_bytes = 2;
  std::string layout = "ideal", prefill = "whole";
  std::vector<Run> runs;
  std::shared_ptr<const nlohmann::json> json;      // without timelines; or null; of pools: figures
  std::shared_ptr<const LifetimesFile> lifetimes;  // or null; its runs are numbered as `runs`
  std::vector<std::string> warnings;               // companions that were left out, and why
  // Of `kvspan eval`: of the whole file, and which of its samples this is; or null.
  std::shared_ptr<const Evaluation> evaluation;
  std::size_t sample = 0;
};
using ResultPtr = std::shared_ptr<const Result>;

// Opens a result JSON (with the companions it names, looked for beside it, too), that of a replay,
// a --timeline file, or a --lifetimes file.
// Errors: Error with one line: what was found, what was expected.
[[nodiscard]] ResultPtr open_result(const std::filesystem::path& path);

// Where a file is that a result names: beside the result, or as written.
[[nodiscard]] std::filesystem::path companion_path(const std::filesystem::path& result,
                                                   const std::string& named);

// What a file is, by its content.
enum class FileKind : std::uint8_t { result, timeline, lifetimes, trace };
[[nodiscard]] FileKind kind_of(const std::filesystem::path& path);  // Errors: TraceError

// A number of a run's JSON by its dotted path ("fidelity.decode.retained_mass.mean", "per_layer.0.
// footprint"); nullopt when the path leads nowhere or to null.
[[nodiscard]] std::optional<double> figure(const Run& run, std::string_view path);

// Retained mass of decode rows, or of all rows where none was decoded: what the table shows.
[[nodiscard]] std::optional<double> retained_mass(const Run& run);
// Its upper bound, where the result is of a score trace and the figure above a lower one.
[[nodiscard]] std::optional<double> retained_mass_upper(const Run& run);
// "81.33 %", or "81.33 to 86.27 %" where the two are not the same as printed.
[[nodiscard]] QString retained_text(const Run& run);
// The label, in which a budget under chunked() says what it is of.
[[nodiscard]] std::string label_of(const Run& run);

// Where passes of the prompt end, from row `begin` to row `end`, ascending. Only the last one, the
// end of the prompt, where passes are shorter than `least` rows.
[[nodiscard]] std::vector<RowIndex> pass_ends(const Result& result, RowIndex begin, RowIndex end,
                                              double least);

// Entries that a full cache holds at the end: what percent are of. 0: not known.
[[nodiscard]] double full_entries(const Result& result, const Run& run);

}  // namespace kvspan::gui
