/*
 * first_writes THREADS SIZE_MIB: threads that write when asked, and say what each of them wrote, in its order.
 *
 *   Prints "ready START_ADDRESS PAGES TID...": one thread id for each thread, and a region of private memory, populated
 *   and kept from huge pages. Then obeys on standard input:
 *
 *   write SHARE_PERCENT SEED
 *       Each thread writes to its own share of the pages, chosen at random: in a random order, or where SEED is even in
 *       ascending order. All at once. No page is written by two of them. Every page is written twice in a row, so that
 *       a second message for one page would show. Answers "done COUNT NS_MAX": how many pages, and how long the
 *       slowest single write took.
 *   tell PATH
 *       Puts the page indexes of the last "write" into a file, as u32: for each thread a count, then as many indexes.
 *       Answers "told".
 *
 * The lists lie in shared memory, which nobody protects: to note a write must not be a write that waits.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS_MAX = 64 };

static volatile uint64_t *region;
static uint32_t *lists; /* for each thread room for its part of the pages */
static uint32_t part;
static long thread_count;
static struct shared {
	pthread_barrier_t begin, end;
	int share;
	uint64_t seed;
	uint32_t counts[THREADS_MAX];
	int64_t slowest[THREADS_MAX];
	pid_t tids[THREADS_MAX];
} *shared;

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static uint64_t next(uint64_t *state)
{
	/* splitmix64 */
	uint64_t z = (*state += 0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static void choose(long me, uint32_t *list, uint64_t *state)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < part; i++)
		if (next(state) % 100 < (uint64_t)shared->share)
			list[count++] = me * part + i;
	if (shared->seed % 2)
		for (uint32_t i = count; i > 1; i--) {
			uint32_t j = next(state) % i, kept = list[i - 1];
			list[i - 1] = list[j];
			list[j] = kept;
		}
	shared->counts[me] = count;
}

static void *work(void *argument)
{
	long me = (long)argument;
	uint32_t *list = lists + (size_t)me * part;
	shared->tids[me] = gettid();
	pthread_barrier_wait(&shared->end);
	for (;;) {
		pthread_barrier_wait(&shared->begin);
		uint64_t state = shared->seed * THREADS_MAX + me;
		choose(me, list, &state);
		int64_t slowest = 0;
		for (uint32_t i = 0; i < shared->counts[me]; i++) {
			volatile uint64_t *word = region + (uint64_t)list[i] * (PAGE / 8) + i % (PAGE / 8);
			int64_t began = now_ns();
			*word = shared->seed;
			int64_t took = now_ns() - began;
			*word = shared->seed + 1;
			if (took > slowest)
				slowest = took;
		}
		shared->slowest[me] = slowest;
		pthread_barrier_wait(&shared->end);
	}
	return NULL;
}

static void *map(size_t size_bytes, int flags)
{
	void *got = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (got == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return got;
}

static void tell(const char *path)
{
	FILE *file = fopen(path, "w");
	if (!file) {
		perror(path);
		exit(1);
	}
	for (long i = 0; i < thread_count; i++) {
		fwrite(&shared->counts[i], sizeof(uint32_t), 1, file);
		fwrite(lists + (size_t)i * part, sizeof(uint32_t), shared->counts[i], file);
	}
	if (fclose(file)) {
		perror(path);
		exit(1);
	}
	puts("told");
}

int main(int count, char **arguments)
{
	if (count != 3 || (thread_count = atol(arguments[1])) < 1 || thread_count > THREADS_MAX) {
		fprintf(stderr, "usage: first_writes THREADS SIZE_MIB\n");
		return 2;
	}
	uint32_t pages = (uint32_t)(atol(arguments[2]) * 256 / thread_count * thread_count);
	part = pages / (uint32_t)thread_count;
	region = map((size_t)pages * PAGE, MAP_PRIVATE);
	madvise((void *)region, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
	for (uint32_t page = 0; page < pages; page++)
		region[(uint64_t)page * (PAGE / 8)] = 1;
	lists = map((size_t)pages * sizeof(uint32_t), MAP_SHARED);
	shared = map(sizeof(*shared), MAP_SHARED);
	pthread_barrier_init(&shared->begin, NULL, (unsigned)thread_count + 1);
	pthread_barrier_init(&shared->end, NULL, (unsigned)thread_count + 1);
	for (long i = 0; i < thread_count; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, work, (void *)i))
			return 1;
	}
	pthread_barrier_wait(&shared->end);
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	printf("ready %lu %u", (unsigned long)region, pages);
	for (long i = 0; i < thread_count; i++)
		printf(" %d", shared->tids[i]);
	puts("");

	char line[4096], path[4096];
	unsigned long seed;
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "write %d %lu", &shared->share, &seed) == 2) {
			shared->seed = seed;
			pthread_barrier_wait(&shared->begin);
			pthread_barrier_wait(&shared->end);
			unsigned long written = 0;
			int64_t slowest = 0;
			for (long i = 0; i < thread_count; i++) {
				written += shared->counts[i];
				if (shared->slowest[i] > slowest)
					slowest = shared->slowest[i];
			}
			printf("done %lu %ld\n", written, (long)slowest);
		} else if (sscanf(line, "tell %4095s", path) == 1) {
			tell(path);
		} else {
			return 2;
		}
	}
	return 0;
}
