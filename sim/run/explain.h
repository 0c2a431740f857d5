// SPDX-License-Identifier: Apache-2.0
// Why attention was lost: what later rows would have attended to of what a run no longer held, or
// did not read, by kind of key, by layer and head, and the rows that lost most.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "sim/ledger/ledger.h"
#include "sim/trace/trace.h"

namespace kvspan {

struct ExplainOptions {
  TokenCount sinks = 4;                       // the first keys of the sequence
  TokenCount recent = 64;                     // the newest keys of a row, its own included
  double hitters = 0.1;                       // of the prompt's keys
  int threads = 0;                            // 0: all cores
  std::function<void(double done)> progress;  // from any thread
  std::function<bool()> cancelled;            // polled; true ends it with Interrupted
};

// Of one run. A cell is one row of one query head of one layer; all weigh the same.
struct LostAttention {
  // Of these rows. Of a run whose rows read a selection only those whose reads were kept, and what
  // any query head of a stored head read counts as read by all of them.
  std::vector<RowIndex> rows;
  double retained = 0;           // mean
  double p5 = 0;                 // 5 % of the cells retain less; nearest rank
  std::vector<double> by_cause;  // [causes] mean of what is lost; together 1 - retained
  std::vector<std::vector<std::vector<double>>> by_head;  // [layers][query_heads][causes]
  struct Cell {
    int layer = 0;  // in the trace
    int query_head = 0;
    RowIndex row = 0;
    double retained = 0;
    std::vector<double> by_cause;  // [causes]
    TokenIndex token = 0;          // whose loss is the largest
    double token_share = 0;        // what the row would have attended to it
  };
  std::vector<Cell> worst;  // those that retain p5 or less; by what is retained, the least first
};

struct Explanation {
  // The kinds of keys, the first that applies: every named span by its name; "sink" and "recent",
  // see ExplainOptions; "heavy hitter": of the share of the keys that the prompt's last rows (512
  // at most) attended to most, head by head; "rest": what nobody could tell by these.
  std::vector<std::string> causes;
  std::vector<RowIndex> rows;  // decode rows; the prompt's last 512 where nothing was decoded
  std::vector<LostAttention> runs;
};

// REQUIRES: ledgers are of replays of this trace with one prompt. Results do not depend on threads.
// Errors: TraceError of a score trace, which does not say what the lost keys were; Interrupted.
[[nodiscard]] Explanation explain(const Trace& trace, const std::vector<const Ledger*>& ledgers,
                                  const ExplainOptions& options);

// The rows of a run that have cells among the worst, those with most of them first.
struct WorstRow {
  RowIndex row = 0;
  std::size_t cells = 0;
  double least = 1;              // retained by one of them
  std::vector<double> by_cause;  // [causes] mean over these cells
};
[[nodiscard]] std::vector<WorstRow> worst_rows(const LostAttention& lost);

}  // namespace kvspan
