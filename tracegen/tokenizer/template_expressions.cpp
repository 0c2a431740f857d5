// SPDX-License-Identifier: Apache-2.0
// Expressions: the grammar of Jinja's parser, rule by rule.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "tracegen/tokenizer/template.h"
#include "tracegen/tokenizer/template_words.h"

namespace kvspan::tracegen::jinja {

using Kind = Expression::Kind;

namespace {

bool is_token(const Token& token, Token::Kind kind, std::string_view text) {
  return token.kind == kind && token.text == text;
}

}  // namespace

struct Words::Deeper {
  explicit Deeper(Words& words) : depth(words.depth_) {
    if (++depth > kDeepest) words.fail(fmt::format("nested deeper than {}", kDeepest));
  }
  ~Deeper() { --depth; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
  int& depth;
};

void Words::fail(const std::string& what) const { throw TemplateError(line(), what); }

const Token& Words::then() const {
  return piece_.tokens[std::min(at_ + 1, piece_.tokens.size() - 1)];
}

bool Words::at_sign(std::string_view text) const {
  return is_token(now(), Token::Kind::sign, text);
}

bool Words::at_name(std::string_view text) const {
  return is_token(now(), Token::Kind::name, text);
}

bool Words::skip_sign(std::string_view text) {
  if (!at_sign(text)) return false;
  ++at_;
  return true;
}

bool Words::skip_name(std::string_view text) {
  if (!at_name(text)) return false;
  ++at_;
  return true;
}

void Words::expect_sign(std::string_view text) {
  if (!skip_sign(text)) fail(fmt::format("found '{}', expected '{}'", shown(), text));
}

std::string Words::expect_name() {
  if (now().kind != Token::Kind::name) fail(fmt::format("found '{}', expected a name", shown()));
  return take().text;
}

void Words::expect_end() const {
  if (!at_end()) fail(fmt::format("'{}' is not understood there", shown()));
}

// One, or several with commas between: a list.
Expression Words::tuple(bool conditional) {
  Expression first = conditional ? expression() : any_of();
  if (!at_sign(",")) return first;
  Expression out = made(Kind::list, {std::move(first)});
  while (skip_sign(",") && !at_end()) out.parts.push_back(expression());
  return out;
}

Expression Words::expression() {
  const Deeper deeper(*this);
  Expression value = any_of();
  while (skip_name("if")) {
    Expression condition = any_of();
    Expression out = made(Kind::conditional, {std::move(value), std::move(condition)});
    if (skip_name("else")) out.parts.push_back(expression());
    value = std::move(out);
  }
  return value;
}

Expression Words::any_of() {
  Expression left = all_of();
  while (skip_name("or")) left = binary("or", std::move(left), all_of());
  return left;
}

Expression Words::made(Kind kind, std::vector<Expression> parts) const {
  Expression out;
  out.kind = kind;
  out.line = line();
  out.parts = std::move(parts);
  return out;
}
Expression Words::constant(Json value) const {
  Expression out = made(Kind::constant, {});
  out.constant = std::move(value);
  return out;
}
Expression Words::binary(std::string word, Expression left, Expression right) const {
  Expression out = made(Kind::binary, {std::move(left), std::move(right)});
  out.word = std::move(word);
  return out;
}

Expression Words::all_of() {
  Expression left = negation();
  while (skip_name("and")) left = binary("and", std::move(left), negation());
  return left;
}

Expression Words::negation() {
  if (!skip_name("not")) return comparison();
  const Deeper deeper(*this);
  Expression out = made(Kind::unary, {negation()});
  out.word = "not";
  return out;
}

Expression Words::comparison() {
  Expression out = made(Kind::compare, {sum()});
  while (true) {
    std::string word;
    for (const char* sign : {"==", "!=", "<", "<=", ">", ">="}) {
      if (at_sign(sign)) word = sign;
    }
    if (at_name("in")) word = "in";
    if (at_name("not") && is_token(then(), Token::Kind::name, "in")) {
      take();
      word = "not in";
    }
    if (word.empty()) break;
    take();
    out.keywords.push_back(word);
    out.parts.push_back(sum());
  }
  return out.keywords.empty() ? std::move(out.parts[0]) : std::move(out);
}

// Operators of one rank, from left to right.
template <typename Operand>
Expression Words::ranked(std::initializer_list<std::string_view> signs, Operand operand) {
  Expression left = operand();
  while (now().kind == Token::Kind::sign &&
         std::find(signs.begin(), signs.end(), now().text) != signs.end()) {
    const std::string word = take().text;
    left = binary(word, std::move(left), operand());
  }
  return left;
}
Expression Words::sum() {
  return ranked({"+", "-"}, [&] {
    return ranked({"~"}, [&] {
      return ranked({"*", "/", "//", "%", "**"}, [&] { return unary(true); });
    });
  });
}

Expression Words::unary(bool filters) {
  for (const char* sign : {"-", "+"}) {
    if (!skip_sign(sign)) continue;
    const Deeper deeper(*this);
    Expression out = made(Kind::unary, {unary(false)});
    out.word = sign;
    return filters ? filtered(std::move(out)) : out;
  }
  Expression value = postfix(primary());
  return filters ? filtered(std::move(value)) : value;
}

Expression Words::primary() {
  const Token token = take();
  switch (token.kind) {
    case Token::Kind::integer:
      return constant(std::stoll(token.text));
    case Token::Kind::string: {
      std::string text = token.text;
      while (now().kind == Token::Kind::string) text += take().text;
      return constant(text);
    }
    case Token::Kind::name: {
      if (token.text == "true" || token.text == "True") return constant(true);
      if (token.text == "false" || token.text == "False") return constant(false);
      if (token.text == "none" || token.text == "None") return constant(nullptr);
      Expression out = made(Kind::name, {});
      out.word = token.text;
      return out;
    }
    case Token::Kind::sign:
      if (token.text == "(") return parenthesis();
      if (token.text == "[") return made(Kind::list, listed("]"));
      if (token.text == "{") return dict();
      break;
    case Token::Kind::end:
      break;
  }
  fail(fmt::format("found '{}', expected a value",
                   token.kind == Token::Kind::end ? "the end of the tag" : token.text));
}

Expression Words::parenthesis() {
  if (skip_sign(")")) return made(Kind::list, {});
  Expression out = expression();
  if (at_sign(",")) {
    out = made(Kind::list, {std::move(out)});
    while (skip_sign(",") && !at_sign(")")) out.parts.push_back(expression());
  }
  expect_sign(")");
  return out;
}

std::vector<Expression> Words::listed(std::string_view end) {
  std::vector<Expression> out;
  while (!skip_sign(end)) {
    if (!out.empty()) {
      expect_sign(",");
      if (skip_sign(end)) break;
    }
    out.push_back(expression());
  }
  return out;
}

Expression Words::dict() {
  Expression out = made(Kind::dict, {});
  while (!skip_sign("}")) {
    if (!out.parts.empty()) {
      expect_sign(",");
      if (skip_sign("}")) break;
    }
    out.parts.push_back(expression());
    expect_sign(":");
    out.parts.push_back(expression());
  }
  return out;
}

// Arguments behind '(', into an expression that has its other parts.
void Words::arguments(Expression& out) {
  bool first = true;
  while (!skip_sign(")")) {
    if (!std::exchange(first, false)) {
      expect_sign(",");
      if (skip_sign(")")) break;
    }
    if (now().kind == Token::Kind::name && is_token(then(), Token::Kind::sign, "=")) {
      out.keywords.push_back(take().text);
      take();
    } else if (!out.keywords.empty()) {
      fail("an argument without a name behind one that has one");
    }
    out.parts.push_back(expression());
  }
}

Expression Words::postfix(Expression value) {
  while (true) {
    if (skip_sign(".")) {
      const bool number = now().kind == Token::Kind::integer;
      Expression out = made(number ? Kind::item : Kind::attribute, {std::move(value)});
      if (number) {
        out.parts.push_back(primary());
      } else {
        out.word = expect_name();
      }
      value = std::move(out);
    } else if (skip_sign("[")) {
      value = subscript(std::move(value));
    } else if (skip_sign("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

Expression Words::call(Expression value) {
  Expression out = made(Kind::call, {std::move(value)});
  arguments(out);
  return out;
}

Expression Words::subscript(Expression value) {
  std::vector<Expression> bounds;
  bool slice = false;
  for (int i = 0; i < 3; ++i) {
    bounds.push_back(at_sign(":") || at_sign("]") ? constant(nullptr) : expression());
    if (!skip_sign(":")) break;
    slice = true;
  }
  expect_sign("]");
  if (!slice) return made(Kind::item, {std::move(value), std::move(bounds[0])});
  bounds.resize(3, constant(nullptr));
  bounds.insert(bounds.begin(), std::move(value));
  return made(Kind::slice, std::move(bounds));
}

Expression Words::filtered(Expression value) {
  while (true) {
    if (skip_sign("|")) {
      Expression out = made(Kind::filter, {std::move(value)});
      out.word = expect_name();
      if (skip_sign("(")) arguments(out);
      value = std::move(out);
    } else if (skip_name("is")) {
      value = test(std::move(value));
    } else if (skip_sign("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

Expression Words::test(Expression value) {
  const bool negated = skip_name("not");
  Expression out = made(Kind::test, {std::move(value)});
  out.word = expect_name();
  const bool word = now().kind == Token::Kind::name && !at_name("and") && !at_name("or") &&
                    !at_name("else") && !at_name("is") && !at_name("if") && !at_name("in") &&
                    !at_name("not");
  if (skip_sign("(")) {
    arguments(out);
  } else if (word || at_sign("[") || now().kind == Token::Kind::string ||
             now().kind == Token::Kind::integer) {
    out.parts.push_back(postfix(primary()));
  }
  if (!negated) return out;
  Expression no = made(Kind::unary, {std::move(out)});
  no.word = "not";
  return no;
}

}  // namespace kvspan::tracegen::jinja
