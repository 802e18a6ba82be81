/* SPDX-License-Identifier: MIT
 * dyn.c: a dynamically linked program that does little: the loader's work is what costs. */
#include <stdio.h>

int main(void)
{
    return puts("dyn") < 0;
}
