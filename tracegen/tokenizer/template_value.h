// SPDX-License-Identifier: Apache-2.0
// What the expressions of a chat template compute with: Python's values, as far as templates use
// them. Private to tracegen/tokenizer.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tracegen/tokenizer/template_syntax.h"

namespace kvspan::tracegen::jinja {

struct Value;
using Names = std::map<std::string, Value, std::less<>>;

// None, a bool, an int, a str, a list or a dict; nothing (undefined); or a namespace, the one thing
// that can be changed.
struct Value {
  Json plain;
  bool defined = true;
  std::string name;              // of what is undefined
  std::shared_ptr<Names> names;  // of a namespace

  Value() = default;
  Value(Json value) : plain(std::move(value)) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] static Value undefined(std::string name);
  [[nodiscard]] bool is_text() const { return defined && !names && plain.is_string(); }
  [[nodiscard]] const std::string& text() const { return plain.get_ref<const std::string&>(); }
};

// What a value cannot do; whoever walks the tree adds the line.
struct NotUnderstood : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Arguments of a call, behind the value that it is of.
struct Arguments {
  std::vector<Value> values;
  std::map<std::string, Value> named;

  // The argument at `index` or of that name; undefined where there is none.
  [[nodiscard]] Value at(std::size_t index, const std::string& name) const;
  // Errors: NotUnderstood on more of them than `most`, or another name than `names`.
  void check(std::size_t most, std::initializer_list<std::string_view> names = {}) const;
};

[[nodiscard]] std::string kind_of(const Value& value);  // "a str"
[[nodiscard]] bool is_true(const Value& value);
[[nodiscard]] std::string text_of(const Value& value);  // as {{ value }} writes it
[[nodiscard]] std::vector<std::string> characters_of(const std::string& text);
[[nodiscard]] std::vector<Value> elements_of(const Value& value);  // as a loop takes them

// Errors of all that follow: NotUnderstood.
[[nodiscard]] Value attribute_of(const Value& value, const std::string& name);
[[nodiscard]] Value item_of(const Value& value, const Value& key);
[[nodiscard]] Value slice_of(const Value& value, const std::vector<Value>& bounds);
[[nodiscard]] Value unary_of(const std::string& sign, const Value& value);
[[nodiscard]] Value binary_of(const std::string& sign, const Value& left, const Value& right);
[[nodiscard]] bool compare(const std::string& sign, const Value& left, const Value& right);
[[nodiscard]] Value call_method(const Value& value, const std::string& name,
                                const Arguments& arguments);
[[nodiscard]] Value apply_filter(const std::string& name, const Value& value,
                                 const Arguments& arguments);
[[nodiscard]] bool passes_test(const std::string& name, const Value& value,
                               const Arguments& arguments);

// Python's str.strip(): white space, or any of `what`.
[[nodiscard]] std::string stripped(const std::string& text, bool left, bool right,
                                   const Value& what = Value::undefined(""));
// json.dumps(), with ensure_ascii false. indent 0: none.
[[nodiscard]] std::string json_text(const Json& value, int indent, int depth = 0);

inline constexpr std::size_t kLongestText = std::size_t{1} << 26U;

}  // namespace kvspan::tracegen::jinja
