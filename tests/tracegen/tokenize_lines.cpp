// SPDX-License-Identifier: Apache-2.0
// For tests/tracegen/fuzz_tokenizers.py: reads one JSON string a line, prints its ids as JSON.
//   kvspan_tokenize_lines MODEL < strings > ids
#include <iostream>
#include <string>

#include <nlohmann/json.hpp>

#include "tracegen/tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const auto tokenizer = kvspan::tracegen::Tokenizer::open(argv[1]);
    for (std::string line; std::getline(std::cin, line);) {
      const auto text = nlohmann::json::parse(line).get<std::string>();
      std::cout << nlohmann::json(tokenizer.encode(text)).dump() << "\n";
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
