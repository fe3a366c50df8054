/*
 * The loop of a resolver: answers the write-protect messages of one userfaultfd, without Python and its lock.
 *
 * It does what Resolver of resolver.py does, which says why; both pass the same tests. It touches nothing but what
 * struct wetink_resolver points to, calls nothing that waits but poll(2), and returns when it is closed or has failed.
 *
 * The logs change hands here, so that nobody waits for Python at the end of a round: who harvests empties the spare
 * log, rings the bell, and reads `handed`; from then on the two logs have changed places.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGES_AT_ONCE = 1024, STREAMS_MAX = 64 };

struct run {
	uint64_t start, end; /* pages */
};

struct log {
	struct uffd_msg *messages; /* messages_max, and MESSAGES_AT_ONCE more: what is not kept is answered all the same */
	uint64_t *times_ns;
	struct run *beyond; /* runs un-protected without a message; where there is no room, there are none */
	uint64_t count, answered_count, lost_count, beyond_count;
};

struct wetink_resolver {
	int32_t uffd, bell, handed, closing;
	uint64_t messages_max, beyond_max, span_pages_max, page_shift;
	uint64_t current; /* which of the logs is written to */
	struct log logs[2];
};

/* Where the next fault would continue a sequence, and how many pages were un-protected at its last one. */
struct streams {
	struct {
		uint64_t reach, span, born;
	} at[STREAMS_MAX];
	uint64_t count, births;
};

static uint64_t take_span(struct streams *streams, uint64_t start)
{
	for (uint64_t i = 0; i < streams->count; i++) {
		if (streams->at[i].reach != start)
			continue;
		uint64_t span = streams->at[i].span;
		streams->at[i] = streams->at[--streams->count];
		return span;
	}
	return 0;
}

static void put_span(struct streams *streams, uint64_t reach, uint64_t span)
{
	uint64_t place = streams->count, oldest = 0;

	for (uint64_t i = 0; i < streams->count; i++) {
		if (streams->at[i].reach == reach)
			place = i;
		if (streams->at[i].born < streams->at[oldest].born)
			oldest = i;
	}
	if (place == STREAMS_MAX)
		place = oldest;
	else if (place == streams->count)
		streams->count++;
	streams->at[place].reach = reach;
	streams->at[place].span = span;
	streams->at[place].born = streams->births++;
}

/* Takes the protection away and wakes who waits. 1, or 0 where there is nothing to take it from, or -errno. */
static int write_protect_off(const struct wetink_resolver *resolver, uint64_t start, uint64_t end)
{
	struct uffdio_writeprotect argument = {
		.range = {start << resolver->page_shift, (end - start) << resolver->page_shift}};

	if (!ioctl(resolver->uffd, UFFDIO_WRITEPROTECT, &argument))
		return 1;
	/* The mapping has gone or is another's; the layout is being changed; the whole memory has gone. */
	return errno == ENOENT || errno == EAGAIN || errno == ESRCH ? 0 : -errno;
}

static int unprotect(struct wetink_resolver *resolver, struct streams *streams, uint64_t start, uint64_t end)
{
	struct log *log = &resolver->logs[resolver->current];
	uint64_t span = 2 * take_span(streams, start);
	int done;

	if (span > resolver->span_pages_max)
		span = resolver->span_pages_max;
	uint64_t reach = start + span > end ? start + span : end;
	put_span(streams, reach, span ? span : 1);
	if (reach > end && log->beyond_count < resolver->beyond_max) {
		log->beyond[log->beyond_count++] = (struct run){end, reach};
		done = write_protect_off(resolver, start, reach);
		if (done)
			return done < 0 ? done : 0;
		/* What lies beyond may be no memory of ours. */
	}
	done = write_protect_off(resolver, start, end);
	if (done)
		return done < 0 ? done : 0;
	/* Let who waits try again: a thread whose mapping has gone is not woken by the kernel. */
	struct uffdio_range range = {start << resolver->page_shift, (end - start) << resolver->page_shift};
	return ioctl(resolver->uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

static int by_number(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
	return (a > b) - (a < b);
}

/* Reads what there is, records it and answers it. 0 or -errno. */
static int answer(struct wetink_resolver *resolver, struct streams *streams)
{
	struct log *log = &resolver->logs[resolver->current];
	struct uffd_msg *messages = log->messages + log->count;
	uint64_t pages[MESSAGES_AT_ONCE];
	struct timespec now;
	ssize_t size_bytes = read(resolver->uffd, messages, MESSAGES_AT_ONCE * sizeof(*messages));

	if (size_bytes < 0)
		/* Who waited has been woken by the answer to another, or killed. */
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	uint64_t count = (uint64_t)size_bytes / sizeof(*messages);
	/* Recorded before it is answered: a page that is found un-protected has its message in the log. */
	clock_gettime(CLOCK_REALTIME, &now);
	for (uint64_t i = 0; i < count; i++) {
		log->times_ns[log->count + i] = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
		pages[i] = messages[i].arg.pagefault.address >> resolver->page_shift;
	}
	uint64_t last = log->count + count;
	uint64_t kept = last < resolver->messages_max ? last : resolver->messages_max;
	log->lost_count += last - kept;
	__atomic_store_n(&log->count, kept, __ATOMIC_RELEASE);
	if (count > 1)
		qsort(pages, count, sizeof(*pages), by_number);
	for (uint64_t first = 0, i = 1; i <= count; i++) {
		if (i < count && pages[i] - pages[i - 1] <= 1)
			continue;
		int failed = unprotect(resolver, streams, pages[first], pages[i - 1] + 1);
		if (failed)
			return failed;
		first = i;
	}
	__atomic_store_n(&log->answered_count, kept, __ATOMIC_RELEASE);
	return 0;
}

/* Answers until it is closed: 0; or until something fails that must not: -errno. Writers wait for nobody then. */
int wetink_resolve(struct wetink_resolver *resolver)
{
	struct streams streams = {.count = 0};
	struct pollfd polled[2] = {{.fd = resolver->uffd, .events = POLLIN}, {.fd = resolver->bell, .events = POLLIN}};
	uint64_t number;

	for (;;) {
		if (poll(polled, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (polled[0].revents) {
			int failed = answer(resolver, &streams);
			if (failed)
				return failed;
		}
		if (!polled[1].revents)
			continue;
		if (__atomic_load_n(&resolver->closing, __ATOMIC_ACQUIRE))
			return 0;
		if (read(resolver->bell, &number, sizeof(number)) < 0)
			return -errno;
		resolver->current = !resolver->current;
		number = 1;
		if (write(resolver->handed, &number, sizeof(number)) < 0)
			return -errno;
	}
}

/* So that Python can tell a library that was built from another version of this file. */
uint64_t wetink_resolver_size_bytes(void)
{
	return sizeof(struct wetink_resolver);
}
