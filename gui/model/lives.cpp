// SPDX-License-Identifier: Apache-2.0
#include "gui/model/lives.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "gui/model/csv.h"
#include "sim/attention/head_attention.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {
namespace {

constexpr float kNotKnown = std::numeric_limits<float>::quiet_NaN();

// One column of cells under construction: steps at rows, and their sum from the top.
//
//   step(row, 1) ... step(row', -1)  covers the cells between both, the two at its ends in part
//
// so that an entry costs two steps, however many cells it lives in.
class Column {
 public:
  Column(Rows rows, int height)
      : begin_(static_cast<double>(rows.begin)),
        scale_(static_cast<double>(height) / static_cast<double>(rows.size())),
        steps_(index(height) + 1, 0.0) {}

  void step(RowIndex row, double by) {
    const double place = std::max(0.0, (static_cast<double>(row) - begin_) * scale_);
    const auto cell = static_cast<std::size_t>(place);
    if (cell + 1 >= steps_.size()) return;
    const double first = by * (static_cast<double>(cell) + 1 - place);
    steps_[cell] += first;
    steps_[cell + 1] += by - first;
  }
  // Adds the column to `map` at `x`, times `weight`, and begins the next one.
  void put(std::vector<float>& map, int x, int width, double weight) {
    double sum = 0;
    for (std::size_t y = 0; y + 1 < steps_.size(); ++y) {
      sum += steps_[y];
      map[y * index(width) + index(x)] = static_cast<float>(std::clamp(sum * weight, 0.0, 1.0));
    }
    std::fill(steps_.begin(), steps_.end(), 0.0);
  }

 private:
  double begin_, scale_;
  std::vector<double> steps_;
};

// Ones among the bits [begin, end).
std::int64_t count_bits(std::span<const std::uint8_t> bits, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  while (begin < end) {
    if (begin % 8 == 0 && end - begin >= 64) {
      std::uint64_t word = 0;
      std::memcpy(&word, bits.data() + begin / 8, sizeof word);
      count += std::popcount(word);
      begin += 64;
      continue;
    }
    const std::int64_t stop = std::min(end, (begin / 8 + 1) * 8);
    const unsigned mask = (0xFFU >> static_cast<unsigned>(8 - (stop - begin)))
                          << static_cast<unsigned>(begin % 8);
    count += std::popcount(static_cast<unsigned>(bits[index(begin / 8)]) & mask);
    begin = stop;
  }
  return count;
}

}  // namespace

LifeMap map_lives(const LifetimesFile& file, int run, int layer, int head, const LifeFrame& frame,
                  const std::function<bool()>& cancelled) {
  assert(!frame.rows.empty() && !frame.tokens.empty() && frame.width > 0 && frame.height > 0);
  const auto& of = file.runs()[index(run)];
  const auto deaths = file.deaths(run, layer, head);
  LifeMap map;
  map.frame = frame;
  const std::size_t cells = index(frame.width) * index(frame.height);
  map.born.assign(cells, 0);
  map.held.assign(cells, 0);
  const bool selects = of.has_selected && !of.read_rows.empty();
  std::vector<std::span<const std::uint8_t>> samples;
  if (selects) {
    map.read.assign(cells, 0);
    for (std::size_t s = 0; s < of.read_rows.size(); ++s) {
      samples.push_back(file.reads(run, layer, head, s));
    }
  }
  Column born(frame.rows, frame.height);
  Column held(frame.rows, frame.height);
  Column read(frame.rows, frame.height);
  for (int x = 0; x < frame.width; ++x) {
    if (cancelled && cancelled()) throw Interrupted();
    const RowIndex begin = frame.tokens.begin + x * frame.tokens.size() / frame.width;
    const RowIndex end =
        std::max(begin + 1, frame.tokens.begin + (x + 1) * frame.tokens.size() / frame.width);
    const double weight = 1.0 / static_cast<double>(end - begin);
    for (RowIndex t = begin; t < end; ++t) {
      born.step(t, 1);
      held.step(t, 1);
      held.step(static_cast<RowIndex>(deaths[index(t)]), -1);
    }
    born.put(map.born, x, frame.width, weight);
    held.put(map.held, x, frame.width, weight);
    if (!selects) continue;
    double before = 0;
    for (std::size_t s = 0; s < samples.size(); ++s) {
      const auto now = static_cast<double>(count_bits(samples[s], begin, end));
      if (now != before) read.step(of.read_rows[s], now - before);
      before = now;
    }
    read.put(map.read, x, frame.width, weight);
  }
  for (std::size_t i = 0; i < map.read.size(); ++i)
    map.read[i] = std::min(map.read[i], map.held[i]);
  return map;
}

Life life_of(const LifetimesFile& file, int run, int layer, int head, std::int64_t token,
             const HeadAttention* attention) {
  const auto scores = file.scores(run, layer, head);
  const auto ranks = file.ranks(run, layer, head);
  const std::size_t t = index(token);
  Life life{token, file.deaths(run, layer, head)[t], kNotKnown, -1, kNotKnown, kNotKnown};
  if (!scores.empty()) life.score = scores[t];
  if (!ranks.empty()) life.rank = ranks[t];
  if (attention != nullptr) {
    life.received = attention->received[t];
    life.lost = attention->lost[t];
  }
  return life;
}

std::string csv_of_lives(const LifetimesFile& file, int run, int layer, int head,
                         const Trace* trace, const HeadAttention* attention) {
  std::string text =
      csv_line({"token", "text", "birth", "death", "score", "rank", "mass_received", "mass_lost"});
  const auto deaths = file.deaths(run, layer, head);
  const auto scores = file.scores(run, layer, head);
  const auto ranks = file.ranks(run, layer, head);
  for (std::size_t t = 0; t < deaths.size(); ++t) {
    const auto token = static_cast<std::int64_t>(t);
    const auto number = [&](float value) {
      return std::isfinite(value) ? fmt::format("{}", value) : std::string();
    };
    const bool never = static_cast<RowIndex>(deaths[t]) >= file.tokens();
    text += csv_line({csv_field(token),
                      csv_field(trace == nullptr ? std::string_view() : trace->token_text(token)),
                      csv_field(token), never ? "" : csv_field(std::int64_t{deaths[t]}),
                      scores.empty() ? "" : number(scores[t]),
                      ranks.empty() || ranks[t] < 0 ? "" : csv_field(std::int64_t{ranks[t]}),
                      attention == nullptr ? "" : number(attention->received[t]),
                      attention == nullptr ? "" : number(attention->lost[t])});
  }
  return text;
}

QString why_no_lives(const ShownRun* shown) {
  if (shown == nullptr) return "Open a result to see the lives of its entries.";
  if (shown->result->lifetimes == nullptr) {
    return "This needs the lifetimes of the run: kvspan run ... --lifetimes FILE";
  }
  return {};
}

QString token_label(const Trace* trace, std::int64_t token) {
  if (trace == nullptr || token < 0 || token >= trace->meta().tokens) return {};
  const std::string_view text = trace->token_text(token);
  QString label = QString::fromUtf8(text.data(), static_cast<qsizetype>(text.size()));
  label.replace('\n', QChar(0x21b5)).replace('\t', QChar(0x21e5)).remove('\r');
  for (QChar& c : label) {
    if (!c.isPrint() && !c.isSurrogate()) c = QChar(0xfffd);
  }
  return label;
}

QString layer_label(const TraceInfo& trace, int layer) {
  if (layer < 0) return "all layers";
  return QString("layer %1").arg(trace.layer_ids[index(layer)]);
}

}  // namespace kvspan::gui
