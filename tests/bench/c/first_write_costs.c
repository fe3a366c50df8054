/*
 * first_write_costs plain|mprotect SIZE_MIB: a target that times its own first writes.
 *
 * Holds a region of private memory of 4 KiB pages. With "plain" somebody tracks it, or nobody. With "mprotect" it
 * tracks itself in the way of old: the region is made read-only, and a handler of SIGSEGV notes the page and makes it
 * writable. Prints "ready", then obeys on standard input:
 *
 *   write order COUNT SEED      to so many pages, one after the other
 *   write random COUNT SEED     to so many pages, chosen at random, each once
 *
 * and answers with the nanoseconds that it took. With "mprotect" the region is protected before, outside the time.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static volatile uint64_t *region;
static size_t pages;
static uint32_t *noted;
static volatile size_t noted_count;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	uintptr_t page = ((uintptr_t)info->si_addr - (uintptr_t)region) / PAGE;

	(void)number;
	(void)context;
	if ((uintptr_t)info->si_addr < (uintptr_t)region || page >= pages)
		_exit(3);
	noted[noted_count++] = (uint32_t)page;
	if (mprotect((char *)(uintptr_t)region + page * PAGE, PAGE, PROT_READ | PROT_WRITE) != 0)
		_exit(4);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void shuffle(uint32_t *order, size_t wanted, unsigned seed)
{
	srandom(seed);
	for (size_t i = 0; i < wanted; i++) {
		size_t j = i + (size_t)random() % (pages - i);
		uint32_t kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
}

int main(int count, char **arguments)
{
	int own;

	if (count != 3 || (strcmp(arguments[1], "plain") != 0 && strcmp(arguments[1], "mprotect") != 0)) {
		fprintf(stderr, "usage: first_write_costs plain|mprotect SIZE_MIB\n");
		return 2;
	}
	own = strcmp(arguments[1], "mprotect") == 0;
	pages = (size_t)atol(arguments[2]) * 256;
	region = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t *ascending = malloc(pages * sizeof(*ascending)), *shuffled = malloc(pages * sizeof(*shuffled));

	noted = calloc(pages, sizeof(*noted));
	if (region == MAP_FAILED || ascending == NULL || shuffled == NULL || noted == NULL)
		die("memory");
	madvise((void *)region, pages * PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++) {
		region[i * (PAGE / 8)] = 1;
		ascending[i] = shuffled[i] = (uint32_t)i;
		noted[i] = 0;
	}
	if (own) {
		struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

		if (sigaction(SIGSEGV, &action, NULL) != 0)
			die("sigaction");
	}
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	puts("ready");

	char how[8];
	size_t wanted;
	unsigned seed;

	while (scanf(" write %7s %zu %u", how, &wanted, &seed) == 3) {
		const uint32_t *order = shuffled;

		if (wanted > pages)
			return 2;
		if (strcmp(how, "random") == 0)
			shuffle(shuffled, wanted, seed);
		else
			order = ascending + seed * wanted % (pages - wanted + 1);
		if (own && mprotect((void *)(uintptr_t)region, pages * PAGE, PROT_READ) != 0)
			die("mprotect");
		noted_count = 0;
		int64_t began = now_ns();

		for (size_t i = 0; i < wanted; i++)
			region[(size_t)order[i] * (PAGE / 8)] += seed;
		int64_t took = now_ns() - began;

		if (own && noted_count != wanted)
			return 5;
		printf("%ld\n", (long)took);
	}
	return 0;
}
