// SPDX-License-Identifier: Apache-2.0
#include "sim/report/table.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "sim/report/table_columns.h"

namespace kvspan {
namespace {

constexpr int kLeastLabel = 12;
constexpr std::string_view kGap = "  ";

std::string padded(const std::string& text, int width, bool right) {
  const std::string space(static_cast<std::size_t>(std::max(0, width - display_width(text))), ' ');
  return right ? space + text : text + space;
}

class Table {
 public:
  Table(const RunReport& report, const TableOptions& options)
      : report_(report), options_(options), order_(display_order(report)) {}

  std::string text() {
    collect_notes();
    columns_ = table_columns(report_, order_);
    leave_out_columns();
    title();
    rows();
    for (std::size_t i = 0; i < footnotes_.notes().size(); ++i)
      wrapped(fmt::format("[{}] ", i + 1), footnotes_.notes()[i]);
    twins();
    overlaps();
    legend();
    return std::move(text_);
  }

 private:
  [[nodiscard]] const RunResult& run(std::size_t place) const {
    return report_.runs[order_[place]];
  }

  void collect_notes() {
    const std::string subset = layer_subset(report_.trace);
    for (std::size_t i = 0; i < order_.size(); ++i) {
      std::vector<std::string> notes = notes_of(report_, run(i));
      std::erase(notes, subset);         // the title says it once
      std::erase(notes, kIntervalNote);  // the legend does
      // Decode rows are shown; of the prompt's, files speak.
      const auto& fidelity = run(i).fidelity;
      if (fidelity && fidelity->decode && !fidelity->decode_sample)
        std::erase(notes, sample_note(run(i)));
      if (run(i).undecided.value_or(0) > 0) {
        notes.push_back(
            fmt::format("{} decisions rest on probabilities that the trace cut off (undecided)",
                        *run(i).undecided));
      }
      if (run(i).match) {
        if (std::string note = match_note(*run(i).match, run(i).metrics.footprint); !note.empty())
          notes.push_back(std::move(note));
      }
      marks_.push_back(footnotes_.marks(notes));
    }
  }

  // Leaves out columns until the labels have room, and gives the labels what is left.
  void leave_out_columns() {
    int longest = kLeastLabel;
    int marks = 0;
    for (std::size_t i = 0; i < order_.size(); ++i) {
      marks = std::max(marks, display_width(marks_[i]));
      longest = std::max(longest, display_width(label_of(run(i))) + display_width(marks_[i]));
    }
    const auto room = [&] {
      int used = 0;
      for (const TableColumn& column : columns_)
        used += static_cast<int>(kGap.size()) + column.width();
      return options_.width - used;
    };
    // Labels of a common length come before p5, output error and a second span; nothing but the
    // three figures of a comparison comes before labels of the least length.
    const auto needed = [&](int drop) {
      return std::min(longest, kLeastLabel + marks + (drop >= 3 ? 12 : drop == 2 ? 8 : 0));
    };
    for (;;) {
      const auto last = std::max_element(
          columns_.begin(), columns_.end(),
          [](const TableColumn& a, const TableColumn& b) { return a.drop < b.drop; });
      if (last->drop == 0 || room() >= needed(last->drop)) break;
      std::string name;
      for (const std::string& line : last->head)
        name += (name.empty() || line.empty() ? "" : " ") + line;
      left_out_.push_back(name);
      columns_.erase(last);
    }
    label_width_ = std::clamp(room(), std::min(kLeastLabel + marks, longest), longest);
    total_width_ = label_width_ + options_.width - room();
  }

  [[nodiscard]] std::string styled(std::string_view text, std::string_view code) const {
    return options_.colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  }

  [[nodiscard]] std::string rule(const std::string& caption) const {
    const std::string_view dash = options_.utf8 ? "\u2500" : "-";
    std::string line;
    int drawn = 0;
    if (!caption.empty()) {
      line = fmt::format("{}{} {} ", dash, dash, shorten_middle(caption, total_width_ - 4));
      drawn = display_width(line);
    }
    for (; drawn < total_width_; ++drawn) line += dash;
    return styled(line, "2") + "\n";
  }

  // `text` in lines of the terminal's width, the first behind `lead`, the others below it.
  void wrapped(const std::string& lead, const std::string& text) {
    const int room = std::max(20, options_.width - display_width(lead));
    std::string line;
    std::string margin = lead;
    const auto flush = [&] {
      text_ += margin + line + "\n";
      margin.assign(static_cast<std::size_t>(display_width(lead)), ' ');
      line.clear();
    };
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find(' ', at), text.size());
      const std::string word = shorten_middle(text.substr(at, end - at), room);
      if (!line.empty() && display_width(line) + 1 + display_width(word) > room) flush();
      line += (line.empty() ? "" : " ") + word;
      at = end + 1;
    }
    flush();
  }

  void title() {
    const TraceMeta& trace = report_.trace;
    wrapped("trace   ", one_line(report_.trace_path));
    wrapped("model   ",
            fmt::format("{}{} layers, {} query heads, {} KV heads of {}",
                        trace.model.empty() ? "" : one_line(trace.model) + ": ", trace.model_layers,
                        trace.query_heads, trace.kv_heads, trace.head_dim));
    std::string tokens =
        fmt::format("{} = {} prompt + {} decoded; chunk {}", trace.tokens, trace.prompt_tokens,
                    trace.tokens - trace.prompt_tokens, report_.chunk);
    if (report_.chunk == 0)
      tokens += " (one prefill pass)";
    else if (report_.chunk >= trace.prompt_tokens)
      tokens += " tokens (no less than the prompt: one prefill pass)";
    else
      tokens += " tokens";
    RowIndex evict_point = 0;  // some policies act a row early
    for (const RunResult& run : report_.runs)
      evict_point = std::max(evict_point, run.ledger.plan.evict_point);
    if (!report_.runs.empty() && evict_point != trace.prompt_tokens)
      tokens += fmt::format("; eviction point at row {}", evict_point);
    wrapped("tokens  ", tokens);
    std::string bytes = fmt::format(
        "{} per KV element; layout {}; prefill peak {}", report_.accounting.kv_bytes,
        report_.accounting.layout,
        report_.accounting.layerwise ? "layerwise (each layer compresses after its own attention)"
                                     : "whole (all layers attend, then compress)");
    if (const std::string subset = layer_subset(trace); !subset.empty()) bytes += "; " + subset;
    wrapped("bytes   ", bytes);
    for (const RunResult& run : report_.runs) {
      if (!run.match) continue;
      wrapped("match   ", fmt::format("{} {} wanted", match_word(*run.match),
                                      match_value(*run.match, run.match->wanted)));
      break;
    }
    if (report_.device) wrapped("device  ", device_text(*report_.device));
    text_ += "\n";
  }

  [[nodiscard]] static std::string device_text(const ScoreDevice& device) {
    if (!device.audit) return one_line(device.name);
    const ScoreAudit& audit = *device.audit;
    return fmt::format(
        "{}; {} rows again on the CPU: retained attention within {:.1e}, output "
        "error within {:.1e}",
        one_line(device.name), audit.rows, audit.retained, audit.error);
  }

  [[nodiscard]] std::string shortened(std::size_t i) const {
    const int room = label_width_ - display_width(marks_[i]);
    std::string label = label_of(run(i));
    if (display_width(label) > room) label = brief_label(std::move(label));
    return shorten_middle(label, room);
  }

  // Labels that look the same once they are shortened, in full.
  void twins() {
    std::map<std::string, std::vector<std::size_t>> places;
    for (std::size_t i = 0; i < order_.size(); ++i) places[shortened(i)].push_back(i);
    for (const auto& [text, rows] : places) {
      const bool cut = text != label_of(run(rows.front()));
      if (rows.size() < 2 || !cut) continue;
      std::string names;
      for (const std::size_t i : rows) names += (names.empty() ? "" : "; ") + label_of(run(i));
      wrapped("", fmt::format("{}, in this order: {}", text, names));
    }
  }

  // Runs that the trace cannot rank.
  void overlaps() {
    constexpr std::size_t kMost = 6;
    const auto pairs = not_ranked(report_);
    if (pairs.empty()) return;
    const auto pair_text = [&](const auto& pair) {
      return fmt::format("{} and {}", label_of(report_.runs[pair.first]),
                         label_of(report_.runs[pair.second]));
    };
    std::string text = "not ranked, because their intervals overlap: ";
    if (pairs.size() > kMost) {
      text += fmt::format("{} pairs, such as {}", pairs.size(), pair_text(pairs.front()));
    } else {
      for (std::size_t i = 0; i < pairs.size(); ++i)
        text += (i == 0 ? "" : "; ") + pair_text(pairs[i]);
    }
    wrapped("", text);
  }

  void rows() {
    for (std::size_t i = 0; i < 3; ++i) {
      std::string line = padded(i == 2 ? "policy" : "", label_width_, false);
      for (const TableColumn& column : columns_) {
        line += std::string(kGap) + padded(column.head[i], column.width(), true);
      }
      text_ += styled(line, "1") + "\n";
    }
    text_ += rule("");
    for (std::size_t i = 0; i < order_.size(); ++i) {
      if (run(i).bound && (i == 0 || !run(i - 1).bound)) {
        text_ += rule("bounds: they read the future, no method can");
      }
      std::string line = padded(shortened(i) + marks_[i], label_width_, false);
      for (const TableColumn& column : columns_) {
        line += std::string(kGap) + padded(column.cells[i], column.width(), true);
      }
      text_ += line + "\n";
    }
    text_ += rule("");
  }

  void legend() {
    std::string meanings;
    for (const TableColumn& column : columns_) {
      if (!column.meaning.empty()) meanings += (meanings.empty() ? "" : "; ") + column.meaning;
    }
    if (!left_out_.empty()) {
      meanings += fmt::format("; no room for: {}", fmt::join(left_out_, ", "));
    }
    wrapped("", meanings);
  }

  const RunReport& report_;
  const TableOptions& options_;
  std::vector<std::size_t> order_;
  std::vector<std::string> marks_;  // [runs] " [1][3]"
  Footnotes footnotes_;
  std::vector<TableColumn> columns_;
  std::vector<std::string> left_out_;
  int label_width_ = 0;
  int total_width_ = 0;
  std::string text_;
};

}  // namespace

std::string format_table(const RunReport& report, const TableOptions& options) {
  return Table(report, options).text();
}

}  // namespace kvspan
