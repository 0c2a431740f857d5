// SPDX-License-Identifier: Apache-2.0
// Products of a query with many keys, in the order of summation that every decision rests on.
#pragma once

#include "sim/attention/kernels.h"  // IWYU pragma: export
