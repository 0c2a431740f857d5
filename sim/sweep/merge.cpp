// SPDX-License-Identifier: Apache-2.0
// The merged results: cells.csv and its schema.
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <span>
#include <sys/file.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/report/csv.h"
#include "sim/sweep/figures.h"
#include "sim/sweep/records.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// One process merges at a time: it sees what all that merged before have journalled. Where a file
// system knows no locks, readers of the journals still do.
class MergeLock {
 public:
  explicit MergeLock(const fs::path& folder)
      : fd_(::open((journal_folder(folder) / "merge.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC,
                   0666)) {
    if (fd_ < 0) {
      throw Error(fmt::format("{}: cannot be written ({})", path_text(journal_folder(folder)),
                              std::strerror(errno)),
                  1);
    }
    while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~MergeLock() { ::close(fd_); }
  MergeLock(const MergeLock&) = delete;
  MergeLock& operator=(const MergeLock&) = delete;

 private:
  int fd_;
};

std::string field(const json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return csv_field(value.get<std::string>());
  if (!value.is_array()) return value.is_object() && value.empty() ? "" : csv_field(value.dump());
  std::string text;
  for (const json& one : value) text += (text.empty() ? "" : "; ") + one.get<std::string>();
  return csv_field(text);
}

json grid_values(const Plan& plan, const Grid& grid, const Cell& cell) {
  const Setting& setting = grid.settings[cell.setting];
  const SweepTrace& trace = plan.traces[setting.trace];
  return {{"cell", id_text(cell.id)},
          {"status", "left"},
          {"reason", nullptr},
          {"trace", trace.path},
          {"trace_sha256", trace.sha256},
          {"model", trace.model},
          {"trace_tokens", trace.tokens},
          {"prompt_option_tokens", setting.prompt},
          {"evict_at", setting.evict_at},
          {"chunk_tokens", setting.chunk},
          {"kv_element_bytes", setting.kv_bytes},
          {"prefill", grid.countings[cell.counting].prefill},
          {"layout", grid.countings[cell.counting].layout},
          {"seed", setting.seed},
          {"policy", plan.specs[cell.spec].text}};
}

std::string line_of(const Plan& plan, const Grid& grid, const Records& records, const Cell& cell) {
  json known = grid_values(plan, grid, cell);
  json figures = json::object();
  const auto found = records.cells.find(cell.id);
  if (found != records.cells.end()) {
    const CellRecord& record = found->second;
    known["status"] = name_of(record.status);
    if (record.status == CellRecord::Status::done)
      figures = json::parse(record.text);
    else
      known["reason"] = record.text;
  }
  std::string line;
  for (const Column& column : grid_columns()) line += field(known[column.name]) + ",";
  for (const Column& column : figure_columns()) line += field(figures[column.name]) + ",";
  line.back() = '\n';
  return line;
}

}  // namespace

void write_cells_csv(const Plan& plan, const Grid& grid, const Records& records,
                     const fs::path& path) {
  constexpr std::size_t kPiece = std::size_t{1} << 20U;
  AtomicFile file(path);
  std::uint64_t written = 0;
  std::string text;
  const auto flush = [&] {
    file.write(std::as_bytes(std::span(text)), written);
    written += text.size();
    text.clear();
  };
  for (const auto* columns : {&grid_columns(), &figure_columns()}) {
    for (const Column& column : *columns) text += std::string(column.name) + ",";
  }
  text.back() = '\n';
  for (const Cell& cell : grid.cells) {
    text += line_of(plan, grid, records, cell);
    if (text.size() > kPiece) flush();
  }
  flush();
  file.commit();
}

json cells_schema() {
  std::vector<Column> columns = grid_columns();
  columns.insert(columns.end(), figure_columns().begin(), figure_columns().end());
  return schema_of(columns);
}

SweepFolder merge(const fs::path& folder) {
  const MergeLock lock(folder);
  SweepFolder sweep = open_sweep(folder);
  write_cells_csv(sweep.plan, sweep.grid, sweep.records, folder / "cells.csv");
  write_file_atomically(folder / "cells.schema.json", cells_schema().dump(1) + "\n");
  return sweep;
}

}  // namespace kvspan::sweep
