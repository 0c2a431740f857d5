// SPDX-License-Identifier: Apache-2.0
#include "sim/report/table_columns.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "sim/report/listing.h"

namespace kvspan {
namespace {

constexpr std::size_t kMostSpans = 3;

using Share = std::optional<double>;

// Cells in percent, all with the same number of decimals.
std::vector<std::string> percent_cells(const std::vector<Share>& shares, int decimals) {
  for (const Share& share : shares) {
    if (share && *share > 0 && *share < 0.01) decimals = 2;
  }
  std::vector<std::string> cells;
  for (const Share& share : shares) {
    const bool known = share && std::isfinite(*share);
    cells.push_back(known ? fmt::format("{:.{}f}", 100 * *share, decimals) : "-");
  }
  return cells;
}

// Names of at most three spans, needles first.
std::vector<std::string> shown_spans(const RunReport& report) {
  std::vector<std::string> names;
  for (const RunResult& run : report.runs) {
    if (!run.fidelity) continue;
    for (const SpanResult& span : run.fidelity->spans) {
      if (std::find(names.begin(), names.end(), span.name) == names.end())
        names.push_back(span.name);
    }
  }
  std::stable_sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    const auto place = [](const std::string& s) {
      return s == "needle" ? 0 : s.starts_with("needle") ? 1 : 2;
    };
    return place(a) < place(b);
  });
  names.resize(std::min(names.size(), kMostSpans));
  return names;
}

bool is_retained(const RunResult::Match& match) { return match.what == "mass"; }

class Columns {
 public:
  Columns(const RunReport& report, const std::vector<std::size_t>& order)
      : report_(report), order_(order) {}

  std::vector<TableColumn> collect() {
    add_match();
    add_memory();
    add_fidelity();
    add_spans();
    return std::move(columns_);
  }

 private:
  using Value = std::function<Share(const RunResult&)>;

  [[nodiscard]] const RunResult& run(std::size_t place) const {
    return report_.runs[order_[place]];
  }

  void add(TableColumn column, const Value& value, int decimals) {
    std::vector<Share> shares;
    for (std::size_t i = 0; i < order_.size(); ++i) shares.push_back(value(run(i)));
    if (std::none_of(shares.begin(), shares.end(),
                     [](const Share& share) { return share.has_value(); })) {
      return;
    }
    column.cells = percent_cells(shares, decimals);
    columns_.push_back(std::move(column));
  }

  // In the last column, where the upper bound differs in what is printed.
  void mark_lower_bounds(const Value& upper) {
    if (columns_.empty()) return;
    std::vector<std::string>& cells = columns_.back().cells;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const Share most = upper(run(i));
      if (most && percent_cells({most}, 2)[0] != cells[i]) cells[i] = ">= " + cells[i];
    }
  }

  void add_match() {
    TableColumn reached;
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const auto& match = run(i).match;
      reached.cells.push_back(match ? match_value(*match, match->reached) : "-");
      if (!match) continue;
      if (match->upper && match_value(*match, *match->upper) != reached.cells.back())
        reached.cells.back() = ">= " + reached.cells.back();
      reached.head = {"", "reached", match_word(*match)};
      if (is_retained(*match)) reached.head = {"reached", "retained", "attention"};
    }
    if (!reached.head[2].empty()) columns_.push_back(std::move(reached));
  }

  void add_memory() {
    add(
        {{"KV", "footprint", "%"},
         {},
         "footprint: KV entries held, summed over all rows (full = 100 %)"},
        [](const RunResult& r) { return r.metrics.footprint; }, 1);
    add(
        {{"peak", "KV", "%"}, {}, "peak: the most held at once", 2},
        [](const RunResult& r) { return r.metrics.peak_kv; }, 1);
    TableColumn memory{{"", "peak", "memory"}, {}, "", 0};
    for (std::size_t i = 0; i < order_.size(); ++i) {
      memory.cells.push_back(human_bytes(run(i).metrics.peak_bytes.total));
    }
    columns_.push_back(std::move(memory));
  }

  void add_fidelity() {
    const auto decoded = [](const RunResult& r) { return r.fidelity && r.fidelity->decode; };
    const std::string rows =
        std::any_of(report_.runs.begin(), report_.runs.end(), decoded) ? "decode rows" : "all rows";
    const auto phase_share = [](double PhaseFidelity::*field, bool error) {
      return [field, error](const RunResult& r) -> Share {
        const PhaseFidelity* phase = judged_phase(r);
        if (phase == nullptr || (error && !phase->has_error)) return std::nullopt;
        return phase->*field;
      };
    };
    const auto upper_share = [](double MassUpper::*field) {
      return [field](const RunResult& r) -> Share {
        const PhaseFidelity* phase = judged_phase(r);
        if (phase == nullptr || !phase->mass_upper) return std::nullopt;
        return *phase->mass_upper.*field;
      };
    };
    add({{"retained", "attention", "mean %"},
         {},
         "retained attention: what " + rows +
             " still reach of the full cache's, a proxy and not accuracy"},
        phase_share(&PhaseFidelity::mass_mean, false), 2);
    mark_lower_bounds(upper_share(&MassUpper::mean));
    add({{"retained", "at most,", "mean %"},
         {},
         ">= and at most: a score trace stores the largest probabilities of a row only"},
        upper_share(&MassUpper::mean), 2);
    add(
        {{"regret", "against", "optimum"},
         {},
         "regret: what the best eviction, knowing the future, would retain more with no more "
         "entries after any pass, points"},
        [](const RunResult& r) { return r.regret ? Share(r.regret->regret) : std::nullopt; }, 2);
    add(
        {{"optimum's", "footprint", "%"},
         {},
         "optimum's footprint: the least at which so much can be retained"},
        [](const RunResult& r) { return r.regret ? Share(r.regret->footprint) : std::nullopt; }, 1);
    add({{"retained", "attention", "p5 %"}, {}, "p5: 5 % of the rows reach less", 3},
        phase_share(&PhaseFidelity::mass_p5, false), 2);
    mark_lower_bounds(upper_share(&MassUpper::p5));
    add({{"output", "error", "mean %"}, {}, "output error: relative", 4},
        phase_share(&PhaseFidelity::error_mean, true), 2);
  }

  void add_spans() {
    int drop = 1;
    for (const std::string& name : shown_spans(report_)) {
      const std::string heading = shorten_middle(one_line(name), 10) + " %";
      add(
          {{"entries", "left of", heading},
           {},
           drop == 1 ? "left: held at the end" : "",
           drop == 1 ? 1 : 4 + drop},
          [&name](const RunResult& r) -> Share {
            if (!r.fidelity) return std::nullopt;
            for (const SpanResult& span : r.fidelity->spans) {
              if (span.name == name) return span.resident_share;
            }
            return std::nullopt;
          },
          1);
      ++drop;
    }
  }

  const RunReport& report_;
  const std::vector<std::size_t>& order_;
  std::vector<TableColumn> columns_;
};

}  // namespace

int TableColumn::width() const {
  int width = 0;
  for (const std::string& text : head) width = std::max(width, display_width(text));
  for (const std::string& text : cells) width = std::max(width, display_width(text));
  return width;
}

std::vector<TableColumn> table_columns(const RunReport& report,
                                       const std::vector<std::size_t>& order) {
  return Columns(report, order).collect();
}

std::string match_word(const RunResult::Match& match) {
  return is_retained(match) ? "retained attention" : match.what;
}

std::string match_note(const RunResult::Match& match, double footprint) {
  const auto value = [&](double of) { return match_value(match, of); };
  const std::string wanted = match_word(match) + " " + value(match.wanted);
  // Between what is sure and what is possible on a score trace.
  if (match.least_footprint && *match.least_footprint < footprint) {
    return fmt::format(
        "{} may be reached with less on a score trace: its critical footprint lies between "
        "{:.1f} % and {:.1f} %",
        wanted, 100 * *match.least_footprint, 100 * footprint);
  }
  if (match.upper && match.reached < match.wanted && match.wanted <= *match.upper) {
    return fmt::format("this score trace does not tell whether {} is reached: it is {} to {}",
                       wanted, value(match.reached), value(*match.upper));
  }
  if (!match.reachable) {
    return fmt::format("cannot reach {}: its range is {} to {}", wanted, value(match.lowest),
                       value(match.highest));
  }
  if (match.met) return "";
  return fmt::format("misses {}: this setting gives {}, the next one {}", wanted,
                     value(match.reached), match.next ? value(*match.next) : "nothing else");
}

std::string match_value(const RunResult::Match& match, double value) {
  if (match.what == "peak_bytes") return human_bytes(std::llround(value));
  return fmt::format("{:.2f} %", 100 * value);
}

}  // namespace kvspan
