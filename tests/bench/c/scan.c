/*
 * The bare ioctls of one agent round, timed: what there is to compare the agent with.
 *
 *   scan [--self] SIZE_MIB [REPETITIONS [CHUNK_MIB]]
 *       Measures by itself. A child process holds a region of that size and dirties a share of it when asked; this
 *       process takes the child's userfaultfd over a socket, registers its memory and scans it, as the agent does.
 *       With --self the region is this process's own. One JSON object a line, for each share of pages dirtied.
 *   scan victim SIZE_MIB [SPAN_MIB]
 *       A target only. Prints "ready PID START_ADDRESS", then obeys on standard input: "dirty SHARE_PERCENT SEED"
 *       writes to exactly that share of the pages, chosen at random (100: all), and answers "done COUNT"; "quit".
 *       With SPAN_MIB its pages lie in pieces of 2 MiB, at equal distances, in a mapping of that size; the rest are holes.
 *   scan attach PID [CHUNK_MIB]
 *       Rounds over a process that somebody else has registered, so that both can be timed in turn on one target.
 *       Prints "ready", then obeys: "round" does one and answers with a JSON object; "quit". A round arms again what it
 *       found written, so the other one does not find it. "arm FILE" arms again what was written in ranges alone, one
 *       ioctl each, as one would who knows from events where to look; the file has pairs of 64-bit addresses.
 *
 * A round is an audit, a census and an audit. The census goes in pieces of at most CHUNK_MIB of mapped memory, 128
 * unless told; 0 means the whole address space at once. Making that plan, from /proc/PID/maps, is outside the time, and so is
 * registration. Nothing is done with the answers: the regions lie in the vector, which every ioctl reuses.
 *
 * A first round of each share is not timed; in the measuring modes it checks that the kernel reports as many written
 * pages of the region as were dirtied.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

/* include/uapi/linux/fs.h since Linux 6.7, under names of ours where an older header has none. */
#ifndef PAGEMAP_SCAN
struct page_region {
	uint64_t start, end, categories;
};

struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PAGE_IS_WPALLOWED (1 << 0)
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_FILE (1 << 2)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4)
#define PAGE_IS_PFNZERO (1 << 5)
#endif

_Static_assert(sizeof(struct pm_scan_arg) == 96, "the kernel takes exactly 96 bytes");

enum {
	PAGE = 4096,
	REGIONS_MAX = 65536,
	PIECES_MAX = 65536,
	REPETITIONS_DEFAULT = 9,
	REPETITIONS_MAX = 10000,
	RANGES_MAX = 1 << 20,
	CHUNK_MIB_DEFAULT = 128,
	SIZE_MIB_MAX = 1 << 20,
	SPAN_MIB_MAX = 1 << 26,
	PIECE_PAGES = 512,
	LINE_MAX_BYTES = 256,
};

#define MIB ((uint64_t)1 << 20)
#define ADDRESS_MIN 0x1000ull
#define ADDRESS_END 0x7ffffffff000ull

static const int shares[] = { 0, 1, 10, 50, 100 };

/* The region that gets dirty. */
struct region {
	unsigned char *base;
	size_t pages;
	size_t distance; /* bytes from one piece of PIECE_PAGES to the next */
	uint64_t written; /* values stored so far: each store is a new one */
};

/* What a round needs, and what it found. */
struct scanner {
	int pagemap;
	struct page_region *regions;
	uint64_t piece_ends[PIECES_MAX];
	size_t pieces;
	uint64_t census_regions, audit_regions, scans;
	uint64_t counted_start, counted_end, counted; /* written pages in a range, where they are counted */
};

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "scan: %s: %s\n", what, strerror(errno));
	exit(1);
}

static _Noreturn void refuse(const char *what)
{
	fprintf(stderr, "scan: %s\n", what);
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t number_of(const char *text, uint64_t most)
{
	char *end;
	uint64_t number;

	errno = 0;
	number = strtoull(text, &end, 0);
	if (errno != 0 || end == text || *end != '\0' || *text == '-' || number > most)
		refuse("not a number, or too large");
	return number;
}

/* ---- the region --------------------------------------------------------------------------------------------- */

static void write_page(struct region *region, size_t page)
{
	size_t offset = page / PIECE_PAGES * region->distance + page % PIECE_PAGES * PAGE;

	*(volatile uint64_t *)(region->base + offset) = ++region->written;
}

static struct region new_region(uint64_t size_mib, uint64_t span_mib)
{
	size_t pages = size_mib * MIB / PAGE, pieces = (pages + PIECE_PAGES - 1) / PIECE_PAGES;
	struct region region = { .pages = pages,
				 .distance = span_mib * MIB / pieces / PAGE * PAGE };
	void *base = mmap(NULL, span_mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		die("mmap");
	/* A huge page would count as 512, and split at its first write. EINVAL: this kernel has none. */
	if (madvise(base, span_mib * MIB, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		die("madvise");
	region.base = base;
	for (size_t page = 0; page < region.pages; page++)
		write_page(&region, page);
	return region;
}

/*
 * Selection sampling: each page is taken with the chance that makes the number exact, and no table of pages gets dirty
 * beside the region.
 */
static size_t dirty(struct region *region, double share_percent, uint64_t seed)
{
	size_t wanted = (size_t)((double)region->pages * share_percent / 100 + 0.5), done = 0;
	uint64_t state = mix(seed);

	for (size_t page = 0; page < region->pages && done < wanted; page++) {
		/* 32 random bits against numbers of pages below 2^28: the bias is nothing. */
		uint64_t point = ((mix(state++) >> 32) * (region->pages - page)) >> 32;

		if (point < wanted - done) {
			write_page(region, page);
			done++;
		}
	}
	return done;
}

/* Reads a line without stdio, whose buffers would be a target's dirty pages too. False at the end. */
static bool read_line(char *line)
{
	size_t length = 0;

	while (length < LINE_MAX_BYTES - 1) {
		ssize_t got = read(STDIN_FILENO, line + length, 1);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		if (line[length] == '\n')
			break;
		length++;
	}
	line[length] = '\0';
	return true;
}

static void obey(struct region *region)
{
	char line[LINE_MAX_BYTES];
	double share_percent;
	uint64_t seed;

	while (read_line(line) && strcmp(line, "quit") != 0) {
		if (sscanf(line, "dirty %lf %" SCNu64, &share_percent, &seed) != 2 || !(share_percent >= 0) ||
		    share_percent > 100)
			dprintf(STDOUT_FILENO, "error: unknown command\n");
		else
			dprintf(STDOUT_FILENO, "done %zu\n", dirty(region, share_percent, seed));
	}
}

static int victim(uint64_t size_mib, uint64_t span_mib)
{
	struct region region = new_region(size_mib, span_mib);

	dprintf(STDOUT_FILENO, "ready %d %p\n", getpid(), (void *)region.base);
	obey(&region);
	return 0;
}

/* ---- userfaultfd -------------------------------------------------------------------------------------------- */

static int open_uffd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK;
	long uffd = syscall(SYS_userfaultfd, flags);

	if (uffd < 0 && errno == EPERM)
		uffd = syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		die("userfaultfd");
	return (int)uffd;
}

static void send_descriptor(int socket, int descriptor)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte = 0;
	struct iovec body = { &byte, 1 };
	struct msghdr message = { .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &descriptor, sizeof(descriptor));
	if (sendmsg(socket, &message, 0) != 1)
		die("sendmsg");
}

static int receive_descriptor(int socket)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec body = { &byte, 1 };
	struct msghdr message = { .msg_iov = &body, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int descriptor;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1 || CMSG_FIRSTHDR(&message) == NULL)
		refuse("no userfaultfd came from the child");
	memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(descriptor));
	return descriptor;
}

static void enable(int uffd)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					      UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC };

	if (ioctl(uffd, UFFDIO_API, &api) != 0)
		die("UFFDIO_API with UFFD_FEATURE_WP_ASYNC");
}

/* False where the kernel does not protect such a mapping. */
static bool enrol(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register argument = { .range = { start, end - start }, .mode = UFFDIO_REGISTER_MODE_WP };

	if (ioctl(uffd, UFFDIO_REGISTER, &argument) == 0)
		return true;
	if (errno != EINVAL && errno != EPERM)
		die("UFFDIO_REGISTER");
	return false;
}

/* ---- rounds ------------------------------------------------------------------------------------------------- */

static void open_scanner(struct scanner *scanner, pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	scanner->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (scanner->pagemap < 0)
		die(path);
	scanner->regions = mmap(NULL, REGIONS_MAX * sizeof(*scanner->regions), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (scanner->regions == MAP_FAILED)
		die("mmap");
}

static FILE *open_maps(pid_t pid)
{
	char path[64];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (maps == NULL)
		die(path);
	return maps;
}

/* Cuts the address space where so much mapped memory has passed; no address is left out. */
static void plan(struct scanner *scanner, pid_t pid, uint64_t chunk_bytes)
{
	uint64_t start, end, passed = 0;
	FILE *maps = open_maps(pid);

	scanner->pieces = 0;
	while (chunk_bytes != 0 && fscanf(maps, "%" SCNx64 "-%" SCNx64 "%*[^\n]", &start, &end) == 2) {
		if (end > ADDRESS_END)
			break;
		while (passed + (end - start) > chunk_bytes) {
			start += chunk_bytes - passed;
			passed = 0;
			scanner->piece_ends[scanner->pieces++] = start;
			if (scanner->pieces == PIECES_MAX - 1)
				refuse("too many pieces: take a larger CHUNK_MIB");
		}
		passed += end - start;
	}
	fclose(maps);
	scanner->piece_ends[scanner->pieces++] = ADDRESS_END;
}

static void count_written(struct scanner *scanner, long found)
{
	for (long i = 0; i < found; i++) {
		struct page_region region = scanner->regions[i];

		if (region.start < scanner->counted_start)
			region.start = scanner->counted_start;
		if (region.end > scanner->counted_end)
			region.end = scanner->counted_end;
		if (region.start < region.end && (region.categories & PAGE_IS_WRITTEN) != 0)
			scanner->counted += (region.end - region.start) / PAGE;
	}
}

/* One or more ioctls: a full vector ends a walk early. */
static uint64_t scan(struct scanner *scanner, struct pm_scan_arg *argument, uint64_t start, uint64_t end)
{
	uint64_t regions = 0;

	argument->end = end;
	while (start < end) {
		long found;

		argument->start = start;
		found = ioctl(scanner->pagemap, PAGEMAP_SCAN, argument);
		if (found < 0)
			die("PAGEMAP_SCAN");
		if (scanner->counted_end != 0)
			count_written(scanner, found);
		regions += (uint64_t)found;
		scanner->scans++;
		start = argument->walk_end;
	}
	return regions;
}

static void audit(struct scanner *scanner)
{
	struct pm_scan_arg argument = {
		.size = sizeof(argument),
		.vec = (uint64_t)(uintptr_t)scanner->regions,
		.vec_len = REGIONS_MAX,
		.category_inverted = PAGE_IS_WPALLOWED | PAGE_IS_FILE | PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_FILE | PAGE_IS_PFNZERO,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};

	scanner->audit_regions += scan(scanner, &argument, ADDRESS_MIN, ADDRESS_END);
}

static void census(struct scanner *scanner)
{
	struct pm_scan_arg argument = {
		.size = sizeof(argument),
		.flags = PM_SCAN_WP_MATCHING,
		.vec = (uint64_t)(uintptr_t)scanner->regions,
		.vec_len = REGIONS_MAX,
		.category_inverted = PAGE_IS_FILE,
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_FILE,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO,
	};
	uint64_t start = ADDRESS_MIN;

	for (size_t i = 0; i < scanner->pieces; i++) {
		scanner->census_regions += scan(scanner, &argument, start, scanner->piece_ends[i]);
		start = scanner->piece_ends[i];
	}
}

/* Nanoseconds from the first ioctl to the last. */
static uint64_t do_round(struct scanner *scanner)
{
	uint64_t began;

	scanner->census_regions = scanner->audit_regions = scanner->scans = 0;
	began = now_ns();
	audit(scanner);
	census(scanner);
	audit(scanner);
	return now_ns() - began;
}

/* Registers what a process has in private writable memory, then whatever an audit still finds. */
static void enrol_all(struct scanner *scanner, int uffd, pid_t pid)
{
	char mode[5];
	uint64_t start, end;
	FILE *maps = open_maps(pid);

	while (fscanf(maps, "%" SCNx64 "-%" SCNx64 " %4s%*[^\n]", &start, &end, mode) == 3)
		if (end <= ADDRESS_END && strncmp(mode, "rw-p", 4) == 0)
			enrol(uffd, start, end);
	fclose(maps);
	scanner->audit_regions = 0;
	audit(scanner);
	for (uint64_t i = 0; i < scanner->audit_regions; i++)
		enrol(uffd, scanner->regions[i].start, scanner->regions[i].end);
}

/* ---- measuring ---------------------------------------------------------------------------------------------- */

/* Who dirties: a child by way of pipes, or this process. */
struct target {
	pid_t pid;
	int uffd;
	struct region own;
	uint64_t start;
	FILE *commands, *answers;
};

static struct target start_child(uint64_t size_mib)
{
	int commands[2], answers[2], sockets[2];
	struct target target = { 0 };
	pid_t parent = getpid();
	int child;
	void *start;

	if (pipe2(commands, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
		die("pipe2 or socketpair");
	target.pid = fork();
	if (target.pid < 0)
		die("fork");
	if (target.pid == 0) {
		int uffd = open_uffd();

		if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
			_exit(0);
		dup2(commands[0], STDIN_FILENO);
		dup2(answers[1], STDOUT_FILENO);
		send_descriptor(sockets[1], uffd);
		/* The parent has the only ones: this process learns of its end by them. */
		close(uffd);
		close(sockets[0]);
		close(sockets[1]);
		close(commands[0]);
		close(commands[1]);
		close(answers[0]);
		close(answers[1]);
		_exit(victim(size_mib, size_mib));
	}
	close(commands[0]);
	close(answers[1]);
	close(sockets[1]);
	target.uffd = receive_descriptor(sockets[0]);
	close(sockets[0]);
	target.commands = fdopen(commands[1], "w");
	target.answers = fdopen(answers[0], "r");
	if (target.commands == NULL || target.answers == NULL)
		die("fdopen");
	/* No white space at the end of the format: it would wait for what comes after the line. */
	if (fscanf(target.answers, "ready %d %p", &child, &start) != 2)
		refuse("the child did not start");
	target.start = (uint64_t)(uintptr_t)start;
	return target;
}

static struct target start_self(uint64_t size_mib)
{
	struct target target = { .pid = getpid(), .uffd = open_uffd(), .own = new_region(size_mib, size_mib) };

	target.start = (uint64_t)(uintptr_t)target.own.base;
	return target;
}

static uint64_t dirty_target(struct target *target, int share, uint64_t seed)
{
	uint64_t count;

	if (target->commands == NULL)
		return dirty(&target->own, share, seed);
	fprintf(target->commands, "dirty %d %" PRIu64 "\n", share, seed);
	fflush(target->commands);
	if (fscanf(target->answers, " done %" SCNu64, &count) != 1)
		refuse("the child is gone");
	return count;
}

static int by_size(const void *one, const void *other)
{
	uint64_t left = *(const uint64_t *)one, right = *(const uint64_t *)other;

	return (left > right) - (left < right);
}

static void check_count(struct scanner *scanner, struct target *target, uint64_t size_bytes, int share)
{
	uint64_t dirtied = dirty_target(target, share, 1);

	scanner->counted = 0;
	scanner->counted_start = target->start;
	scanner->counted_end = target->start + size_bytes;
	do_round(scanner);
	scanner->counted_end = 0;
	if (scanner->counted != dirtied) {
		fprintf(stderr, "scan: %" PRIu64 " pages were dirtied, the kernel reports %" PRIu64 "\n", dirtied,
			scanner->counted);
		exit(1);
	}
}

static int measure(bool self, uint64_t size_mib, uint64_t repetitions, uint64_t chunk_mib)
{
	static struct scanner scanner;
	static uint64_t times[REPETITIONS_MAX];
	struct target target = self ? start_self(size_mib) : start_child(size_mib);

	enable(target.uffd);
	open_scanner(&scanner, target.pid);
	enrol_all(&scanner, target.uffd, target.pid);
	plan(&scanner, target.pid, chunk_mib * MIB);
	do_round(&scanner); /* arms everything for the first time */
	for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
		check_count(&scanner, &target, size_mib * MIB, shares[i]);
		for (uint64_t turn = 0; turn < repetitions; turn++) {
			dirty_target(&target, shares[i], 2 + turn);
			times[turn] = do_round(&scanner);
		}
		qsort(times, repetitions, sizeof(times[0]), by_size);
		printf("{\"mode\": \"%s\", \"size_mib\": %" PRIu64 ", \"chunk_mib\": %" PRIu64 ", \"share\": %d, "
		       "\"median_us\": %.1f, \"min_us\": %.1f, \"repetitions\": %" PRIu64 ", \"regions\": %" PRIu64
		       ", \"scans\": %" PRIu64 "}\n",
		       self ? "self" : "separate", size_mib, chunk_mib, shares[i], (double)times[repetitions / 2] / 1000,
		       (double)times[0] / 1000, repetitions, scanner.census_regions, scanner.scans);
		fflush(stdout);
	}
	return 0;
}

/* Arms what was written in ranges, and says what processor time that took; reading the file is outside the time. */
static void arm(struct scanner *scanner, const char *path)
{
	static uint64_t ranges[RANGES_MAX][2];
	struct pm_scan_arg argument = {
		.size = sizeof(argument),
		.flags = PM_SCAN_WP_MATCHING,
		.vec = (uint64_t)(uintptr_t)scanner->regions,
		.vec_len = REGIONS_MAX,
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	uint64_t found = 0, began;
	FILE *file = fopen(path, "re");
	size_t count;

	if (file == NULL)
		die(path);
	count = fread(ranges, sizeof(ranges[0]), RANGES_MAX, file);
	fclose(file);
	began = cpu_ns();
	for (size_t i = 0; i < count; i++)
		found += scan(scanner, &argument, ranges[i][0], ranges[i][1]);
	dprintf(STDOUT_FILENO, "{\"us\": %.1f, \"ranges\": %zu, \"regions\": %" PRIu64 "}\n",
		(double)(cpu_ns() - began) / 1000, count, found);
}

static int attach(pid_t pid, uint64_t chunk_mib)
{
	static struct scanner scanner;
	char line[LINE_MAX_BYTES];

	open_scanner(&scanner, pid);
	dprintf(STDOUT_FILENO, "ready\n");
	while (read_line(line) && strcmp(line, "quit") != 0) {
		if (strncmp(line, "arm ", 4) == 0) {
			arm(&scanner, line + 4);
			continue;
		}
		if (strcmp(line, "round") != 0) {
			dprintf(STDOUT_FILENO, "error: unknown command\n");
			continue;
		}
		plan(&scanner, pid, chunk_mib * MIB);
		uint64_t ns = do_round(&scanner);

		dprintf(STDOUT_FILENO,
			"{\"us\": %.1f, \"regions\": %" PRIu64 ", \"audit_regions\": %" PRIu64 ", \"scans\": %" PRIu64 "}\n",
			(double)ns / 1000, scanner.census_regions, scanner.audit_regions, scanner.scans);
	}
	return 0;
}

int main(int count, char **arguments)
{
	bool self = count > 1 && strcmp(arguments[1], "--self") == 0;
	int first = self ? 2 : 1;
	uint64_t size_mib, span_mib, repetitions = REPETITIONS_DEFAULT, chunk_mib = CHUNK_MIB_DEFAULT;

	if ((count == 3 || count == 4) && strcmp(arguments[1], "victim") == 0 &&
	    (size_mib = number_of(arguments[2], SIZE_MIB_MAX)) > 0) {
		span_mib = count == 4 ? number_of(arguments[3], SPAN_MIB_MAX) : size_mib;
		if (span_mib < size_mib)
			refuse("SPAN_MIB is less than SIZE_MIB");
		return victim(size_mib, span_mib);
	}
	if ((count == 3 || count == 4) && strcmp(arguments[1], "attach") == 0)
		return attach((pid_t)number_of(arguments[2], INT32_MAX),
			      count == 4 ? number_of(arguments[3], SIZE_MIB_MAX) : CHUNK_MIB_DEFAULT);
	if (count - first < 1 || count - first > 3) {
		fputs("usage: scan [--self] SIZE_MIB [REPETITIONS [CHUNK_MIB]]\n"
		      "       scan victim SIZE_MIB [SPAN_MIB]\n"
		      "       scan attach PID [CHUNK_MIB]\n",
		      stderr);
		return 2;
	}
	size_mib = number_of(arguments[first], SIZE_MIB_MAX);
	if (count - first > 1)
		repetitions = number_of(arguments[first + 1], REPETITIONS_MAX);
	if (count - first > 2)
		chunk_mib = number_of(arguments[first + 2], SIZE_MIB_MAX);
	if (size_mib == 0 || repetitions == 0)
		refuse("SIZE_MIB and REPETITIONS are at least 1");
	return measure(self, size_mib, repetitions, chunk_mib);
}
