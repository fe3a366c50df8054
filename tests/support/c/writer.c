/*
 * writer PATTERN [SEED]: writes its own memory for ever, in a pattern, until it is killed.
 *
 * A target for shadow-copy tests: populate, print "ready", then work in short rounds with small sleeps. Every write
 * stores a 64-bit value that this process has not stored before, so that a byte comparison of a copy with the frozen
 * process shows a lost write; some writes store zeros, some store again what is there, which is harmless.
 *
 * It may be stopped and continued at any point. Children end with their parent; those that write the parent's memory
 * do so one short burst at a time, each asked for by the parent. Nothing here checks anything: the tester compares.
 *
 * Environment: TMPDIR, where files are made; WRITER_KEEP_FILE=1 keeps them instead of unlinking them at once;
 * WRITER_MIXED_PAUSE_FACTOR multiplies the pauses of "mixed", for a machine so slow that the bursts of its 47 threads
 * would take all of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	HUGE_PAGES = 512, /* pages of 4 KiB in one of 2 MiB */
	MAPPED_PAGES_DEFAULT = 8192, /* 32 MiB: enough to matter, little enough to compare in milliseconds */
	BURST_MAX = 32, /* writes between two pauses: some ten thousand pages a second, not a saturated CPU */
	PAUSE_NS_MAX = 2000000,
	MIXED_SHRINK = 8, /* all patterns together stay below 100 MiB */
};

/* One stream of writes: its random numbers and its values are its own. */
struct task {
	uint64_t random;
	uint64_t number;
	uint64_t count;
};

typedef void pattern_function(struct task *task);

static uint64_t seed = 1;
static size_t shrink = 1; /* divides working sets, and multiplies pauses */
static size_t pause_factor = 1;
static bool alone = true; /* whether the pattern has the process for itself */
static atomic_int unready = 1;
static atomic_uint_fast64_t task_count;

/* ---- small things ------------------------------------------------------------------------------------------- */

static _Noreturn void die(const char *format, ...)
{
	int number = errno;
	va_list arguments;

	va_start(arguments, format);
	fputs("writer: ", stderr);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(number));
	_exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static struct task new_task(void)
{
	uint64_t number = atomic_fetch_add(&task_count, 1) + 1;

	return (struct task){ .random = mix(seed + mix(number)), .number = number };
}

static uint64_t random64(struct task *task)
{
	return mix(task->random++);
}

/* A number below the bound. The bias is far below what matters here. */
static size_t below(struct task *task, size_t bound)
{
	return (size_t)(random64(task) % bound);
}

static size_t between(struct task *task, size_t low, size_t high)
{
	return low + below(task, high - low + 1);
}

static bool one_in(struct task *task, size_t n)
{
	return below(task, n) == 0;
}

/* A value that no other call returns: the task's number and its counter, under the seed. */
static uint64_t fresh(struct task *task)
{
	uint64_t value;

	do {
		value = ((task->number & 0xffff) << 48 | (++task->count & 0xffffffffffff)) ^ seed;
	} while (value == 0);
	return value;
}

static size_t scaled(size_t pages)
{
	return pages / shrink;
}

static void sleep_ns(long ns)
{
	struct timespec left = { ns / 1000000000, ns % 1000000000 };

	while (nanosleep(&left, &left) != 0)
		if (errno != EINTR)
			die("nanosleep");
}

static void pause_briefly(struct task *task)
{
	switch (below(task, 8)) {
	case 0:
		break;
	case 1:
		sched_yield();
		break;
	default:
		sleep_ns((long)(below(task, PAUSE_NS_MAX) * shrink * pause_factor));
	}
}

/* Says "ready" once every pattern of this process has populated its memory. */
static void populated(void)
{
	if (atomic_fetch_sub(&unready, 1) != 1)
		return;
	puts("ready");
	fflush(stdout);
}

static pthread_t start(void *(*function)(void *), void *argument, size_t stack_bytes)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int number;

	pthread_attr_init(&attributes);
	if (stack_bytes != 0)
		pthread_attr_setstacksize(&attributes, stack_bytes);
	while ((number = pthread_create(&thread, &attributes, function, argument)) == EAGAIN)
		sleep_ns(1000000);
	pthread_attr_destroy(&attributes);
	errno = number;
	if (number != 0)
		die("pthread_create");
	return thread;
}

/* ---- memory ------------------------------------------------------------------------------------------------- */

static unsigned char *map(void *at, size_t pages, int protection, int more_flags)
{
	void *address = mmap(at, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | more_flags, -1, 0);

	if (address == MAP_FAILED)
		die("mmap of %zu pages", pages);
	return address;
}

static unsigned char *map_plain(size_t pages)
{
	return map(NULL, pages, PROT_READ | PROT_WRITE, 0);
}

/* Aligned to 2 MiB, so that whole huge pages fit. */
static unsigned char *map_aligned(size_t pages)
{
	unsigned char *address = map_plain(pages + HUGE_PAGES);
	size_t huge = (size_t)HUGE_PAGES * PAGE;
	unsigned char *first = (unsigned char *)(((uintptr_t)address + huge - 1) & ~(uintptr_t)(huge - 1));

	if (first != address)
		munmap(address, (size_t)(first - address));
	munmap(first + pages * PAGE, (size_t)(address + huge - first));
	return first;
}

/* madvise, where the kernel may be unable for a moment, or by its configuration. */
static void advise(void *address, size_t pages, int advice)
{
	while (madvise(address, pages * PAGE, advice) != 0) {
		if (errno == EAGAIN || errno == EINTR)
			sched_yield();
		else if (errno == EINVAL || errno == ENOMEM || errno == EBUSY)
			return;
		else
			die("madvise %d", advice);
	}
}

static void zap(void *address, size_t pages)
{
	if (madvise(address, pages * PAGE, MADV_DONTNEED) != 0)
		die("madvise MADV_DONTNEED");
}

static void store(void *address, uint64_t value)
{
	*(volatile uint64_t *)address = value;
}

static uint64_t load(const void *address)
{
	return *(const volatile uint64_t *)address;
}

static void fill_page(struct task *task, unsigned char *page)
{
	for (size_t word = 0; word < WORDS; word++)
		store(page + word * 8, fresh(task));
}

/* Writes to one page: nearly always something new. */
static void touch(struct task *task, unsigned char *page)
{
	unsigned char *word = page + below(task, WORDS) * 8;

	switch (below(task, 32)) {
	case 0:
		memset(page, 0, PAGE);
		break;
	case 1:
	case 2:
		store(word, 0);
		break;
	case 3:
		store(word, load(word));
		break;
	case 4:
		fill_page(task, page);
		break;
	case 5:
		store(page, fresh(task));
		store(page + PAGE - 8, fresh(task));
		break;
	default:
		store(word, fresh(task));
	}
}

static void touch_all(struct task *task, unsigned char *base, size_t pages)
{
	for (size_t page = 0; page < pages; page++)
		touch(task, base + page * PAGE);
}

static void touch_some(struct task *task, unsigned char *base, size_t pages, size_t times)
{
	for (size_t i = 0; i < times; i++)
		touch(task, base + below(task, pages) * PAGE);
}

static void read_all(const unsigned char *base, size_t pages)
{
	for (size_t page = 0; page < pages; page++)
		(void)load(base + page * PAGE);
}

/* One more store to every page, so that none is left as it was mapped. */
static void populate(struct task *task, unsigned char *base, size_t pages)
{
	for (size_t page = 0; page < pages; page++)
		store(base + page * PAGE + below(task, WORDS) * 8, fresh(task));
}

/* ---- children ----------------------------------------------------------------------------------------------- */

/* In a new child: end when the parent does, even if it ended already. */
static void die_with(pid_t parent)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
		_exit(0);
}

static void reap(pid_t child)
{
	while (waitpid(child, NULL, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
}

static pid_t fork_or_wait(void)
{
	pid_t child;

	while ((child = fork()) < 0) {
		if (errno != EAGAIN && errno != ENOMEM)
			die("fork");
		sleep_ns(1000000);
	}
	return child;
}

/* A child that does one short burst for each byte it is sent, and answers it. */
struct helper {
	int socket;
};

typedef void helper_function(struct task *task, void *argument);

static bool exchange(int socket, bool sending)
{
	char byte = 0;
	ssize_t done;

	do {
		done = sending ? send(socket, &byte, 1, MSG_NOSIGNAL) : recv(socket, &byte, 1, 0);
	} while (done < 0 && errno == EINTR);
	return done == 1;
}

static struct helper start_helper(helper_function *function, void *argument)
{
	int sockets[2];
	pid_t parent = getpid();
	struct task task = new_task();

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
		die("socketpair");
	pid_t child = fork_or_wait();

	if (child == 0) {
		die_with(parent);
		close(sockets[0]);
		while (exchange(sockets[1], false)) {
			function(&task, argument);
			exchange(sockets[1], true);
		}
		_exit(0);
	}
	/* Where Yama restricts process_vm_writev to ancestors, let the child in. */
	prctl(PR_SET_PTRACER, (unsigned long)child, 0, 0, 0);
	close(sockets[1]);
	return (struct helper){ sockets[0] };
}

static void run_helper(struct helper helper)
{
	if (!exchange(helper.socket, true) || !exchange(helper.socket, false))
		die("the helper is gone");
}

/* ---- plain writing ------------------------------------------------------------------------------------------ */

static void sequential(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT), next = 0;
	unsigned char *base = map_plain(pages);

	populate(task, base, pages);
	populated();
	for (;;) {
		for (size_t i = between(task, 1, 2 * BURST_MAX); i > 0; i--) {
			touch(task, base + next * PAGE);
			next = (next + 1) % pages;
		}
		pause_briefly(task);
	}
}

static void uniform(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT);
	unsigned char *base = map_plain(pages);

	populate(task, base, pages);
	populated();
	for (;;) {
		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
	}
}

/* Rank r is written in proportion to 1/r; ranks lie scattered over the pages. */
static void zipf(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT);
	unsigned char *base = map_plain(pages);
	double *upto = calloc(pages, sizeof(*upto));
	uint32_t *page_of_rank = calloc(pages, sizeof(*page_of_rank));
	double sum = 0;

	if (upto == NULL || page_of_rank == NULL)
		die("calloc");
	for (size_t rank = 0; rank < pages; rank++) {
		size_t other = below(task, rank + 1);

		sum += 1.0 / (double)(rank + 1);
		upto[rank] = sum;
		page_of_rank[rank] = page_of_rank[other];
		page_of_rank[other] = (uint32_t)rank;
	}
	populate(task, base, pages);
	populated();
	for (;;) {
		for (size_t i = between(task, 1, 2 * BURST_MAX); i > 0; i--) {
			double point = sum * (double)(random64(task) >> 11) / (double)(1ull << 53);
			size_t low = 0, high = pages - 1;

			while (low < high) {
				size_t middle = (low + high) / 2;

				if (upto[middle] > point)
					high = middle;
				else
					low = middle + 1;
			}
			touch(task, base + (size_t)page_of_rank[low] * PAGE);
		}
		pause_briefly(task);
	}
}

/* A few thousand live pages over 64 GiB; each new one costs an old one its life. */
static void sparse64g(struct task *task)
{
	size_t pages = scaled((64ull << 30) / PAGE), live_count = scaled(4096);
	unsigned char *base = map(NULL, pages, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	size_t *live = calloc(live_count, sizeof(*live));

	if (live == NULL)
		die("calloc");
	for (size_t i = 0; i < live_count; i++) {
		live[i] = below(task, pages);
		store(base + live[i] * PAGE, fresh(task));
	}
	populated();
	for (;;) {
		for (size_t i = between(task, 1, BURST_MAX); i > 0; i--) {
			size_t slot = below(task, live_count);

			if (one_in(task, 2)) {
				zap(base + live[slot] * PAGE, 1);
				live[slot] = below(task, pages);
			}
			/* Near an older page at times: other runs than single pages. */
			if (one_in(task, 8)) {
				size_t near = live[below(task, live_count)] + 1;

				zap(base + live[slot] * PAGE, 1);
				live[slot] = near < pages ? near : 0;
			}
			touch(task, base + live[slot] * PAGE);
		}
		/* Sixty-four mebibytes at once, whoever lives there; the pages are written again when their turn comes. */
		if (one_in(task, 256))
			zap(base + below(task, pages / 16384) * 16384 * PAGE, 16384);
		pause_briefly(task);
	}
}

/* ---- threads ------------------------------------------------------------------------------------------------ */

enum { WORKERS = 8 };

static unsigned char *common;
static size_t common_pages;
static bool brief; /* whether a worker lives for a few milliseconds, so that hundreds come and go each second */

static void *worker(void *argument)
{
	struct task task = new_task();
	size_t pages = brief ? 8 : scaled(512);
	unsigned char *own = map_plain(pages);

	(void)argument;
	populate(&task, own, pages);
	for (size_t rounds = brief ? 1 : between(&task, 20, 400); rounds > 0; rounds--) {
		touch_some(&task, own, pages, between(&task, 1, 8));
		touch_some(&task, common, common_pages, between(&task, 1, 8));
		for (int i = 0; i < 4; i++)
			pause_briefly(&task);
	}
	munmap(own, pages * PAGE);
	return NULL;
}

static void *keeper(void *argument)
{
	(void)argument;
	for (;;)
		pthread_join(start(worker, NULL, 256 * 1024), NULL);
	return NULL;
}

static void threads(struct task *task)
{
	common_pages = scaled(4096);
	common = map_plain(common_pages);
	populate(task, common, common_pages);
	for (int i = 0; i < WORKERS; i++)
		start(keeper, NULL, 64 * 1024);
	populated();
	for (;;) {
		touch_some(task, common, common_pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
	}
}

static void brief_threads(struct task *task)
{
	brief = true;
	threads(task);
}

/* ---- malloc ------------------------------------------------------------------------------------------------- */

enum { BLOCKS = 96, CHURNERS = 3 };

struct block {
	unsigned char *at;
	size_t bytes;
};

static size_t block_size(struct task *task)
{
	size_t low = (size_t)16 << below(task, 17);

	return between(task, low, 2 * low);
}

static void write_block(struct task *task, struct block block)
{
	size_t step = one_in(task, 4) ? 8 : PAGE / 2;

	for (size_t at = 0; at + 8 <= block.bytes; at += step)
		store(block.at + at, fresh(task));
}

static void churn_once(struct task *task, struct block *block)
{
	switch (below(task, 8)) {
	case 0:
	case 1:
	case 2:
		free(block->at);
		block->bytes = block_size(task);
		block->at = malloc(block->bytes);
		break;
	case 3:
		free(block->at);
		block->bytes = block_size(task);
		block->at = calloc(1, block->bytes);
		break;
	case 4:
		block->bytes = block_size(task);
		block->at = realloc(block->at, block->bytes);
		break;
	default:
		if (block->at != NULL)
			store(block->at + (below(task, block->bytes - 7) & ~(size_t)7), fresh(task));
		return;
	}
	if (block->at == NULL)
		die("malloc");
	if (!one_in(task, 8))
		write_block(task, *block);
}

static void churn(struct task *task, bool leads)
{
	struct block blocks[BLOCKS] = { 0 };
	size_t count = scaled(BLOCKS);

	for (size_t i = 0; i < 4 * count; i++)
		churn_once(task, &blocks[below(task, count)]);
	if (leads)
		populated();
	for (;;) {
		for (size_t i = between(task, 1, 8); i > 0; i--)
			churn_once(task, &blocks[below(task, count)]);
		if (leads && one_in(task, 64))
			malloc_trim(0);
		if (leads && one_in(task, 128))
			mallopt(M_MMAP_THRESHOLD, 1 << between(task, 16, 22));
		/* Let everything go at times: the heap shrinks and grows again. */
		if (one_in(task, 256))
			for (size_t i = 0; i < count; i++) {
				free(blocks[i].at);
				blocks[i] = (struct block){ 0 };
			}
		pause_briefly(task);
		pause_briefly(task);
	}
}

static void *churner(void *argument)
{
	struct task task = new_task();

	(void)argument;
	churn(&task, false);
	return NULL;
}

static void malloc_churn(struct task *task)
{
	for (int i = 1; i < CHURNERS; i++)
		start(churner, NULL, 0);
	churn(task, true); /* in the first thread this is the arena that grows by brk */
}

/* ---- mappings that come and go ------------------------------------------------------------------------------ */

static void munmap_same(struct task *task)
{
	enum { SLOTS = 32 };
	unsigned char *slots[SLOTS];
	bool mapped[SLOTS];
	size_t pages = scaled(256);

	for (int i = 0; i < SLOTS; i++) {
		slots[i] = map_plain(pages);
		mapped[i] = true;
		populate(task, slots[i], pages);
	}
	populated();
	for (;;) {
		size_t slot = below(task, SLOTS);

		if (mapped[slot] && one_in(task, 3)) {
			munmap(slots[slot], pages * PAGE);
			mapped[slot] = false;
			if (one_in(task, 3))
				goto next; /* a gap, for some rounds */
			if (one_in(task, 2))
				pause_briefly(task);
		}
		if (!mapped[slot]) {
			void *at = mmap(slots[slot], pages * PAGE, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			/* Another thread's mapping may have moved in. */
			slots[slot] = at == MAP_FAILED && errno == EEXIST ? map_plain(pages) : at;
			if (slots[slot] == MAP_FAILED)
				die("mmap at the same address");
			mapped[slot] = true;
			if (one_in(task, 4))
				read_all(slots[slot], pages);
			if (one_in(task, 3))
				goto next; /* mapped, and nothing written */
			if (one_in(task, 4))
				touch_all(task, slots[slot], pages);
		}
		touch_some(task, slots[slot], pages, between(task, 1, BURST_MAX));
next:
		pause_briefly(task);
	}
}

/*
 * Maps afresh over its own pages. A page can be populated when a copier reads it, and untouched in every scan: who
 * does not report what vanished keeps content that is gone.
 */
static void mapfixed(struct task *task)
{
	/* Pages of the hot part change their state many times between two scans, the others about once. */
	size_t pages = scaled(MAPPED_PAGES_DEFAULT), hot_pages = scaled(1024);
	unsigned char *base = map_plain(pages);

	populate(task, base, pages);
	populated();
	for (;;) {
		for (size_t i = between(task, 1, 16); i > 0; i--) {
			bool hot = !one_in(task, 4);
			size_t count = hot ? between(task, 1, 4) : between(task, 1, 16);
			unsigned char *at = base + below(task, (hot ? hot_pages : pages) - count) * PAGE;

			map(at, count, PROT_READ | PROT_WRITE, MAP_FIXED);
			if (one_in(task, 2))
				touch_some(task, at, count, between(task, 1, count));
			else if (one_in(task, 4))
				read_all(at, count);
		}
		touch_some(task, base, pages, between(task, 1, 16));
		pause_briefly(task);
	}
}

struct stretch {
	unsigned char *at;
	size_t pages;
};

enum { STRETCHES = 16 };

/*
 * Moves or resizes. Where the kernel refuses, the stretch stays as it is, or is made anew after EFAULT: it is more than
 * one mapping now, of which a tracker has registered one and not yet the other. Since Linux 6.17 a part of it may have
 * moved all the same, and what it left be another thread's: so neither the old place nor the new one is unmapped.
 */
static bool remap(struct stretch *stretch, size_t pages, int flags, void *to)
{
	static atomic_bool told;
	void *at = mremap(stretch->at, stretch->pages * PAGE, pages * PAGE, flags, to);

	if (at == MAP_FAILED) {
		if (errno != EFAULT && errno != ENOMEM && errno != EINVAL)
			die("mremap");
		if (errno != EFAULT)
			return false;
		if (!atomic_exchange(&told, true))
			fputs("writer: note: mremap: EFAULT: the mapping has been split\n", stderr);
		stretch->at = map_plain(stretch->pages);
		return false;
	}
	stretch->at = at;
	stretch->pages = pages;
	return true;
}

/* Onto a place that nobody else can take meanwhile, reserved for it. */
static bool move_to_reserved(struct stretch *stretch)
{
	unsigned char *place = map(NULL, stretch->pages, PROT_NONE, MAP_NORESERVE);

	return remap(stretch, stretch->pages, MREMAP_MAYMOVE | MREMAP_FIXED, place);
}

/* Over what another stretch holds, which loses that part. */
static void move_onto(struct stretch *stretch, struct stretch *victim, size_t fresh_pages)
{
	unsigned char *rest = victim->at + stretch->pages * PAGE;

	if (stretch == victim || stretch->pages > victim->pages)
		return;
	if (!remap(stretch, stretch->pages, MREMAP_MAYMOVE | MREMAP_FIXED, victim->at)) {
		/* The kernel may have emptied the place before it refused, and it may be another thread's now. */
		*victim = (struct stretch){ map_plain(fresh_pages), fresh_pages };
		return;
	}
	victim->pages -= stretch->pages;
	victim->at = rest;
	if (victim->pages == 0)
		*victim = (struct stretch){ map_plain(fresh_pages), fresh_pages };
}

/* There and back again: the same content at the same address, in a new mapping. */
static void move_away_and_back(struct task *task, struct stretch *stretch)
{
	unsigned char *home = stretch->at;
	void *held;

	if (!move_to_reserved(stretch))
		return;
	if (one_in(task, 2))
		touch_some(task, stretch->at, stretch->pages, 4);
	held = mmap(home, stretch->pages * PAGE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (held != home)
		return;
	remap(stretch, stretch->pages, MREMAP_MAYMOVE | MREMAP_FIXED, home);
}

/* The pages move, the old mapping stays, empty; one of the two is kept. */
static void move_leaving(struct task *task, struct stretch *stretch)
{
	struct stretch moved = *stretch;

	if (!remap(&moved, moved.pages, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL))
		return;
	if (one_in(task, 2)) {
		munmap(stretch->at, stretch->pages * PAGE);
		*stretch = moved;
	} else {
		munmap(moved.at, moved.pages * PAGE);
		if (one_in(task, 2))
			touch_some(task, stretch->at, stretch->pages, 8);
	}
}

static void mremap_pattern(struct task *task)
{
	struct stretch stretches[STRETCHES];
	size_t most = scaled(1024), least = most / 8;

	for (int i = 0; i < STRETCHES; i++) {
		stretches[i] = (struct stretch){ map_plain(most / 2), most / 2 };
		populate(task, stretches[i].at, most / 2);
	}
	populated();
	for (;;) {
		struct stretch *stretch = &stretches[below(task, STRETCHES)];
		size_t pages = between(task, least, most), old = stretch->pages;

		switch (below(task, 10)) {
		case 0:
			remap(stretch, pages, MREMAP_MAYMOVE, NULL);
			break;
		case 1:
			if (pages > old)
				remap(stretch, pages, 0, NULL); /* in place, or not at all */
			break;
		case 2:
			if (old > least)
				remap(stretch, between(task, least, old), 0, NULL);
			break;
		case 3:
			move_to_reserved(stretch);
			break;
		case 4:
			move_onto(stretch, &stretches[below(task, STRETCHES)], most / 2);
			break;
		case 5:
			move_away_and_back(task, stretch);
			break;
		case 6:
			move_leaving(task, stretch);
			break;
		default:
			break;
		}
		if (stretch->pages > old && one_in(task, 2))
			touch_some(task, stretch->at + old * PAGE, stretch->pages - old, 32);
		stretch = &stretches[below(task, STRETCHES)];
		touch_some(task, stretch->at, stretch->pages, between(task, 1, 2 * BURST_MAX));
		pause_briefly(task);
	}
}

/* ---- pages that go ------------------------------------------------------------------------------------------ */

static void write_read_or_leave(struct task *task, unsigned char *at, size_t pages)
{
	switch (below(task, 4)) {
	case 0:
		break;
	case 1:
		read_all(at, pages);
		break;
	case 2:
		touch_all(task, at, pages);
		break;
	default:
		touch_some(task, at, pages, (pages + 3) / 4);
	}
}

static void dontneed_pages(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT);
	unsigned char *base = map_plain(pages);

	advise(base, pages, MADV_NOHUGEPAGE);
	populate(task, base, pages);
	populated();
	for (;;) {
		for (size_t i = between(task, 1, 12); i > 0; i--) {
			size_t count = one_in(task, 8) ? between(task, 1, 64) : 1;
			unsigned char *at = base + below(task, pages - count) * PAGE;

			zap(at, count);
			write_read_or_leave(task, at, count);
		}
		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
	}
}

static void dontneed_2m(struct task *task)
{
	enum { HUGE_COUNT = 16 };
	size_t count = shrink == 1 ? HUGE_COUNT : 4, pages = count * HUGE_PAGES;
	unsigned char *base = map_aligned(pages);

	/* The first half huge, the second half not; which is which changes later, range by range. */
	advise(base, pages / 2, MADV_HUGEPAGE);
	advise(base + pages / 2 * PAGE, pages / 2, MADV_NOHUGEPAGE);
	populate(task, base, pages);
	populated();
	for (;;) {
		unsigned char *at = base + below(task, count) * HUGE_PAGES * PAGE;

		if (one_in(task, 4)) {
			if (one_in(task, 2))
				zap(at, HUGE_PAGES);
			else
				zap(at, at + 2 * HUGE_PAGES * PAGE <= base + pages * PAGE ? 2 * HUGE_PAGES : HUGE_PAGES);
			if (one_in(task, 4))
				advise(at, HUGE_PAGES, one_in(task, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			write_read_or_leave(task, at, HUGE_PAGES);
		}
		if (one_in(task, 2))
			touch_some(task, at, HUGE_PAGES, between(task, 1, BURST_MAX));
		pause_briefly(task);
		pause_briefly(task);
	}
}

static void thp(struct task *task)
{
	size_t pages = shrink == 1 ? MAPPED_PAGES_DEFAULT : 2 * HUGE_PAGES;
	unsigned char *base = map_aligned(pages);

	advise(base, pages, MADV_HUGEPAGE);
	populate(task, base, pages);
	populated();
	for (;;) {
		unsigned char *huge = base + below(task, pages / HUGE_PAGES) * HUGE_PAGES * PAGE;

		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		if (one_in(task, 8)) {
			size_t count = between(task, 1, HUGE_PAGES - 1);
			unsigned char *at = huge + below(task, HUGE_PAGES - count) * PAGE;

			zap(at, count);
			write_read_or_leave(task, at, count);
		}
		if (one_in(task, 32)) {
			zap(huge, HUGE_PAGES);
			write_read_or_leave(task, huge, HUGE_PAGES);
		}
		if (one_in(task, 16))
			advise(huge, HUGE_PAGES, MADV_COLLAPSE);
		pause_briefly(task);
	}
}

static void nothp(struct task *task)
{
	size_t pages = shrink == 1 ? MAPPED_PAGES_DEFAULT : 2 * HUGE_PAGES;
	unsigned char *base = map_aligned(pages);

	advise(base, pages, MADV_NOHUGEPAGE);
	populate(task, base, pages);
	populated();
	for (;;) {
		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		if (one_in(task, 8)) {
			size_t count = between(task, 1, HUGE_PAGES);
			unsigned char *at = base + below(task, pages - count) * PAGE;

			zap(at, count);
			write_read_or_leave(task, at, count);
		}
		pause_briefly(task);
	}
}

/* MADV_PAGEOUT after MADV_FREE makes the kernel drop at once what it would otherwise drop under pressure. */
static void madv_free(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT);
	unsigned char *base = map_plain(pages);

	advise(base, pages, MADV_NOHUGEPAGE);
	populate(task, base, pages);
	populated();
	for (;;) {
		size_t count = between(task, 1, 64);
		unsigned char *at = base + below(task, pages - count) * PAGE;

		advise(at, count, MADV_FREE);
		if (one_in(task, 4))
			touch_some(task, at, count, between(task, 1, count)); /* saves those pages */
		if (one_in(task, 4))
			pause_briefly(task);
		if (one_in(task, 2))
			advise(at, count, MADV_PAGEOUT);
		write_read_or_leave(task, at, count);
		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
	}
}

static void mprotect_pattern(struct task *task)
{
	enum { SLOTS = 64 };
	static const int protections[] = { PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE };
	int protection[SLOTS];
	size_t pages = scaled(128);
	unsigned char *base = map_plain(pages * SLOTS);

	for (int i = 0; i < SLOTS; i++)
		protection[i] = 0;
	populate(task, base, pages * SLOTS);
	populated();
	for (;;) {
		size_t slot = below(task, SLOTS);
		unsigned char *at = base + slot * pages * PAGE;

		protection[slot] = (int)below(task, 3);
		if (mprotect(at, pages * PAGE, protections[protection[slot]]) != 0)
			die("mprotect");
		/* For one page only, and back: the mapping is split, then merged. */
		if (protection[slot] == 0 && one_in(task, 4)) {
			unsigned char *page = at + below(task, pages) * PAGE;

			if (mprotect(page, PAGE, PROT_READ) != 0 || mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
				die("mprotect of a page");
			touch(task, page);
		}
		for (int i = 0; i < 4; i++) {
			slot = below(task, SLOTS);
			if (protection[slot] == 0)
				touch_some(task, base + slot * pages * PAGE, pages, between(task, 1, 8));
		}
		pause_briefly(task);
	}
}

static void mlock_pattern(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT), some = scaled(512);
	unsigned char *base = map_plain(pages);

	/* Half of it is left for mlock to populate. */
	populate(task, base, pages / 2);
	populated();
	for (;;) {
		size_t count = between(task, 1, some);
		unsigned char *at = base + below(task, pages - count) * PAGE;
		int flags = one_in(task, 2) ? MLOCK_ONFAULT : 0;

		/* Unlock what was locked, so that an unprivileged user's limit is met rarely; it is no error then. */
		if (mlock2(at, count * PAGE, flags) != 0 && errno != ENOMEM && errno != EAGAIN && errno != EPERM)
			die("mlock2");
		touch_some(task, at, count, between(task, 1, BURST_MAX));
		if (munlock(at, count * PAGE) != 0)
			die("munlock");
		if (one_in(task, 4))
			zap(at, count);
		/* Everything mapped from now on is populated at once: not beside a pattern that maps 64 GiB. */
		if (alone && one_in(task, 16) && mlockall(MCL_FUTURE) == 0) {
			void *grown = mmap(NULL, some * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			if (munlockall() != 0)
				die("munlockall");
			if (grown != MAP_FAILED) {
				touch_some(task, grown, some, BURST_MAX);
				pause_briefly(task);
				munmap(grown, some * PAGE);
			}
		}
		touch_some(task, base, pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
	}
}

/* ---- processes ---------------------------------------------------------------------------------------------- */

struct storm {
	struct task task;
	unsigned char *base;
	size_t pages;
};

/* Runs in the parent's memory while the parent's thread waits. */
static int vfork_child(void *argument)
{
	struct storm *storm = argument;

	touch_some(&storm->task, storm->base, storm->pages, between(&storm->task, 1, BURST_MAX));
	return 0;
}

/* A child, and its children, each the only child of the one before. */
static void fork_child(struct storm *storm, pid_t parent, int generations)
{
	pid_t child = 0;

	while (child == 0 && generations-- > 0) {
		die_with(parent);
		storm->task = new_task();
		touch_some(&storm->task, storm->base, storm->pages, between(&storm->task, 1, 4 * BURST_MAX));
		pause_briefly(&storm->task);
		parent = getpid();
		child = generations > 0 ? fork() : -1;
	}
	if (child > 0)
		reap(child);
	_exit(0);
}

static void fork_storm(struct task *task)
{
	enum { CHILDREN = 4 };
	struct storm storm = { .task = new_task(), .pages = scaled(MAPPED_PAGES_DEFAULT) };
	pid_t children[CHILDREN] = { 0 };
	size_t stack_pages = 16;
	unsigned char *stack = map_plain(stack_pages);

	storm.base = map_plain(storm.pages);
	populate(task, storm.base, storm.pages);
	populated();
	for (;;) {
		size_t slot = below(task, CHILDREN);

		if (children[slot] != 0)
			reap(children[slot]);
		children[slot] = 0;
		if (one_in(task, 2)) {
			pid_t parent = getpid();
			int generations = one_in(task, 8) ? 2 : 1;

			children[slot] = fork_or_wait();
			if (children[slot] == 0)
				fork_child(&storm, parent, generations);
		} else {
			pid_t child = clone(vfork_child, stack + stack_pages * PAGE, CLONE_VM | CLONE_VFORK | SIGCHLD, &storm);

			if (child < 0 && errno != EAGAIN)
				die("clone");
			if (child > 0)
				reap(child);
		}
		touch_some(task, storm.base, storm.pages, between(task, 1, BURST_MAX));
		pause_briefly(task);
		pause_briefly(task);
	}
}

enum { VICTIM_VECTORS = 16 };

struct victim {
	pid_t pid;
	unsigned char *base;
	size_t pages;
};

/* Writes new values into another process, or into this one by way of the kernel. */
static void write_into(struct task *task, void *argument)
{
	struct victim *victim = argument;
	uint64_t values[VICTIM_VECTORS][4];
	struct iovec local[VICTIM_VECTORS], remote[VICTIM_VECTORS];
	size_t count = between(task, 1, VICTIM_VECTORS);

	for (size_t i = 0; i < count; i++) {
		/* Four words, across a page border at times. */
		size_t at = below(task, victim->pages * WORDS - 3) * 8;

		for (int word = 0; word < 4; word++)
			values[i][word] = fresh(task);
		local[i] = (struct iovec){ values[i], sizeof(values[i]) };
		remote[i] = (struct iovec){ victim->base + at, sizeof(values[i]) };
	}
	if (process_vm_writev(victim->pid, local, count, remote, count, 0) < 0 && errno != ESRCH)
		die("process_vm_writev");
}

static void vm_writev(struct task *task)
{
	struct victim victim = { .pid = getpid(), .pages = scaled(MAPPED_PAGES_DEFAULT) };

	victim.base = map_plain(victim.pages);
	populate(task, victim.base, victim.pages);
	struct helper helper = start_helper(write_into, &victim);

	run_helper(helper);
	populated();
	for (;;) {
		run_helper(helper);
		if (one_in(task, 4))
			write_into(task, &victim);
		if (one_in(task, 2))
			touch_some(task, victim.base, victim.pages, between(task, 1, 8));
		pause_briefly(task);
	}
}

/* ---- files and shared memory -------------------------------------------------------------------------------- */

static int temporary_file(struct task *task, size_t pages)
{
	const char *directory = getenv("TMPDIR");
	char path[PATH_MAX];
	static uint64_t page[WORDS];
	int file;

	snprintf(path, sizeof(path), "%s/wetink-writer-XXXXXX", directory != NULL ? directory : "/tmp");
	file = mkostemp(path, O_CLOEXEC);
	if (file < 0)
		die("%s", path);
	if (getenv("WRITER_KEEP_FILE") == NULL)
		unlink(path);
	for (size_t i = 0; i < pages; i++) {
		for (size_t word = 0; word < WORDS; word++)
			page[word] = fresh(task);
		if (pwrite(file, page, PAGE, (off_t)(i * PAGE)) != PAGE)
			die("%s", path);
	}
	return file;
}

static void file_pages(struct task *task, bool zapping)
{
	size_t pages = scaled(4096), written = pages * 3 / 4; /* the last quarter is never written, sometimes read */
	int file = temporary_file(task, pages);
	unsigned char *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);

	if (base == MAP_FAILED)
		die("mmap of a file");
	populate(task, base, written / 2);
	populated();
	for (;;) {
		touch_some(task, base, written, between(task, 1, BURST_MAX));
		read_all(base + below(task, pages - 4) * PAGE, 4);
		if (zapping && one_in(task, 2)) {
			size_t count = one_in(task, 8) ? between(task, 1, 64) : 1;
			unsigned char *at = base + below(task, written - count) * PAGE;

			zap(at, count); /* back to what the file holds */
			write_read_or_leave(task, at, count);
		}
		pause_briefly(task);
	}
}

static void file_private(struct task *task)
{
	file_pages(task, true);
}

static void file_cow(struct task *task)
{
	file_pages(task, false);
}

static unsigned char *map_shared(int file, size_t pages)
{
	void *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);

	if (base == MAP_FAILED)
		die("mmap of shared memory");
	return base;
}

/* Shared mappings that only this process writes, each page through one mapping. */
static void shared_own(struct task *task)
{
	size_t pages = scaled(4096);
	int file = memfd_create("writer", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, (off_t)(pages * PAGE)) != 0)
		die("memfd_create");
	unsigned char *anonymous = map_shared(-1, pages), *named = map_shared(file, pages);

	close(file);
	populate(task, anonymous, pages / 2);
	populate(task, named, pages / 2);
	populated();
	for (;;) {
		touch_some(task, anonymous, pages, between(task, 1, BURST_MAX / 2));
		touch_some(task, named, pages, between(task, 1, BURST_MAX / 2));
		pause_briefly(task);
	}
}

static void touch_shared(struct task *task, void *argument)
{
	struct victim *shared = argument;

	touch_some(task, shared->base, shared->pages, between(task, 1, BURST_MAX));
}

static void shared_anon(struct task *task)
{
	size_t pages = scaled(4096);
	int file = memfd_create("writer", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, (off_t)(pages * PAGE)) != 0)
		die("memfd_create");
	struct victim shared = { .base = map_shared(-1, pages), .pages = pages };
	unsigned char *one = map_shared(file, pages), *two = map_shared(file, pages);

	populate(task, shared.base, pages / 2);
	populate(task, one, pages / 2);
	struct helper helper = start_helper(touch_shared, &shared);

	run_helper(helper);
	populated();
	for (;;) {
		size_t page = below(task, pages);

		touch_some(task, shared.base, pages, between(task, 1, 8));
		touch_some(task, one_in(task, 2) ? one : two, pages, between(task, 1, 8));
		if (one_in(task, 2))
			run_helper(helper);
		if (one_in(task, 2)) {
			uint64_t value = fresh(task);

			if (pwrite(file, &value, sizeof(value), (off_t)(page * PAGE)) != sizeof(value))
				die("pwrite");
		}
		if (one_in(task, 16))
			advise(one_in(task, 2) ? one + page * PAGE : shared.base + page * PAGE, 1, MADV_REMOVE);
		if (one_in(task, 16) &&
		    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE), PAGE) != 0)
			die("fallocate");
		if (one_in(task, 16))
			zap(one + page * PAGE, 1); /* harmless: the object keeps the content */
		pause_briefly(task);
	}
}

/* ---- stacks ------------------------------------------------------------------------------------------------- */

enum { STACK_THREADS = 3, STACK_BYTES = 4 << 20, FRAME_WORDS_MAX = 4 * WORDS };

/* One frame of one to four pages at a time, written on the way down and again on the way up. */
static __attribute__((noinline)) uint64_t descend(struct task *task, size_t bytes_left)
{
	size_t words = between(task, WORDS / 8, FRAME_WORDS_MAX), needed = words * 8 + 512;
	volatile uint64_t frame[words];
	uint64_t sum = 0;

	frame[below(task, words)] = fresh(task);
	frame[words - 1] = fresh(task);
	if (bytes_left > needed + FRAME_WORDS_MAX * 8 + 4096)
		sum = descend(task, bytes_left - needed);
	else
		pause_briefly(task); /* stay at the bottom for a moment */
	frame[below(task, words)] = fresh(task);
	return sum + frame[0];
}

static void use_stack(struct task *task, size_t bytes_most)
{
	(void)descend(task, between(task, PAGE, bytes_most / shrink));
	pause_briefly(task);
	pause_briefly(task);
}

static void *stack_thread(void *argument)
{
	struct task task = new_task();

	(void)argument;
	for (size_t i = between(&task, 10, 200); i > 0; i--)
		use_stack(&task, STACK_BYTES / 2);
	return NULL;
}

static void *stack_keeper(void *argument)
{
	(void)argument;
	for (;;)
		pthread_join(start(stack_thread, NULL, STACK_BYTES), NULL);
	return NULL;
}

static void stack(struct task *task)
{
	for (int i = 0; i < STACK_THREADS; i++)
		start(stack_keeper, NULL, 64 * 1024);
	use_stack(task, 256 * 1024);
	populated();
	/* The limit is 8 MiB as a rule; most of it is reached sooner or later. */
	for (size_t most = 256 * 1024;; most = most < 6u << 20 ? most + 16 * 1024 : 256 * 1024)
		use_stack(task, most);
}

/* ---- writes by the kernel ----------------------------------------------------------------------------------- */

enum { MESSAGE_BYTES_MAX = 32 * 1024 };

static ssize_t checked(ssize_t done, const char *what)
{
	if (done < 0 && errno != EINTR && errno != EAGAIN)
		die("%s", what);
	return done < 0 ? 0 : done;
}

static void read_syscall(struct task *task)
{
	size_t pages = scaled(MAPPED_PAGES_DEFAULT), file_pages_count = scaled(1024);
	unsigned char *base = map_plain(pages);
	static uint64_t message[MESSAGE_BYTES_MAX / 8];
	int pipes[2], sockets[2];
	int file = temporary_file(task, file_pages_count), noise = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	if (noise < 0 || pipe2(pipes, O_NONBLOCK | O_CLOEXEC) != 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets) != 0)
		die("open, pipe2 or socketpair");
	populate(task, base, pages / 2);
	populated();
	for (;;) {
		size_t bytes = between(task, 1, one_in(task, 4) ? MESSAGE_BYTES_MAX : 512);
		unsigned char *to = base + below(task, pages * PAGE - MESSAGE_BYTES_MAX);
		unsigned char *other = base + below(task, pages * PAGE - MESSAGE_BYTES_MAX);
		struct iovec parts[2] = { { to, bytes / 2 }, { other, bytes - bytes / 2 } };
		struct msghdr header = { .msg_iov = parts, .msg_iovlen = 2 };

		for (size_t word = 0; word < (bytes + 7) / 8; word++)
			message[word] = fresh(task);
		/* Nothing blocks: what was written is there to be read, however small the pipe is. */
		switch (below(task, 6)) {
		case 0:
			bytes = (size_t)checked(write(pipes[1], message, bytes), "write to a pipe");
			checked(read(pipes[0], to, bytes), "read from a pipe");
			break;
		case 1:
			checked(read(noise, to, bytes), "read from /dev/urandom");
			break;
		case 2:
			checked(pread(file, to, bytes, (off_t)below(task, file_pages_count * PAGE - bytes)), "pread");
			break;
		case 3:
			checked(write(pipes[1], message, bytes), "write to a pipe");
			checked(readv(pipes[0], parts, 2), "readv");
			break;
		case 4:
			checked(send(sockets[1], message, bytes, MSG_NOSIGNAL), "send");
			checked(recvmsg(sockets[0], &header, 0), "recvmsg");
			break;
		default:
			checked(pwrite(file, message, bytes, (off_t)below(task, file_pages_count * PAGE - bytes)), "pwrite");
			checked(preadv(file, parts, 2, (off_t)below(task, file_pages_count * PAGE - bytes)), "preadv");
		}
		if (one_in(task, 4))
			touch_some(task, base, pages, 4);
		if (one_in(task, 4))
			pause_briefly(task);
	}
}

/* ---- all at once -------------------------------------------------------------------------------------------- */

static pattern_function mixed;

static const struct pattern {
	const char *name;
	pattern_function *function;
	bool in_mixed; /* not those that no tracker on this kernel interface can follow: kernel.md, section 17 */
} patterns[] = {
	{ "sequential", sequential, true },
	{ "random", uniform, true },
	{ "zipf", zipf, true },
	{ "sparse64g", sparse64g, true },
	{ "threads", threads, true },
	{ "brief_threads", brief_threads, false },
	{ "malloc_churn", malloc_churn, true },
	{ "munmap_same", munmap_same, true },
	{ "mapfixed", mapfixed, true },
	{ "mremap", mremap_pattern, true },
	{ "dontneed_pages", dontneed_pages, true },
	{ "dontneed_2m", dontneed_2m, true },
	{ "fork_storm", fork_storm, true },
	{ "thp", thp, true },
	{ "nothp", nothp, true },
	{ "file_private", file_private, false },
	{ "file_cow", file_cow, true },
	{ "stack", stack, true },
	{ "read_syscall", read_syscall, true },
	{ "mprotect", mprotect_pattern, true },
	{ "madv_free", madv_free, true },
	{ "mlock", mlock_pattern, true },
	{ "shared_anon", shared_anon, false },
	{ "shared_own", shared_own, true },
	{ "vm_writev", vm_writev, true },
	{ "mixed", mixed, false },
};

enum { PATTERNS = sizeof(patterns) / sizeof(patterns[0]) };

static void *run_pattern(void *argument)
{
	const struct pattern *pattern = argument;
	struct task task = new_task();

	pattern->function(&task);
	return NULL;
}

static void mixed(struct task *task)
{
	const char *factor = getenv("WRITER_MIXED_PAUSE_FACTOR");

	alone = false;
	shrink = MIXED_SHRINK;
	if (factor != NULL)
		pause_factor = strtoull(factor, NULL, 0);
	for (int i = 0; i < PATTERNS; i++)
		atomic_fetch_add(&unready, patterns[i].in_mixed);
	for (int i = 0; i < PATTERNS; i++)
		if (patterns[i].in_mixed)
			start(run_pattern, (void *)&patterns[i], 0);
	populated();
	for (;;)
		pause_briefly(task);
}

int main(int count, char **arguments)
{
	if (count < 2 || count > 3) {
		fputs("usage: writer PATTERN [SEED]\npatterns:", stderr);
		for (int i = 0; i < PATTERNS; i++)
			fprintf(stderr, " %s", patterns[i].name);
		fputs("\n", stderr);
		return 2;
	}
	if (count == 3)
		seed = strtoull(arguments[2], NULL, 0);
	seed = mix(seed);
	for (int i = 0; i < PATTERNS; i++)
		if (strcmp(arguments[1], patterns[i].name) == 0) {
			struct task task = new_task();

			patterns[i].function(&task);
		}
	fprintf(stderr, "writer: no such pattern: %s\n", arguments[1]);
	return 2;
}
