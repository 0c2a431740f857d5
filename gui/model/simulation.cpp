// SPDX-License-Identifier: Apache-2.0
#include "gui/model/simulation.h"

#include <QDir>
#include <QMetaObject>
#include <QStandardPaths>
#include <QTemporaryDir>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/report/json.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/report/timeline_writer.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {
namespace {

// Removed at the end of the process; empty: could not be made.
std::filesystem::path results_folder() {
  static const QTemporaryDir folder([] {
    const QString cache = QStandardPaths::writableLocation(QStandardPaths::CacheLocation);
    const bool made = !cache.isEmpty() && QDir().mkpath(cache);
    return (made ? cache : QDir::tempPath()) + "/kvspan-runs-XXXXXX";
  }());
  return folder.isValid() ? folder.path().toStdString() : std::string();
}

std::filesystem::path companion_name(std::filesystem::path json, const char* which) {
  return json.replace_extension(fmt::format(".{}.safetensors", which));
}

// Of all policies, when `done` of a batch is.
double share_of(const RunBatch& batch, double done) {
  return (static_cast<double>(batch.begin) + done * static_cast<double>(batch.end - batch.begin)) /
         static_cast<double>(batch.total);
}

QString text_of(const RunBatch& batch) {
  if (batch.end - batch.begin == 1) return QString::fromStdString(batch.label);
  return QString("policies %1 to %2 of %3").arg(batch.begin + 1).arg(batch.end).arg(batch.total);
}

}  // namespace

bool is_temporary(const std::filesystem::path& result) {
  return result.parent_path() == results_folder();
}

void remove_temporary(const std::filesystem::path& result) {
  if (!is_temporary(result)) return;
  std::error_code ignored;
  for (const auto& file :
       {result, companion_name(result, "timeline"), companion_name(result, "lifetimes")}) {
    std::filesystem::remove(file, ignored);
  }
}

std::vector<std::string> SimulationRequest::command() const {
  std::vector<std::string> words{"kvspan", "run", trace};
  const auto add = [&](const char* option, const std::string& value) {
    words.insert(words.end(), {option, value});
  };
  for (const std::string& spec : specs) add("--policy", spec);
  if (!budgets.empty()) add("--budget", fmt::format("{}", fmt::join(budgets, ",")));
  if (chunk != 0) add("--chunk", std::to_string(chunk));
  if (prompt != 0) add("--prompt", std::to_string(prompt));
  if (evict_point != 0) add("--evict-at", std::to_string(evict_point));
  if (!evict_at.empty()) add("--evict-at", evict_at);
  if (coarse || !fidelity) add("--fidelity", "none");
  if (!coarse && fidelity && fidelity_rows != 0)
    add("--fidelity", fmt::format("rows={}", fidelity_rows));
  if (kv_bytes != 2) add("--kv-bytes", std::to_string(kv_bytes));
  if (layerwise) add("--prefill", "layerwise");
  if (layout != "ideal") add("--layout", layout);
  if (seed != 0) add("--seed", std::to_string(seed));
  return words;
}

EngineOptions SimulationRequest::options() const {
  EngineOptions out;
  out.prompt = prompt;
  out.evict_point = evict_point;
  out.chunk = chunk;
  out.kv_bytes = kv_bytes;
  out.seed = seed;
  out.fidelity = fidelity && !coarse;
  out.fidelity_rows = fidelity_rows;
  out.sample_long_prompts = true;
  out.keep_scores = !coarse;
  out.keep_reads = coarse ? 0 : kKeptReadsBytes;
  return out;
}

RunRequest SimulationRequest::run() const {
  RunRequest out;
  out.specs = expand_policies(specs, budgets);
  if (out.specs.empty()) throw ConfigError("nothing to run: no policy is on the list");
  out.engine = options();
  out.evict_point = evict_at;
  out.layerwise = layerwise;
  out.layout = layout;
  out.command = command();
  return out;
}

QString shell_text(const std::vector<std::string>& words) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,%+:@";
  QStringList parts;
  for (const std::string& word : words) {
    const bool plain = !word.empty() && word.find_first_not_of(kPlain) == word.npos;
    const QString text = QString::fromStdString(word);
    parts << (plain ? text : "'" + QString(text).replace("'", "'\\''") + "'");
  }
  return parts.join(' ');
}

// The trace of the last run stays open, with its checksum: sliders run it again and again.
struct Simulation::Worker {
  std::optional<Trace> trace;
  std::filesystem::file_time_type written;
  std::uintmax_t bytes = 0;
  std::string sha256;

  // Errors: TraceError.
  void open(const std::string& path) {
    std::error_code error;
    const auto time = std::filesystem::last_write_time(path, error);
    const auto size = error ? 0 : std::filesystem::file_size(path, error);
    if (!error && trace && trace->name() == path && written == time && bytes == size) return;
    trace.reset();
    trace = Trace::open(path);
    sha256 = trace->sha256();
    written = time;
    bytes = size;
  }
};

Simulation::Simulation(const QString& name, QObject* parent)
    : QObject(parent), worker_(std::make_shared<Worker>()), background_(nullptr) {
  set_name(name);
}

void Simulation::set_name(const QString& name) {
  path_ = results_folder() / (name + ".json").toStdString();
}

void Simulation::start(const SimulationRequest& request) {
  const std::int64_t generation = ++generation_;
  // From the thread to this object's; dropped if a later request came.
  const auto post = [this, generation](auto call) {
    QMetaObject::invokeMethod(this, [this, generation, call = std::move(call)] {
      if (generation == generation_) call();
    });
  };
  const auto work = [this, post, request, path = path_,
                     worker = worker_](const Background::Cancelled& cancelled) {
    post([this] { emit progressed(0, "opening the trace"); });
    RunRequest wanted = request.run();
    if (!path.has_parent_path()) {
      throw Error(
          "no folder for results: neither the cache nor the temporary folder can be written", 1);
    }
    worker->open(request.trace);
    wanted.checksum = [worker] { return worker->sha256; };
    wanted.timeline_path = companion_name(path, "timeline").string();
    wanted.lifetimes_path = companion_name(path, "lifetimes").string();
    ResultPtr result;
    RunWatch watch;
    watch.cancelled = cancelled;
    watch.progress = [&post, this](const RunBatch& batch, double done) {
      post([this, share = share_of(batch, done), text = text_of(batch)] {
        emit progressed(share, text);
      });
    };
    watch.grown = [&](const RunReport& report, const RunBatch& batch) {
      write_timeline(report, report.timeline_path);
      write_lifetimes(report, report.lifetimes_path);
      write_file_atomically(path, file_text(to_json(report)));
      result = open_result(path);
      post([this, result, batch] {
        emit progressed(share_of(batch, 1), text_of(batch));
        emit grown(result, static_cast<int>(batch.end), static_cast<int>(batch.total));
      });
    };
    (void)kvspan::run(*worker->trace, wanted, watch);
    return result;
  };
  background_.run(
      work, [this](const ResultPtr& result) { emit finished(result); },
      [this](const QString& line) { emit failed(line); });
}

void Simulation::cancel() {
  if (!busy()) return;
  ++generation_;
  background_.cancel();
  emit cancelled();
}

// ---- While a slider moves -----------------------------------------------------------------------

LiveSimulation::LiveSimulation(const QString& name, QObject* parent)
    : QObject(parent), simulation_(name) {
  connect(&simulation_, &Simulation::finished, this, [this](const ResultPtr& result) {
    emit shown(result, running_.coarse, clock_.elapsed());
    next();
  });
  connect(&simulation_, &Simulation::failed, this, [this](const QString& line) {
    emit failed(line);
    next();
  });
}

void LiveSimulation::show(SimulationRequest request, bool coarse) {
  request.coarse = coarse;
  Request wanted{std::move(request), coarse};
  if (busy() && running_.coarse) {
    waiting_ = std::move(wanted);
  } else {
    start(wanted);
  }
}

void LiveSimulation::start(const Request& request) {
  running_ = request;
  clock_.start();
  simulation_.start(request.request);
}

void LiveSimulation::next() {
  if (busy() || !waiting_) return;
  const Request request = *std::exchange(waiting_, std::nullopt);
  start(request);
}

// ---- Saving -------------------------------------------------------------------------------------

void save_result(const Result& result, std::filesystem::path target) {
  if (!result.json) {
    throw ConfigError(fmt::format("{}: only a result JSON can be saved with its companions",
                                  result.path.string()));
  }
  if (!target.has_extension()) target += ".json";
  // What is open does not keep all of it.
  std::ifstream in(result.path);
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(in, nullptr, false);
  if (!json.is_object()) {
    throw Error(fmt::format("cannot read {} again", result.path.string()), 1);
  }
  nlohmann::ordered_json& files = json["files"];
  for (const char* which : {"timeline", "lifetimes"}) {
    if (!files.is_object() || !files.contains(which) || !files[which].is_string()) continue;
    const std::filesystem::path from = companion_path(result.path, files[which]);
    const std::filesystem::path to = companion_name(target, which);
    std::error_code error;
    if (std::filesystem::equivalent(from, to, error)) continue;
    // Beside its place first, so that what was there stays whole until the copy is.
    std::filesystem::path part = to;
    part += ".part";
    std::filesystem::copy_file(from, part, std::filesystem::copy_options::overwrite_existing,
                               error);
    if (!error) std::filesystem::rename(part, to, error);
    if (error) {
      std::error_code ignored;
      std::filesystem::remove(part, ignored);
      throw Error(
          fmt::format("cannot copy {} to {}: {}", from.string(), to.string(), error.message()), 1);
    }
    files[which] = to.string();
  }
  write_file_atomically(target, json.dump(1) + "\n");
}

// ---- Knobs --------------------------------------------------------------------------------------

namespace {

// Under chunked(): a share of each chunk, and no number of entries.
bool turns_share(const Knob& knob) { return knob.value(knob.lowest).ends_with('%'); }

}  // namespace

TokenCount knob_position(const Tunable& tunable, RowIndex prompt) {
  const Knob& knob = tunable.knob;
  constexpr TokenCount kTried = 1 << 16;
  for (TokenCount p = knob.lowest; p <= std::min(knob.highest, knob.lowest + kTried); ++p) {
    if (knob.value(p) == tunable.value) return p;
  }
  if (tunable.turns_amount() && tunable.value != "auto") {
    const Amount amount = Amount::parse(tunable.value, knob.parameter);
    if (turns_share(knob) && amount.kind == Amount::Kind::share)  // in steps of 0.01 %
      return std::clamp(amount.share_of(10000), knob.lowest, knob.highest);
    return std::clamp(
        amount.kind == Amount::Kind::share ? amount.share_of(prompt) : amount.mantissa, knob.lowest,
        knob.highest);
  }
  // Written in a way that no position is: the middle of a logarithmic scale.
  return std::clamp(static_cast<TokenCount>(std::sqrt(static_cast<double>(knob.highest))),
                    knob.lowest, knob.highest);
}

QString knob_text(const Tunable& tunable, TokenCount position, RowIndex prompt) {
  QString text =
      QString::fromStdString(tunable.knob.parameter + ' ' + tunable.knob.value(position));
  if (tunable.turns_amount() && !turns_share(tunable.knob) && prompt > 0) {
    const double share = 100.0 * static_cast<double>(position) / static_cast<double>(prompt);
    text += QString(" (%1 % of the prompt)").arg(share, 0, 'g', 3);
  }
  return text;
}

}  // namespace kvspan::gui
