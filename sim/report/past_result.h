// SPDX-License-Identifier: Apache-2.0
// What a result JSON of `kvspan run` says of how it was made: enough to replay it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sim/base/types.h"

namespace kvspan {

struct PastResult {
  std::string trace_path, trace_sha256;
  RowIndex prompt = 0, evict_point = 0, chunk = 0;
  std::int64_t kv_bytes = 2;
  struct Run {
    std::string spec, label;  // canonical; as it was asked for
    std::vector<std::string> notes;
    double retained = 0;  // of decode rows, of all where there are none; NaN: not measured
  };
  std::vector<Run> runs;
};

// The document of the file, or, where it holds those of several traces and chunk sizes, the one at
// `place`, from 1; 0: the only one.
// Errors: TraceError when it is no such result, or holds several and none is chosen.
[[nodiscard]] PastResult read_result(const std::filesystem::path& path, std::size_t place = 0);

}  // namespace kvspan
