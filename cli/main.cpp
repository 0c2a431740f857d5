// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <system_error>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/commands.h"
#include "sim/attention/simd_target.h"
#include "sim/base/build_info.h"
#include "sim/base/error.h"
#include "sim/policy/spec.h"

namespace {

std::string version_text() {
  const kvspan::BuildInfo info = kvspan::build_info();
  return fmt::format("kvspan {} ({}; {})\nLicence: Apache-2.0", info.version, info.git, info.build);
}

constexpr const char* kFooter = R"help(
Examples:
  kvspan run traces/smollm2-passkey.safetensors --policy all --budget 20%
  kvspan run TRACE --policy full --policy "snapkv(budget={128,512})" --policy "chunked(snapkv(budget=10%))" --chunk 512
  kvspan sweep TRACE TRACE --policy all --budget 5%,10%,20% --out results && kvspan report results
  kvspan explain result.json --policy snapkv --against tova
  kvspan optimum traces/smollm2-passkey.safetensors --prompt 512 --budget 10%,20%
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768 --policy full --policy "duoattention(sparsity=0.7)"
  kvspan replay TRACE --policy full --policy snapkv --budget 20% --limit 64MiB --fill
  kvspan policies snapkv
  kvspan capture --model FOLDER_OR_GGUF --text prompt.txt --generate 64 --out trace.safetensors
  kvspan trace info|stats TRACE
  kvspan synth --tokens 4096 --needles 3 --out synthetic.safetensors
  kvspan fit foresightkv --train TRACE --out weights.safetensors
  kvspan capture --model DIR --text FILE --prompt 1792 --generate 256 --out TRACE.safetensors
  kvspan eval --model DIR --task niah_single_1:length=1024 --policy snapkv --budget 10%,20%
  kvspan tokenize --model DIR --text FILE

Environment: KVSPAN_SIMD=avx512|avx2|sse4 caps the instructions used (default: the best of the machine).
Exit codes: 0 ok, 1 internal, or an output failed while it was written, 2 wrong arguments, 3 wrong input
data, or cells of a sweep failed, 4 a policy broke its contract, 5 no usable device, 6 predict was asked
what fits, and nothing does, 7 two sweeps differ, 75 a sweep or an evaluation was stopped and can go on,
130 stopped by Ctrl-C.
Files: - is standard input or output; tables go to standard error where a file goes to standard output.)help";

// The command that the user meant, for hints: the chosen subcommand, as deep as it goes.
const CLI::App* chosen(const CLI::App* app) {
  for (const CLI::App* sub : app->get_subcommands()) return chosen(sub);
  return app;
}

// "trace stats", as a user types it; the program itself: "".
std::string full_name(const CLI::App* app) {
  if (app->get_parent() == nullptr) return "";
  const std::string above = full_name(app->get_parent());
  return above.empty() ? app->get_name() : above + " " + app->get_name();
}

// One line for a wrong command line; unknown options and commands get the nearest known one.
std::string explain(const CLI::App& app, const CLI::ParseError& error,
                    const std::vector<std::string>& command) {
  const CLI::App* sub = chosen(&app);
  const std::string name = full_name(sub);
  std::vector<std::string> options;
  for (const CLI::Option* option : sub->get_options())
    options.push_back(option->get_name(false, true));
  std::vector<std::string> names;
  for (const std::string& list : options) {
    for (std::size_t from = 0; from < list.size();) {
      const std::size_t comma = std::min(list.find(',', from), list.size());
      names.push_back(list.substr(from, comma - from));
      from = comma + 1;
    }
  }
  std::vector<std::string> commands;
  for (const CLI::App* c : sub->get_subcommands({})) commands.push_back(c->get_name());
  for (std::size_t i = 1; i < command.size(); ++i) {
    const std::string word = command[i].substr(0, command[i].find('='));
    if (word.starts_with("--") && std::find(names.begin(), names.end(), word) == names.end()) {
      return fmt::format("{}: unknown option '{}'; {}", name, word,
                         kvspan::nearest_hint(word, names));
    }
    if (sub == &app && !word.starts_with('-') && !commands.empty()) {
      return fmt::format("unknown command '{}'; {}", word, kvspan::nearest_hint(word, commands));
    }
  }
  std::string text = error.what();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return fmt::format("{}{} (see kvspan{} --help)", name.empty() ? "" : name + ": ", text,
                     name.empty() ? "" : " " + name);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is an error of write(), as a full disk is
  kvspan::cli::Context context{{argv, argv + argc}};
  try {
    kvspan::kernels::choose_simd_target();
    CLI::App app(
        "kvspan: how much KV cache memory a policy really holds, over time, and what it loses.",
        "kvspan");
    app.set_version_flag("--version", version_text());
    app.footer(kFooter);
    app.require_subcommand(1);
    kvspan::cli::add_run(app, context);
    kvspan::cli::add_explain(app, context);
    kvspan::cli::add_optimum(app, context);
    kvspan::cli::add_predict(app, context);
    kvspan::cli::add_plan(app, context);
    kvspan::cli::add_sweep(app);
    kvspan::cli::add_report(app);
    kvspan::cli::add_replay(app, context);
    kvspan::cli::add_policies(app);
    kvspan::cli::add_trace(app);
    kvspan::cli::add_fit(app);
    kvspan::cli::add_capture(app, context);
    kvspan::cli::add_tokenize(app);
    kvspan::cli::add_eval(app, context);
    kvspan::cli::add_synth(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& request) {  // --help, --version
      return app.exit(request);
    } catch (const CLI::ParseError& error) {
      std::cerr << "kvspan: " << explain(app, error, context.command) << "\n";
      return 2;
    }
    std::cout.flush();
    if (std::cout && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
    std::cerr << "kvspan: cannot write to standard output: " << std::strerror(errno) << "\n";
  } catch (const kvspan::Interrupted& error) {
    std::cerr << "kvspan: " << error.what() << "\n";
    return kvspan::cli::kInterrupted;
  } catch (const kvspan::Error& error) {
    std::cerr << "kvspan: " << error.what() << "\n";
    return error.exit_code();
  } catch (const std::bad_alloc&) {
    std::cerr << "kvspan: out of memory; fewer tokens, policies or threads need less\n";
  } catch (const std::system_error& error) {
    std::cerr << "kvspan: "
              << (std::ferror(stdout) != 0
                      ? "cannot write to standard output: " + error.code().message()
                      : std::string("internal error: ") + error.what())
              << "\n";
  } catch (const std::exception& error) {
    std::cerr << "kvspan: internal error: " << error.what() << "\n";
  }
  return 1;
}
