// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "tracegen/tokenizer/tokenizer.h"

namespace kvspan::cli {
namespace {

struct TokenizeSettings {
  std::string model, text;
  bool ids = false, json = false, chat = false, plain = false;
};

std::string read_all(const std::string& path) {
  if (path.empty()) {
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  }
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) {
    throw CheckpointError(fmt::format("text '{}' cannot be read", path));
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// What can be printed stands for itself, the rest and parts of characters as \n or \xNN.
std::string escaped(std::string_view piece) {
  std::string out;
  const std::string valid = nlohmann::json(std::string(piece))
                                .dump(-1, ' ', false, nlohmann::json::error_handler_t::ignore);
  const bool whole = valid.size() >= piece.size() + 2;
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\\') {
      out += "\\\\";
    } else if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !whole)) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

nlohmann::json to_json(const tracegen::Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  nlohmann::json out = {{"ids", ids}, {"pieces", nlohmann::json::array()}};
  for (const std::int32_t id : ids) out["pieces"].push_back(escaped(tokenizer.piece(id)));
  return out;
}

void tokenize(const TokenizeSettings& s) {
  const tracegen::Tokenizer tokenizer = tracegen::Tokenizer::open(s.model);
  std::string text = read_all(s.text);
  if (s.chat) text = tokenizer.chat(std::vector<tracegen::ChatTurn>{{"user", text}});
  const std::vector<std::int32_t> ids = tokenizer.encode(text, !s.plain);
  if (s.json) {
    fmt::print("{}\n", to_json(tokenizer, ids).dump());
    return;
  }
  if (s.ids) {
    fmt::print("{}\n", fmt::join(ids, " "));
    return;
  }
  const int index_width = static_cast<int>(std::to_string(ids.size()).size());
  const int id_width = static_cast<int>(std::to_string(tokenizer.vocabulary()).size());
  fmt::print("{:>{}}  {:>{}}  piece\n", "#", index_width, "id", id_width);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    fmt::print("{:>{}}  {:>{}}  '{}'\n", i, index_width, ids[i], id_width,
               escaped(tokenizer.piece(ids[i])));
  }
  if (s.chat) {
    fmt::print("\n{} tokens of {} bytes; no bos beside what the chat template writes\n", ids.size(),
               text.size());
    return;
  }
  const tracegen::Tokenizer::Bos& bos = tokenizer.bos_setting();
  fmt::print(
      "\n{} tokens of {} bytes; leading bos: {} ({})\n", ids.size(), text.size(),
      bos.adds ? fmt::format("added by capture, id {}", tokenizer.bos().value_or(-1)) : "none",
      bos.why);
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto s = std::make_shared<TokenizeSettings>();
  CLI::App* sub =
      app.add_subcommand("tokenize", "Token ids of a text, as a model's tokenizer has it");
  sub->add_option("--model", s->model, "Folder with tokenizer.json, or a .gguf file")
      ->required()
      ->type_name("DIR|FILE");
  sub->add_option("--text", s->text, "UTF-8 text; none, or -: standard input")
      ->transform(input_file())
      ->type_name("FILE");
  sub->add_flag("--ids", s->ids, "Only the ids, separated by spaces");
  sub->add_flag("--json", s->json, "Ids and pieces as JSON")->excludes("--ids");
  sub->add_flag("--chat", s->chat, "Wrap the text as a user's turn of the model's chat format");
  sub->add_flag("--plain", s->plain, "Special tokens written in the text are ordinary text");
  sub->footer(R"help(
Examples:
  echo "Hello, world" | kvspan tokenize --model DIR
  kvspan tokenize --model MODEL.gguf --text prompt.txt --chat --ids)help");
  sub->callback([s] { tokenize(*s); });
}

}  // namespace kvspan::cli
