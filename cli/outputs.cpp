// SPDX-License-Identifier: Apache-2.0
#include "cli/outputs.h"

#include <algorithm>
#include <cstdio>
#include <fcntl.h>
#include <map>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"

namespace kvspan::cli {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

bool is_standard_output(const std::string& path) {
  return path == "/dev/stdout" || path == "/dev/fd/1" || path == "/proc/self/fd/1";
}

// The name of what was standard output; what is printed goes to standard error.
std::string take_standard_output() {
  std::fflush(stdout);
  const int file = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (file < 0 || ::dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
    throw ConfigError("standard output or standard error is not open");
  return fmt::format("/dev/fd/{}", file);
}

// Errors: Error when it cannot be written there.
void try_to_write(const Output& output) {
  const fs::path path = output.path;
  struct stat status {};
  const bool exists = ::stat(path.c_str(), &status) == 0;
  if (!output.streams &&
      ((exists && S_ISFIFO(status.st_mode)) || is_standard_output(output.path))) {
    throw Error(
        fmt::format("'{}' is a stream; this is not written from front to back, so give a file",
                    path_text(path)),
        2);
  }
  if (exists && !S_ISDIR(status.st_mode) && ::access(path.c_str(), W_OK) != 0)
    throw Error(fmt::format("'{}' may not be written", path_text(path)), 2);
  // Opening a pipe would already tell its reader that something comes.
  if (!exists || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) {
    const AtomicFile probe(path);
  }
}

}  // namespace

std::optional<FileKey> file_key(const fs::path& path) {
  struct stat status {};
  struct stat null {};
  if (::stat(path.c_str(), &status) == 0) {
    if (S_ISCHR(status.st_mode) && ::stat("/dev/null", &null) == 0 &&
        status.st_rdev == null.st_rdev) {
      return std::nullopt;
    }
    return FileKey(status.st_dev, status.st_ino, "");
  }
  if (::stat(folder_of(path).c_str(), &status) == 0)
    return FileKey(status.st_dev, status.st_ino, path.filename().string());
  return FileKey(0, 0, fs::absolute(path).lexically_normal().string());
}

Outputs::Outputs(std::vector<Output> outputs, const std::vector<fs::path>& inputs)
    : outputs_(std::move(outputs)) {
  std::erase_if(outputs_, [](const Output& output) { return output.path.empty(); });
  std::map<FileKey, std::string> taken;
  for (const fs::path& input : inputs) {
    struct stat status {};
    if (::stat(input.c_str(), &status) != 0) continue;  // the name of something else
    if (const auto key = file_key(input)) taken[*key] = "an input of this command";
  }
  for (const Output& output : outputs_) {
    if (const auto key = file_key(output.path)) {
      const auto [at, free] = taken.emplace(*key, "also given to " + output.option);
      if (!free)
        throw ConfigError(fmt::format("{}: '{}' is {}", output.option, output.path, at->second));
    }
    const fs::path folder = folder_of(output.path);
    std::error_code unknown;
    if (!fs::is_directory(folder, unknown)) {
      throw ConfigError(
          fmt::format("{}: there is no folder '{}'", output.option, path_text(folder)));
    }
    try {
      try_to_write(output);
    } catch (const Error& error) {
      throw ConfigError(fmt::format("{}: {}", output.option, error.what()));
    }
  }
  for (Output& output : outputs_) {
    if (is_standard_output(output.path)) output.path = take_standard_output();
  }
}

std::string json_output(const std::string& out) {
  if (!out.empty()) throw ConfigError("--json is --out - without the table: give one of them");
  return "/dev/stdout";
}

const Output* Outputs::find(std::string_view option) const {
  const auto at = std::find_if(outputs_.begin(), outputs_.end(),
                               [&](const Output& output) { return output.option == option; });
  return at == outputs_.end() ? nullptr : &*at;
}

void Outputs::need(std::string_view option, std::uint64_t bytes) const {
  const Output* output = find(option);
  if (output == nullptr || (fs::exists(output->path) && !fs::is_regular_file(output->path))) return;
  std::error_code unknown;
  const std::uint64_t free = fs::space(folder_of(output->path), unknown).available;
  if (unknown || bytes <= free) return;
  throw ConfigError(fmt::format("{}: '{}' takes at least {}, and {} are free there", option,
                                output->path, human_bytes(static_cast<std::int64_t>(bytes)),
                                human_bytes(static_cast<std::int64_t>(free))));
}

void Outputs::write(std::string_view option, const std::function<void(const fs::path&)>& writer) {
  const Output* output = find(option);
  if (output == nullptr) return;
  try {
    writer(output->path);
    if (!output->path.starts_with("/dev/")) written_.push_back(output->path);
  } catch (const std::exception& error) {
    failed_.push_back(fmt::format("{}: {}", option, error.what()));
  }
}

void Outputs::write_text(std::string_view option, const std::function<std::string()>& text) {
  write(option, [&](const fs::path& path) { write_file_atomically(path, text()); });
}

void Outputs::finish(bool quiet) {
  std::fflush(stdout);
  for (const std::string& path : written_) {
    if (!quiet) fmt::print(stderr, "kvspan: wrote {}\n", path);
  }
  if (failed_.empty()) return;
  for (std::size_t i = 0; i + 1 < failed_.size(); ++i)
    fmt::print(stderr, "kvspan: {}\n", failed_[i]);
  throw Error(failed_.back(), 1);
}

}  // namespace kvspan::cli
