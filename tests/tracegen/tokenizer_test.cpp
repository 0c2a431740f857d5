// SPDX-License-Identifier: Apache-2.0
// Ids are compared with those of the library `tokenizers`, written by
// tests/tracegen/make_tokenizer_fixtures.py, which also says what the fixtures are.
#include "tracegen/tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "tests/support/file_bytes.h"
#include "tests/support/temporary_folder.h"

using Catch::Contains;
using kvspan::CheckpointError;
using kvspan::tracegen::ChatTurn;
using kvspan::tracegen::Tokenizer;
using kvspan::tracegen::testing::read_bytes;
using nlohmann::json;
using Folder = kvspan::test::TemporaryFolder;
using Ids = std::vector<std::int32_t>;
namespace fs = std::filesystem;

namespace {

const fs::path kTokenizers = fs::path(KVSPAN_TESTS_DIR) / "data" / "tracegen" / "tokenizers";
const fs::path kBundled = fs::path(KVSPAN_TRACES_DIR) / "minimind2-small";

json read_json(const fs::path& path) { return json::parse(read_bytes(path)); }

const json& expected() {
  static const json value = read_json(kTokenizers / "expected.json");
  return value;
}

fs::path write(const Folder& folder, const std::string& name, const std::string& bytes) {
  std::ofstream(folder / name, std::ios::binary) << bytes;
  return folder / name;
}

// A tokenizer of the fixtures with fields written over it.
Tokenizer changed(const std::string& base, const json& change, const json& config = nullptr) {
  const Folder folder;
  json file = read_json(kTokenizers / base / "tokenizer.json");
  file.update(change, true);
  (void)write(folder, "tokenizer.json", file.dump());
  if (!config.is_null()) (void)write(folder, "tokenizer_config.json", config.dump());
  return Tokenizer::open(folder.path);
}

void check_ids(const Tokenizer& tokenizer, const json& ids) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto text = expected()["texts"][i].get<std::string>();
    INFO("text " << i << ": " << json(text).dump(-1, ' ', true));
    CHECK(tokenizer.encode(text) == ids[i].get<Ids>());
  }
}

}  // namespace

TEST_CASE("ids equal those of the tokenizers library", "[tokenizer]") {
  REQUIRE(expected()["ids"].size() == 6);
  for (const auto& [name, ids] : expected()["ids"].items()) {
    INFO(name);
    check_ids(Tokenizer::open(kTokenizers / name), ids);
  }
}

TEST_CASE("a GGUF file's tokenizer gives the ids of its tokenizer.json", "[tokenizer][gguf]") {
  REQUIRE(expected()["gguf"].size() == 5);
  for (const auto& [name, ids] : expected()["gguf"].items()) {
    INFO(name);
    check_ids(Tokenizer::open(kTokenizers / (name + ".gguf")), ids);
  }
}

TEST_CASE("normalizers and pre-tokenizers do what the tokenizers library does", "[tokenizer]") {
  REQUIRE(expected()["variations"].size() > 30);
  for (const json& variation : expected()["variations"]) {
    INFO(variation["base"] << " with " << variation["change"].dump());
    const json& change = variation["change"];
    const Folder folder;
    json file = read_json(kTokenizers / variation["base"].get<std::string>() / "tokenizer.json");
    for (const auto& [key, value] : change.items()) file[key] = value;
    (void)write(folder, "tokenizer.json", file.dump());
    check_ids(Tokenizer::open(folder.path), variation["ids"]);
  }
}

TEST_CASE("the bundled tokenizer gives the reference's ids of the bundled texts", "[tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::open(kBundled);
  const json bundled = read_json(kTokenizers / "bundled.json");
  REQUIRE(bundled["ids"].size() == 4);
  for (const auto& [name, ids] : bundled["ids"].items()) {
    INFO(name);
    const std::string text = read_bytes(fs::path(KVSPAN_TRACES_DIR) / "texts" / name);
    const Ids all = tokenizer.encode(text);
    CHECK(Ids(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(ids.size())) ==
          ids.get<Ids>());
    CHECK(tokenizer.decode(all) == text);
  }
  CHECK(tokenizer.vocabulary() == 6400);
  CHECK(tokenizer.bos() == 1);
  CHECK(tokenizer.eos() == 2);
  CHECK(tokenizer.special_ids() == Ids{0, 1, 2});
  CHECK(tokenizer.id_of("<|im_end|>") == 2);
  CHECK_FALSE(tokenizer.id_of("<|nothing|>").has_value());
  CHECK_FALSE(tokenizer.bos_setting().adds);
  CHECK_THAT(tokenizer.bos_setting().why, Contains("tokenizer_config.json"));
}

TEST_CASE("pieces put together are the text", "[tokenizer]") {
  for (const auto& [name, decoded] : expected()["decoded"].items()) {
    const Tokenizer tokenizer = Tokenizer::open(kTokenizers / name);
    for (std::size_t i = 0; i < decoded.size(); ++i) {
      const Ids ids = expected()["ids"][name][i + 2].get<Ids>();
      INFO(name);
      CHECK(tokenizer.decode(ids) == decoded[i].get<std::string>());
    }
    CHECK(tokenizer.piece(-1).empty());
    CHECK(tokenizer.piece(static_cast<std::int32_t>(tokenizer.vocabulary())).empty());
  }
  for (const char* name : {"sentencepiece", "sentencepiece.gguf"}) {
    const Tokenizer tokenizer = Tokenizer::open(kTokenizers / name);
    CHECK(tokenizer.piece(3 + '\n') == "\n");  // <unk> <s> </s> <0x00> ...
    CHECK(tokenizer.piece(3 + 0xE2) == "\xE2");
    CHECK(tokenizer.piece(tokenizer.encode("the").front()).front() == ' ');
    const std::string text = " two  spaces, \xE4\xBD\xA0\xE5\xA5\xBD\n";
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("special tokens in the text are found unless they are to be plain", "[tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::open(kBundled);
  CHECK(tokenizer.encode("<|im_start|>x<|im_end|>").front() == 1);
  CHECK(tokenizer.encode("<|im_start|>x<|im_end|>").back() == 2);
  const Ids plain = tokenizer.encode("<|im_start|>x<|im_end|>", false);
  CHECK(std::count_if(plain.begin(), plain.end(), [](auto id) { return id < 3; }) == 0);
  CHECK(tokenizer.decode(plain) == "<|im_start|>x<|im_end|>");
  // "word" is no special token, and is found in both cases.
  const Tokenizer gpt2 = Tokenizer::open(kTokenizers / "gpt2");
  CHECK(gpt2.encode("word", false) == Ids{*gpt2.id_of("word")});
}

TEST_CASE("an added token that the vocabulary has keeps the vocabulary's id", "[tokenizer]") {
  // It was refused; tokenizers 0.23 warns and takes the vocabulary's.
  const Tokenizer plain = Tokenizer::open(kTokenizers / "gpt2");
  const Tokenizer other =
      changed("gpt2", {{"added_tokens", {{{"id", 300}, {"content", "!"}, {"special", true}}}}});
  REQUIRE(plain.encode("!").size() == 1);
  CHECK(other.encode("!") == plain.encode("!"));
  CHECK(other.special_ids() == plain.encode("!"));
}

TEST_CASE("a leading bos follows the tokenizer's own settings", "[tokenizer]") {
  const auto llama3 = Tokenizer::open(kTokenizers / "llama3");
  CHECK(llama3.bos_setting().adds);
  CHECK_THAT(llama3.bos_setting().why, Contains("post-processor"));
  CHECK(llama3.bos() == llama3.id_of("<|begin_of_text|>"));
  const auto off = changed("llama3", json::object(), {{"add_bos_token", false}});
  CHECK_FALSE(off.bos_setting().adds);
  CHECK_THAT(off.bos_setting().why, Contains("add_bos_token"));
  const auto on =
      changed("gpt2", json::object(), {{"add_bos_token", true}, {"bos_token", "<|end|>"}});
  CHECK(on.bos_setting().adds);
  CHECK(on.bos() == on.id_of("<|end|>"));
  const auto none = Tokenizer::open(kTokenizers / "gpt2");
  CHECK_FALSE(none.bos_setting().adds);
  CHECK_FALSE(none.bos().has_value());
  const auto gguf = Tokenizer::open(kTokenizers / "sentencepiece.gguf");
  CHECK(gguf.bos_setting().adds);
  CHECK(gguf.bos() == 1);
  CHECK(gguf.eos() == 2);
  CHECK(Tokenizer::open(kTokenizers / "llama3.gguf").bos_setting().adds);
  CHECK_FALSE(Tokenizer::open(kTokenizers / "smollm.gguf").bos_setting().adds);
  CHECK_THROWS_WITH(changed("gpt2", json::object(), {{"add_bos_token", true}}),
                    Contains("bos_token is null"));
}

TEST_CASE("conversations are written as transformers writes them", "[tokenizer][chat]") {
  const json fixture = read_json(kTokenizers / "chat.json");
  json templates = fixture["templates"];
  templates["minimind"] = read_json(kBundled / "tokenizer_config.json")["chat_template"];
  REQUIRE(fixture["chats"].size() == 105);
  for (const json& chat : fixture["chats"]) {
    const auto form = chat["form"].get<std::string>();
    INFO(form << " " << chat["turns"]);
    const Tokenizer tokenizer = changed("sentencepiece", json::object(),
                                        {{"chat_template", templates[form]},
                                         {"bos_token", "<s>"},
                                         {"eos_token", {{"content", "</s>"}}}});
    std::vector<ChatTurn> turns;
    for (const json& turn : chat["turns"]) turns.push_back({turn[0], turn[1]});
    if (chat.contains("text")) {
      CHECK(tokenizer.chat(turns) == chat["text"].get<std::string>());
    } else {
      CHECK_THROWS_WITH(tokenizer.chat(turns), Contains("the chat template, line 1: "));
    }
  }
  const Tokenizer bundled = Tokenizer::open(kBundled);
  const auto chat = [&](std::vector<ChatTurn> turns) { return bundled.chat(turns); };
  CHECK_THROWS_WITH(chat({}), Contains("must end with the user's turn"));
  CHECK_THROWS_WITH(chat({{"user", "a"}, {"assistant", "b"}}), Contains("must end"));
  CHECK_THROWS_WITH(chat({{"user", "a"}, {"tool", "b"}}), Contains("role 'tool'"));
  const std::vector<ChatTurn> hello = {{"user", "Hello"}};
  CHECK_THROWS_WITH(Tokenizer::open(kTokenizers / "gpt2").chat(hello),
                    Contains("no chat template"));
}

TEST_CASE("a template gets the tokens that transformers gives it", "[tokenizer][chat]") {
  // Expected: apply_chat_template of transformers 5.24 on the same files.
  const auto written = [](json config, const char* map = nullptr) {
    const Folder folder;
    (void)write(folder, "tokenizer.json", read_bytes(kTokenizers / "sentencepiece/tokenizer.json"));
    config["chat_template"] = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}";
    (void)write(folder, "tokenizer_config.json", config.dump());
    if (map != nullptr) (void)write(folder, "special_tokens_map.json", map);
    return Tokenizer::open(folder.path).chat(std::vector<ChatTurn>{{"user", "Hello"}});
  };
  CHECK(written({{"bos_token", "<s>"}, {"eos_token", nullptr}, {"pad_token", "</s>"}}) ==
        "<s>||</s>|");
  CHECK(written({{"bos_token", "<s>"}, {"extra_special_tokens", {{"image_token", "</s>"}}}}) ==
        "<s>|||</s>");
  const char* map = R"({"bos_token": "</s>", "eos_token": {"content": "</s>"}})";
  CHECK(written({{"bos_token", "<s>"}}, map) == "</s>|</s>||");
  CHECK(written({{"bos_token", "<s>"}, {"added_tokens_decoder", json::object()}}, map) == "<s>|||");
}

TEST_CASE("what is not understood of a chat template is refused with its line",
          "[tokenizer][chat][malformed]") {
  // Forms were told by their markers; what else a template said was passed over.
  const auto written = [](const std::string& form) {
    const Tokenizer tokenizer = changed("gpt2", json::object(), {{"chat_template", form}});
    return tokenizer.chat(std::vector<ChatTurn>{{"user", "Hello"}});
  };
  CHECK(written("a{% if false %}{{ messages | sort }}{% endif %}b") == "ab");  // not come to
  CHECK(written("{% if strftime_now is defined %}now{% endif %}") == "now");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\n\n{{ messages | sort }}", "line 3: the filter 'sort' is not understood"},
      {"{{ messages.pop() }}", "line 1: the method 'pop' of a list is not understood"},
      {"{{ strftime_now('%d %b %Y') }}", "it writes today's date into the prompt"},
      {"{{ raise_exception('no system') }}", "it refuses the conversation: no system"},
      {"{{ messages[0].content.x.y }}", "'x' is undefined"},
      {"{% include 'x' %}", "the statement 'include' is not understood"},
      {"{{ 1.5 }}", "a number that is no plain integer"},
      {"{{ 'a' is lower }}", "the test 'lower' is not understood"},
      {"{{ lipsum() }}", "the function 'lipsum' is not understood"},
      {"{{ messages }}", "a list as text is not understood"},
      {"{{ 'a' + 1 }}", "a str + an int is not understood"},
      {"{{ a b }}", "'b' is not understood there"},
      {"{{ (1 }}", "a tag does not end"},
      {"{{ 'a", "a string does not end"},
      {"{% if x %}a", "'endif' is missing"},
      {"{% endif %}", "the statement 'endif' is not understood"},
      {"{% for x in range(2000000) %}{% endfor %}", "a range without end"},
      {"{% for i in range(400000) %}{{ '' }}{% endfor %}", "does not come to an end"},
      {"{% set n = namespace(t='xxxxxxxx') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}"
       "{% endfor %}",
       "grows without end"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "macros that call themselves"},
      {"{{ " + std::string(300, '(') + "1" + std::string(300, ')') + " }}",
       "nested deeper than 64"},
      {"{{ 1" + std::string(2000, '+') + "1 }}", "more than 1000 words"},
  };
  for (const auto& [form, message] : cases) {
    INFO(form.substr(0, 100));
    CHECK_THROWS_WITH(written(form),
                      Contains("tokenizer.json: the chat template, ") && Contains(message));
  }
}

TEST_CASE("a text that is not UTF-8 is refused with its offset", "[tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::open(kBundled);
  for (const char* bad : {"abc\xFF", "abc\xC3", "abc\xED\xA0\x80", "abc\xC0\x80", "abc\x80",
                          "abc\xF4\x90\x80\x80", "abc\xE2\x82"}) {
    CHECK_THROWS_WITH(tokenizer.encode(bad), Contains("not UTF-8") && Contains("offset 3"));
  }
}

TEST_CASE("what is not supported is refused by name", "[tokenizer][malformed]") {
  const auto split = [](const std::string& regex) {
    return json{{"pre_tokenizer",
                 {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}}}};
  };
  json deep = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) deep = {{"type", "Sequence"}, {"normalizers", {deep}}};
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"model", {{"type", "Unigram"}}}}, "model.type is \"Unigram\""},
      {{{"model", nullptr}}, "model is null"},
      {{{"model", {{"dropout", 0.1}}}}, "dropout is 0.1"},
      {{{"model", {{"end_of_word_suffix", "</w>"}}}}, "end_of_word_suffix"},
      {{{"model", {{"byte_fallback", true}}}}, "byte_fallback"},
      {{{"model", {{"unk_token", "<none>"}}}}, "unk_token is \"<none>\""},
      {{{"model", {{"vocab", json::array()}}}}, "model.vocab is []"},
      {{{"model", {{"vocab", {{"zz", -1}}}}}}, "model.vocab['zz'] is -1"},
      {{{"model", {{"vocab", {{"zz", 99999999999}}}}}}, "99999999999"},
      {{{"model", {{"vocab", {{"zz", 7}}}}}}, "both have the id 7"},
      {{{"model", {{"merges", 3}}}}, "model.merges is 3"},
      {{{"model", {{"merges", {"one"}}}}}, "model.merges[0] is \"one\""},
      {{{"model", {{"merges", {"q\xC2\xA1 q"}}}}}, "model.vocab does not have"},
      {{{"added_tokens", {{{"id", 3}, {"content", "<x>"}}}}}, "both have the id 3"},
      {{{"added_tokens", {{{"id", "3"}, {"content", "<x>"}}}}}, "added_tokens[0].id is \"3\""},
      {{{"added_tokens", 3}}, "added_tokens is 3"},
      {{{"pre_tokenizer", {{"type", "Bert\nPreTokenizer"}}}}, "'Bert\\x0aPreTokenizer' is not"},
      {{{"pre_tokenizer", {{"type", "Digits"}, {"individual_digits", 3}}}}, "individual_digits"},
      {{{"normalizer", {{"type", "BertNormalizer"}}}}, "normalizer 'BertNormalizer' is not"},
      {{{"normalizer", 3}}, "normalizer: is 3"},
      {{{"normalizer", deep}}, "nested deeper than 16"},
      {{{"normalizer", {{"type", "Replace"}, {"content", ""}}}}, "'pattern' is missing"},
      {split("[a"), "missing terminating ]"},
      {split("(?<name>x)"), "the group '(?<n' is not supported"},
      {split("[a[bc]]"), "a set inside a set"},
      {split("[a-z&&[^b]]"), "intersection"},
      {split("\\h"), "'\\h' is not supported"},
      {split("\\p{Klingon}"), "property 'Klingon'"},
      {split("x{1,2}+"), "'+' behind a repetition"},
      {split("a(?i)b|c"), "the group '(?i)'"},
      {split("a\\"), "ends in a backslash"},
  };
  for (const auto& [change, message] : cases) {
    INFO(change.dump().substr(0, 200));
    CHECK_THROWS_WITH(changed("gpt2", change), Contains(message) && Contains("tokenizer.json"));
    CHECK_THROWS_AS(changed("gpt2", change), CheckpointError);
  }
  const Folder folder;
  CHECK_THROWS_WITH(Tokenizer::open(folder.path), Contains("tokenizer.json: cannot be read"));
  (void)write(folder, "tokenizer.json", "[1, 2]");
  CHECK_THROWS_WITH(Tokenizer::open(folder.path), Contains("expected an object"));
  (void)write(folder, "tokenizer.json", "{\"model\": ");
  CHECK_THROWS_WITH(Tokenizer::open(folder.path), Contains("which is not valid JSON"));
  const std::string open(200'000, '[');  // the stack of whoever walks such a tree ends
  (void)write(folder, "tokenizer.json", "{\"model\":" + open + std::string(open.size(), ']') + "}");
  CHECK_THROWS_WITH(Tokenizer::open(folder.path), Contains("is nested deeper than 64"));
  const fs::path big = write(folder, "tokenizer.json", "{}");
  fs::resize_file(big, (std::uintmax_t{64} << 20) + 1);
  CHECK_THROWS_WITH(Tokenizer::open(folder.path), Contains("at most 67108864"));
}

TEST_CASE("bytes of a GGUF file stand escaped in messages", "[tokenizer][gguf][malformed]") {
  const Folder folder;
  std::string bytes = read_bytes(kTokenizers / "sentencepiece.gguf");
  const std::string key = "tokenizer.ggml.model";
  const std::size_t value = bytes.find(key) + key.size() + 4 + 8;  // behind type and length
  REQUIRE(bytes.substr(value, 5) == "llama");
  bytes.replace(value, 5, "\n\x1B\xFF\rz");
  CHECK_THROWS_WITH(Tokenizer::open(write(folder, "model.gguf", bytes)),
                    Contains("tokenizer.ggml.model' is '  \xEF\xBF\xBD z'; expected 'gpt2'"));
}

TEST_CASE("a pattern that backtracks without end is given up", "[tokenizer][malformed]") {
  const Tokenizer tokenizer = changed(
      "gpt2",
      {{"pre_tokenizer",
        {{"type", "Split"}, {"pattern", {{"Regex", "(x+x+)+[yz]"}}}, {"behavior", "Isolated"}}}});
  CHECK_THROWS_WITH(tokenizer.encode(std::string(100, 'x')), Contains("could not be matched"));
}

TEST_CASE("a group may repeat throughout a long word", "[tokenizer]") {
  const Tokenizer tokenizer = changed(
      "gpt2", {{"pre_tokenizer",
                {{"type", "Sequence"},
                 {"pretokenizers",
                  {{{"type", "Split"},
                    {"pattern", {{"Regex", "(?:\\p{L}\\p{M}?)+|-"}}},
                    {"behavior", "Isolated"}},
                   {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}}});
  const std::string word(100'000, 'a');
  const Ids half = tokenizer.encode(word);
  Ids whole = half;
  whole.push_back(tokenizer.encode("-").at(0));
  whole.insert(whole.end(), half.begin(), half.end());
  CHECK(tokenizer.decode(half) == word);
  CHECK(tokenizer.encode(word + "-" + word) == whole);
}

TEST_CASE("a long word takes no quadratic time", "[tokenizer]") {
  constexpr std::size_t kSize = 1 << 18;
  for (const char* name : {"gpt2", "llama3", "sentencepiece", "metaspace", "sentencepiece.gguf"}) {
    const Tokenizer tokenizer = Tokenizer::open(kTokenizers / name);
    for (const char c : {'a', ' ', '\n'}) {
      const std::string text(kSize, c);
      INFO(name << " " << static_cast<int>(c));
      const std::string decoded = tokenizer.decode(tokenizer.encode(text));
      CHECK((decoded == text || std::string(name) == "metaspace"));  // it has no newline
    }
  }
}

TEST_CASE("damaged tokenizers are refused in one line or work", "[tokenizer][malformed]") {
  const auto seed = static_cast<unsigned>(Catch::rngSeed());
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const Folder folder;
  int refused = 0;
  for (const char* name : {"gpt2/tokenizer.json", "llama3/tokenizer.json",
                           "sentencepiece/tokenizer.json", "llama3.gguf", "sentencepiece.gguf"}) {
    const std::string whole = read_bytes(kTokenizers / name);
    const bool gguf = std::string(name).ends_with(".gguf");
    for (int i = 0; i < 60; ++i) {
      std::string bytes = whole;
      // JSON: half of the damage where the settings are, before the vocabulary.
      const std::size_t range =
          i % 2 == 0 ? bytes.size() : std::min<std::size_t>(2000, bytes.size());
      for (std::size_t hits = 1 + below(3); hits > 0; --hits) {
        const std::size_t at = below(std::min(range, bytes.size()));  // erased ones are gone
        switch (below(4)) {
          case 0:
            bytes[at] = static_cast<char>(random());
            break;
          case 1:
            bytes.erase(at, 1 + below(8));
            break;
          case 2:
            bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(16)));
            break;
          default:
            bytes[at] = "0123456789-\"{}[]:,"[below(18)];
        }
      }
      const fs::path file = write(folder, gguf ? "model.gguf" : "tokenizer.json", bytes);
      try {
        const Tokenizer tokenizer = Tokenizer::open(gguf ? file : folder.path);
        for (const json& text : expected()["texts"])
          (void)tokenizer.decode(tokenizer.encode(text.get<std::string>()));
      } catch (const CheckpointError& error) {
        ++refused;
        INFO(error.what());
        CHECK(std::string(error.what()).find('\n') == std::string::npos);
        CHECK(std::string(error.what()).size() < 1000);
      }
    }
  }
  CHECK(refused > 50);
}
