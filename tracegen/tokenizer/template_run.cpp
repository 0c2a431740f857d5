// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "tracegen/tokenizer/template.h"
#include "tracegen/tokenizer/template_value.h"

namespace kvspan::tracegen::jinja {
namespace {

using Kind = Expression::Kind;

constexpr int kMostSteps = 1'000'000;  // statements and expressions of a conversation
constexpr int kDeepestCall = 32;       // macros that call macros

constexpr std::array kFunctions = {"namespace", "dict", "range", "raise_exception", "strftime_now"};

class Run {
 public:
  explicit Run(const Json& variables) {
    scopes_.emplace_back();
    for (const auto& [name, value] : variables.items()) scopes_.back()[name] = value;
    // A template may ask whether they are there.
    for (const char* name : kFunctions) scopes_.back()[name].names = std::make_shared<Names>();
  }

  std::string text(const Block& block) {
    std::string out;
    (void)walk(block, out);
    return out;
  }

 private:
  enum class Way : std::uint8_t { on, leave, next };

  void step(int line) {
    if (++steps_ > kMostSteps) throw TemplateError(line, "does not come to an end");
  }

  // ---- Statements -------------------------------------------------------------------------------

  Way walk(const Block& block, std::string& out) {
    for (const Statement& one : block) {
      step(one.line);
      const Way way = walk(one, out);
      if (out.size() > kLongestText) throw TemplateError(one.line, "a text that grows without end");
      if (way != Way::on) return way;
    }
    return Way::on;
  }

  Way walk(const Statement& one, std::string& out) {
    switch (one.kind) {
      case Statement::Kind::text:
        out += one.text;
        return Way::on;
      case Statement::Kind::output:
        out += understood(one.line, [&] { return text_of(value_of(one.expressions[0])); });
        return Way::on;
      case Statement::Kind::branch:
        for (std::size_t i = 0; i < one.blocks.size(); ++i) {
          if (i == one.expressions.size() || is_true(value_of(one.expressions[i])))
            return walk(one.blocks[i], out);
        }
        return Way::on;
      case Statement::Kind::loop:
        return loop(one, out);
      case Statement::Kind::assign:
        assign(one, one.targets, value_of(one.expressions[0]));
        return Way::on;
      case Statement::Kind::assign_block: {
        std::string content;
        scopes_.emplace_back();
        const Way way = walk(one.blocks[0], content);
        scopes_.pop_back();
        assign(one, one.targets, Json(content));
        return way;
      }
      case Statement::Kind::macro:
        macros_[one.text] = &one;
        return Way::on;
      case Statement::Kind::leave:
        return Way::leave;
      case Statement::Kind::next:
        return Way::next;
    }
    return Way::on;
  }

  Way loop(const Statement& one, std::string& out) {
    std::vector<Value> all =
        understood(one.line, [&] { return elements_of(value_of(one.expressions[0])); });
    if (one.expressions.size() > 1) {
      std::erase_if(all, [&](const Value& element) {
        scopes_.emplace_back();
        assign(one, one.targets, element);
        const bool stays = is_true(value_of(one.expressions[1]));
        scopes_.pop_back();
        return !stays;
      });
    }
    if (all.empty() && one.blocks.size() > 1) return walk(one.blocks[1], out);
    for (std::size_t i = 0; i < all.size(); ++i) {
      scopes_.emplace_back();
      assign(one, one.targets, all[i]);
      scopes_.back()["loop"] = loop_object(all, i);
      const Way way = walk(one.blocks[0], out);
      scopes_.pop_back();
      if (way == Way::leave) break;
    }
    return Way::on;
  }

  static Json loop_object(const std::vector<Value>& all, std::size_t i) {
    Json loop = {{"index", i + 1},
                 {"index0", i},
                 {"revindex", all.size() - i},
                 {"revindex0", all.size() - i - 1},
                 {"first", i == 0},
                 {"last", i + 1 == all.size()},
                 {"length", all.size()}};
    if (i > 0) loop["previtem"] = all[i - 1].plain;
    if (i + 1 < all.size()) loop["nextitem"] = all[i + 1].plain;
    return loop;
  }

  void assign(const Statement& one, const std::vector<std::string>& targets, const Value& value) {
    if (targets.size() == 1) return put(one, targets[0], value);
    const std::vector<Value> parts = understood(one.line, [&] { return elements_of(value); });
    if (parts.size() != targets.size()) {
      throw TemplateError(one.line,
                          fmt::format("{} values for {} names", parts.size(), targets.size()));
    }
    for (std::size_t i = 0; i < parts.size(); ++i) put(one, targets[i], parts[i]);
  }

  void put(const Statement& one, const std::string& target, const Value& value) {
    const std::size_t dot = target.find('.');
    if (dot == std::string::npos) {
      scopes_.back()[target] = value;
      return;
    }
    const Value space = variable(target.substr(0, dot));
    if (!space.names)
      throw TemplateError(one.line, fmt::format("'{}' is no namespace", target.substr(0, dot)));
    (*space.names)[target.substr(dot + 1)] = value;
  }

  // ---- Expressions ------------------------------------------------------------------------------

  template <typename Action>
  auto understood(int line, Action action) -> decltype(action()) {
    try {
      return action();
    } catch (const NotUnderstood& wrong) {
      throw TemplateError(line, wrong.what());
    }
  }

  Value variable(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    }
    return Value::undefined(name);
  }

  Value value_of(const Expression& e) {
    step(e.line);
    return understood(e.line, [&] { return computed(e); });
  }

  Value computed(const Expression& e) {
    switch (e.kind) {
      case Kind::constant:
        return e.constant;
      case Kind::name:
        return variable(e.word);
      case Kind::list: {
        Json out = Json::array();
        for (const Expression& part : e.parts) out.push_back(plain_of(part));
        return out;
      }
      case Kind::dict: {
        Json out = Json::object();
        for (std::size_t i = 0; i < e.parts.size(); i += 2)
          out[text_of(value_of(e.parts[i]))] = plain_of(e.parts[i + 1]);
        return out;
      }
      case Kind::attribute:
        return attribute_of(value_of(e.parts[0]), e.word);
      case Kind::item:
        return item_of(value_of(e.parts[0]), value_of(e.parts[1]));
      case Kind::slice:
        return slice_of(value_of(e.parts[0]),
                        {value_of(e.parts[1]), value_of(e.parts[2]), value_of(e.parts[3])});
      case Kind::call:
        return called(e);
      case Kind::filter:
        return apply_filter(e.word, value_of(e.parts[0]), arguments_of(e));
      case Kind::test:
        return Json(passes_test(e.word, value_of(e.parts[0]), arguments_of(e)));
      case Kind::unary:
        return unary_of(e.word, value_of(e.parts[0]));
      case Kind::binary:
        return combined(e);
      case Kind::compare:
        return compared(e);
      case Kind::conditional:
        if (is_true(value_of(e.parts[1]))) return value_of(e.parts[0]);
        return e.parts.size() > 2 ? value_of(e.parts[2]) : Value::undefined("a value without else");
    }
    return {};
  }

  Json plain_of(const Expression& e) {
    Value value = value_of(e);
    if (!value.defined || value.names)
      throw NotUnderstood(fmt::format("{} in a list or dict is not understood", kind_of(value)));
    return std::move(value.plain);
  }

  Value combined(const Expression& e) {
    Value left = value_of(e.parts[0]);
    if (e.word == "or") return is_true(left) ? left : value_of(e.parts[1]);
    if (e.word == "and") return is_true(left) ? value_of(e.parts[1]) : left;
    return binary_of(e.word, left, value_of(e.parts[1]));
  }

  Value compared(const Expression& e) {
    Value left = value_of(e.parts[0]);
    for (std::size_t i = 0; i < e.keywords.size(); ++i) {
      Value right = value_of(e.parts[i + 1]);
      if (!compare(e.keywords[i], left, right)) return Json(false);
      left = std::move(right);
    }
    return Json(true);
  }

  Arguments arguments_of(const Expression& e) {
    Arguments out;
    const std::size_t positional = e.parts.size() - e.keywords.size();
    for (std::size_t i = 1; i < positional; ++i) out.values.push_back(value_of(e.parts[i]));
    for (std::size_t i = 0; i < e.keywords.size(); ++i)
      out.named[e.keywords[i]] = value_of(e.parts[positional + i]);
    return out;
  }

  Value called(const Expression& e) {
    const Expression& what = e.parts[0];
    if (what.kind == Kind::attribute)
      return call_method(value_of(what.parts[0]), what.word, arguments_of(e));
    if (what.kind != Kind::name) throw NotUnderstood("a call of a value is not understood");
    if (const auto found = macros_.find(what.word); found != macros_.end())
      return call_macro(*found->second, arguments_of(e));
    return call_function(what.word, arguments_of(e));
  }

  Value call_function(const std::string& name, const Arguments& arguments) {
    if (name == "namespace" || name == "dict") {
      if (!arguments.values.empty())
        throw NotUnderstood(fmt::format("'{}' of a value is not understood", name));
      Value out = Json::object();
      if (name == "namespace")
        out.names = std::make_shared<Names>(arguments.named.begin(), arguments.named.end());
      for (const auto& [key, value] : arguments.named) out.plain[key] = value.plain;
      return out;
    }
    if (name == "range") return range(arguments);
    if (name == "raise_exception")
      throw NotUnderstood("it refuses the conversation: " + text_of(arguments.at(0, "")));
    if (name == "strftime_now") {
      throw NotUnderstood(
          "it writes today's date into the prompt, which would make captures differ by day");
    }
    throw NotUnderstood(fmt::format("the function '{}' is not understood", name));
  }

  Value range(const Arguments& arguments) {
    arguments.check(3);
    std::array<std::int64_t, 3> bounds{0, 0, 1};
    for (std::size_t i = 0; i < arguments.values.size(); ++i) {
      const Value& given = arguments.values[i];
      if (!given.defined || given.names || !given.plain.is_number_integer())
        throw NotUnderstood("range of " + kind_of(given));
      bounds[arguments.values.size() == 1 ? 1 : i] = given.plain.get<std::int64_t>();
    }
    const auto [begin, end, by] = bounds;
    if (by == 0) throw NotUnderstood("a range of step 0");
    Json out = Json::array();
    for (std::int64_t i = begin; by > 0 ? i < end : i > end; i += by) {
      if (++steps_ > kMostSteps) throw NotUnderstood("a range without end");
      out.push_back(i);
    }
    return out;
  }

  Value call_macro(const Statement& macro, const Arguments& arguments) {
    if (++calls_ > kDeepestCall) throw NotUnderstood("macros that call themselves");
    Names own;
    const std::size_t plain = macro.targets.size() - macro.expressions.size();
    if (arguments.values.size() > macro.targets.size())
      throw NotUnderstood(fmt::format("too many arguments of '{}'", macro.text));
    for (std::size_t i = 0; i < macro.targets.size(); ++i) {
      Value value = arguments.at(i, macro.targets[i]);
      if (!value.defined && i >= plain) value = value_of(macro.expressions[i - plain]);
      own[macro.targets[i]] = std::move(value);
    }
    // A macro sees what the template set outside of loops, and its parameters.
    std::vector<Names> callers{scopes_.front(), std::move(own)};
    std::swap(callers, scopes_);
    std::string out = text(macro.blocks[0]);
    std::swap(callers, scopes_);
    --calls_;
    return Json(std::move(out));
  }

  std::vector<Names> scopes_;
  std::map<std::string, const Statement*> macros_;
  int steps_ = 0;
  int calls_ = 0;
};

}  // namespace

std::string render(const std::string& source, const Json& variables) {
  const Block block = parse(source);
  return Run(variables).text(block);
}

}  // namespace kvspan::tracegen::jinja
