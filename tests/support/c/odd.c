/* A process of an odd kind, that says ready and answers each line of standard input with "here".
 *
 *     odd plain         of no odd kind
 *     odd novdso        has unmapped its vdso
 *     odd undumpable    PR_SET_DUMPABLE 0
 *     odd execs N MS    calls execve(2) on itself N times, each after so many milliseconds, before it says ready
 *     odd threads N MS  the same, called by another thread than the first
 *     odd relay         its first thread has ended; each other one starts the next, and ends after a fraction of a millisecond
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static char **arguments;

static void die(const char *what)
{
	fprintf(stderr, "odd: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* No call of libc here that would use the vdso. */
static void serve(void)
{
	char byte;
	if (write(1, "ready\n", 6) < 0)
		_exit(1);
	while (read(0, &byte, 1) == 1)
		if (byte == '\n' && write(1, "here\n", 5) < 0)
			_exit(1);
}

static void unmap_vdso(void)
{
	char line[512];
	unsigned long start = 0, end = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			break;
	fclose(maps);
	if (!end || munmap((void *)start, end - start))
		die("munmap of the vdso");
}

static void *exec_again(void *nothing)
{
	char left[16];
	usleep((useconds_t)atoi(arguments[3]) * 1000);
	snprintf(left, sizeof left, "%d", atoi(arguments[2]) - 1);
	arguments[2] = left;
	execv("/proc/self/exe", arguments);
	die("execv");
	return nothing;
}

static void *run_a_stage(void *nothing)
{
	static char memory[64 * 4096];
	static unsigned turn;
	struct pollfd input = {.fd = 0, .events = POLLIN};
	char byte;
	pthread_t next;
	pthread_attr_t detached;

	memory[turn++ % 64 * 4096]++;
	if (poll(&input, 1, 0) == 1 && read(0, &byte, 1) == 1 && byte == '\n' && write(1, "here\n", 5) < 0)
		_exit(1);
	usleep(200);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&next, &detached, run_a_stage, NULL))
		die("pthread_create");
	return nothing;
}

int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "";
	pthread_t thread;
	arguments = words;
	if (count > 3 && atoi(words[2]) > 0) {
		if (!strcmp(mode, "execs"))
			exec_again(NULL);
		if (pthread_create(&thread, NULL, exec_again, NULL))
			die("pthread_create");
		for (;;)
			pause();
	}
	if (!strcmp(mode, "relay")) {
		if (write(1, "ready\n", 6) < 0 || pthread_create(&thread, NULL, run_a_stage, NULL))
			die("pthread_create");
		pthread_exit(NULL);
	}
	if (!strcmp(mode, "novdso"))
		unmap_vdso();
	if (!strcmp(mode, "undumpable") && prctl(PR_SET_DUMPABLE, 0))
		die("prctl");
	serve();
	return 0;
}
