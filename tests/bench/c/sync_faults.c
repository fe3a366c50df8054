/*
 * sync_faults plain|handled SIZE_MIB: a target whose first writes are timed by itself, and the C handler to compare with.
 *
 * Holds a region of private memory of 4 KiB pages. With "handled" it makes a userfaultfd over itself, and a child
 * process answers its messages in the obvious way: poll, read of up to 64 messages, one UFFDIO_WRITEPROTECT a message.
 * With "plain" somebody else tracks it, or nobody. Prints "ready", then obeys on standard input:
 *
 *   write COUNT SEED
 *       Writes to so many pages, chosen at random, each once; answers with the nanoseconds that it took. With "handled"
 *       the region is protected before, outside the time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MESSAGES = 64 };

static volatile uint64_t *region;
static size_t pages;
static int uffd = -1;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void write_protect(uint64_t start, uint64_t size_bytes, uint64_t mode)
{
	struct uffdio_writeprotect argument = {.range = {start, size_bytes}, .mode = mode};
	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &argument))
		die("UFFDIO_WRITEPROTECT");
}

static void handle(void)
{
	static struct uffd_msg messages[MESSAGES];
	struct pollfd waiting = {.fd = uffd, .events = POLLIN};
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		if (poll(&waiting, 1, -1) < 0)
			die("poll");
		ssize_t got = read(uffd, messages, sizeof(messages));
		if (got < 0 && errno == EAGAIN)
			continue;
		if (got < 0)
			die("read");
		for (ssize_t i = 0; i < got / (ssize_t)sizeof(*messages); i++)
			write_protect(messages[i].arg.pagefault.address & -(uint64_t)PAGE, PAGE, 0);
	}
}

static void start_handler(void)
{
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		die("userfaultfd");
	struct uffdio_api api = {.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS};
	if (ioctl(uffd, UFFDIO_API, &api))
		die("UFFDIO_API");
	struct uffdio_register registration = {
		.range = {(uint64_t)region, pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
	if (ioctl(uffd, UFFDIO_REGISTER, &registration))
		die("UFFDIO_REGISTER");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		handle();
}

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int count, char **arguments)
{
	if (count != 3 || (strcmp(arguments[1], "plain") && strcmp(arguments[1], "handled"))) {
		fprintf(stderr, "usage: sync_faults plain|handled SIZE_MIB\n");
		return 2;
	}
	pages = (size_t)atol(arguments[2]) * 256;
	region = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t *order = malloc(pages * sizeof(*order));
	if (region == MAP_FAILED || !order)
		die("memory");
	madvise((void *)region, pages * PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++) {
		region[i * (PAGE / 8)] = 1;
		order[i] = (uint32_t)i;
	}
	if (!strcmp(arguments[1], "handled"))
		start_handler();
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	puts("ready");

	size_t wanted;
	unsigned seed;
	while (scanf(" write %zu %u", &wanted, &seed) == 2) {
		if (wanted > pages)
			return 2;
		srandom(seed);
		for (size_t i = 0; i < wanted; i++) {
			size_t j = i + (size_t)random() % (pages - i);
			uint32_t kept = order[i];
			order[i] = order[j];
			order[j] = kept;
		}
		if (uffd >= 0)
			write_protect((uint64_t)region, pages * PAGE, UFFDIO_WRITEPROTECT_MODE_WP);
		int64_t began = now_ns();
		for (size_t i = 0; i < wanted; i++)
			region[(size_t)order[i] * (PAGE / 8)] += seed;
		printf("%ld\n", (long)(now_ns() - began));
	}
	return 0;
}
