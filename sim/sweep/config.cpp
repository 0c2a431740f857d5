// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/config.h"

#include <algorithm>
#include <functional>
#include <set>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/ledger/layouts.h"
#include "sim/run/request.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;

constexpr RowIndex kMostRows = std::int64_t{1} << 40U;

// What is wrong with entry `place` of the list `key`; place -1: of the list itself.
using Complain = std::function<void(const std::string& key, int place, const std::string& what)>;

// How many runs the sets of a specification make.
double runs_of(const RecipeSpec& spec) {
  double runs = 1;
  for (const Term& term : spec) {
    runs *= runs_of(term.inner);
    for (const Argument& argument : term.arguments)
      runs *= static_cast<double>(argument.values.size());
  }
  return runs;
}

void check_policy(const std::string& text) {
  const bool written = text != "all" && !text.starts_with('@');
  if (written && runs_of(parse_spec(text)) > static_cast<double>(kMostCells))
    throw ConfigError(fmt::format("its sets make more than {} runs", kMostCells));
  (void)expand_policies({text}, {});
}

template <class T, class Check>
void check_each(const std::vector<T>& values, const char* key, const Complain& complain,
                const Check& check) {
  if (values.empty()) complain(key, -1, "is empty, expected one entry at least");
  std::set<T> seen;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const int place = static_cast<int>(i);
    if (!seen.insert(values[i]).second)
      complain(key, place, fmt::format("'{}' stands there twice", values[i]));
    try {
      check(values[i]);
    } catch (const Error& error) {
      complain(key, place, error.what());
    }
  }
}

void check_rows(RowIndex rows) {
  if (rows < 0 || rows > kMostRows)
    throw ConfigError(fmt::format("found {}, expected 0 or a number of tokens", rows));
}

void check_prefill(const std::string& word) {
  if (word != "whole" && word != "layerwise")
    throw ConfigError(fmt::format("found '{}', expected whole or layerwise; {}", word,
                                  nearest_hint(word, {"whole", "layerwise"})));
}

void check_values(const Config& config, const Complain& complain) {
  check_each(config.traces, "traces", complain, [](const std::string& text) {
    if (text.empty()) throw ConfigError("found '', expected the name of a file, or a pattern");
  });
  check_each(config.prompts, "prompts", complain, check_rows);
  check_each(config.evict_at, "evict_at", complain, [](const std::string&) {});
  check_each(config.chunks, "chunks", complain, check_rows);
  check_each(config.policies, "policies", complain, check_policy);
  if (!config.budgets.empty()) {
    check_each(config.budgets, "budgets", complain,
               [](const std::string& text) { (void)Amount::parse(text, "budget"); });
  }
  check_each(config.kv_bytes, "kv_bytes", complain, [](std::int64_t bytes) {
    if (bytes < 1 || bytes > 16)
      throw ConfigError(fmt::format("found {}, expected 1 to 16 bytes", bytes));
  });
  check_each(config.prefill, "prefill", complain, check_prefill);
  check_each(config.layouts, "layouts", complain,
             [](const std::string& name) { (void)parse_layout(name); });
  check_each(config.seeds, "seeds", complain, [](std::uint64_t) {});
  EngineOptions measured;
  try {
    apply_fidelity(config.fidelity, measured);
  } catch (const Error& error) {
    complain("fidelity", -1, error.what());
  }
  try {
    apply_sample(config.sample, measured);
  } catch (const Error& error) {
    complain("sample", -1, error.what());
  }
  if (!config.sample.empty() && (config.regret || !measured.fidelity)) {
    complain("sample", -1,
             fmt::format("found {} beside {}, which {}", config.sample,
                         config.regret ? "regret" : "fidelity none",
                         config.regret ? "needs all of the attention" : "measures nothing"));
  }
  if (config.regret && !measured.fidelity) {
    complain("regret", -1,
             "found fidelity none, expected all, auto or rows=K: the optimum is compared with the "
             "retained attention that was measured");
  }
}

// ---- The file -----------------------------------------------------------------------------------

std::size_t line_at(std::string_view text, std::size_t byte) {
  return 1 + static_cast<std::size_t>(std::count(
                 text.begin(),
                 text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size())), '\n'));
}

class File {
 public:
  File(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  [[nodiscard]] Config read() {
    parse();
    if (!root_.is_object()) fail("", "found " + json_text(root_) + ", expected an object");
    Config config;
    list("traces", config.traces, "a list of file names");
    list("prompts", config.prompts, "a list of whole numbers");
    list("evict_at", config.evict_at, "a list of span names");
    list("chunks", config.chunks, "a list of whole numbers");
    list("policies", config.policies, "a list of specifications such as \"snapkv(budget=10%)\"");
    list("budgets", config.budgets, "a list of budgets such as \"10%\", 512 or \"64MiB\"");
    list("kv_bytes", config.kv_bytes, "a list of whole numbers");
    list("prefill", config.prefill, "a list of whole, layerwise");
    list("layouts", config.layouts, "a list of layout names");
    list("seeds", config.seeds, "a list of whole numbers from 0");
    if (root_.contains("fidelity")) {
      known_.emplace_back("fidelity");
      read_value(root_["fidelity"], config.fidelity, "/fidelity", "auto, all, none or rows=K");
    }
    if (root_.contains("sample")) {
      known_.emplace_back("sample");
      read_value(root_["sample"], config.sample, "/sample", "rows=K, heads=K or layers=K");
    }
    if (root_.contains("regret")) {
      known_.emplace_back("regret");
      if (!root_["regret"].is_boolean())
        fail("/regret",
             fmt::format("found {}, expected true or false", json_text(root_["regret"])));
      config.regret = root_["regret"].get<bool>();
    }
    check_version();
    check_keys();
    if (config.traces.empty()) fail("", "has no key 'traces', expected a list of file names");
    check_values(config, [&](const std::string& key, int place, const std::string& what) {
      fail(place < 0 ? "/" + key : fmt::format("/{}/{}", key, place), what);
    });
    return config;
  }

 private:
  void parse() {
    try {
      root_ = json::parse(text_);
      (void)parse_json_strict(text_);
    } catch (const json::parse_error& error) {
      // Its message has the byte and the parser's own words; the line is what an editor shows.
      throw ConfigError(fmt::format("{}:{}: is not valid JSON (byte {})", name_,
                                    line_at(text_, error.byte), error.byte));
    } catch (const std::invalid_argument& error) {
      throw ConfigError(fmt::format("{}: {}", name_, error.what()));
    } catch (const json::exception&) {
      throw ConfigError(name_ + ": holds a number out of range");
    }
  }

  template <class T>
  void list(const char* key, std::vector<T>& out, const char* expected) {
    known_.emplace_back(key);
    const auto found = root_.find(key);
    if (found == root_.end()) return;
    const std::string pointer = std::string("/") + key;
    if (!found->is_array())
      fail(pointer, fmt::format("found {}, expected {}", json_text(*found), expected));
    out.clear();
    for (std::size_t i = 0; i < found->size(); ++i)
      read_value((*found)[i], out.emplace_back(), fmt::format("{}/{}", pointer, i), expected);
  }

  void read_value(const json& value, std::string& out, const std::string& at,
                  const std::string& expected) {
    if (value.is_string())
      out = value.get<std::string>();
    else if (value.is_number_integer() && at.starts_with("/budgets"))
      out = value.dump();
    else
      fail(at, fmt::format("found {}, expected {}", json_text(value), expected));
  }
  void read_value(const json& value, std::int64_t& out, const std::string& at,
                  const std::string& expected) {
    if (!json_integer(value, &out))
      fail(at, fmt::format("found {}, expected {}", json_text(value), expected));
  }
  void read_value(const json& value, std::uint64_t& out, const std::string& at,
                  const std::string& expected) {
    if (!value.is_number_unsigned())
      fail(at, fmt::format("found {}, expected {}", json_text(value), expected));
    out = value.get<std::uint64_t>();
  }

  void check_version() {
    known_.insert(known_.end(), {"schema_version", "description", "$schema"});
    const auto version = root_.find("schema_version");
    if (version != root_.end() && *version != 1) {
      fail("/schema_version", fmt::format("found {}, expected 1, which is what this program reads",
                                          json_text(*version)));
    }
  }

  void check_keys() {
    for (const auto& [key, value] : root_.items()) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      throw ConfigError(
          fmt::format("{}: unknown key {}; {}", name_, in_quotes(key), nearest_hint(key, known_)));
    }
  }

  [[noreturn]] void fail(const std::string& pointer, const std::string& what) {
    throw ConfigError(fmt::format("{}:{}: {}: {}", name_, line_of(text_, pointer),
                                  pointer.empty() ? "the configuration" : pointer, what));
  }

  std::string_view text_;
  std::string name_;
  json root_;
  std::vector<std::string> known_;
};

// ---- Where a value stands -----------------------------------------------------------------------

// Walks valid JSON; values before the one that is looked for are skipped.
class Walker {
 public:
  explicit Walker(std::string_view text) : text_(text) {}
  [[nodiscard]] std::size_t at() const { return at_; }

  void blanks() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
  }
  std::string_view string() {
    const std::size_t begin = std::min(at_ + 1, text_.size());
    for (at_ = begin; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\') ++at_;
    }
    return text_.substr(begin, at_++ - begin);
  }
  void skip_value() {
    int depth = 0;
    do {
      blanks();
      if (at_ >= text_.size()) return;
      const char c = text_[at_];
      if (c == '"') {
        (void)string();
      } else if (c == '{' || c == '[' || c == '}' || c == ']') {
        depth += c == '{' || c == '[' ? 1 : -1;
        ++at_;
      } else if (c == ',' || c == ':') {
        ++at_;
      } else {
        while (at_ < text_.size() && std::string_view(",:]} \t\r\n").find(text_[at_]) == text_.npos)
          ++at_;
      }
    } while (depth > 0);
  }
  [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  // Into the member or element of that name; to the end where a key is written with escapes.
  void enter(std::string_view name) {
    blanks();
    const bool object = peek() == '{';
    ++at_;
    for (std::size_t i = 0; at_ < text_.size(); ++i) {
      blanks();
      if (peek() == ',') ++at_;
      blanks();
      std::string key = std::to_string(i);
      if (object) {
        key = std::string(string());
        blanks();
        ++at_;  // the colon
        blanks();
      }
      if (key == name) return;
      skip_value();
    }
  }

 private:
  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::size_t line_of(std::string_view text, std::string_view pointer) {
  Walker walker(text);
  walker.blanks();
  while (!pointer.empty()) {
    const std::size_t end = std::min(pointer.find('/', 1), pointer.size());
    walker.enter(pointer.substr(1, end - 1));
    pointer.remove_prefix(end);
  }
  return line_at(text, walker.at());
}

Config parse_config(std::string_view text, const std::string& name) {
  return File(text, name).read();
}

void check_options(const Config& config) {
  check_values(config, [](const std::string& key, int, const std::string& what) {
    static const std::vector<std::pair<std::string, std::string>> options{
        {"traces", "trace"},        {"prompts", "--prompt"},  {"evict_at", "--evict-at"},
        {"chunks", "--chunk"},      {"policies", "--policy"}, {"budgets", "--budget"},
        {"kv_bytes", "--kv-bytes"}, {"layouts", "--layout"},  {"seeds", "--seed"}};
    const auto known = std::find_if(options.begin(), options.end(),
                                    [&](const auto& option) { return option.first == key; });
    const std::string option = known == options.end() ? "--" + key : known->second;
    throw ConfigError(what.starts_with(option) ? what : option + ": " + what);
  });
}

json to_json(const Config& config) {
  return {
      {"schema_version", 1},         {"traces", config.traces},     {"prompts", config.prompts},
      {"evict_at", config.evict_at}, {"chunks", config.chunks},     {"policies", config.policies},
      {"budgets", config.budgets},   {"kv_bytes", config.kv_bytes}, {"prefill", config.prefill},
      {"layouts", config.layouts},   {"seeds", config.seeds},       {"fidelity", config.fidelity},
      {"sample", config.sample},     {"regret", config.regret}};
}

}  // namespace kvspan::sweep
