// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/records.h"

#include <algorithm>
#include <system_error>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/sweep/journal.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;
using Status = CellRecord::Status;

constexpr Status kStatuses[] = {Status::done, Status::left_out, Status::failed};

std::optional<Status> status_of(const std::string& name) {
  for (const Status status : kStatuses) {
    if (name == name_of(status)) return status;
  }
  return std::nullopt;
}

// A cell that several processes worked on: one of them decides, whatever their order.
void keep_better(CellRecord& known, CellRecord&& found) {
  if (std::tie(found.status, found.text) < std::tie(known.status, known.text))
    known = std::move(found);
}

// Errors: json::exception when a record lacks what its kind has.
void add_record(const json& record, Records& records) {
  if (record.contains("cell")) {
    const auto status = status_of(record.at("status").get<std::string>());
    const std::uint64_t id = std::stoull(record.at("cell").get<std::string>(), nullptr, 16);
    if (!status) throw std::invalid_argument("status");
    CellRecord found{*status, {}};
    if (*status != Status::done)
      found.text = record.at("reason").get<std::string>();
    else if (const json& figures = record.at("figures"); records.keep == Keep::all)
      found.text = figures.dump();
    const auto [at, fresh] = records.cells.try_emplace(id, found);
    if (!fresh) keep_better(at->second, std::move(found));
  } else if (record.contains("file")) {
    const FileState state{record.at("bytes").get<std::uint64_t>(),
                          record.at("changed").get<std::int64_t>()};
    records.checksums[record.at("file").get<std::string>()] = {
        state, record.at("sha256").get<std::string>()};
  } else {
    records.work.push_back({record.at("ended").get<double>(), record.at("seconds").get<double>(),
                            record.at("cost").get<double>()});
  }
}

}  // namespace

const char* name_of(Status status) {
  switch (status) {
    case Status::done:
      return "done";
    case Status::left_out:
      return "left out";
    case Status::failed:
      break;
  }
  return "failed";
}

void add_records(std::string_view text, Records& records) {
  records.damaged += read_journal(text, [&](const json& record) {
    try {
      add_record(record, records);
    } catch (const json::exception&) {
      ++records.damaged;
    } catch (const std::logic_error&) {  // an id that is no number
      ++records.damaged;
    }
  });
}

Records read_records(const fs::path& folder, Keep keep) {
  Records records;
  records.keep = keep;
  for (const fs::path& path : journals_in(folder)) {
    const MappedFile file = map_file(path);
    add_records({reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()}, records);
    ++records.journals;
  }
  return records;
}

json cell_record(std::uint64_t id, Status status, const std::string& text) {
  json record{{"cell", id_text(id)}, {"status", name_of(status)}};
  if (status == Status::done)
    record["figures"] = json::parse(text);
  else
    record["reason"] = text;
  return record;
}

json work_record(const WorkRecord& work) {
  return {{"ended", work.ended}, {"seconds", work.seconds}, {"cost", work.cost}};
}

json file_record(const std::string& path, const FileState& state, const std::string& sha256) {
  return {{"file", path}, {"bytes", state.size}, {"changed", state.changed}, {"sha256", sha256}};
}

fs::path plan_path(const fs::path& folder) { return folder / "sweep.json"; }
fs::path journal_folder(const fs::path& folder) { return folder / "journals"; }

SweepFolder open_sweep(const fs::path& folder) {
  const fs::path path = plan_path(folder);
  if (!fs::is_regular_file(path)) {
    throw ConfigError(
        fmt::format("'{}' is no folder of a sweep: it has no sweep.json", path_text(folder)));
  }
  SweepFolder sweep;
  const MappedFile file = map_file(path);
  sweep.plan = parse_plan({reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()},
                          path_text(path));
  sweep.grid = make_grid(sweep.plan);
  sweep.records = read_records(journal_folder(folder));
  return sweep;
}

Counts count_cells(const Grid& grid, const Records& records, const Shard& shard) {
  Counts counts;
  for (const Unit& unit : grid.units) {
    if (!shard.has(unit)) continue;
    for (const std::size_t cell : unit.cells) {
      const auto found = records.cells.find(grid.cells[cell].id);
      if (found == records.cells.end())
        ++counts.left;
      else if (found->second.status == Status::done)
        ++counts.done;
      else
        ++(found->second.status == Status::failed ? counts.failed : counts.left_out);
    }
  }
  return counts;
}

}  // namespace kvspan::sweep
