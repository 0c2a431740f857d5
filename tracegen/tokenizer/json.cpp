// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "tracegen/tokenizer/json_file.h"
#include "tracegen/tokenizer/parts.h"

namespace kvspan::tracegen {

namespace {

using nlohmann::json;

using Vocabulary = std::unordered_map<std::string, std::int32_t>;

Vocabulary read_vocabulary(const JsonFile& file, const json& model) {
  const json& vocab = JsonFile::member(model, "vocab");
  if (!vocab.is_object()) {
    file.fail(fmt::format("model.vocab is {}; expected an object of tokens and ids", shown(vocab)));
  }
  Vocabulary out;
  out.reserve(vocab.size());
  for (const auto& [token, id] : vocab.items()) {
    out.emplace(token, file.id(id, fmt::format("model.vocab['{}']", token)));
  }
  return out;
}

// "a b", or ["a", "b"]
std::pair<std::string, std::string> read_pair(const JsonFile& file, const json& merge,
                                              std::size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  if (merge.is_string()) {
    const std::string text = merge.get<std::string>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  file.fail(fmt::format("model.merges[{}] is {}; expected \"LEFT RIGHT\" or [LEFT, RIGHT]", index,
                        shown(merge)));
}

std::vector<Bpe::Merge> read_merges(const JsonFile& file, const json& model,
                                    const Vocabulary& vocabulary) {
  const json& merges = JsonFile::member(model, "merges");
  if (!merges.is_array()) {
    file.fail(fmt::format("model.merges is {}; expected an array of pairs", shown(merges)));
  }
  std::vector<Bpe::Merge> out;
  out.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = read_pair(file, merges[i], i);
    const auto id_of = [&, index = i](const std::string& token) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end()) {
        file.fail(fmt::format("model.merges[{}] needs token '{}', which model.vocab does not have",
                              index, token));
      }
      return found->second;
    };
    out.push_back({id_of(left), id_of(right), static_cast<std::uint32_t>(i), id_of(left + right)});
  }
  return out;
}

std::vector<AddedToken> read_added(const JsonFile& file, const Vocabulary& vocabulary) {
  const json& added = file["added_tokens"];
  std::vector<AddedToken> out;
  if (added.is_null()) return out;
  if (!added.is_array()) file.fail("added_tokens is " + shown(added) + "; expected an array");
  for (std::size_t i = 0; i < added.size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    const json& one = added[i];
    if (!one.is_object() || !JsonFile::member(one, "content").is_string()) {
      file.fail(fmt::format("{} is {}; expected an object with id and content", where, shown(one)));
    }
    AddedToken token;
    token.content = one["content"].get<std::string>();
    token.id = file.id(JsonFile::member(one, "id"), where + ".id");
    token.special = file.flag(one, "special", where);
    token.lstrip = file.flag(one, "lstrip", where);
    token.rstrip = file.flag(one, "rstrip", where);
    token.single_word = file.flag(one, "single_word", where);
    token.normalized = file.flag(one, "normalized", where);
    const auto known = vocabulary.find(token.content);
    if (known != vocabulary.end()) token.id = known->second;  // as the library has it
    const bool again = std::any_of(out.begin(), out.end(),
                                   [&](const AddedToken& t) { return t.content == token.content; });
    if (!again) out.push_back(std::move(token));
  }
  // Special tokens come first where two are the same after normalization.
  std::stable_partition(out.begin(), out.end(), [](const AddedToken& t) { return t.special; });
  return out;
}

// The texts of all ids, as `piece_of` makes them from the vocabulary's words.
std::vector<std::string> read_pieces(
    const JsonFile& file, const Vocabulary& vocabulary, const std::vector<AddedToken>& added,
    const std::function<std::string(const std::string&)>& piece_of) {
  std::int32_t last = -1;
  for (const auto& [token, id] : vocabulary) last = std::max(last, id);
  for (const AddedToken& t : added) last = std::max(last, t.id);
  std::vector<std::string> pieces(static_cast<std::size_t>(last + 1));
  std::vector<const std::string*> owner(pieces.size());
  const auto put = [&](const std::string& token, std::int32_t id, std::string piece) {
    const auto i = static_cast<std::size_t>(id);
    if (owner[i] != nullptr && *owner[i] != token) {
      file.fail(fmt::format("tokens '{}' and '{}' both have the id {}", std::min(*owner[i], token),
                            std::max(*owner[i], token), id));
    }
    owner[i] = &token;
    pieces[i] = std::move(piece);
  };
  for (const auto& [token, id] : vocabulary) put(token, id, piece_of(token));
  for (const AddedToken& t : added) put(t.content, t.id, t.content);
  return pieces;
}

// The first step of the post-processor's template, where it is a token: "<s>".
std::optional<std::string> leading_token(const json& processor) {
  if (!processor.is_object()) return std::nullopt;
  const json& members = JsonFile::member(processor, "processors");
  if (members.is_array()) {
    for (const json& one : members) {
      if (one.is_object() && JsonFile::member(one, "processors").is_null()) {
        if (auto found = leading_token(one)) return found;
      }
    }
  }
  const json& steps = JsonFile::member(processor, "single");
  if (!steps.is_array() || steps.empty() || !steps[0].is_object()) return std::nullopt;
  const json& token = JsonFile::member(steps[0], "SpecialToken");
  if (!token.is_object() || !JsonFile::member(token, "id").is_string()) return std::nullopt;
  return token["id"].get<std::string>();
}

// A name, or an object with 'content'.
std::string token_name(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && JsonFile::member(value, "content").is_string()) {
    return value["content"].get<std::string>();
  }
  return {};
}

std::string read_template(const JsonFile& config) {
  const json& found = config["chat_template"];
  if (found.is_string()) return found.get<std::string>();
  if (!found.is_array()) return {};
  for (const json& one : found) {  // several, by name
    if (one.is_object() && JsonFile::member(one, "name") == "default" &&
        JsonFile::member(one, "template").is_string()) {
      return one["template"].get<std::string>();
    }
  }
  return {};
}

bool has_strip(const json& decoder) {
  if (!decoder.is_object()) return false;
  const json& members = JsonFile::member(decoder, "decoders");
  if (members.is_array())
    return std::any_of(members.begin(), members.end(), [](const json& one) {
      return one.is_object() && JsonFile::member(one, "decoders").is_null() && has_strip(one);
    });
  const json& type = JsonFile::member(decoder, "type");
  if (type == "Strip") {
    return JsonFile::member(decoder, "content") == " " && JsonFile::member(decoder, "start") == 1;
  }
  return type == "Metaspace" && JsonFile::member(decoder, "prepend_scheme") != "never" &&
         JsonFile::member(decoder, "add_prefix_space") != false;
}

// "bos_token": "<s>" and so on, as transformers gives them to a template: those of the
// configuration, and, where that does not list the added tokens, those of special_tokens_map.json.
std::map<std::string, std::string> named_tokens_of(const std::filesystem::path& folder,
                                                   const JsonFile& config) {
  std::map<std::string, std::string> out;
  const auto take = [&](const json& object) {
    if (!object.is_object()) return;
    for (const auto& [key, value] : object.items()) {
      const std::string token = key.ends_with("_token") ? token_name(value) : std::string();
      if (!token.empty()) out[key] = token;
    }
  };
  take(config.root());
  take(config["extra_special_tokens"]);
  const std::filesystem::path map = folder / "special_tokens_map.json";
  if (config["added_tokens_decoder"].is_null() && std::filesystem::exists(map))
    take(JsonFile(map).root());
  return out;
}

void read_config(const std::filesystem::path& folder, const JsonFile& file, TokenizerParts& out) {
  const auto find = [&](const std::string& name) -> std::optional<std::int32_t> {
    for (const AddedToken& t : out.added) {
      if (t.content == name) return t.id;
    }
    return std::nullopt;
  };
  const std::optional<std::string> leading = leading_token(file["post_processor"]);
  out.bos_setting = {leading.has_value(), "post-processor of tokenizer.json"};
  if (leading) {
    out.bos = find(*leading);
    if (!out.bos) {
      file.fail(fmt::format("post_processor begins with '{}', which added_tokens does not have",
                            *leading));
    }
  } else {
    out.bos_setting.why = "neither tokenizer.json nor tokenizer_config.json asks for one";
  }
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  if (!std::filesystem::exists(config_path)) return;
  const JsonFile config(config_path);
  out.named_tokens = named_tokens_of(folder, config);
  if (!out.bos) out.bos = find(out.named_tokens["bos_token"]);
  out.eos = find(out.named_tokens["eos_token"]);
  std::erase_if(out.named_tokens, [](const auto& named) { return named.second.empty(); });
  const json& adds = config["add_bos_token"];
  if (adds.is_boolean()) {
    out.bos_setting = {adds.get<bool>(), "add_bos_token of tokenizer_config.json"};
    if (out.bos_setting.adds && !out.bos) {
      config.fail(
          fmt::format("add_bos_token is true, and bos_token is {}; expected a token of "
                      "tokenizer.json",
                      shown(config["bos_token"])));
    }
  }
  out.chat_template = read_template(config);
}

std::string template_of_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

TokenizerParts read_tokenizer_json(const std::filesystem::path& folder) {
  const JsonFile file(folder / "tokenizer.json");
  const json& model = file["model"];
  if (!model.is_object()) file.fail("model is " + shown(model) + "; expected an object");
  // Files of old do not name the type; only BPE has merges.
  const json& type = JsonFile::member(model, "type");
  if (type != "BPE" && !(type.is_null() && model.contains("merges"))) {
    file.fail(fmt::format("model.type is {}; only \"BPE\" is supported", shown(type)));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = JsonFile::member(model, key);
    if (!value.is_null() && value != "") {
      file.fail(fmt::format("model.{} is {}, which is not supported", key, shown(value)));
    }
  }
  if (const json& dropout = JsonFile::member(model, "dropout");
      !dropout.is_null() && dropout != 0) {
    file.fail("model.dropout is " + shown(dropout) + "; a tokenizer that is random is refused");
  }

  TokenizerParts out;
  out.file = file.at("").substr(0, file.at("").size() - 2);
  out.normalizers = make_normalizers(file["normalizer"], file.at("normalizer"));
  out.pre_tokenizers = make_pre_tokenizers(file["pre_tokenizer"], file.at("pre_tokenizer"));

  Vocabulary vocabulary = read_vocabulary(file, model);
  Bpe::Options options;
  options.byte_level = out.pre_tokenizers.byte_level;
  options.byte_fallback = file.flag(model, "byte_fallback", "model");
  options.fuse_unk = file.flag(model, "fuse_unk", "model");
  options.ignore_merges = file.flag(model, "ignore_merges", "model");
  if (options.byte_level && options.byte_fallback) {
    file.fail("byte_fallback with a ByteLevel pre-tokenizer is not supported");
  }
  if (const json& unk = JsonFile::member(model, "unk_token"); !unk.is_null()) {
    const auto found = vocabulary.find(token_name(unk));
    if (found == vocabulary.end()) {
      file.fail(fmt::format("model.unk_token is {}, which model.vocab does not have", shown(unk)));
    }
    options.unk = found->second;
  }
  std::vector<Bpe::Merge> merges = read_merges(file, model, vocabulary);
  out.added = read_added(file, vocabulary);

  if (options.byte_level) {
    out.pieces = read_pieces(file, vocabulary, out.added, [](const std::string& token) {
      return bytes_of_printable(token).value_or(token);
    });
    // What has other characters than the alphabet cannot be reached by merging bytes.
    Vocabulary raw;
    for (const auto& [token, id] : vocabulary) {
      if (auto bytes = bytes_of_printable(token)) raw.emplace(std::move(*bytes), id);
    }
    vocabulary = std::move(raw);
  } else {
    out.pieces = read_pieces(file, vocabulary, out.added, [&](const std::string& token) {
      return piece_of_sentencepiece(token, options.byte_fallback);
    });
  }
  out.bpe.emplace(std::move(vocabulary), std::move(merges), options);
  out.strips_space = has_strip(file["decoder"]);
  read_config(folder, file, out);
  if (const auto path = folder / "chat_template.jinja"; std::filesystem::exists(path)) {
    out.chat_template = template_of_file(path);
  }
  return out;
}

}  // namespace kvspan::tracegen
