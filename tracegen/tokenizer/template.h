// SPDX-License-Identifier: Apache-2.0
// Chat templates: the part of Jinja that they use, with the settings of transformers (trim_blocks,
// lstrip_blocks, {% generation %}, break and continue). A template is run, not guessed at; what
// this part does not have is refused with its line, and only where a conversation comes to it.
//
//   template_scan    text and tags, their white space, the words of a tag
//   template_syntax  statements and expressions as trees
//   template_value   Python's values: operators, methods, filters, tests
//   template_run     the walk over the tree
//
// Private to tracegen/tokenizer. Source: jinja2 3.1, transformers' chat_template_utils.
#pragma once

#include <stdexcept>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace kvspan::tracegen::jinja {

// What is not understood of a template, or what it refuses itself, with the line.
class TemplateError : public std::runtime_error {
 public:
  TemplateError(int line, const std::string& what)
      : std::runtime_error("line " + std::to_string(line) + ": " + what) {}
};

// The text that `source` makes of an object of variables. Errors: TemplateError.
[[nodiscard]] std::string render(const std::string& source,
                                 const nlohmann::ordered_json& variables);

}  // namespace kvspan::tracegen::jinja
