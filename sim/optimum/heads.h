// SPDX-License-Identifier: Apache-2.0
// Work on all heads of a trace, several at a time as far as threads and memory go.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "sim/attention/head_attention.h"
#include "sim/optimum/slot_flow.h"
#include "sim/optimum/values.h"
#include "sim/trace/trace.h"

namespace kvspan::optimum {

// The rows by which retained attention is judged: decode rows, or all where there are none; of
// these, those that are `measured` [tokens]. Returns [tokens].
[[nodiscard]] std::vector<char> judged_rows(std::span<const char> measured, RowIndex prompt);
[[nodiscard]] std::int64_t count_rows(std::span<const char> rows);

// Bytes of the values of one head.
[[nodiscard]] std::int64_t value_bytes(const std::vector<RowIndex>& ends);

// How many heads are worked on at once: as many as 2 GiB hold of `bytes` each, one at least.
//   threads  at most; 0: all cores
[[nodiscard]] int heads_at_once(int threads, std::int64_t bytes);

// Calls `work` for every (layer, head) of `heads` stored heads a layer, from any thread, so many at
// once.
void for_each_head(const Trace& trace, int heads, int threads, std::int64_t bytes,
                   const std::function<void(const StoredHead& stored)>& work);

// The progress of several parts as one, from any thread.
class SharedProgress {
 public:
  SharedProgress(std::function<void(double)> show, std::size_t parts)
      : show_(std::move(show)), done_(parts, 0.0) {}
  void operator()(std::size_t part, double done);

 private:
  std::mutex mutex_;
  std::function<void(double)> show_;  // may be empty
  std::vector<double> done_;
  double sum_ = 0;
};

}  // namespace kvspan::optimum
