// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval_files.h"

#include <algorithm>
#include <exception>
#include <set>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/base/types.h"
#include "tracegen/eval/eval_record.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

constexpr JsonLimits kLimits{std::size_t{1} << 30U, 12};

struct EvalFile {
  std::string name, version;
  std::vector<SampleResult> samples;
};

EvalFile read_file(const std::filesystem::path& path) {
  const MappedFile file = map_file(path);
  try {
    const json root = parse_json_strict(
        {reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()}, kLimits);
    if (!root.is_object() || !root.contains("eval"))
      throw std::invalid_argument("found no field 'eval'");
    EvalFile out{path_text(path), root.at("kvspan").at("version").get<std::string>(), {}};
    for (const json& document : root.at("results")) out.samples.push_back(sample_of(document));
    if (out.samples.empty()) throw std::invalid_argument("found no samples");
    return out;
  } catch (const std::exception& error) {
    throw TraceError(fmt::format("{}: no result of `kvspan eval --out`: {}", path_text(path),
                                 one_line(error.what())));
  }
}

class Files {
 public:
  void add(EvalFile file) {
    std::set<std::size_t> taken;  // so that a file's own equal samples stay apart
    for (SampleResult& sample : file.samples) {
      require_one_version(file, sample);
      const std::size_t same = find(sample, taken);
      taken.insert(same);
      if (same == samples_.size()) {
        samples_.push_back(std::move(sample));
        from_.push_back(files_.size());
      } else {
        add_runs(file, std::move(sample), same);
      }
    }
    file.samples.clear();
    files_.push_back(std::move(file));
  }

  [[nodiscard]] EvalResult result(const FigureOptions& options) && {
    EvalResult out;
    out.options = options;
    out.tasks = by_task(std::move(samples_), options);
    for (const TaskResult& task : out.tasks) {
      if (task.policies.size() > 1 || task.left_out.empty()) continue;
      throw ConfigError(
          fmt::format("the files have no policy in common on the {} samples of {} but full ({} ran "
                      "on {} of them); expected the same policies on all, or files of the same "
                      "samples",
                      task.samples.size(), in_quotes(task.task), task.left_out.front().label,
                      task.left_out.front().samples));
    }
    return out;
  }

 private:
  void require_one_version(const EvalFile& file, const SampleResult& sample) const {
    for (std::size_t i = 0; i < samples_.size(); ++i) {
      if (from_[i] == files_.size() || !belong_together(samples_[i], sample)) continue;
      const EvalFile& other = files_[from_[i]];
      if (other.version == file.version) continue;
      throw ConfigError(
          fmt::format("{} is of kvspan {}, {} of {}; expected one version for the samples of {}",
                      file.name, file.version, other.name, other.version, in_quotes(sample.task)));
    }
  }

  // The same sample of a file before; else the place of a new one.
  [[nodiscard]] std::size_t find(const SampleResult& sample,
                                 const std::set<std::size_t>& taken) const {
    for (std::size_t i = 0; i < samples_.size(); ++i) {
      const SampleResult& other = samples_[i];
      if (from_[i] < files_.size() && taken.count(i) == 0 && belong_together(other, sample) &&
          other.input_sha256 == sample.input_sha256 && other.sample.name == sample.sample.name &&
          other.sample.answers == sample.sample.answers &&
          other.sample.scoring == sample.sample.scoring) {
        return i;
      }
    }
    return samples_.size();
  }

  void add_runs(const EvalFile& file, SampleResult sample, std::size_t same) {
    SampleResult& into = samples_[same];
    for (std::size_t r = 0; r < sample.report.runs.size(); ++r) {
      RunResult& run = sample.report.runs[r];
      const auto at = std::ranges::find(into.report.runs, run.label, &RunResult::label);
      if (at == into.report.runs.end()) {
        into.report.runs.push_back(std::move(run));
        into.outcomes.push_back(std::move(sample.outcomes[r]));
        continue;
      }
      const Outcome& known = into.outcomes[index(at - into.report.runs.begin())];
      const Outcome& found = sample.outcomes[r];
      if (found.answer == known.answer && found.score == known.score &&
          run.metrics.footprint == at->metrics.footprint) {
        continue;
      }
      throw ConfigError(fmt::format(
          "{} and {} disagree on {} at sample {} of {} (score {} and {}, footprint {} and {}); "
          "expected files of one program and one kind of machine",
          files_[from_[same]].name, file.name, run.label, in_quotes(sample.sample.name),
          in_quotes(sample.task), known.score, found.score, at->metrics.footprint,
          run.metrics.footprint));
    }
    into.refused.insert(into.refused.end(), sample.refused.begin(), sample.refused.end());
  }

  std::vector<EvalFile> files_;
  std::vector<SampleResult> samples_;
  std::vector<std::size_t> from_;  // [samples_] the file that had it first
};

}  // namespace

EvalResult read_evaluations(const std::vector<std::filesystem::path>& paths,
                            const FigureOptions& options) {
  Files files;
  std::set<std::filesystem::path> seen;
  for (const std::filesystem::path& path : paths) {
    if (!seen.insert(std::filesystem::weakly_canonical(path)).second)
      throw ConfigError(fmt::format("{} stands there twice", in_quotes(path_text(path))));
    files.add(read_file(path));
  }
  return std::move(files).result(options);
}

}  // namespace kvspan::tracegen
