// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cassert>
#include <cmath>
#include <mutex>
#include <utility>

#include "sim/base/random.h"
#include "sim/base/types.h"
#include "sim/replay/host_scores.h"

namespace kvspan {
namespace {

// Where a row's figures lie in what was kept of the CPU's.
struct Place {
  std::size_t piece = 0, row = 0;
};

class Audited final : public ScorePass {
 public:
  Audited(std::shared_ptr<ScorePass> pass, double share, std::uint64_t seed)
      : pass_(std::move(pass)), seed_(seed) {
    found_.share = share;
  }
  [[nodiscard]] std::string name() const override { return pass_->name(); }
  [[nodiscard]] std::optional<ScoreAudit> audit() const override {
    const std::lock_guard lock(mutex_);
    return found_;
  }
  void measure(const ScoreTask& task, const std::function<void(const ScorePiece&)>& use) override {
    std::vector<std::int64_t> again;
    for (const std::int64_t row : task.rows) {
      if (uniform(seed_, {task.layer, row}) < found_.share) again.push_back(row);
    }
    std::vector<ScorePiece> reference;
    std::vector<Place> places;  // of `again`
    if (!again.empty()) {
      HostScores().measure({task.trace, task.layer, again, task.vectors},
                           [&](const ScorePiece& piece) {
                             for (std::size_t i = 0; i < piece.rows.size(); ++i)
                               places.push_back({reference.size(), i});
                             reference.push_back(piece);
                           });
    }
    pass_->measure(task, [&](const ScorePiece& piece) {
      for (std::size_t i = 0; i < piece.rows.size(); ++i) {
        const auto at = std::ranges::lower_bound(again, piece.rows[i]);
        if (at == again.end() || *at != piece.rows[i]) continue;
        const Place& place = places[index(at - again.begin())];
        compare(piece, i, reference[place.piece], place.row, task.vectors.size());
      }
      use(piece);
    });
  }

 private:
  void compare(const ScorePiece& a, std::size_t row_a, const ScorePiece& b, std::size_t row_b,
               std::size_t vectors) {
    const auto differ = [](double x, double y) { return x == y ? 0 : std::fabs(x - y); };
    const std::lock_guard lock(mutex_);
    ++found_.rows;
    for (std::size_t v = 0; v < vectors; ++v) {
      for (int q = 0; q < a.query_heads; ++q) {
        const std::size_t at_a = a.at(v, q, row_a), at_b = b.at(v, q, row_b);
        found_.retained = std::max(found_.retained, differ(a.retained[at_a], b.retained[at_b]));
        found_.error = std::max(found_.error, differ(a.error[at_a], b.error[at_b]));
        ++found_.values;
      }
    }
  }

  std::shared_ptr<ScorePass> pass_;
  std::uint64_t seed_;
  mutable std::mutex mutex_;
  ScoreAudit found_;
};

}  // namespace

std::shared_ptr<ScorePass> with_audit(std::shared_ptr<ScorePass> pass, double share,
                                      std::uint64_t seed) {
  assert(share > 0 && share <= 1);
  return std::make_shared<Audited>(std::move(pass), share, seed);
}

}  // namespace kvspan
