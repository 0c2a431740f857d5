// SPDX-License-Identifier: Apache-2.0
#include "tracegen/gguf.h"
