/* firecracker SOCKET FEATURES MODE [late|armed|fork]: plays Firecracker's side when it loads a snapshot with a "Uffd" backend.
 *
 * As in its src/vmm/src/persist.rs: two regions of guest memory, one userfaultfd, UFFDIO_API with FEATURES (hexadecimal, or
 * "-": not done), the regions registered in MODE (0 not, 1 missing, 2 write-protect), and one sendmsg(2) of the regions as
 * serde_json writes them, with no length and no end, and the descriptor. Then it keeps socket and descriptor and reads
 * nothing. "late" sends the descriptor after the body, with a byte of its own; "armed" write-protects the first region
 * itself; "fork" lets a child send what is its parent's.
 *
 * Prints "ready PID START SIZE START SIZE"; each line "REGION PAGE VALUE" is a write to guest memory, answered "done".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { REGIONS = 2, PAGES = 64, PAGE = 4096 };

static void die(const char *what)
{
	fprintf(stderr, "firecracker: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void send_with_fd(int to, const char *body, size_t size, int fd)
{
	char room[CMSG_SPACE(sizeof fd)] __attribute__((aligned(8))) = {0};
	struct iovec piece = {(void *)body, size};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
	if (fd >= 0) {
		struct cmsghdr *header = (struct cmsghdr *)room;
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
		message.msg_control = room;
		message.msg_controllen = sizeof room;
	}
	if (sendmsg(to, &message, 0) != (ssize_t)size)
		die("sendmsg");
}

int main(int count, char **words)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	char *guest[REGIONS], body[1024] = "[";
	const char *how = count > 4 ? words[4] : "";
	if (count < 4)
		return 2;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API, .features = strtoull(words[2], NULL, 16)};
	if (uffd < 0 || (strcmp(words[2], "-") && ioctl(uffd, UFFDIO_API, &api)))
		die("userfaultfd");
	for (int i = 0; i < REGIONS; i++) {
		const size_t size = PAGES * PAGE;
		struct uffdio_register it = {.mode = (unsigned)atoi(words[3])};
		guest[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (it.mode != UFFDIO_REGISTER_MODE_MISSING)
			for (int page = 0; page < PAGES; page += 2)
				guest[i][page * PAGE] = 1;
		it.range.start = (uintptr_t)guest[i];
		it.range.len = size;
		if (it.mode && ioctl(uffd, UFFDIO_REGISTER, &it))
			die("UFFDIO_REGISTER");
		if (i == 0 && !strcmp(how, "armed")) {
			struct uffdio_writeprotect arm = {.range = it.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
			if (ioctl(uffd, UFFDIO_WRITEPROTECT, &arm))
				die("UFFDIO_WRITEPROTECT");
		}
		sprintf(body + strlen(body),
			"%s{\"base_host_virt_addr\":%zu,\"size\":%zu,\"offset\":%zu,\"page_size\":4096,\"page_size_kib\":4096}",
			i ? "," : "", (size_t)guest[i], size, i * size);
	}
	strcat(body, "]");
	pid_t child = strcmp(how, "fork") ? 0 : fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int to = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		snprintf(at.sun_path, sizeof at.sun_path, "%s", words[1]);
		if (connect(to, (struct sockaddr *)&at, sizeof at))
			die("connect");
		send_with_fd(to, body, strlen(body), strcmp(how, "late") ? uffd : -1);
		if (!strcmp(how, "late")) {
			usleep(100000);
			send_with_fd(to, "", 1, uffd);
		}
		if (!strcmp(how, "fork"))
			for (;;)
				pause();
	}
	printf("ready %d", (int)(child ? child : getpid()));
	for (int i = 0; i < REGIONS; i++)
		printf(" %zu %d", (size_t)guest[i], PAGES * PAGE);
	printf("\n");
	fflush(stdout);
	for (int region, page, value; scanf("%d %d %d", &region, &page, &value) == 3; fflush(stdout)) {
		guest[region][page * PAGE] = (char)value;
		printf("done\n");
	}
	return 0;
}
