// SPDX-License-Identifier: Apache-2.0
// Tasks of many like parts: labelled texts, and rows of a table.
// Sources: HELMET (arXiv 2410.02694) for many_shot: rounds with one text of each label, in random
// order, labels are numbers; LongProc (arXiv 2501.05414) for html_tsv: columns named in the
// question, rows that fulfil a condition. Texts and pages are made up.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tracegen/eval/task_draws.h"
#include "tracegen/eval/task_parameters.h"

namespace kvspan::tracegen {
namespace {

// ---- Labels -------------------------------------------------------------------------------------

// Each label has words of its own; a text has some of them, in any order.
class Labelled {
 public:
  Labelled(Draws& draws, std::int64_t labels)
      : labels_(labels), names_(static_cast<std::size_t>(labels)) {
    words_ = draw_words(draws, labels * kWords);
    std::iota(names_.begin(), names_.end(), std::int64_t{0});
    draws.shuffle(names_);
  }
  [[nodiscard]] std::string text(Draws& draws, std::int64_t kind) const {
    std::vector<std::string> words;
    for (const std::int64_t w : draws.distinct(kWords, kShown))
      words.push_back(words_[static_cast<std::size_t>(kind * kWords + w)]);
    return fmt::format("{}", fmt::join(words, " "));
  }
  [[nodiscard]] std::string label(std::int64_t kind) const {
    return std::to_string(names_[static_cast<std::size_t>(kind)]);
  }
  // One text of each label.
  [[nodiscard]] std::string round(Draws& draws) const {
    std::string out;
    for (const std::int64_t kind : draws.distinct(labels_, labels_))
      out += fmt::format("text: {}\nlabel: {}\n\n", text(draws, kind), label(kind));
    return out;
  }

 private:
  static constexpr std::int64_t kWords = 8, kShown = 5;
  std::int64_t labels_;
  std::vector<std::string> words_;
  std::vector<std::int64_t> names_;
};

// ---- Pages --------------------------------------------------------------------------------------

const std::vector<std::string> kHeadings{"Name", "City", "Colour", "Price", "Stock"};
constexpr std::size_t kColour = 2;

std::vector<std::vector<std::string>> stock(Draws& draws, std::int64_t rows) {
  static const std::vector<std::string> kColours{"red", "green", "blue", "black"};
  const std::vector<std::string> names = draw_names(draws, 2 * rows);
  std::vector<std::vector<std::string>> out;
  for (std::int64_t r = 0; r < rows; ++r) {
    out.push_back({names[static_cast<std::size_t>(2 * r)],
                   names[static_cast<std::size_t>(2 * r + 1)], draws.of(kColours),
                   fmt::format("{}.{}", draws.digits(2), draws.digits(2)), draws.digits(3)});
  }
  return out;
}

std::string page_of(const std::vector<std::vector<std::string>>& rows) {
  const auto line = [](const std::vector<std::string>& cells, const char* tag) {
    std::string out = "<tr class=\"item\">";
    for (const std::string& cell : cells) out += fmt::format("<{0}>{1}</{0}>", tag, cell);
    return out + "</tr>\n";
  };
  std::string out = "<html><body>\n<h1>Stock</h1>\n<table>\n" + line(kHeadings, "th");
  for (const auto& row : rows) out += line(row, "td");
  return out + "</table>\n</body></html>";
}

std::string tsv_line(const std::vector<std::string>& cells,
                     const std::vector<std::int64_t>& asked) {
  std::vector<std::string> out;
  for (const std::int64_t c : asked) out.push_back(cells[static_cast<std::size_t>(c)]);
  return fmt::format("{}\n", fmt::join(out, "\t"));
}

}  // namespace

std::vector<Sample> many_shots(const TaskRequest& request, TaskParameters& parameters) {
  const std::int64_t length = parameters.integer("length", 1024, 128, kMostLength);
  const std::int64_t labels = parameters.integer("labels", 8, 2, 1024);
  const std::int64_t generate = parameters.integer("generate", 20, 1, 4096);
  parameters.done();
  const Draft draft = [=](Draws& draws, std::int64_t rounds) {
    const Labelled texts(draws, labels);
    const std::int64_t asked = draws.below(labels);
    Sample out;
    out.prompt = "Every text has a label, a number. Find out which texts have which.\n\n";
    for (std::int64_t r = 0; r < rounds; ++r) out.prompt += texts.round(draws);
    const std::string question = fmt::format("text: {}\n", texts.text(draws, asked));
    out.spans.push_back({"question", out.prompt.size(), out.prompt.size() + question.size()});
    out.prompt += question;
    out.answer_prefix = "label:";
    out.answers = {texts.label(asked)};
    out.reference = " " + out.answers.front();
    out.scoring = Scoring::first_line;
    out.generate = generate;
    return out;
  };
  return draw_samples(request, {length, 1, 4, 3}, draft);
}

std::vector<Sample> html_tables(const TaskRequest& request, TaskParameters& parameters) {
  constexpr std::int64_t kAsked = 3;
  const std::int64_t length = parameters.integer("length", 2048, 256, kMostLength);
  const bool filter = parameters.integer("filter", 0, 0, 1) == 1;
  parameters.done();
  const Draft draft = [&request, filter](Draws& draws, std::int64_t count) {
    const std::vector<std::vector<std::string>> rows = stock(draws, count);
    std::vector<std::int64_t> asked = draws.distinct(std::ssize(kHeadings), kAsked);
    std::sort(asked.begin(), asked.end());
    const std::string wanted = rows[static_cast<std::size_t>(draws.below(count))][kColour];
    const std::string heading = tsv_line(kHeadings, asked);
    std::string table = heading;
    for (const auto& row : rows) {
      if (!filter || row[kColour] == wanted) table += tsv_line(row, asked);
    }
    std::string names = heading;
    names.pop_back();
    std::replace(names.begin(), names.end(), '\t', ',');
    const std::string question =
        fmt::format("Write the columns {} of this table{} as tab-separated values, with a heading.",
                    names, filter ? fmt::format(", of rows whose Colour is {},", wanted) : "");
    Sample out;
    out.prompt = fmt::format("{}\n\n{}\n\n", page_of(rows), question);
    out.answer_prefix = "```tsv\n";
    out.answers = {table};
    out.reference = table + "```";
    out.scoring = Scoring::row_f1;
    out.generate = request.tokens(out.reference) + kSpareTokens;
    name_span(out, "question", question);
    return out;
  };
  return draw_samples(request, {length, 2, 8, 3}, draft);
}

}  // namespace kvspan::tracegen
