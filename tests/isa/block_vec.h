/* SPDX-License-Identifier: MIT
 * block_vec.h: rows of all kinds in random blocks (block_vec.c). */
#ifndef ISA_BLOCK_VEC_H
#define ISA_BLOCK_VEC_H

#include "isa.h"

void vec_init(void);
/* An instruction whose memory operands have a base and an index of these sets of registers; its length, or 0. */
unsigned vec_put(uint8_t *code, unsigned pointers, unsigned indices);
void vec_random(struct xsave_area *);
bool vec_differ(const struct xsave_area *host, const struct xsave_area *soft); /* true: printed */

#endif
