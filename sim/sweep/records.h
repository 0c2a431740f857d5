// SPDX-License-Identifier: Apache-2.0
// What the journals of a sweep say, and the merged results that follow from them: a function of the
// grid and of what each cell gave, whoever computed it, and in which order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/sweep/grid.h"

namespace kvspan::sweep {

struct CellRecord {
  // In the order of what is worth more: a cell that failed and was repeated is done.
  enum class Status : std::uint8_t { done, left_out, failed };
  Status status = Status::done;
  std::string text;  // done: figures, as JSON; else the reason
};
[[nodiscard]] const char* name_of(CellRecord::Status status);  // "done", "left out", "failed"

// A unit that was worked on, for who asks how long the rest takes.
struct WorkRecord {
  double ended = 0;  // seconds since 1970
  double seconds = 0, cost = 0;
};

// What a file was when it was summed: size in bytes, time of its last change in ns.
struct FileState {
  std::uint64_t size = 0;
  std::int64_t changed = 0;
  bool operator==(const FileState&) const = default;
};

enum class Keep : std::uint8_t { all, statuses };  // statuses: of what is done no figures

struct Records {
  Keep keep = Keep::all;
  std::unordered_map<std::uint64_t, CellRecord> cells;
  std::vector<WorkRecord> work;
  std::map<std::string, std::pair<FileState, std::string>> checksums;  // by path
  std::size_t journals = 0, damaged = 0;  // files; lines that are not sound
};
// All journals of a folder. Errors: TraceError when one cannot be read.
[[nodiscard]] Records read_records(const std::filesystem::path& folder, Keep keep = Keep::all);
// One journal's text more.
void add_records(std::string_view text, Records& records);

[[nodiscard]] nlohmann::json cell_record(std::uint64_t id, CellRecord::Status status,
                                         const std::string& text);
[[nodiscard]] nlohmann::json work_record(const WorkRecord& work);
[[nodiscard]] nlohmann::json file_record(const std::string& path, const FileState& state,
                                         const std::string& sha256);

// ---- Merged -------------------------------------------------------------------------------------

// A sweep's folder: sweep.json (the plan), journals/, cells.csv, cells.schema.json.
struct SweepFolder {
  Plan plan;
  Grid grid;
  Records records;
};
// Errors: ConfigError when it is no folder of a sweep.
[[nodiscard]] SweepFolder open_sweep(const std::filesystem::path& folder);
[[nodiscard]] std::filesystem::path plan_path(const std::filesystem::path& folder);
[[nodiscard]] std::filesystem::path journal_folder(const std::filesystem::path& folder);

struct Counts {
  std::size_t done = 0, left_out = 0, failed = 0, left = 0;
  [[nodiscard]] std::size_t all() const { return done + left_out + failed + left; }
};
[[nodiscard]] Counts count_cells(const Grid& grid, const Records& records, const Shard& shard = {});

// A line a cell, in the order of the grid; of a cell that is not done the figures are empty.
void write_cells_csv(const Plan& plan, const Grid& grid, const Records& records,
                     const std::filesystem::path& path);
// Its columns as a table schema: name, type, unit, description.
[[nodiscard]] nlohmann::json cells_schema();
// cells.csv and its schema, after everything that other processes have merged; returns of what.
SweepFolder merge(const std::filesystem::path& folder);

}  // namespace kvspan::sweep
