// SPDX-License-Identifier: Apache-2.0
// Until every caller includes what it uses.
#pragma once

#include "sim/report/lifetimes_writer.h"
#include "sim/report/timeline_writer.h"
