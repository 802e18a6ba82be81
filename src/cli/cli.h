/* SPDX-License-Identifier: MIT
 * cli.h: subcommands: a file and a row of main.c's table each. Exit status: 0, 1 for an error, 2 for wrong usage. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stdint.h>

int cmd_run(int argc, char **argv);
int cmd_exec(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_trace(int argc, char **argv);

/* "512", "512M", "2G": bytes, without suffix MiB. false: no such size. */
bool parse_size(const char *text, uint64_t *bytes);

#endif
