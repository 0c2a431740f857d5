// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/scoring_lines.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tracegen/eval/scoring.h"

namespace kvspan::tracegen {
namespace {

using Lines = std::vector<std::string>;

// Without blanks at their ends; those that are empty then are left out.
Lines lines_in(std::string_view text) {
  Lines out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string line(text.substr(0, end));
    line.erase(line.find_last_not_of(" \r") + 1);
    if (!line.empty()) out.push_back(std::move(line));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  if (!out.empty()) out.front().erase(0, out.front().find_first_not_of(' '));
  return out;
}

struct Block {
  Lines lines;
  bool closed = false;
};
// Behind the first line that `opens`, if there is one, up to one that `closes`.
template <class Opens, class Closes>
Block block_in(std::string_view text, Opens opens, Closes closes) {
  Block out;
  const Lines all = lines_in(text);
  const auto open = std::find_if(all.begin(), all.end(), opens);
  const auto begin = open == all.end() ? all.begin() : open + 1;
  const auto end = std::find_if(begin, all.end(), closes);
  out.lines.assign(begin, end);
  out.closed = end != all.end();
  return out;
}

double share(std::size_t part, std::size_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

// ---- Searches -----------------------------------------------------------------------------------

struct Procedure {
  Lines steps, equations;
};
Procedure procedure_in(std::string_view text) {
  constexpr std::string_view kBegin = "<Solution>", kEnd = "</Solution>";
  Procedure out;
  const std::size_t begin = text.find(kBegin);
  out.steps = lines_in(text.substr(0, begin));
  if (begin == text.npos) return out;
  const std::size_t end = text.find(kEnd, begin);
  if (end != text.npos)
    out.equations = lines_in(text.substr(begin + kBegin.size(), end - begin - kBegin.size()));
  return out;
}

std::vector<std::int64_t> numbers_in(std::string_view text) {
  std::vector<std::int64_t> out;
  while (!text.empty()) {
    std::int64_t value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const auto length = static_cast<std::size_t>(stop - text.data());
    if (error == std::errc()) out.push_back(value);
    text.remove_prefix(std::max<std::size_t>(1, length));
  }
  return out;
}

// "a op b = c" that is true. nullopt: it is none.
struct Equation {
  std::int64_t a = 0, b = 0, c = 0;
};
std::optional<Equation> equation_in(const std::string& line) {
  const std::size_t equals = line.find('=');
  const std::size_t op = line.find_first_of("+*/-", 1);
  if (equals == line.npos || op == line.npos || op > equals) return std::nullopt;
  const auto one = [](std::string_view text) { return numbers_in(text); };
  const std::string_view all = line;
  const auto a = one(all.substr(0, op));
  const auto b = one(all.substr(op + 1, equals - op - 1));
  const auto c = one(all.substr(equals + 1));
  constexpr std::int64_t kMost = 1'000'000;  // of what may be multiplied
  if (a.size() != 1 || b.size() != 1 || c.size() != 1) return std::nullopt;
  if (std::max({a[0], b[0], -a[0], -b[0]}) > kMost) return std::nullopt;
  const bool holds = line[op] == '+'   ? a[0] + b[0] == c[0]
                     : line[op] == '-' ? a[0] - b[0] == c[0]
                     : line[op] == '*' ? a[0] * b[0] == c[0]
                                       : b[0] != 0 && a[0] % b[0] == 0 && a[0] / b[0] == c[0];
  return holds ? std::optional(Equation{a[0], b[0], c[0]}) : std::nullopt;
}

//   given  the numbers, then the target
bool solves(const Lines& equations, std::vector<std::int64_t> given) {
  if (given.empty()) return false;
  const std::int64_t target = given.back();
  given.pop_back();
  if (equations.size() + 1 != given.size()) return false;
  const auto take = [&](std::int64_t value) {
    const auto at = std::find(given.begin(), given.end(), value);
    if (at == given.end()) return false;
    given.erase(at);
    return true;
  };
  for (const std::string& line : equations) {
    const auto equation = equation_in(line);
    if (!equation || !take(equation->a) || !take(equation->b)) return false;
    given.push_back(equation->c);
  }
  return given.front() == target;
}

bool agree(const std::string& said, const std::string& meant) {
  const std::size_t equals = meant.find('=');
  if (said == meant || equals == meant.npos) return said == meant;
  const auto drops = [](const std::string& line) { return line.find("drop") != line.npos; };
  return said.substr(0, said.find('=')) == meant.substr(0, equals) && drops(said) == drops(meant);
}

// ---- Tables -------------------------------------------------------------------------------------

using Row = std::vector<std::string>;

Row cells_of(const std::string& line) {
  Row out;
  for (std::size_t at = 0; at <= line.size();) {
    const std::size_t end = std::min(line.find('\t', at), line.size());
    std::string cell = normalised(std::string_view(line).substr(at, end - at));
    std::erase(cell, ' ');
    out.push_back(std::move(cell));
    at = end + 1;
  }
  return out;
}

struct Table {
  std::size_t width = 0;
  std::vector<Row> rows;
};
Table table_in(const Lines& lines) {
  Table out;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    Row row = cells_of(lines[i]);
    if (i == 0) {
      out.width = row.size();
      continue;
    }
    if (row.size() != out.width) {
      if (i + 1 == lines.size()) break;
      row.assign(out.width, "na");
    }
    out.rows.push_back(std::move(row));
  }
  return out;
}

std::size_t found_in(const std::vector<Row>& rows, const std::vector<Row>& others) {
  return static_cast<std::size_t>(std::count_if(rows.begin(), rows.end(), [&](const Row& row) {
    return std::find(others.begin(), others.end(), row) != others.end();
  }));
}

}  // namespace

double line_prefix(std::string_view output, std::string_view answer, bool published) {
  const auto closes = [](const std::string& line) { return line.starts_with("</"); };
  const auto opens = [&](const std::string& line) {
    return line.starts_with('<') && !closes(line);
  };
  const Block said = block_in(output, opens, closes);
  const Lines meant = lines_in(answer);
  const std::size_t both = std::min(said.lines.size(), meant.size());
  std::size_t right = 0;
  while (right < both && said.lines[right] == meant[right]) ++right;
  if (!published) return share(right, meant.size());
  return said.closed ? share(std::min(right + 1, both), meant.size()) : 0;
}

double search_steps(std::string_view output, std::string_view answer, bool published) {
  const Procedure said = procedure_in(output);
  const Procedure meant = procedure_in(answer);
  if (meant.steps.empty()) return 0;
  if (solves(said.equations, numbers_in(meant.steps.front()))) return 1;
  if (said.steps.empty() || said.steps.front() != meant.steps.front()) return 0;
  const std::size_t steps = meant.steps.size() - 1;
  const std::size_t both = std::min(said.steps.size() - 1, steps);
  std::size_t right = 0;
  while (right < both && agree(said.steps[right + 1], meant.steps[right + 1])) ++right;
  if (!published) return share(right, steps + 1);
  return share(right == both && right > 0 ? right - 1 : right, steps);
}

double row_f1(std::string_view output, std::string_view answer) {
  const auto fence = [](const std::string& line) { return line.starts_with("```"); };
  const auto opens = [&](const std::string& line) { return fence(line) && line.size() > 3; };
  const Table said = table_in(block_in(output, opens, fence).lines);
  const Table meant = table_in(lines_in(answer));
  if (said.width != meant.width || said.rows.empty() || meant.rows.empty()) return 0;
  const double precision = share(found_in(said.rows, meant.rows), said.rows.size());
  const double recall = share(found_in(meant.rows, said.rows), meant.rows.size());
  return precision + recall > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

}  // namespace kvspan::tracegen
