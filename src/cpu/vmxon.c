/* SPDX-License-Identifier: MIT */
#include "cpu_int.h"
