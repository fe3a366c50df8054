/*
 * hot_and_cold: one thread writes a few pages again and again, another goes through many, and some are never written.
 *
 * A target whose working set, hot pages and writers are known: thread "hot" is in write_hot() and writes the first
 * HOT_PAGES of a mapping every millisecond; thread "cold" is in write_cold() and writes one after another of the
 * COLD_PAGES behind them, one each two milliseconds; the STILL_PAGES at the end are written once, before "ready".
 *
 * Prints "ready ADDRESS", the mapping's first byte in hexadecimal. Ends with its parent.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	HOT_PAGES = 16,
	COLD_PAGES = 400,
	STILL_PAGES = 96,
	HOT_PAUSE_NS = 1000000,
	COLD_PAUSE_NS = 2000000,
};

static volatile unsigned char *memory;

static void pause_ns(long ns)
{
	nanosleep(&(struct timespec){ .tv_nsec = ns }, NULL);
}

static __attribute__((noinline)) void write_hot(void)
{
	for (int page = 0; page < HOT_PAGES; page++)
		memory[page * PAGE]++;
}

static __attribute__((noinline)) void write_cold(int page)
{
	memory[(HOT_PAGES + page) * PAGE]++;
}

static void *hot(void *nothing)
{
	pthread_setname_np(pthread_self(), "hot");
	for (;;) {
		write_hot();
		pause_ns(HOT_PAUSE_NS);
	}
	return nothing;
}

static void *cold(void *nothing)
{
	pthread_setname_np(pthread_self(), "cold");
	for (int page = 0;; page = (page + 1) % COLD_PAGES) {
		write_cold(page);
		pause_ns(COLD_PAUSE_NS);
	}
	return nothing;
}

int main(void)
{
	size_t size = (size_t)(HOT_PAGES + COLD_PAGES + STILL_PAGES) * PAGE;
	pthread_t threads[2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return EXIT_FAILURE;
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	if (pthread_create(&threads[0], NULL, hot, NULL) || pthread_create(&threads[1], NULL, cold, NULL))
		return EXIT_FAILURE;
	printf("ready %#lx\n", (unsigned long)(uintptr_t)memory);
	fflush(stdout);
	for (;;)
		pause();
}
