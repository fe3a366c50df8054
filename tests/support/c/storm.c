/*
 * storm RATE LONG_EVERY: starts RATE children a second that live for 20 ms, and keeps on until it is killed.
 *
 * Every LONG_EVERY-th child lives for three seconds instead; its pid is printed, one a line, when it ends. Each child
 * writes a little memory of its own. One in eight is started with vfork(2) and calls execve(2) of this program, as
 * "storm child MILLISECONDS".
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 16, PAGE = 4096, SHORT_MS = 20, LONG_MS = 3000 };

static void pause_ms(long ms)
{
	struct timespec rest = {ms / 1000, ms % 1000 * 1000000};

	while (nanosleep(&rest, &rest))
		;
}

static void live(long ms)
{
	char *memory = malloc(PAGES * PAGE);

	for (int page = 0; page < PAGES; page++)
		memory[page * PAGE] = (char)page;
	pause_ms(ms);
	if (ms == LONG_MS) {
		char line[32];
		int length = snprintf(line, sizeof(line), "%d\n", (int)getpid());

		if (write(1, line, (size_t)length) < 0)
			_exit(1);
	}
	_exit(0);
}

int main(int count, char **words)
{
	if (count != 3)
		return 2;
	if (!strcmp(words[1], "child"))
		live(atol(words[2]));
	long rate = atol(words[1]), every = atol(words[2]);
	struct timespec due;

	signal(SIGCHLD, SIG_IGN);
	printf("ready\n");
	fflush(stdout);
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (long number = 1;; number++) {
		long ms = number % every ? SHORT_MS : LONG_MS;

		if (number % 8 == 1) {
			char text[16];
			char *child[] = {words[0], "child", text, NULL};

			snprintf(text, sizeof(text), "%ld", ms);
			if (vfork() == 0) {
				execv("/proc/self/exe", child);
				_exit(1);
			}
		} else if (fork() == 0) {
			live(ms);
		}
		due.tv_nsec += 1000000000 / rate;
		due.tv_sec += due.tv_nsec / 1000000000;
		due.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
}
