// SPDX-License-Identifier: Apache-2.0
// A chat template as a tree. Private to tracegen/tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace kvspan::tracegen::jinja {

using Json = nlohmann::ordered_json;

// ---- Text and tags ------------------------------------------------------------------------------

struct Token {
  enum class Kind : std::uint8_t { name, integer, string, sign, end };
  Kind kind = Kind::end;
  std::string text;  // of a string: its content
};

struct Piece {
  enum class Kind : std::uint8_t { text, output, statement };
  Kind kind = Kind::text;
  int line = 1;
  std::string text;
  std::vector<Token> tokens;  // of a tag, ended by Kind::end
};

// The source cut into text and tags; comments are dropped. Errors: TemplateError.
[[nodiscard]] std::vector<Piece> scan(const std::string& source);

// ---- The tree -----------------------------------------------------------------------------------

struct Expression {
  enum class Kind : std::uint8_t {
    constant,     // constant
    name,         // word
    list,         // parts
    dict,         // parts: keys and values in turn
    attribute,    // parts: object; word
    item,         // parts: object, key
    slice,        // parts: object, begin, end, step; absent: a constant null
    call,         // parts: what is called, arguments; keywords of the last ones
    filter,       // word; parts: value, arguments; keywords
    test,         // word; parts: value, arguments
    unary,        // word: "-", "+" or "not"; parts: value
    binary,       // word; parts: left, right
    compare,      // keywords: operators; parts: one operand more
    conditional,  // parts: value, condition, and what else it is
  };
  Kind kind = Kind::constant;
  int line = 1;
  std::string word;
  Json constant;
  std::vector<Expression> parts;
  std::vector<std::string> keywords;
};

struct Statement {
  enum class Kind : std::uint8_t {
    text,          // text
    output,        // expressions[0]
    branch,        // expressions: conditions; blocks: one each, and that of else
    loop,          // targets; expressions: iterable, condition if any; blocks: body, else
    assign,        // targets (NAME, or NAME.ATTRIBUTE); expressions[0]
    assign_block,  // targets[0]; blocks[0]
    macro,         // text: name; targets: parameters; expressions: defaults of the last; blocks[0]
    leave,         // break
    next,          // continue
  };
  Kind kind = Kind::text;
  int line = 1;
  std::string text;
  std::vector<std::string> targets;
  std::vector<Expression> expressions;
  std::vector<std::vector<Statement>> blocks;
};

using Block = std::vector<Statement>;

// Errors: TemplateError.
[[nodiscard]] Block parse(const std::string& source);

}  // namespace kvspan::tracegen::jinja
