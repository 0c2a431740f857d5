// SPDX-License-Identifier: Apache-2.0
// The words of one tag of a chat template, and the expressions among them. Private to
// tracegen/tokenizer.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "tracegen/tokenizer/template_syntax.h"

namespace kvspan::tracegen::jinja {

inline constexpr int kDeepest = 64;  // statements in statements, parentheses in parentheses

// Reads from left to right. Errors: TemplateError.
class Words {
 public:
  explicit Words(const Piece& piece) : piece_(piece) {}

  [[nodiscard]] int line() const { return piece_.line; }
  [[noreturn]] void fail(const std::string& what) const;
  [[nodiscard]] const Token& now() const { return piece_.tokens[at_]; }
  [[nodiscard]] bool at_end() const { return now().kind == Token::Kind::end; }
  [[nodiscard]] bool at_sign(std::string_view text) const;
  [[nodiscard]] bool at_name(std::string_view text) const;
  Token take() { return piece_.tokens[at_end() ? at_ : at_++]; }
  bool skip_sign(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_sign(std::string_view text);
  std::string expect_name();
  void expect_end() const;
  [[nodiscard]] std::string shown() const { return at_end() ? "the end of the tag" : now().text; }

  Expression expression();
  Expression any_of();                        // one without "if"
  Expression tuple(bool conditional = true);  // one, or several with commas between: a list

 private:
  struct Deeper;

  [[nodiscard]] const Token& then() const;
  [[nodiscard]] Expression made(Expression::Kind kind, std::vector<Expression> parts) const;
  [[nodiscard]] Expression constant(Json value) const;
  [[nodiscard]] Expression binary(std::string word, Expression left, Expression right) const;
  Expression all_of();
  Expression negation();
  Expression comparison();
  template <typename Operand>
  Expression ranked(std::initializer_list<std::string_view> signs, Operand operand);
  Expression sum();
  Expression unary(bool filters);
  Expression primary();
  Expression parenthesis();
  std::vector<Expression> listed(std::string_view end);
  Expression dict();
  void arguments(Expression& out);
  Expression postfix(Expression value);
  Expression call(Expression value);
  Expression subscript(Expression value);
  Expression filtered(Expression value);
  Expression test(Expression value);

  const Piece& piece_;
  int depth_ = 0;
  std::size_t at_ = 0;
};

}  // namespace kvspan::tracegen::jinja
