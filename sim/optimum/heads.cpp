// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/heads.h"

#include <algorithm>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

namespace kvspan::optimum {

std::vector<char> judged_rows(std::span<const char> measured, RowIndex prompt) {
  std::vector<char> rows(measured.begin(), measured.end());
  const auto decode = rows.begin() + prompt;
  if (std::find(decode, rows.end(), 1) != rows.end()) std::fill(rows.begin(), decode, char{0});
  return rows;
}

std::int64_t count_rows(std::span<const char> rows) {
  return std::count(rows.begin(), rows.end(), 1);
}

std::int64_t value_bytes(const std::vector<RowIndex>& ends) {
  std::int64_t values = 0;
  RowIndex begin = 0;
  for (std::size_t pass = 0; pass < ends.size(); ++pass) {
    values += (ends[pass] - begin) * static_cast<std::int64_t>(ends.size() - pass);
    begin = ends[pass];
  }
  return values * static_cast<std::int64_t>(sizeof(Mass));
}

int heads_at_once(int threads, std::int64_t bytes) {
  constexpr std::int64_t kMemory = std::int64_t{2} << 30U;
  if (threads <= 0) threads = tbb::this_task_arena::max_concurrency();
  const std::int64_t most = std::max<std::int64_t>(1, kMemory / std::max<std::int64_t>(1, bytes));
  return static_cast<int>(std::min<std::int64_t>(threads, most));
}

void for_each_head(const Trace& trace, int heads, int threads, std::int64_t bytes,
                   const std::function<void(const StoredHead&)>& work) {
  tbb::task_arena arena(heads_at_once(threads, bytes));
  arena.execute([&] {
    tbb::parallel_for(0, trace.meta().layers * heads, [&](int i) {
      work({i / heads, i % heads, heads});
    });
  });
}

void SharedProgress::operator()(std::size_t part, double done) {
  const std::lock_guard lock(mutex_);
  sum_ += done - done_[part];
  done_[part] = done;
  if (show_) show_(sum_ / static_cast<double>(done_.size()));
}

}  // namespace kvspan::optimum
