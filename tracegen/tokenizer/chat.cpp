// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/tokenizer/parts.h"
#include "tracegen/tokenizer/template.h"
#include "tracegen/tokenizer/template_syntax.h"

namespace kvspan::tracegen {
namespace {

// The turns as a template gets them: an optional system message, then user and assistant in turn.
jinja::Json messages_of(const TokenizerParts& tokenizer, std::span<const ChatTurn> turns) {
  jinja::Json out = jinja::Json::array();
  bool user = true;
  for (const ChatTurn& turn : turns) {
    out.push_back({{"role", turn.role}, {"content", turn.content}});
    if (turn.role == "system" && &turn == turns.data()) continue;
    const char* expected = user ? "user" : "assistant";
    if (turn.role != expected) {
      throw CheckpointError(fmt::format(
          "{}: turn {} of the conversation is of role '{}'; expected '{}' (an optional system "
          "message, then user and assistant in turn)",
          tokenizer.file, &turn - turns.data(), turn.role, expected));
    }
    user = !user;
  }
  if (user)
    throw CheckpointError(tokenizer.file + ": the conversation must end with the user's turn");
  return out;
}

}  // namespace

std::string render_chat(const TokenizerParts& tokenizer, std::span<const ChatTurn> turns) {
  jinja::Json variables = {{"messages", messages_of(tokenizer, turns)},
                           {"add_generation_prompt", true},
                           {"tools", nullptr},
                           {"documents", nullptr}};
  if (tokenizer.chat_template.empty()) {
    throw CheckpointError(tokenizer.file +
                          ": has no chat template; expected one, or the whole prompt written out "
                          "in the text");
  }
  for (const auto& [name, token] : tokenizer.named_tokens) variables[name] = token;
  try {
    return jinja::render(tokenizer.chat_template, variables);
  } catch (const jinja::TemplateError& error) {
    throw CheckpointError(fmt::format(
        "{}: the chat template, {}; expected one that is understood, or the whole prompt written "
        "out in the text",
        tokenizer.file, one_line(valid_utf8(error.what()))));
  }
}

}  // namespace kvspan::tracegen
