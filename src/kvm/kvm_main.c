/* SPDX-License-Identifier: MIT */
#include "kvm_host.h"
