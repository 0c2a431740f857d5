// SPDX-License-Identifier: Apache-2.0
#include "cli/viewer_program.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <spawn.h>
#include <sstream>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kViewer = "kvspan-viewer";

std::vector<fs::path> candidates() {
  std::vector<fs::path> out;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    out.push_back(program.parent_path() / kViewer);
    out.push_back(program.parent_path().parent_path() / "gui" / kViewer);
  }
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (!folder.empty()) out.push_back(fs::path(folder) / kViewer);
  }
  return out;
}

}  // namespace

std::string find_viewer(const std::string& what) {
  for (const fs::path& candidate : candidates()) {
    std::error_code ignored;
    if (fs::is_regular_file(candidate, ignored) && ::access(candidate.c_str(), X_OK) == 0)
      return candidate.string();
  }
  throw ConfigError(fmt::format(
      "{} needs the program {}, which is neither beside this one nor on the PATH; build it (Qt 6, "
      "KVSPAN_GUI=ON)",
      what, kViewer));
}

void run_viewer(const std::string& viewer, const std::vector<std::string>& arguments) {
  std::vector<std::string> words{viewer};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions{};
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, viewer.c_str(), &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    throw Error(fmt::format("cannot start '{}': {}", viewer, std::strerror(error)), 1);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw Error(fmt::format("'{}' made no picture", viewer), 1);
}

}  // namespace kvspan::cli
