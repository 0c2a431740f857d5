// SPDX-License-Identifier: Apache-2.0
// The real program, run from the outside.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/wait.h>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tests/support/temporary_folder.h"

namespace kvspan::test {

struct Outcome {
  int code = 0;
  std::string text;  // stdout and stderr
};

inline Outcome shell(const std::string& command) {
  Outcome out;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    out.text.append(buffer, n);
  out.code = WEXITSTATUS(pclose(pipe));
  return out;
}

// A bundled trace.
inline std::string trace(const char* name) { return std::string(KVSPAN_TRACES_DIR) + "/" + name; }

inline Outcome program(const std::string& arguments) {
  return shell(std::string(KVSPAN_PROGRAM) + " " + arguments + " 2>&1");
}

struct Folder : TemporaryFolder {
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

inline nlohmann::json read_json(const std::string& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

inline std::string read_text(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// One line on stderr, and nothing else.
inline void fails(const std::string& arguments, int code, const std::string& why) {
  INFO(arguments);
  const Outcome out = program(arguments);
  CHECK(out.code == code);
  CHECK_THAT(out.text, Catch::Matchers::Contains(why));
  CHECK(std::count(out.text.begin(), out.text.end(), '\n') == 1);
}

}  // namespace kvspan::test
