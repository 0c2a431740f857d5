// SPDX-License-Identifier: Apache-2.0
// The options of `kvspan capture`, and what they ask for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tracegen/capture/capture.h"
#include "tracegen/model/checkpoint.h"
#include "tracegen/tokenizer/tokenizer.h"

namespace CLI {
class App;
}

namespace kvspan::cli {

// As the command line says it.
struct CaptureSettings {
  std::string model, text, tokens, out, scores_out;
  std::string bos = "auto", emit = "qkv", dtype = "f16", rows = "all", shards = "auto";
  std::string device = "auto", memory, json, licence;
  std::int64_t prompt = 0, generate = -1, chunk = 0;  // prompt 0, generate -1: not given
  std::int64_t replay_chunk = 2000;
  std::string replay_as = "kvzip";
  int keys = 0, threads = 0;  // keys 0: not given
  std::vector<int> layers;
  std::vector<std::string> spans;
  tracegen::Sampling sampling;
  bool teacher = false, chat = false, stop_at_eos = false, column_mass = false, wo = false;
  bool replay = false;
  bool half = false, quiet = false;

  void say(const std::string& line) const;  // on stderr, unless quiet
};

void add_capture_options(CLI::App& command, CaptureSettings& settings);

// Reads the text or the tokens. `tokenizer` may be null with --tokens; settings and checkpoint must
// outlive the result. Errors: ConfigError, TraceError, CheckpointError.
[[nodiscard]] tracegen::CaptureOptions make_capture_options(const CaptureSettings& settings,
                                                            const tracegen::Checkpoint& checkpoint,
                                                            const tracegen::Tokenizer* tokenizer);

}  // namespace kvspan::cli
