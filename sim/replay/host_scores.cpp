// SPDX-License-Identifier: Apache-2.0
// Rows come in blocks, whose terms are computed once; every (vector, stored head) then goes through
// the block by itself, with the keys that are still there as a mask, from one death to the next.
#include "sim/replay/host_scores.h"

#include <algorithm>
#include <cassert>
#include <deque>
#include <numeric>

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "sim/replay/block_terms.h"
#include "sim/replay/requirements.h"

namespace kvspan {

using kernels::padded;

namespace {

constexpr RowIndex kRowsTogether = 32;

// Who is there of one stored head, from row to row.
class Present {
 public:
  Present(const DeathVector& vector, int head, std::int64_t tokens)
      : mask_(index(padded(tokens)), 0.0F) {
    if (!vector.deaths.empty())
      deaths_ = vector.deaths.subspan(index(head) * index(tokens), index(tokens));
    for (std::int64_t t = vector.begin; t < vector.end; ++t) {
      mask_[index(t)] = 1.0F;
      entries_.push_back(static_cast<TokenIndex>(t));
    }
    whole_ = std::ssize(entries_) == tokens;
    if (!deaths_.empty()) leaving_ = entries_;
    std::ranges::stable_sort(leaving_, {}, [&](TokenIndex t) { return deaths_[index(t)]; });
  }
  // Whoever is dead by `row` leaves. REQUIRES: rows ascend.
  void go_to(RowIndex row) {
    const std::size_t before = gone_;
    for (; gone_ < leaving_.size() && next_death() <= row; ++gone_)
      mask_[index(leaving_[gone_])] = 0.0F;
    if (gone_ == before) return;
    whole_ = false;
    std::erase_if(entries_, [&](TokenIndex t) { return mask_[index(t)] == 0.0F; });
  }
  // Nobody leaves up to `row`.
  [[nodiscard]] bool stays(RowIndex row) const {
    return gone_ == leaving_.size() || next_death() > row;
  }
  // Null: everybody is there.
  [[nodiscard]] const float* mask() const { return whole_ ? nullptr : mask_.data(); }
  [[nodiscard]] std::span<const TokenIndex> entries_until(RowIndex row) const {
    return {entries_.begin(), std::ranges::upper_bound(entries_, row)};
  }

 private:
  [[nodiscard]] RowIndex next_death() const {
    return static_cast<RowIndex>(deaths_[index(leaving_[gone_])]);
  }
  std::span<const std::uint32_t> deaths_;  // [tokens]; empty: nobody dies
  std::vector<float> mask_;                // [padded tokens]
  std::vector<TokenIndex> entries_;        // ascending
  std::vector<TokenIndex> leaving_;        // by death
  std::size_t gone_ = 0;                   // of leaving_
  bool whole_ = true;
};

struct Job {
  std::size_t vector;
  int head;
  Present present;
};

// Rows [begin, end) of the piece, in which nobody leaves.
void measure_run(const RowBlock& block, const Geometry& geometry, const DeathVector& vector,
                 const Job& job, std::size_t begin, std::size_t end, ScorePiece& piece) {
  const int group = geometry.query_heads / vector.heads;
  const std::span<const RowIndex> rows = piece.rows.subspan(begin, end - begin);
  const float* mask = job.present.mask();
  std::deque<RowScratch> redone;  // as long as their terms are read
  std::vector<AttendedRow> attended(index(group) * rows.size());
  for (int g = 0; g < group; ++g) {
    const int q = job.head * group + g;
    const std::span<AttendedRow> of =
        std::span(attended).subspan(index(g) * rows.size(), rows.size());
    attend_rows(block, q, rows, mask, redone, of);
    for (std::size_t i = 0; i < rows.size(); ++i)
      piece.retained[piece.at(job.vector, q, begin + i)] =
          of[i].sum * of[i].scale / block.full(q, rows[i]).sum;
  }
  if (!vector.outputs || mask == nullptr) return;
  const std::size_t dim = index(geometry.v_dim);
  std::vector<const float*> terms;
  std::vector<double> output(attended.size() * dim, 0.0);
  std::vector<double*> to;
  for (std::size_t i = 0; i < attended.size(); ++i) {
    terms.push_back(attended[i].terms);
    to.push_back(output.data() + i * dim);
  }
  const std::span<const TokenIndex> entries = job.present.entries_until(rows.back());
  const int kv_head = job.head * geometry.kv_heads / vector.heads;
  kernels::weighted_values(terms.data(), std::ssize(terms), entries.data(), std::ssize(entries),
                           block.scores->values(kv_head), geometry.v_dim, geometry.v_dim,
                           to.data());
  for (std::size_t i = 0; i < attended.size(); ++i) {
    const int q = job.head * group + static_cast<int>(i / rows.size());
    const RowIndex row = rows[i % rows.size()];
    const RowTerms& full = block.full(q, row);
    const std::span<const double> whole(block.full_output.data() + block.at(q, row) * dim, dim);
    piece.error[piece.at(job.vector, q, begin + i % rows.size())] =
        relative_error(whole, full.sum + full.sink, {to[i], dim}, attended[i].whole());
  }
}

}  // namespace

void HostScores::measure(const ScoreTask& task, const std::function<void(const ScorePiece&)>& use) {
  assert(task.trace.is_qkv() && !task.rows.empty());
  const Geometry geometry = geometry_of(task.trace, {});
  FidelityPlan measured;
  measured.measured.assign(index(geometry.tokens), 0);
  for (const RowIndex row : task.rows) measured.measured[index(row)] = 1;
  const bool outputs = std::ranges::any_of(task.vectors, &DeathVector::outputs);
  const LayerScores scores(task.trace, task.layer);
  BlockTerms terms(geometry, measured, kRowsTogether, outputs);
  std::vector<Job> jobs;
  for (std::size_t v = 0; v < task.vectors.size(); ++v) {
    for (int head = 0; head < task.vectors[v].heads; ++head)
      jobs.push_back({v, head, Present(task.vectors[v], head, geometry.tokens)});
  }
  ScorePiece piece;
  piece.query_heads = geometry.query_heads;
  for (std::size_t at = 0; at < task.rows.size(); at += piece.rows.size()) {
    piece.rows = task.rows.subspan(at, std::min(index(kRowsTogether), task.rows.size() - at));
    piece.resize(task.vectors.size());
    const RowBlock& block =
        terms.compute(scores, piece.rows.front(), piece.rows.back() + 1, measured.measured);
    tbb::parallel_for(std::size_t{0}, jobs.size(), [&](std::size_t j) {
      Job& job = jobs[j];
      const DeathVector& vector = task.vectors[job.vector];
      for (std::size_t begin = 0; begin < piece.rows.size();) {
        job.present.go_to(piece.rows[begin]);
        std::size_t end = begin + 1;
        while (end < piece.rows.size() && job.present.stays(piece.rows[end])) ++end;
        measure_run(block, geometry, vector, job, begin, end, piece);
        begin = end;
      }
    });
    use(piece);
  }
}

}  // namespace kvspan
