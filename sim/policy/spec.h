// SPDX-License-Identifier: Apache-2.0
// Policy specifications: the text a user writes, as a tree.
//
//   recipe = term { "+" term }
//   term   = name [ "(" [ arg { "," arg } ] ")" ]
//   arg    = recipe | key "=" value            a wrapper takes one recipe first
//   value  = number | size | share | word | "quoted text" | "{" value { "," value } "}"
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sim/base/text.h"

namespace kvspan {

struct Term;
using RecipeSpec = std::vector<Term>;

struct Argument {
  std::string key;
  std::vector<std::string> values;  // more than one only before expand_sets()
};

struct Term {
  std::string name;
  RecipeSpec inner;  // of a wrapper; empty otherwise
  std::vector<Argument> arguments;
};

// Errors: ConfigError with the position and what was expected there.
[[nodiscard]] RecipeSpec parse_spec(std::string_view text);

// key={a,b,c} becomes one spec each; several sets multiply, the last one varies fastest.
[[nodiscard]] std::vector<RecipeSpec> expand_sets(const RecipeSpec& spec);

// The spec as text; values are quoted where the grammar needs it.
[[nodiscard]] std::string to_text(const RecipeSpec& spec);
[[nodiscard]] std::string quote_if_needed(const std::string& value);

// Replaces (or adds) an argument of the first term called `name`, searched depth first.
void set_argument(RecipeSpec& spec, const std::string& name, const std::string& key,
                  const std::string& value);

// A size: tokens ("1024"), a share of the prompt ("10%", "12.5%"), or bytes ("64MiB").
struct Amount {
  enum class Kind : std::uint8_t { tokens, share, bytes };
  Kind kind = Kind::tokens;
  std::int64_t mantissa = 0;  // tokens, bytes, or the digits of the share
  int decimals = 0;           // of the share: share = mantissa / 10^decimals percent
  std::string text;           // as written

  // Errors: ConfigError naming `what`.
  [[nodiscard]] static Amount parse(const std::string& text, const std::string& what);
  // floor of the exact decimal product, at least 1. REQUIRES: kind == share.
  [[nodiscard]] std::int64_t share_of(std::int64_t rows) const;
  // The double nearest to 1 - share. REQUIRES: kind == share.
  [[nodiscard]] double one_minus_share() const;
};

// Bytes from "80GiB", "64 MiB", "1024"; GB and the like are refused (powers of two only).
[[nodiscard]] std::int64_t parse_bytes(const std::string& text, const std::string& what);

}  // namespace kvspan
