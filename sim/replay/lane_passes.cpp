// SPDX-License-Identifier: Apache-2.0
// How a lane begins a pass, and what it shares with others before it goes alone.
#include "sim/attention/kernels.h"
#include "sim/replay/lane.h"

namespace kvspan {

// Passes of decode in which nobody asks anything are taken as one: products of many rows read what
// is held once.
void Lane::begin_pass(RowIndex block_end) {
  const auto quiet = [&](const Pass& pass) {
    return pass.begin >= plan_.prompt && pass.end <= block_end && !driver_.due(pass);
  };
  if (!driver_.selects() && needs_.observe == Observe::never && quiet(now_.pass)) {
    const RowIndex begin = now_.pass.begin;
    while (now_.pass_index + 1 < plan_.ends.size()) {
      const Pass next = pass_at(plan_, now_.pass_index + 1);
      if (!quiet(next)) break;
      now_.pass = next;
      now_.pass.begin = begin;
      ++now_.pass_index;
    }
  }
  now_.residency.add(now_.pass.begin, now_.pass.end);
  held_.add(now_.pass.begin, now_.pass.end, *now_.block->scores);
  now_.reads.begin(driver_.selector(now_.pass), ReplayView(now_, nullptr), *now_.block->scores);
}

void Lane::begin_columns() {
  now_.columns.sums.assign(index(now_.shape.query_heads),
                           std::vector<double>(index(kernels::padded(plan_.tokens)), 0.0));
}

void Lane::own_columns() {
  now_.own_columns = true;
  if (now_.shared->columns.used())
    now_.columns = now_.shared->columns.columns();
  else
    begin_columns();
}

void Lane::part() {
  if (shares_columns()) own_columns();
  now_.shared = nullptr;
  now_.ranking.clear();
}

}  // namespace kvspan
