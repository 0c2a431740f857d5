// SPDX-License-Identifier: Apache-2.0
// Parameters that policies declare, and the arguments of a term checked against them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sim/policy/spec.h"

namespace kvspan {

// One declared parameter of a policy, by designated fields; a count unless `kind` says otherwise:
//   {.name = "recent", .kind = Parameter::Kind::real, .fallback = "30", .help = "newest kept"}
struct Parameter {
  enum class Kind : std::uint8_t { count, amount, real, word, flag, text };
  struct Range {
    double lowest = 0;
    double highest = 1e12;
  };
  std::string name = {};
  Kind kind = Kind::count;
  std::string fallback = {};  // default; "auto": unset; "": required
  std::string unit = {};      // "tokens", "rows", ...
  std::string help = {};
  std::vector<std::string> choices = {};  // of a word; the first is the default
  Range range = {};                       // of a count or a real
  bool sizes = false;                     // sets the policy's size itself, in place of `budget`
  // The words that it may be, the default first: of a flag true and false; empty: not a word.
  [[nodiscard]] std::vector<std::string> words() const;
};

// The arguments of one term, checked against its parameters.
class Arguments {
 public:
  // Errors: ConfigError naming the unknown key or the value out of range, and the nearest valid
  // one.
  Arguments(const Term& term, const std::vector<Parameter>& parameters);
  [[nodiscard]] bool given(const std::string& name) const;  // by the user
  [[nodiscard]] bool has(const std::string& name) const;    // given, or defaulted to a value
  [[nodiscard]] std::int64_t count(const std::string& name) const;
  [[nodiscard]] double real(const std::string& name) const;
  [[nodiscard]] Amount amount(const std::string& name) const;
  [[nodiscard]] const std::string& text(const std::string& name) const;
  [[nodiscard]] bool is(const std::string& name, const std::string& word) const {
    return text(name) == word;
  }
  [[nodiscard]] bool flag(const std::string& name) const { return is(name, "true"); }
  // Replaces a value, in the canonical text too ("auto": not in use).
  void set(const std::string& name, const std::string& value) { values_.at(name) = value; }
  // name(key=value,...); `without`: a key that is left out.
  [[nodiscard]] std::string canonical(const std::string& without = "") const;
  [[nodiscard]] const std::string& policy() const { return policy_; }

 private:
  std::string policy_;
  const std::vector<Parameter>* parameters_;
  std::map<std::string, std::string> values_;
  std::map<std::string, bool> given_;
};

}  // namespace kvspan
