// SPDX-License-Identifier: Apache-2.0
#include "tracegen/capture/job.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "tracegen/capture/recorder.h"
#include "tracegen/capture/resume.h"
#include "tracegen/capture/trace_parts.h"
#include "tracegen/forward/token_sampling.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kWorthSyncing = 5;  // seconds of work

std::optional<Nll> mean_of(std::span<const float> nll) {
  if (nll.empty()) return std::nullopt;
  const double sum = std::accumulate(nll.begin(), nll.end(), 0.0);
  return Nll{sum / static_cast<double>(nll.size()), static_cast<std::int64_t>(nll.size())};
}

class Job {
 public:
  Job(const ModelSpec& model, Runner& runner, WorkFolder& work, const CaptureOptions& options)
      : model_(model),
        runner_(runner),
        work_(work),
        options_(options),
        recorder_(model, options, work),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic),
        ids_(options.token_ids) {
    journal_["identity"] = identity_of(model, options);
    journal_["layers"] = 0;
    journal_["boot"] = "";
    journal_["prefill_seconds"] = 0.0;
    journal_["decode_seconds"] = 0.0;
  }

  CaptureResult run() {
    open();
    if (!journal_.contains("tokens")) {
      prefill();
      score();
      generate();
      finish();
    }
    return publish();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void say(const std::string& line) const {
    if (options_.say) options_.say(line);
  }

  void open() {
    const std::optional<json> found = work_.journal();
    if (found) {
      const std::string why =
          Leftovers(model_, options_, work_, recorder_).obstacle(*found, journal_["identity"]);
      if (why.empty()) {
        journal_ = *found;
        resumed_ = layers_done();
        if (journal_.contains("tokens")) {
          say("resuming: all tokens are there, the trace remains to be written");
        } else if (resumed_ > 0) {
          say(fmt::format("resuming after layer {} of {}", resumed_, model_.layers));
        }
        return;
      }
      say(fmt::format("an interrupted capture cannot be resumed ({}): starting afresh", why));
    }
    work_.clear();
    const std::int64_t needed = plan_capture(model_, options_).work_bytes;
    if (needed > work_.free_bytes()) {
      throw Error(fmt::format("{}: {} are needed there, and {} are free", work_.path().string(),
                              human_bytes(needed), human_bytes(work_.free_bytes())),
                  1);
    }
    work_.write_journal(journal_);
  }

  [[nodiscard]] int layers_done() const { return journal_["layers"].get<int>(); }

  void prefill() {
    const std::int64_t count = hidden_rows(options_) * model_.hidden;
    for (std::size_t i = 0; i < 2; ++i)
      hidden_[i].emplace(work_, hidden_name(static_cast<int>(i)), count);
    for (int l = 0; options_.generate > 0 && l < layers_done(); ++l) recorder_.restore(l, runner_);
    if (layers_done() == 0) {
      const std::span<float> rows = hidden_[0]->values();
      runner_.embed(ids_, rows_of(rows, 0, known_tokens(options_)));
      if (options_.replay) {
        runner_.embed(options_.replay->ids(),
                      rows_of(rows, known_tokens(options_), options_.replay->rows()));
      }
    }
    for (int l = layers_done(); l < model_.layers; ++l) prefill_layer(l);
  }

  void prefill_layer(int layer) {
    const auto begin = Clock::now();
    MappedFloats& from = *hidden_[static_cast<std::size_t>(layer % 2)];
    MappedFloats& to = *hidden_[static_cast<std::size_t>((layer + 1) % 2)];
    std::copy(from.values().begin(), from.values().end(), to.values().begin());
    recorder_.reserve(layer);
    std::vector<std::int64_t> ends = prompt_passes(options_);
    const auto prompt_pass_count = static_cast<std::int64_t>(ends.size());
    if (known_tokens(options_) > options_.prompt) ends.push_back(known_tokens(options_));
    const std::int64_t replay_at = options_.replay ? options_.replay->at : -1;
    if (options_.replay && !std::ranges::binary_search(ends, replay_at))
      ends.insert(std::ranges::lower_bound(ends, replay_at), replay_at);
    std::int64_t first = 0;
    for (std::int64_t pass = 0; pass < static_cast<std::int64_t>(ends.size()); ++pass) {
      const std::int64_t rows = ends[static_cast<std::size_t>(pass)] - first;
      recorder_.begin(pass < prompt_pass_count ? std::optional(pass) : std::nullopt);
      runner_.layer(layer, first, rows_of(to.values(), first, rows), recorder_, [&](double share) {
        const double done = (static_cast<double>(first) + share * static_cast<double>(rows)) /
                            static_cast<double>(known_tokens(options_));
        report_prefill(layer + done);
      });
      first += rows;
      if (first == replay_at) replay(layer, to.values());
    }
    journal_["layers"] = layer + 1;
    const double seconds = add_seconds("prefill_seconds", begin);
    if (seconds >= kWorthSyncing) to.sync();
    save(seconds);
    report_prefill(layer + 1);
  }

  // The passes of the replay, each after the same tokens: rows that come later write over its keys.
  void replay(int layer, std::span<float> hidden) {
    const ContextReplay& asked = *options_.replay;
    const auto done = static_cast<double>(asked.at) / static_cast<double>(known_tokens(options_));
    std::int64_t row = 0;
    std::vector<float> norms;
    for (const ReplayPass& pass : asked.passes) {
      const std::int64_t rows = std::ssize(pass.ids);
      const std::span<float> read = rows_of(hidden, known_tokens(options_) + row, rows);
      norms.resize(asked.norms ? static_cast<std::size_t>(rows) : 0);
      if (asked.norms) asked.norms(layer, read, norms);
      recorder_.begin_replay(layer, row, norms);
      runner_.layer(layer, asked.at, read, recorder_,
                    [&](double) { report_prefill(layer + done); });
      row += rows;
    }
  }

  [[nodiscard]] std::span<float> rows_of(std::span<float> hidden, std::int64_t first,
                                         std::int64_t rows) const {
    return hidden.subspan(static_cast<std::size_t>(first * model_.hidden),
                          static_cast<std::size_t>(rows * model_.hidden));
  }

  // The share of this process's part of the prefill, the head included, weighed by multiplications.
  void report_prefill(double layers) const {
    if (!options_.progress) return;
    const double attention = static_cast<double>(model_.head_dim) *
                             (2.0 * (model_.query_heads + model_.kv_heads) * model_.hidden +
                              model_.query_heads * static_cast<double>(known_tokens(options_)));
    const double layer = attention + 3.0 * model_.hidden * model_.intermediate;
    const double head = static_cast<double>(model_.vocabulary) * model_.hidden;
    const double total = (model_.layers - resumed_) * layer + head;
    const double beyond = std::max(0.0, layers - model_.layers);  // of the head
    const double done =
        (std::min<double>(layers, model_.layers) - resumed_) * layer + beyond * head;
    options_.progress("prefill", done / total);
  }

  // nll of all given tokens, and the first prediction of those to come.
  void score() {
    const auto begin = Clock::now();
    const std::int64_t known = known_tokens(options_);
    nll_.assign(static_cast<std::size_t>(known), 0.0F);
    runner_.head(rows_of(hidden_[static_cast<std::size_t>(model_.layers % 2)]->values(), 0, known),
                 [&](std::int64_t first, std::int64_t rows, const float* logits) {
                   const auto vocabulary = static_cast<std::size_t>(model_.vocabulary);
                   arena_.execute([&] {
                     tbb::parallel_for(std::int64_t{0}, rows, [&](std::int64_t r) {
                       const auto row = static_cast<std::size_t>(first + r);
                       if (row + 1 == nll_.size()) return;
                       nll_[row] =
                           nll_of({logits + static_cast<std::size_t>(r) * vocabulary, vocabulary},
                                  ids_[row + 1]);
                     });
                   });
                   if (first + rows == known) {
                     const float* last = logits + static_cast<std::size_t>(rows - 1) * vocabulary;
                     logits_.assign(last, last + vocabulary);
                   }
                   report_prefill(model_.layers +
                                  static_cast<double>(first + rows) / static_cast<double>(known));
                 });
    hidden_[0].reset();
    hidden_[1].reset();
    add_seconds("prefill_seconds", begin);
  }

  void generate() {
    const auto begin = Clock::now();
    Sampler sample(options_.sampling);
    std::vector<float> hidden(static_cast<std::size_t>(model_.hidden));
    recorder_.begin(std::nullopt);
    for (std::int64_t i = 0; i < options_.generate; ++i) {
      const std::int32_t token = sample(logits_);
      nll_.back() = nll_of(logits_, token);
      nll_.push_back(0);
      ids_.push_back(token);
      runner_.embed({&token, 1}, hidden);
      const auto row = static_cast<RowIndex>(ids_.size()) - 1;
      for (int l = 0; l < model_.layers; ++l) runner_.layer(l, row, hidden, recorder_);
      if (options_.progress)
        options_.progress("generating",
                          static_cast<double>(i + 1) / static_cast<double>(options_.generate));
      if (token == options_.stop) break;
      if (i + 1 == options_.generate) break;
      runner_.head(hidden, [&](std::int64_t, std::int64_t, const float* logits) {
        logits_.assign(logits, logits + model_.vocabulary);
      });
    }
    add_seconds("decode_seconds", begin);
  }

  // The tensors that belong to all layers; from here on only the trace's form is missing.
  void finish() {
    write_common("token_ids", std::as_bytes(std::span(ids_)));
    write_common("nll", std::as_bytes(std::span(nll_)));
    if (options_.replay) {
      const std::vector<std::int32_t> asked = options_.replay->ids();
      write_common("probe_ids", std::as_bytes(std::span(asked)));
    }
    journal_["text_bytes"] = -1;
    if (options_.piece) {
      std::string text;
      std::vector<std::int64_t> offsets{0};
      for (const std::int32_t id : ids_) {
        text += options_.piece(id);
        offsets.push_back(static_cast<std::int64_t>(text.size()));
      }
      write_common("token_text", std::as_bytes(std::span(text)));
      journal_["text_bytes"] = text.size();
      write_common("token_text_offsets", std::as_bytes(std::span(offsets)));
    }
    if (options_.generate > 0) synced_ = 0;
    journal_["tokens"] = ids_.size();
    save(journal_["prefill_seconds"].get<double>() + journal_["decode_seconds"].get<double>());
  }

  // Journals what is done. Waiting until it is on the disk is worth it only for work of some
  // seconds: without, it survives every end of the process, but not one of the machine, and the
  // journal says so.
  void save(double seconds) {
    const bool durable = seconds >= kWorthSyncing;
    for (; durable && synced_ < layers_done(); ++synced_) recorder_.sync(synced_);
    journal_["boot"] = durable ? "" : boot_id();
    work_.write_journal(journal_);
  }

  void write_common(const std::string& name, std::span<const std::byte> bytes) {
    work_.reserve(name, static_cast<std::int64_t>(bytes.size()));
    work_.write(name, 0, bytes);
    work_.sync(name);
  }

  CaptureResult publish() {
    CaptureResult out;
    const auto tokens = journal_["tokens"].get<std::int64_t>();
    const std::vector<Product> all = products(model_, options_, journal_);
    double begun = 0;  // traces
    for (const Product& product : all) {
      const auto progress = [&](double share) {
        if (options_.progress)
          options_.progress("writing", (begun + share) / static_cast<double>(all.size()));
      };
      for (const fs::path& file :
           publish_trace(work_, product.parts, options_.shards, product.path, progress)) {
        out.files.push_back(file);
        out.bytes += static_cast<std::int64_t>(fs::file_size(file));
      }
      ++begun;
    }
    ids_.resize(static_cast<std::size_t>(tokens));
    nll_.resize(static_cast<std::size_t>(tokens));
    work_.read("token_ids", 0, std::as_writable_bytes(std::span(ids_)));
    work_.read("nll", 0, std::as_writable_bytes(std::span(nll_)));
    work_.remove();

    out.tokens = tokens;
    out.prompt = options_.prompt;
    out.generated.assign(ids_.begin() + known_tokens(options_), ids_.end());
    const std::span predicted = std::span<const float>(nll_).first(nll_.size() - 1);
    const auto split = static_cast<std::size_t>(options_.prompt - 1);
    out.all = mean_of(predicted);
    out.in_prompt = mean_of(predicted.first(split));
    out.after_prompt = mean_of(predicted.subspan(split));
    out.prefill_tokens = known_tokens(options_);
    out.prefill_seconds = journal_["prefill_seconds"];
    out.decode_seconds = journal_["decode_seconds"];
    out.resumed_layers = resumed_;
    return out;
  }

  double add_seconds(const char* key, Clock::time_point begin) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    journal_[key] = journal_[key].get<double>() + seconds;
    return seconds;
  }

  const ModelSpec& model_;
  Runner& runner_;
  WorkFolder& work_;
  const CaptureOptions& options_;
  Recorder recorder_;
  tbb::task_arena arena_;
  json journal_;
  int synced_ = 0;  // layers that are on the disk
  int resumed_ = 0;
  std::array<std::optional<MappedFloats>, 2> hidden_;  // [known tokens, hidden]
  std::vector<std::int32_t> ids_;
  std::vector<float> nll_;     // [ids]
  std::vector<float> logits_;  // [vocabulary], of the last token
};

}  // namespace

CaptureResult run_job(const ModelSpec& model, Runner& runner, WorkFolder& work,
                      const CaptureOptions& options) {
  return Job(model, runner, work, options).run();
}

}  // namespace kvspan::tracegen
