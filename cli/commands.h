// SPDX-License-Identifier: Apache-2.0
// The subcommands of the program `kvspan`. Each adds itself to the parser and runs when chosen.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace kvspan {
class Footnotes;
}

namespace kvspan::cli {

struct Context {
  std::vector<std::string> command;  // argv, for the result file
};

void add_run(CLI::App& app, const Context& context);
void add_explain(CLI::App& app, const Context& context);
void add_optimum(CLI::App& app, const Context& context);
void add_predict(CLI::App& app, const Context& context);
void add_replay(CLI::App& app, const Context& context);
void add_policies(CLI::App& app);
void add_trace(CLI::App& app);
void add_fit(CLI::App& app);
void add_synth(CLI::App& app);
void add_plan(CLI::App& app, const Context& context);
void add_sweep(CLI::App& app);
void add_report(CLI::App& app);
void add_capture(CLI::App& app, const Context& context);
void add_tokenize(CLI::App& app);
void add_eval(CLI::App& app, const Context& context);

// ---- Terminal -----------------------------------------------------------------------------------

[[nodiscard]] int terminal_width();     // columns of stdout, 100 if it is no terminal
[[nodiscard]] bool terminal_is_utf8();  // of the locale
// "0.374 s", "45 s", "12.3 min", "3.4 h".
[[nodiscard]] std::string time_text(double seconds);
// Aligned columns; the first is left-aligned, the others right-aligned.
[[nodiscard]] std::string align(const std::vector<std::vector<std::string>>& rows);

// "[1] ..." a line, below a table whose rows have their marks.
void print_footnotes(const Footnotes& footnotes);

// Progress of long work on stderr: a bar on a terminal, one line per 10 % otherwise.
class Progress {
 public:
  Progress(std::string what, bool quiet);
  ~Progress();
  void operator()(double done) { (*this)(done, what_); }
  void operator()(double done, const std::string& what);

 private:
  std::string what_;
  bool quiet_;
  bool terminal_;
  int shown_ = -1;
  double begin_;
};

// True once SIGINT has arrived; the first call installs the handler.
[[nodiscard]] bool interrupted();
// From now on SIGTERM counts as well: what can be resumed stops in order.
void terminated_too();
inline constexpr int kNothingFits = 6;    // what fits was asked, and nothing does
inline constexpr int kResumable = 75;     // EX_TEMPFAIL: stopped, and the same command goes on
inline constexpr int kInterrupted = 130;  // the exit code then

}  // namespace kvspan::cli
