// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/death_rows.h"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/whole_trace.h"
#include "sim/trace/safetensors.h"

namespace kvspan::policies {
namespace {

std::string text_of(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

void refuse_other_trace(const std::string& file, const Metadata& metadata, const Trace* trace) {
  const std::string theirs = text_of(metadata, "trace.sha256");
  if (trace == nullptr || theirs.empty()) return;
  const std::string ours = trace->sha256();
  if (ours.empty() || ours == theirs) return;
  throw TraceError(
      fmt::format("deaths: {} is of another trace, {} (SHA-256 {:.12}...); expected {} ({:.12}...)",
                  file, text_of(metadata, "trace.path"), theirs, trace->name(), ours));
}

// "of a run with prompt 512, chunk 128", or empty where that is this run's, too.
std::string other_run(const Metadata& metadata, const Geometry& geometry) {
  std::string out;
  const auto add = [&](const char* name, const std::string& theirs, std::int64_t ours) {
    if (theirs.empty() || theirs == std::to_string(ours)) return;
    out += fmt::format("{} {} {}", out.empty() ? "of a run with" : ",", name, theirs);
  };
  add("prompt", text_of(metadata, "prompt_tokens"), geometry.prompt);
  add("chunk", text_of(metadata, "chunk"), geometry.chunk);
  return out;
}

}  // namespace

std::vector<std::string> notes_of_death_rows(const std::string& file,
                                             const std::set<RowIndex>& rows,
                                             const Geometry& geometry) {
  const TensorSet set = TensorSet::open(file);
  refuse_other_trace(file, set.metadata(), geometry.trace);
  const std::vector<RowIndex> ends =
      make_passes(geometry.tokens, geometry.prompt, geometry.evict_point, geometry.chunk).ends;
  std::vector<RowIndex> inside;
  std::set_difference(rows.begin(), rows.end(), ends.begin(), ends.end(),
                      std::back_inserter(inside));
  const std::string other = other_run(set.metadata(), geometry);
  std::vector<std::string> notes;
  if (!other.empty()) {
    notes.push_back(fmt::format("death rows {}; this one has prompt {}, chunk {}", other,
                                geometry.prompt, geometry.chunk));
  }
  if (!inside.empty()) {
    notes.push_back(fmt::format(
        "entries die inside a pass, in {} row{} (first: {}): eviction happens at the end of a "
        "pass, so no method reaches this footprint and peak",
        inside.size(), inside.size() == 1 ? "" : "s", inside.front()));
  }
  return notes;
}

}  // namespace kvspan::policies
