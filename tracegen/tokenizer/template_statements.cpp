// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "tracegen/tokenizer/template.h"
#include "tracegen/tokenizer/template_words.h"

namespace kvspan::tracegen::jinja {
namespace {

using Ends = std::initializer_list<std::string_view>;

class Parser {
 public:
  explicit Parser(const std::vector<Piece>& pieces) : pieces_(pieces) {}

  // Statements up to a tag whose first word is one of `ends`, which is left to be read.
  Block block(Ends ends) {
    if (++depth_ > kDeepest)
      throw TemplateError(line(), fmt::format("nested deeper than {}", kDeepest));
    Block out;
    for (; at_ < pieces_.size(); ++at_) {
      const Piece& piece = pieces_[at_];
      if (piece.kind == Piece::Kind::statement) {
        const std::string& word = piece.tokens.front().text;
        if (std::find(ends.begin(), ends.end(), word) != ends.end()) break;
        statement(out);
        continue;
      }
      Statement one;
      one.line = piece.line;
      if (piece.kind == Piece::Kind::text) {
        one.text = piece.text;
      } else {
        Words words(piece);
        one.kind = Statement::Kind::output;
        one.expressions = {words.tuple()};
        words.expect_end();
      }
      out.push_back(std::move(one));
    }
    if (at_ == pieces_.size() && ends.size() > 0)
      throw TemplateError(line(), fmt::format("'{}' is missing", *(ends.end() - 1)));
    --depth_;
    return out;
  }

 private:
  [[nodiscard]] int line() const { return pieces_.empty() ? 1 : pieces_[last()].line; }
  [[nodiscard]] std::size_t last() const { return std::min(at_, pieces_.size() - 1); }

  // One statement, whose last tag is then the current one.
  void statement(Block& out) {
    Words words(pieces_[at_]);
    const std::string word = words.expect_name();
    Statement one;
    one.line = words.line();
    if (word == "if") {
      branch(words, one);
    } else if (word == "for") {
      loop(words, one);
    } else if (word == "set") {
      assign(words, one);
    } else if (word == "macro") {
      macro(words, one);
    } else if (word == "break" || word == "continue") {
      one.kind = word == "break" ? Statement::Kind::leave : Statement::Kind::next;
      words.expect_end();
    } else if (word == "generation" || word == "endgeneration") {
      return words.expect_end();  // marks, for training, what the model wrote
    } else {
      words.fail(fmt::format("the statement '{}' is not understood", word));
    }
    out.push_back(std::move(one));
  }

  void branch(Words& words, Statement& one) {
    one.kind = Statement::Kind::branch;
    one.expressions.push_back(words.tuple());
    words.expect_end();
    while (true) {
      ++at_;
      one.blocks.push_back(block({"elif", "else", "endif"}));
      Words next(pieces_[at_]);
      const std::string word = next.expect_name();
      if (word == "elif") one.expressions.push_back(next.tuple());
      next.expect_end();
      if (word == "endif") return;
      if (word == "elif") continue;
      ++at_;
      one.blocks.push_back(block({"endif"}));
      return;
    }
  }

  void loop(Words& words, Statement& one) {
    one.kind = Statement::Kind::loop;
    const bool open = words.skip_sign("(");
    do {
      one.targets.push_back(words.expect_name());
    } while (words.skip_sign(","));
    if (open) words.expect_sign(")");
    if (!words.skip_name("in")) words.fail("a loop without 'in'");
    one.expressions.push_back(words.tuple(false));
    if (words.skip_name("if")) one.expressions.push_back(words.expression());
    words.expect_end();
    ++at_;
    one.blocks.push_back(block({"else", "endfor"}));
    if (pieces_[at_].tokens.front().text == "endfor") return;
    ++at_;
    one.blocks.push_back(block({"endfor"}));
  }

  void assign(Words& words, Statement& one) {
    do {
      std::string target = words.expect_name();
      if (words.skip_sign(".")) target += "." + words.expect_name();
      one.targets.push_back(std::move(target));
    } while (words.skip_sign(","));
    if (words.skip_sign("=")) {
      one.kind = Statement::Kind::assign;
      one.expressions.push_back(words.tuple());
      return words.expect_end();
    }
    words.expect_end();
    one.kind = Statement::Kind::assign_block;
    ++at_;
    one.blocks.push_back(block({"endset"}));
  }

  void macro(Words& words, Statement& one) {
    one.kind = Statement::Kind::macro;
    one.text = words.expect_name();
    words.expect_sign("(");
    while (!words.skip_sign(")")) {
      if (!one.targets.empty()) words.expect_sign(",");
      one.targets.push_back(words.expect_name());
      if (words.skip_sign("=")) {
        one.expressions.push_back(words.expression());
      } else if (!one.expressions.empty()) {
        words.fail("a parameter without a default behind one that has one");
      }
    }
    words.expect_end();
    ++at_;
    one.blocks.push_back(block({"endmacro"}));
  }

  const std::vector<Piece>& pieces_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Block parse(const std::string& source) {
  const std::vector<Piece> pieces = scan(source);
  return Parser(pieces).block({});
}

}  // namespace kvspan::tracegen::jinja
