/*
 * A library that offers the memory of whatever program is started under it: an unmodified one needs no ptrace either.
 *
 *     LD_PRELOAD=$(wetink-agent preload) WETINK_OFFER_SOCKET=/run/wetink-agent/offers redis-server
 *
 * Its constructor runs before the program's main() and makes one offer of all memory, by wetink_offer.h. What the program
 * calls with execve(2) offers again, since the environment goes with it. The program goes on whatever comes of it, after
 * WETINK_OFFER_MILLISECONDS (1000) at most; what went wrong is one line on standard error.
 *
 * Children of fork(2) have memory of their own, which the agent finds with --tree, or which they offer themselves with
 * WETINK_OFFER_FORKS=1: a few milliseconds for each fork. Not reached are programs without the dynamic loader (statically
 * linked, Go's), and those for which it ignores LD_PRELOAD: with the set-user-ID bit or file capabilities.
 */
#include "wetink_offer.h"

#include <pthread.h>
#include <stdlib.h>

enum { MILLISECONDS = 1000, MILLISECONDS_MAX = 60000 };

static char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1]; /* room for one that is too long, to say so */
static int milliseconds = MILLISECONDS;

/* Of what a program finds it may change nothing: errno is the first thing it might look at. */
static void offer(void)
{
	char said[512];
	const int error = errno;
	if (wetink_offer(path, NULL, 0, milliseconds, said, sizeof said))
		dprintf(STDERR_FILENO, "wetink: process %d is not tracked: %s (%s)\n", (int)getpid(), said, path);
	errno = error;
}

__attribute__((constructor)) static void begin(void)
{
	/* The secure ones: a program with more rights than who started it listens to nobody's environment. */
	const char *socket_path = secure_getenv("WETINK_OFFER_SOCKET");
	const char *most = secure_getenv("WETINK_OFFER_MILLISECONDS");
	const char *forks = secure_getenv("WETINK_OFFER_FORKS");
	const long asked = most ? strtol(most, NULL, 10) : MILLISECONDS;
	if (!socket_path || !*socket_path)
		return;
	milliseconds = (int)(asked < 0 ? 0 : asked > MILLISECONDS_MAX ? MILLISECONDS_MAX : asked);
	/* Kept: a program may overwrite its environment, as those do that set their title. */
	snprintf(path, sizeof path, "%s", socket_path);
	offer();
	if (forks && !strcmp(forks, "1"))
		pthread_atfork(NULL, NULL, offer);
}
