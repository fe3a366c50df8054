/*
 * wetink_offer.h: a program offers its own memory to the wetink agent of its host, which then needs no ptrace for it.
 *
 *     char said[256];
 *     if (wetink_offer("/run/wetink-agent/offers", NULL, 0, 1000, said, sizeof said))
 *         fprintf(stderr, "not tracked: %s\n", said);
 *
 * Linux; C99 and C++98 or later. Include it before other headers, or compile with -D_GNU_SOURCE.
 * It makes a userfaultfd over this process, sends it over the Unix socket of `wetink-agent --handshake PATH` and closes
 * it here: the agent has the only copy, so that its end leaves nothing behind. With the agent's default backend the
 * kernel resolves each fault itself, and no thread of this program ever waits. Nothing here waits beyond the deadline,
 * allocates, raises a signal or keeps a descriptor. Memory mapped later is tracked too; fork(2)'s children are not.
 */
#ifndef WETINK_OFFER_H
#define WETINK_OFFER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define WETINK_REGIONS_MAX 64 /* of one offer: it is written on the stack, 80 bytes for each */

/* A part of the address space, in whole pages. */
struct wetink_region {
	void *start;
	size_t size_bytes;
};

static inline long wetink_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait until there is something to read, or at most for so many milliseconds; -1 with ETIMEDOUT when it is too late. */
static inline int wetink_wait(int fd, long most, long until)
{
	struct pollfd one = {fd, POLLIN, 0};
	const long left = until - wetink_now();
	errno = ETIMEDOUT;
	return left <= 0 || (poll(&one, fd >= 0, (int)(left < most ? left : most)) < 0 && errno != EINTR) ? -1 : 0;
}

/* Give the best userfaultfd there is for this process: full, else for its own faults alone, else from the device. */
static inline int wetink_userfaultfd(void)
{
	const int flags = O_CLOEXEC | O_NONBLOCK, user_mode_only = 1; /* UFFD_USER_MODE_ONLY, Linux 5.11 */
	int device, fd = (int)syscall(SYS_userfaultfd, flags);
	if (fd < 0 && errno == EPERM)
		fd = (int)syscall(SYS_userfaultfd, flags | user_mode_only);
	/* A seccomp filter, as container runtimes have one, forbids the call and lets the ioctl through (Linux 6.1). */
	if (fd < 0 && errno == EPERM) {
		device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		fd = ioctl(device, 0xAA00, flags); /* USERFAULTFD_IOC_NEW; where there is no device, device is -1 */
		close(device);
		errno = EPERM;
	}
	return fd;
}

/* Send the hello with the descriptor: short, and the first on its socket, so that it goes whole or not at all. */
static inline int wetink_send(int fd, char *hello, int uffd)
{
	union {
		struct cmsghdr header; /* for its alignment */
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec piece = {hello, strlen(hello)};
	struct msghdr message;
	memset(&control, 0, sizeof control);
	memset(&message, 0, sizeof message);
	message.msg_iov = &piece;
	message.msg_iovlen = 1;
	message.msg_control = &control;
	message.msg_controllen = sizeof control.room;
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof uffd);
	memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
	return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? errno : 0;
}

/* Connect, send a userfaultfd and let go of it, and read the one line that answers; what failed, or 0. */
static inline int wetink_ask(int fd, const char *path, char *hello, long until, char *line, size_t size)
{
	struct sockaddr_un at = {AF_UNIX, ""};
	size_t length = 0;
	int uffd, failed;
	if (strlen(path) >= sizeof at.sun_path)
		return ENAMETOOLONG;
	strcpy(at.sun_path, path);
	while ((failed = connect(fd, (struct sockaddr *)&at, sizeof at)) && errno == EAGAIN && !wetink_wait(-1, 5, until))
		continue; /* the agent's queue is full */
	if (failed || (uffd = wetink_userfaultfd()) < 0)
		return errno;
	failed = wetink_send(fd, hello, uffd);
	close(uffd);
	while (!failed && length < size && !memchr(line, '\n', length)) {
		const ssize_t got = recv(fd, line + length, size - length, 0);
		if (got == 0 || (got < 0 && ((errno != EAGAIN && errno != EINTR) || wetink_wait(fd, 1000, until))))
			return got ? errno : EPROTO;
		length += got > 0 ? (size_t)got : 0;
	}
	return failed;
}

/* Offer memory: `count` regions, or with none all there is and will be. Waits for the answer `milliseconds` at most.
 *
 * Gives 0 when the process is tracked, with the target's name (HOST/PID@START) in `said`. Else -1, with why in `said` and
 * in errno: EPROTO the agent refused, or hung up; ENOENT, ECONNREFUSED no agent; EACCES another user's socket; EPERM,
 * ENOSYS no userfaultfd to be had; ETIMEDOUT no answer yet, though the agent may take it still; E2BIG, ENAMETOOLONG.
 */
static inline int wetink_offer(const char *path, const struct wetink_region *regions, size_t count, int milliseconds,
			       char *said, size_t said_size)
{
	char hello[WETINK_REGIONS_MAX * 80 + 64] = "{\"wetink\": 1, \"regions\": [", line[1024] = "";
	char *text, *end = hello + strlen(hello);
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int failed = count > WETINK_REGIONS_MAX ? E2BIG : fd < 0 ? errno : 0;
	for (size_t i = 0; i < count && !failed; i++)
		end += sprintf(end, "%s{\"base_host_virt_addr\": %lu, \"size\": %lu}", i ? ", " : "",
			       (unsigned long)regions[i].start, (unsigned long)regions[i].size_bytes);
	strcpy(end, "]}");
	if (!failed)
		failed = wetink_ask(fd, path, hello, wetink_now() + milliseconds, line, sizeof line - 1);
	if (fd >= 0)
		close(fd);
	failed = failed || !strncmp(line, "{\"target\"", 9) ? failed : EPROTO;
	if ((text = strstr(line, "\": \""))) /* {"target": "HOST/PID@START"} or {"error": "one sentence"} */
		*strrchr(text, '"') = 0;
	text = text ? text + 4 : failed == EPROTO ? strcpy(line, "the agent hung up") : strerror(failed);
	for (*said = 0; said_size > 1 && *text; said_size--, *said = 0)
		*said++ = *text++;
	errno = failed;
	return failed ? -1 : 0;
}
#endif
