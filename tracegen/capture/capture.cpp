// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/capture.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "tracegen/capture/job.h"
#include "tracegen/capture/recorder.h"
#include "tracegen/capture/trace_parts.h"
#include "tracegen/forward/runner_common.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

void check_path(const char* option, const fs::path& path) {
  if (path.extension() != ".safetensors" || path.stem().empty()) {
    throw ConfigError(fmt::format("{}: found '{}', expected a name that ends in .safetensors",
                                  option, path.string()));
  }
  if (fs::is_directory(path))
    throw ConfigError(fmt::format("{}: '{}' is a folder", option, path.string()));
  const fs::path folder = fs::absolute(path).parent_path();
  if (!fs::is_directory(folder))
    throw ConfigError(fmt::format("{}: there is no folder '{}'", option, folder.string()));
}

void check_replay(const CaptureOptions& o) {
  if (!o.replay) return;
  if (!o.qkv) throw ConfigError("--replay: a score trace does not hold replayed rows");
  const std::vector<std::int64_t> ends = prompt_passes(o);
  if (o.scores && o.scores->column_mass && !std::ranges::binary_search(ends, o.replay->at)) {
    throw ConfigError(fmt::format(
        "--replay: asks after {} tokens, inside a prefill pass, and --column-mass is of whole "
        "passes; expected a --chunk that ends there, or two captures",
        o.replay->at));
  }
}

}  // namespace

void check_capture(const ModelSpec& model, const CaptureOptions& o) {
  check_path("--out", o.out);
  if (!o.qkv && !o.scores) throw ConfigError("--emit: nothing is to be emitted");
  if (o.qkv && o.scores) {
    check_path("--scores-out", o.scores_out);
    if (fs::weakly_canonical(o.scores_out) == fs::weakly_canonical(o.out))
      throw ConfigError("--scores-out: the same file as --out");
  }
  if (o.scores && o.dtype == Dtype::bf16)
    throw ConfigError("--dtype: probabilities are stored as f16 or f32, found bf16");
  if (o.wo && !o.qkv) throw ConfigError("--wo: a score trace does not hold the output projection");
  if (o.token_ids.empty()) throw CheckpointError("the text has no tokens; expected at least one");
  for (std::size_t i = 0; i < o.token_ids.size(); ++i) {
    if (o.token_ids[i] >= 0 && o.token_ids[i] < model.vocabulary) continue;
    throw CheckpointError(fmt::format("token {} has id {}; the vocabulary of {} has ids 0 to {}", i,
                                      o.token_ids[i], model.name, model.vocabulary - 1));
  }
  if (o.prompt < 1 || o.prompt > known_tokens(o)) {
    throw ConfigError(
        fmt::format("--prompt: found {}, and the text has {} tokens", o.prompt, known_tokens(o)));
  }
  if (o.generate < 0 || o.chunk < 0)
    throw ConfigError("--generate and --chunk: expected numbers >= 0");
  for (std::size_t i = 0; i < o.layers.size(); ++i) {
    if (o.layers[i] < 0 || o.layers[i] >= model.layers) {
      throw ConfigError(fmt::format("--layers: found {}, and {} has layers 0 to {}", o.layers[i],
                                    model.name, model.layers - 1));
    }
    if (i > 0 && o.layers[i] <= o.layers[i - 1])
      throw ConfigError("--layers: expected ascending layers, each once");
  }
  for (const Span& span : o.spans) {
    if (span.begin >= 0 && span.begin < span.end && span.end <= known_tokens(o)) continue;
    throw ConfigError(fmt::format("--span: {} is [{}, {}), and there are {} tokens", span.name,
                                  span.begin, span.end, known_tokens(o)));
  }
  if (o.scores && (o.scores->top_k < 1 || o.scores->rows.every < 1 || o.scores->rows.last < 0))
    throw ConfigError("--keys and --rows: expected numbers >= 1");
  check_replay(o);
  const Sampling& s = o.sampling;
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature) || !(s.top_p > 0) || s.top_p > 1 ||
      s.top_k < 0) {
    throw ConfigError("--temperature, --top-p, --top-k: expected T >= 0, 0 < P <= 1, K >= 0");
  }
}

RunnerOptions runner_options(const CaptureOptions& options, const WorkFolder& work) {
  const std::int64_t asked = options.replay ? options.replay->at + options.replay->most_rows() : 0;
  return {.tokens = std::max(most_tokens(options), asked),
          .keep_kv = options.generate > 0,
          .scratch = work.scratch(),
          .threads = options.threads,
          .top_k = options.scores ? static_cast<int>(stored_top_k(options)) : 0};
}

CapturePlan plan_capture(const ModelSpec& model, const CaptureOptions& options) {
  CapturePlan out;
  const std::int64_t tokens = most_tokens(options);
  std::int64_t rewritten = 0;  // lies there twice while the trace is written
  for (const bool scores : {false, true}) {
    if (scores ? !options.scores.has_value() : !options.qkv) continue;
    const TraceParts parts = make_parts(model, options, tokens, -1, scores);
    out.trace_bytes += parts.bytes();
    const bool one = options.shards == Shards::one ||
                     (options.shards == Shards::automatic && parts.bytes() < kOneFileBytes);
    rewritten =
        std::max(rewritten, one ? parts.bytes()
                                : parts.bytes() / static_cast<std::int64_t>(parts.layers.size()));
  }
  const std::int64_t hidden = hidden_rows(options) * model.hidden * 4;
  const std::int64_t kv = options.generate > 0 ? known_tokens(options) * model.layers * 8 *
                                                     model.kv_heads * model.head_dim
                                               : 0;
  out.work_bytes = out.trace_bytes + rewritten + 2 * hidden + kv;
  // Ids, nll and offsets; logits of a row, twice and sorted; one block of rows in the trace's type.
  out.memory_bytes = tokens * 32 + model.vocabulary * 24 + 3 * 4 * kPieceFloats +
                     2 * kRestoreRows * model.kv_heads * model.head_dim * 4;
  if (options.scores) {
    // Of a wave: probabilities and keys, and the candidates among which they are found; column
    // masses.
    const std::int64_t rows = std::min(kWave, tokens) * model.query_heads;
    out.memory_bytes += rows * (16 * stored_top_k(options) + 4);
    if (options.scores->column_mass) out.memory_bytes += tokens * model.query_heads * 8;
  }
  return out;
}

std::vector<fs::path> capture_files(const ModelSpec& model, const CaptureOptions& options) {
  const std::size_t layers = stored_layers(model, options).size();
  std::vector<fs::path> out = trace_files(options.out, layers, options.shards);
  if (options.qkv && options.scores) {
    const std::vector<fs::path> more = trace_files(options.scores_out, layers, options.shards);
    out.insert(out.end(), more.begin(), more.end());
  }
  return out;
}

CaptureResult capture(const ModelSpec& model, Runner& runner, WorkFolder& work,
                      const CaptureOptions& options) {
  return run_job(model, runner, work, options);
}

}  // namespace kvspan::tracegen
