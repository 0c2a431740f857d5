// SPDX-License-Identifier: Apache-2.0
// Capture: runs a model over a prompt and records what its attention reads as a trace.
//
//   open        the work folder OUT.partial: go on after the last complete layer, or afresh
//   prefill     layer by layer over all given tokens; memory holds one layer, the hidden states lie
//               in a file
//   score       final norm and head over all given tokens: nll, and the first prediction
//   generate    token by token through all layers
//   publish     raw files become the trace, under its name only when it is whole
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/trace/safetensors.h"
#include "sim/trace/trace.h"
#include "tracegen/capture/replay.h"
#include "tracegen/capture/trace_writer.h"
#include "tracegen/capture/work_folder.h"
#include "tracegen/forward/runner.h"
#include "tracegen/forward/token_sampling.h"

namespace kvspan::tracegen {

// Which rows a score trace keeps. Rows after the prompt are always kept.
struct RowChoice {
  std::int64_t last = 0;   // the last rows of the prompt; 0: see `every`
  std::int64_t every = 1;  // prompt rows 0, every, 2 every, ..., and the prompt's last
};

// What a score trace holds.
struct ScoreOptions {
  int top_k = 64;
  RowChoice rows;
  bool column_mass = false;  // of each prefill pass
};

struct CaptureOptions {
  std::filesystem::path out;           // of the qkv trace, or of the only one
  bool qkv = true;                     // q, k and v
  std::optional<ScoreOptions> scores;  // attention probabilities
  std::filesystem::path scores_out;    // of the score trace
  Shards shards = Shards::automatic;
  Dtype dtype = Dtype::f16;  // of q, k, v, wo and probabilities
  std::vector<int> layers;   // of the model, ascending; empty: all
  // Rows [first, first + rows) of a layer's output projection, fp32 [rows, query_heads * head_dim];
  // empty: not stored.
  std::function<void(int layer, std::int64_t first, std::int64_t rows, float* out)> wo;

  std::optional<ContextReplay> replay;  // rows beside the sequence

  std::vector<std::int32_t> token_ids;  // prompt, and teacher-forced text after it
  std::int64_t prompt = 0;
  std::int64_t generate = 0;  // tokens that the model adds to token_ids
  Sampling sampling;
  std::optional<std::int32_t> stop;  // generation ends with this token
  std::int64_t chunk = 0;            // prefill pass, tokens; 0: one pass
  int threads = 0;                   // 0: all; the traces do not depend on it

  std::function<std::string(std::int32_t)> piece;  // text of a token; empty: no token_text
  std::vector<std::int32_t> special_ids;
  std::vector<Span> spans;
  std::string source, text, licence;

  // What else the result depends on, as a JSON object: the checkpoint's files, the device. A
  // capture is resumed only if it is the same.
  std::string identity = "{}";
  std::function<void(const std::string& line)> say;                   // may be empty
  std::function<void(std::string_view stage, double done)> progress;  // may be empty, may throw
};

struct Nll {
  double mean = 0;  // nats
  std::int64_t tokens = 0;
};

struct CaptureResult {
  std::int64_t tokens = 0, prompt = 0;
  std::vector<std::int32_t> generated;
  std::optional<Nll> all, in_prompt, after_prompt;  // predicted tokens; absent: there are none
  std::int64_t prefill_tokens = 0;                  // all given tokens
  double prefill_seconds = 0, decode_seconds = 0;   // over all processes that worked on it
  int resumed_layers = 0;                           // complete before this process
  std::int64_t bytes = 0;                           // of all traces
  std::vector<std::filesystem::path> files;
};

// Errors: ConfigError, or CheckpointError on token ids, when the options do not fit the model.
void check_capture(const ModelSpec& model, const CaptureOptions& options);

[[nodiscard]] RunnerOptions runner_options(const CaptureOptions& options, const WorkFolder& work);

// Every file that the capture may write or remove, its work folder aside.
[[nodiscard]] std::vector<std::filesystem::path> capture_files(const ModelSpec& model,
                                                               const CaptureOptions& options);

// Anonymous memory beside the runner's, and disk space while it works and afterwards, at most.
struct CapturePlan {
  std::int64_t memory_bytes = 0;
  std::int64_t work_bytes = 0;
  std::int64_t trace_bytes = 0;
};
[[nodiscard]] CapturePlan plan_capture(const ModelSpec& model, const CaptureOptions& options);

// REQUIRES: check_capture() passed, the runner was made with runner_options(), `work` belongs to
// options.out. Errors: Error when the disk refuses; whatever the runner and `progress` throw. The
// same call then goes on after the last complete layer; generation starts again from the prompt's
// state. The result does not depend on interruptions.
CaptureResult capture(const ModelSpec& model, Runner& runner, WorkFolder& work,
                      const CaptureOptions& options);

}  // namespace kvspan::tracegen
