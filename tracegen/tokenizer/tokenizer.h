// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, as the model's own tokenizer does it: byte-level BPE (GPT-2, Llama 3,
// Qwen2, SmolLM, ...) and sentencepiece-style BPE, from tokenizer.json or from a GGUF file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan::tracegen {

// A turn of a conversation.
struct ChatTurn {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class Tokenizer {
 public:
  // `model` is a folder with tokenizer.json (and tokenizer_config.json), or a .gguf file.
  // Errors: CheckpointError naming file and field, what was found, what was expected (a tokenizer
  // model, pre-tokenizer or normalizer that is not supported is refused, never approximated).
  [[nodiscard]] static Tokenizer open(const std::filesystem::path& model);

  // Ids of a UTF-8 text, without bos and eos. Special tokens written in the text are recognised
  // unless parse_special is false. Errors: CheckpointError on invalid UTF-8, with its offset.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 bool parse_special = true) const;
  // The bytes of a token as they stand in the text: "▁the" gives " the"; a byte token may be a part
  // of a UTF-8 sequence; a special token gives its name. Empty for an id that the vocabulary skips.
  [[nodiscard]] std::string_view piece(std::int32_t id) const;
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;

  [[nodiscard]] std::int64_t vocabulary() const;  // largest id + 1
  [[nodiscard]] std::optional<std::int32_t> bos() const;
  [[nodiscard]] std::optional<std::int32_t> eos() const;
  // What the tokenizer's own settings say about a leading bos (tokenizer.json's post-processor,
  // tokenizer_config.json's add_bos_token, GGUF's tokenizer.ggml.add_bos_token), and where: "post-
  // processor of tokenizer.json". A MiniMind tokenizer says nothing: `adds` is false, and why says
  // so.
  struct Bos {
    bool adds = false;
    std::string why;
  };
  [[nodiscard]] const Bos& bos_setting() const;
  [[nodiscard]] const std::vector<std::int32_t>& special_ids() const;  // ascending
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view special) const;

  // The conversation in the model's chat format, the beginning of the assistant's answer included:
  // what the checkpoint's chat template makes of it, as transformers' apply_chat_template has it
  // (no bos beside the template's own). Errors: CheckpointError when there is no template, or when
  // it has something that is not understood, with its line.
  [[nodiscard]] std::string chat(std::span<const ChatTurn> turns) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace kvspan::tracegen
