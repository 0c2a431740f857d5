// SPDX-License-Identifier: Apache-2.0
#include "sim/run/explain.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>

#include <fmt/format.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/attention/full_rows.h"
#include "sim/base/error.h"

namespace kvspan {
namespace {

constexpr RowIndex kPromptRows = 512;  // of the prompt, at its end

// The places of `causes`: one a named span, then these.
struct Kinds {
  explicit Kinds(const TraceMeta& meta)
      : spans(meta.spans.size()),
        sink(spans),
        recent(spans + 1),
        hitter(spans + 2),
        rest(spans + 3) {}
  [[nodiscard]] std::size_t count() const { return rest + 1; }
  std::size_t spans, sink, recent, hitter, rest;
};

// Whether a row reads an entry of one stored head.
class Reading {
 public:
  Reading(const Ledger& ledger, int layer, int head, RowIndex row)
      : death_(ledger.deaths(layer, head).data()), row_(static_cast<std::uint32_t>(row)) {
    if (ledger.selected.empty()) return;
    const auto at = std::lower_bound(ledger.read_rows.begin(), ledger.read_rows.end(), row);
    bits_ = ledger.reads.data() +
            ledger.reads_offset(layer, head, index(at - ledger.read_rows.begin()));
  }
  [[nodiscard]] bool reads(RowIndex key) const {
    if (death_[key] <= row_) return false;
    return bits_ == nullptr || (bits_[key / 8] >> (static_cast<unsigned>(key) % 8U) & 1U) != 0;
  }

 private:
  const std::uint32_t* death_;
  std::uint32_t row_;
  const std::uint8_t* bits_ = nullptr;
};

std::vector<RowIndex> explained_rows(const Ledger& ledger) {
  const RowIndex prompt = ledger.plan.prompt;
  const RowIndex tokens = ledger.plan.tokens;
  std::vector<RowIndex> rows(
      index(prompt < tokens ? tokens - prompt : std::min(prompt, kPromptRows)));
  std::iota(rows.begin(), rows.end(), tokens - std::ssize(rows));
  return rows;
}

// One layer: the kinds of its keys, then every row under every run.
class LayerLosses {
 public:
  LayerLosses(const Trace& trace, int layer, const std::vector<const Ledger*>& ledgers,
              const ExplainOptions& options)
      : trace_(trace), layer_(layer), ledgers_(ledgers), options_(options), kinds_(trace.meta()) {}

  // Cells of every run, by row, then query head.  [runs][rows * query heads]
  std::vector<std::vector<LostAttention::Cell>> cells(
      const std::vector<std::vector<RowIndex>>& rows, RowIndex begin, RowIndex end) {
    find_kinds();
    std::vector<std::vector<LostAttention::Cell>> out(ledgers_.size());
    for_each_row(trace_, layer_, begin, end, [&](int q, RowIndex row, const RowTerms& terms) {
      if (q == 0 && options_.cancelled && options_.cancelled()) throw Interrupted();
      for (std::size_t r = 0; r < ledgers_.size(); ++r) {
        if (std::binary_search(rows[r].begin(), rows[r].end(), row))
          out[r].push_back(cell(*ledgers_[r], q, row, terms));
      }
    });
    return out;
  }

 private:
  void find_kinds() {
    const TraceMeta& meta = trace_.meta();
    const RowIndex prompt = ledgers_.front()->plan.prompt;
    std::vector<std::vector<double>> sums(index(meta.query_heads),
                                          std::vector<double>(index(prompt), 0.0));
    for_each_row(trace_, layer_, std::max<RowIndex>(0, prompt - kPromptRows), prompt,
                 [&](int q, RowIndex row, const RowTerms& terms) {
                   if (!(terms.sum > 0)) return;
                   for (RowIndex j = 0; j <= row; ++j)
                     sums[index(q)][index(j)] += static_cast<double>(terms.terms[j]) / terms.sum;
                 });
    const auto most =
        static_cast<std::ptrdiff_t>(std::ceil(options_.hitters * static_cast<double>(prompt)));
    for (const std::vector<double>& of_head : sums) {
      std::vector<TokenIndex> order(of_head.size());
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + most, order.end(),
                        [&](TokenIndex a, TokenIndex b) {
                          const double x = of_head[index(a)];
                          const double y = of_head[index(b)];
                          return x != y ? x > y : a < b;
                        });
      std::vector<std::uint16_t>& kind =
          kind_.emplace_back(index(meta.tokens), static_cast<std::uint16_t>(kinds_.rest));
      for (auto t = order.begin(); t != order.begin() + most; ++t) {
        if (of_head[index(*t)] > 0) kind[index(*t)] = static_cast<std::uint16_t>(kinds_.hitter);
      }
      const auto sinks = static_cast<std::ptrdiff_t>(std::min(options_.sinks, meta.tokens));
      std::fill(kind.begin(), kind.begin() + sinks, static_cast<std::uint16_t>(kinds_.sink));
      for (std::size_t s = kinds_.spans; s-- > 0;) {
        const Span& span = meta.spans[s];
        std::fill(kind.begin() + span.begin, kind.begin() + span.end,
                  static_cast<std::uint16_t>(s));
      }
    }
  }

  [[nodiscard]] LostAttention::Cell cell(const Ledger& ledger, int q, RowIndex row,
                                         const RowTerms& terms) const {
    LostAttention::Cell out;
    out.layer = layer_;
    out.query_head = q;
    out.row = row;
    out.by_cause.assign(kinds_.count(), 0.0);
    const Reading reading(ledger, layer_, q * ledger.heads / ledger.query_heads, row);
    const std::vector<std::uint16_t>& kind = kind_[index(q)];
    float largest = 0;
    for (RowIndex j = 0; j <= row; ++j) {
      if (reading.reads(j)) continue;
      std::size_t cause = kind[index(j)];
      if (cause > kinds_.recent && j > row - options_.recent) cause = kinds_.recent;
      out.by_cause[cause] += static_cast<double>(terms.terms[j]);
      if (terms.terms[j] > largest) {
        largest = terms.terms[j];
        out.token = static_cast<TokenIndex>(j);
      }
    }
    double lost = 0;
    for (double& part : out.by_cause) lost += part = terms.sum > 0 ? part / terms.sum : 0.0;
    out.token_share = terms.sum > 0 ? static_cast<double>(largest) / terms.sum : 0.0;
    out.retained = 1 - lost;
    return out;
  }

  const Trace& trace_;
  const int layer_;
  const std::vector<const Ledger*>& ledgers_;
  const ExplainOptions& options_;
  const Kinds kinds_;
  std::vector<std::vector<std::uint16_t>> kind_;  // [query_heads][tokens] of spans, sinks, hitters
};

// Of one run, from its cells by layer.
LostAttention summed(const TraceMeta& meta, std::size_t causes, std::vector<RowIndex> rows,
                     std::vector<std::vector<LostAttention::Cell>>&& layers) {
  LostAttention out;
  out.rows = std::move(rows);
  out.by_cause.assign(causes, 0.0);
  std::vector<float> retained;
  for (const auto& cells : layers) {
    auto& heads =
        out.by_head.emplace_back(index(meta.query_heads), std::vector<double>(causes, 0.0));
    for (const LostAttention::Cell& cell : cells) {
      retained.push_back(static_cast<float>(cell.retained));
      out.retained += cell.retained;
      for (std::size_t c = 0; c < causes; ++c) {
        heads[index(cell.query_head)][c] += cell.by_cause[c];
        out.by_cause[c] += cell.by_cause[c];
      }
    }
    for (auto& head : heads) {
      for (double& part : head) part /= static_cast<double>(out.rows.size());
    }
  }
  const auto count = static_cast<double>(retained.size());
  out.retained /= count;
  for (double& part : out.by_cause) part /= count;
  const auto rank = std::max<std::ptrdiff_t>(1, std::llround(std::ceil(0.05 * count)));
  std::nth_element(retained.begin(), retained.begin() + rank - 1, retained.end());
  out.p5 = static_cast<double>(retained[index(rank - 1)]);
  for (auto& cells : layers) {
    for (LostAttention::Cell& cell : cells) {
      if (static_cast<double>(static_cast<float>(cell.retained)) <= out.p5 && cell.retained < 1)
        out.worst.push_back(std::move(cell));
    }
  }
  std::stable_sort(out.worst.begin(), out.worst.end(),
                   [](const auto& a, const auto& b) { return a.retained < b.retained; });
  return out;
}

// Of a run whose rows read a selection, those whose reads were kept.
std::vector<RowIndex> known_rows(const Ledger& ledger, const std::vector<RowIndex>& rows) {
  if (ledger.selected.empty()) return rows;
  std::vector<RowIndex> out;
  std::set_intersection(rows.begin(), rows.end(), ledger.read_rows.begin(), ledger.read_rows.end(),
                        std::back_inserter(out));
  return out;
}

}  // namespace

Explanation explain(const Trace& trace, const std::vector<const Ledger*>& ledgers,
                    const ExplainOptions& options) {
  if (!trace.is_qkv()) {
    throw TraceError(fmt::format(
        "{}: found a score trace, expected q and k: it does not say what the lost keys were",
        trace.name()));
  }
  const TraceMeta& meta = trace.meta();
  Explanation out;
  for (const Span& span : meta.spans) out.causes.push_back(span.name);
  for (const char* kind : {"sink", "recent", "heavy hitter", "rest"}) out.causes.emplace_back(kind);
  if (ledgers.empty()) return out;
  out.rows = explained_rows(*ledgers.front());
  std::vector<std::vector<RowIndex>> rows;
  for (const Ledger* ledger : ledgers) rows.push_back(known_rows(*ledger, out.rows));

  using Cells = std::vector<LostAttention::Cell>;
  std::vector<std::vector<Cells>> cells(ledgers.size(), std::vector<Cells>(index(meta.layers)));
  std::atomic<int> done{0};
  tbb::task_arena arena(options.threads > 0 ? options.threads : tbb::task_arena::automatic);
  arena.execute([&] {
    tbb::parallel_for(0, meta.layers, [&](int layer) {
      std::vector<Cells> found = LayerLosses(trace, layer, ledgers, options)
                                     .cells(rows, out.rows.front(), out.rows.back() + 1);
      for (std::size_t r = 0; r < ledgers.size(); ++r) cells[r][index(layer)] = std::move(found[r]);
      if (options.progress) options.progress(static_cast<double>(++done) / meta.layers);
    });
  });
  for (std::size_t r = 0; r < ledgers.size(); ++r) {
    out.runs.push_back(summed(meta, out.causes.size(), std::move(rows[r]), std::move(cells[r])));
  }
  return out;
}

std::vector<WorstRow> worst_rows(const LostAttention& lost) {
  std::map<RowIndex, WorstRow> by_row;
  for (const LostAttention::Cell& cell : lost.worst) {
    WorstRow& row = by_row[cell.row];
    row.row = cell.row;
    ++row.cells;
    row.least = std::min(row.least, cell.retained);
    row.by_cause.resize(cell.by_cause.size(), 0.0);
    for (std::size_t c = 0; c < cell.by_cause.size(); ++c) row.by_cause[c] += cell.by_cause[c];
  }
  std::vector<WorstRow> out;
  for (auto& [at, row] : by_row) {
    for (double& part : row.by_cause) part /= static_cast<double>(row.cells);
    out.push_back(std::move(row));
  }
  std::stable_sort(out.begin(), out.end(), [](const WorstRow& a, const WorstRow& b) {
    return a.cells != b.cells ? a.cells > b.cells : a.least < b.least;
  });
  return out;
}

}  // namespace kvspan
