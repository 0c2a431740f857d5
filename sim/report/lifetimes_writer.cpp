// SPDX-License-Identifier: Apache-2.0
#include "sim/report/lifetimes_writer.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "sim/report/result_metadata.h"
#include "sim/trace/safetensors.h"

namespace kvspan {
namespace {

// Calls visit(name, values, shape) for every tensor that a ledger holds, but its changes.
template <class Visit>
void for_each_tensor(const Ledger& ledger, std::size_t r, const Visit& visit) {
  const auto show = [&](const char* what, const auto& values,
                        const std::vector<std::int64_t>& shape) {
    if (!values.empty()) visit(run_key(r, what), values, shape);
  };
  const std::int64_t tokens = ledger.plan.tokens;
  const auto samples = static_cast<std::int64_t>(ledger.read_rows.size());
  const std::vector<std::int64_t> entries{ledger.layers, ledger.heads, tokens};
  show("passes", ledger.plan.ends, {static_cast<std::int64_t>(ledger.plan.ends.size())});
  show("death", ledger.death, entries);
  show("score", ledger.score, entries);
  show("rank", ledger.rank, entries);
  show("state", ledger.state, {tokens});
  show("selected", ledger.selected, {tokens});
  show("read_rows", ledger.read_rows, {samples});
  show("reads", ledger.reads,
       {ledger.layers, ledger.heads, samples, static_cast<std::int64_t>(ledger.reads_bytes())});
}

std::int64_t changes_of(const Ledger& ledger) {
  std::int64_t changes = 0;
  for (const auto& of_layer : ledger.changes) changes += static_cast<std::int64_t>(of_layer.size());
  return changes;
}

void write_changes(SafetensorsWriter& writer, const Ledger& ledger, std::size_t r) {
  std::int64_t at = 0;
  for (std::size_t layer = 0; layer < ledger.changes.size(); ++layer) {
    std::vector<std::int64_t> fields;
    for (const Change& change : ledger.changes[layer]) {
      fields.insert(fields.end(), {static_cast<std::int64_t>(layer), change.row, change.head,
                                   change.token, change.representation});
    }
    if (fields.empty()) continue;
    const auto bytes = std::as_bytes(std::span(fields));
    writer.write(run_key(r, "changes"), at, bytes);
    at += static_cast<std::int64_t>(bytes.size());
  }
}

}  // namespace

void write_lifetimes(const RunReport& report, const std::filesystem::path& path) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const Ledger& ledger = report.runs[r].ledger;
    for_each_tensor(ledger, r,
                    [&]<class T>(const std::string& name, const std::vector<T>&,
                                 const std::vector<std::int64_t>& shape) {
                      entries.push_back({name, dtype_of<T>(), shape});
                    });
    const std::int64_t changes = changes_of(ledger);
    if (changes > 0)
      entries.push_back({run_key(r, "changes"), Dtype::i64, {changes, kChangeFields}});
  }
  // Wide elements first: every tensor lies aligned in a mapped file.
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  SafetensorsWriter writer(path, result_metadata(report, kLifetimesFormat), entries);
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const Ledger& ledger = report.runs[r].ledger;
    for_each_tensor(
        ledger, r,
        [&]<class T>(const std::string& name, const std::vector<T>& values,
                     const std::vector<std::int64_t>&) { write_tensor(writer, name, values); });
    write_changes(writer, ledger, r);
  }
  writer.finish();
}

}  // namespace kvspan
