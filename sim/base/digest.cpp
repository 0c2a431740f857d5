// SPDX-License-Identifier: Apache-2.0
#include "sim/base/digest.h"

#include <array>
#include <iterator>

#include <fmt/format.h>
#include <openssl/evp.h>

#include "sim/base/error.h"

namespace kvspan {

std::string sha256_of_text(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1)
    throw Error("SHA-256 is not available in this libcrypto", 1);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i)
    fmt::format_to(std::back_inserter(hex), "{:02x}", digest[i]);
  return hex;
}

}  // namespace kvspan
