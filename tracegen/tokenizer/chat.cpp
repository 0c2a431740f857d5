// SPDX-License-Identifier: Apache-2.0
// Chat templates are Jinja programs, which are not run: the form is told by its markers, and what
// varies within a form (a default system message, trimming) by pieces of the template's text.
#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {
namespace {

[[nodiscard]] bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// Python's str.strip(), for ASCII.
std::string stripped(std::string_view text, std::string_view what = " \t\n\r\v\f") {
  const std::size_t begin = text.find_first_not_of(what);
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(what) + 1 - begin));
}

// The inside of a Jinja string literal.
std::string unescaped(std::string_view literal) {
  std::string out;
  for (std::size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      out.push_back(literal[i]);
      continue;
    }
    const char c = literal[++i];
    out.push_back(c == 'n' ? '\n' : c == 't' ? '\t' : c);
  }
  return out;
}

// The string literals of a template that begin with `prefix`, unescaped, without it.
std::vector<std::string> literals_beginning(const std::string& text, std::string_view prefix) {
  std::vector<std::string> out;
  for (std::size_t at = text.find(prefix); at != std::string::npos;
       at = text.find(prefix, at + 1)) {
    if (at == 0 || (text[at - 1] != '\'' && text[at - 1] != '"')) continue;
    std::size_t end = at;
    while (end < text.size() && text[end] != text[at - 1]) end += text[end] == '\\' ? 2 : 1;
    if (end >= text.size()) continue;
    out.push_back(unescaped(std::string_view(text).substr(at, end - at)).substr(prefix.size()));
  }
  return out;
}

struct Conversation {
  std::optional<std::string> system;
  std::vector<ChatTurn> turns;  // user, assistant, ..., user
};

Conversation check(const TokenizerParts& tokenizer, std::span<const ChatTurn> turns) {
  Conversation out;
  for (const ChatTurn& turn : turns) {
    if (turn.role == "system" && &turn == turns.data()) {
      out.system = turn.content;
      continue;
    }
    const char* expected = out.turns.size() % 2 == 0 ? "user" : "assistant";
    if (turn.role != expected) {
      throw CheckpointError(fmt::format(
          "{}: turn {} of the conversation is of role '{}'; expected '{}' (an optional system "
          "message, then user and assistant in turn)",
          tokenizer.file, &turn - turns.data(), turn.role, expected));
    }
    out.turns.push_back(turn);
  }
  if (out.turns.size() % 2 == 0) {
    throw CheckpointError(tokenizer.file + ": the conversation must end with the user's turn");
  }
  return out;
}

std::string chatml(const std::string& form, const Conversation& conversation) {
  const auto turn = [](const std::string& role, const std::string& content) {
    return "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
  };
  std::string out;
  if (conversation.system) {
    out += turn("system", *conversation.system);
  } else {
    // The message that stands in for a missing one is written out in the template.
    for (const std::string& rest : literals_beginning(form, "<|im_start|>system")) {
      const std::size_t end = rest.find("<|im_end|>");
      if (!rest.starts_with('\n') || end == std::string::npos) continue;
      out += turn("system", rest.substr(1, end - 1));
      break;
    }
  }
  const bool drops_thoughts = has(form, "split('</think>')");
  for (const ChatTurn& t : conversation.turns) {
    std::string content = t.content;
    const std::size_t thought = content.rfind("</think>");
    if (drops_thoughts && t.role == "assistant" && thought != std::string::npos) {
      content.erase(0, thought + std::string_view("</think>").size());
      content.erase(0, content.find_first_not_of('\n'));
    }
    out += turn(t.role, content);
  }
  return out + "<|im_start|>assistant\n";
}

std::string llama3(const TokenizerParts& tokenizer, const Conversation& conversation,
                   const std::string& bos) {
  const std::string& form = tokenizer.chat_template;
  const auto turn = [](const std::string& role, const std::string& content) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n" + content + "<|eot_id|>";
  };
  std::string out = bos;
  std::string system = stripped(conversation.system.value_or(""));
  if (has(form, "Cutting Knowledge Date")) {  // Llama 3.1: always, with the date of the template
    if (has(form, "strftime_now")) {
      throw CheckpointError(tokenizer.file +
                            ": the chat template writes today's date into the prompt, which would "
                            "make captures differ by day; write the prompt out in the text");
    }
    const std::vector<std::string> dates = literals_beginning(form, "26 Jul 2024");
    if (dates.empty()) {
      throw CheckpointError(tokenizer.file + ": a Llama 3.1 chat template without its date_string");
    }
    system = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" + system;
    out += turn("system", system);
  } else if (conversation.system) {
    out += turn("system", system);
  }
  for (const ChatTurn& t : conversation.turns) out += turn(t.role, stripped(t.content));
  return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
}

std::string llama2(const Conversation& conversation, const std::string& bos,
                   const std::string& eos) {
  std::string out;
  for (const ChatTurn& t : conversation.turns) {
    std::string content = t.content;
    if (&t == conversation.turns.data() && conversation.system) {
      content = "<<SYS>>\n" + *conversation.system + "\n<</SYS>>\n\n" + content;
    }
    content = stripped(content);
    out += t.role == "user" ? bos + "[INST] " + content + " [/INST]" : " " + content + " " + eos;
  }
  return out;
}

// TinyLlama's and Zephyr's.
std::string role_lines(const Conversation& conversation, const std::string& eos) {
  std::string out;
  const auto turn = [&](const std::string& role, const std::string& content) {
    out += "<|" + role + "|>\n" + content + eos + "\n";
  };
  if (conversation.system) turn("system", *conversation.system);
  for (const ChatTurn& t : conversation.turns) turn(t.role, t.content);
  return out + "<|assistant|>\n";
}

}  // namespace

std::string render_chat(const TokenizerParts& tokenizer, std::span<const ChatTurn> turns) {
  const Conversation conversation = check(tokenizer, turns);
  const auto text_of = [&](std::optional<std::int32_t> id) {
    return id ? tokenizer.pieces[static_cast<std::size_t>(*id)] : std::string();
  };
  const std::string& form = tokenizer.chat_template;
  const auto marked = [&](const char* marker) {
    if (!form.empty()) return has(form, marker);
    return std::any_of(tokenizer.added.begin(), tokenizer.added.end(),
                       [&](const AddedToken& t) { return t.content == marker; });
  };
  if (marked("<|im_start|>")) return chatml(form, conversation);
  if (marked("<|start_header_id|>")) return llama3(tokenizer, conversation, text_of(tokenizer.bos));
  if (has(form, "<<SYS>>") && has(form, "[INST]")) {
    return llama2(conversation, text_of(tokenizer.bos), text_of(tokenizer.eos));
  }
  if (has(form, "<|user|>") && has(form, "eos_token")) {
    return role_lines(conversation, text_of(tokenizer.eos));
  }
  throw CheckpointError(
      form.empty()
          ? tokenizer.file + ": has no chat template and no special tokens of a known chat format"
          : tokenizer.file +
                ": the chat template is of no known form; known by their markers: ChatML "
                "(<|im_start|>), Llama 3 (<|start_header_id|>), Llama 2 (<<SYS>>), Zephyr "
                "(<|user|>)");
}

}  // namespace kvspan::tracegen
