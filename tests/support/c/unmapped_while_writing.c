/*
 * unmapped_while_writing: one thread writes to a page while another unmaps it, again and again.
 *
 * Prints "ready"; each line on standard input is one turn, answered with "done" when the writer has got its SIGSEGV. The
 * writer counts up in the page until it is gone. A writer that waits for somebody in a page that is no more would never
 * get there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 256 };

static volatile char *page, *next;
static pthread_barrier_t begin, end;
static sigjmp_buf out;

static void gone(int number)
{
	(void)number;
	siglongjmp(out, 1);
}

static volatile char *fresh(void)
{
	volatile char *got = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < PAGES; i++)
		got[i * PAGE] = 1;
	return got;
}

static void *write_on(void *unused)
{
	(void)unused;
	for (;;) {
		pthread_barrier_wait(&begin);
		if (!sigsetjmp(out, 1))
			for (unsigned i = 0;; i++)
				page[i % PAGES * PAGE]++;
		pthread_barrier_wait(&end);
	}
	return NULL;
}

int main(void)
{
	struct sigaction action = {.sa_handler = gone};
	sigaction(SIGSEGV, &action, NULL);
	pthread_barrier_init(&begin, NULL, 2);
	pthread_barrier_init(&end, NULL, 2);
	pthread_t thread;
	if (pthread_create(&thread, NULL, write_on, NULL))
		return 1;
	next = fresh();
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	puts("ready");
	char line[64];
	while (fgets(line, sizeof(line), stdin)) {
		/* What is written now was there in the round before, and is protected. */
		page = next;
		next = fresh();
		pthread_barrier_wait(&begin);
		munmap((void *)page, PAGES * PAGE);
		pthread_barrier_wait(&end);
		puts("done");
	}
	return 0;
}
