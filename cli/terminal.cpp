// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "cli/commands.h"
#include "sim/report/listing.h"

namespace kvspan::cli {
namespace {

std::atomic<bool> g_interrupted{false};
std::mutex g_mutex;  // progress is reported from any thread

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void on_interrupt(int signal) {
  g_interrupted = true;
  std::signal(signal, SIG_DFL);  // a second one ends the program at once
}

}  // namespace

int terminal_width() {
  winsize size{};
  if (isatty(STDOUT_FILENO) != 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 &&
      size.ws_col > 0) {
    return std::clamp<int>(size.ws_col, 60, 200);
  }
  return 100;
}

bool terminal_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::string text(value);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

std::string time_text(double seconds) {
  if (seconds < 100) return fmt::format("{:.3g} s", seconds);
  return seconds < 6000 ? fmt::format("{:.3g} min", seconds / 60)
                        : fmt::format("{:.3g} h", seconds / 3600);
}

void print_footnotes(const Footnotes& footnotes) {
  for (std::size_t i = 0; i < footnotes.notes().size(); ++i)
    fmt::print("[{}] {}\n", i + 1, footnotes.notes()[i]);
}

std::string align(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i])
                     : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

Progress::Progress(std::string what, bool quiet)
    : what_(std::move(what)), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0), begin_(now()) {}

Progress::~Progress() {
  if (!quiet_ && terminal_ && shown_ >= 0) fmt::print(stderr, "\r\033[K");
}

void Progress::operator()(double done, const std::string& what) {
  if (quiet_) return;
  const std::lock_guard lock(g_mutex);
  const int percent = std::clamp(static_cast<int>(done * 100), 0, 100);
  if (percent <= shown_ || (!terminal_ && percent / 10 <= shown_ / 10)) return;
  const double elapsed = now() - begin_;
  if (!terminal_ && shown_ < 0 && elapsed < 2) return;  // short work says nothing
  shown_ = percent;
  const double left = done > 0 && done < 1 ? elapsed / done - elapsed : 0;
  if (terminal_) {
    constexpr int kWidth = 30;
    const int filled = percent * kWidth / 100;
    fmt::print(stderr, "\r{} [{}{}] {:3d} %, {:.0f} s left\033[K", what,
               std::string(static_cast<std::size_t>(filled), '#'),
               std::string(static_cast<std::size_t>(kWidth - filled), ' '), percent, left);
  } else {
    fmt::print(stderr, "{}: {} %, {:.0f} s left\n", what, percent / 10 * 10, left);
  }
}

bool interrupted() {
  static const bool installed = [] { return std::signal(SIGINT, on_interrupt) != SIG_ERR; }();
  return installed && g_interrupted;
}

void terminated_too() {
  (void)interrupted();
  std::signal(SIGTERM, on_interrupt);
}

}  // namespace kvspan::cli
