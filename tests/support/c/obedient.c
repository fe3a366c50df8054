/*
 * obedient: does with its memory what each line of standard input says, and answers each with one line.
 *
 * A target whose every operation the tester knows. It chooses nothing, checks nothing and allocates nothing: what the
 * system calls of a line make is all there is, beside the program's own data and stack. Numbers are decimal or 0x...;
 * commands of a line are separated by ";", and the answer has one number for each.
 *
 *	call NUMBER ARGUMENT...		a system call; a negative number is an error
 *	store ADDRESS VALUE		write a word
 *	fill ADDRESS PAGES VALUE	write a word at the start of each page: VALUE, VALUE + 1, ...
 *	poke ADDRESS HEX		write bytes
 *	load ADDRESS			read a word
 *	touch ADDRESS PAGES		read a byte of each page
 *	stack PAGES			write so many pages further down the stack; a number of no meaning
 *	signals				how many SIGUSR1 have come; they are taken on the alternative stack, if there is one
 *	fork COMMAND...			the rest of the line in a child, which is waited for; its exit code
 *	vfork COMMAND...		the same in a child that shares this memory
 *	spawn COMMAND...		the same in a child that then lives on until its parent ends; its pid
 *	thread COMMAND...		the same in a new thread; its number
 *	join NUMBER			wait for that thread; the answer of its last command
 *	exec				execute this program again; it says "ready" again
 *
 * The exit code of a child is 1 where its last command failed. Memory that is not there gives -14 and no SIGSEGV.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, LINE_MAX_BYTES = 1 << 18, THREADS_MAX = 64 };

static char line[LINE_MAX_BYTES], answer[LINE_MAX_BYTES];
static volatile sig_atomic_t signal_count;
static __thread sigjmp_buf elsewhere;
static __thread volatile bool is_trying;

static struct helper {
	pthread_t thread;
	char *commands;
	long result;
} helpers[THREADS_MAX];
static int helper_count;

static long obey(char *commands, char *answers);

static void on_fault(int number)
{
	if (!is_trying) {
		signal(number, SIG_DFL);
		return;
	}
	siglongjmp(elsewhere, 1);
}

static void on_signal(int number)
{
	(void)number;
	signal_count++;
}

static uint64_t next_number(char **rest)
{
	return strtoull(*rest, rest, 0);
}

static long make_call(char *rest)
{
	uint64_t words[7] = { 0 };

	for (int i = 0; i < 7; i++)
		words[i] = next_number(&rest);
	long result = syscall((long)words[0], words[1], words[2], words[3], words[4], words[5], words[6]);

	return result == -1 ? -errno : result;
}

static void fill(uint64_t address, uint64_t pages, uint64_t value)
{
	for (uint64_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(address + i * PAGE) = value + i;
}

static void touch(uint64_t address, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++)
		(void)*(volatile uint8_t *)(address + i * PAGE);
}

static void poke(uint64_t address, const char *digits)
{
	unsigned byte;

	for (digits += strspn(digits, " "); sscanf(digits, "%2x", &byte) == 1; digits += 2)
		*(volatile uint8_t *)address++ = (uint8_t)byte;
}

static __attribute__((noinline)) unsigned grow_stack(uint64_t pages)
{
	volatile uint8_t here[PAGE];

	here[0] = (uint8_t)pages;
	/* Read after the call, so that it is no loop. */
	return (pages > 1 ? grow_stack(pages - 1) : 0) + here[0];
}

/* What touches memory: where there is none, the handler comes back here. */
static long access_memory(const char *name, char *rest)
{
	long result = 0;

	if (sigsetjmp(elsewhere, 1) != 0) {
		is_trying = false;
		return -EFAULT;
	}
	uint64_t address = next_number(&rest);

	is_trying = true;
	if (strcmp(name, "poke") == 0)
		poke(address, rest);
	uint64_t first = next_number(&rest), second = next_number(&rest);

	if (strcmp(name, "store") == 0)
		*(volatile uint64_t *)address = first;
	else if (strcmp(name, "fill") == 0)
		fill(address, first, second);
	else if (strcmp(name, "load") == 0)
		result = (long)*(volatile uint64_t *)address;
	else if (strcmp(name, "touch") == 0)
		touch(address, first);
	is_trying = false;
	return result;
}

static _Noreturn void be_child(char *commands, bool lives_on)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	long result = obey(commands, NULL);

	while (lives_on)
		pause();
	_exit(result < 0);
}

static long have_child(const char *name, char *commands)
{
	pid_t child = strcmp(name, "vfork") == 0 ? vfork() : fork();
	int status = 0;

	if (child == 0)
		be_child(commands, strcmp(name, "spawn") == 0);
	if (child < 0)
		return -errno;
	if (strcmp(name, "spawn") == 0)
		return child;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void *help(void *argument)
{
	struct helper *helper = argument;

	helper->result = obey(helper->commands, NULL);
	return NULL;
}

static long start_thread(const char *commands)
{
	struct helper *helper = &helpers[helper_count % THREADS_MAX];

	free(helper->commands);
	helper->commands = strdup(commands);
	int error = pthread_create(&helper->thread, NULL, help, helper);

	return error != 0 ? -error : helper_count++;
}

static long join_thread(uint64_t number)
{
	struct helper *helper = &helpers[number % THREADS_MAX];

	pthread_join(helper->thread, NULL);
	return helper->result;
}

/* One command; whether it took the rest of the line. */
static bool do_one(char *command, char *whole_rest, long *result)
{
	char name[16] = "";
	int length = 0;

	sscanf(command, " %15s%n", name, &length);
	char *rest = command + length;

	if (strcmp(name, "call") == 0) {
		*result = make_call(rest);
	} else if (strcmp(name, "stack") == 0) {
		*result = (long)grow_stack(next_number(&rest));
	} else if (strcmp(name, "signals") == 0) {
		*result = signal_count;
	} else if (strcmp(name, "join") == 0) {
		*result = join_thread(next_number(&rest));
	} else if (strcmp(name, "exec") == 0) {
		execl("/proc/self/exe", "obedient", NULL);
		*result = -errno;
	} else if (strcmp(name, "thread") == 0 || strstr(name, "fork") != NULL || strcmp(name, "spawn") == 0) {
		if (whole_rest != NULL)
			whole_rest[-1] = ';'; /* the end of this command is none of the line */
		*result = strcmp(name, "thread") == 0 ? start_thread(rest) : have_child(name, rest);
		return true;
	} else {
		*result = access_memory(name, rest);
	}
	return false;
}

static long obey(char *commands, char *answers)
{
	long result = 0;

	while (commands != NULL) {
		char *end = strchr(commands, ';');
		char *rest = NULL;

		if (end != NULL) {
			*end = '\0';
			rest = end + 1;
		}
		bool took_all = do_one(commands, rest, &result);

		if (answers != NULL)
			answers += sprintf(answers, "%ld ", result);
		if (took_all)
			break;
		commands = rest;
	}
	return result;
}

int main(void)
{
	struct sigaction fault = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	struct sigaction ours = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };

	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGUSR1, &ours, NULL);
	printf("ready %d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		obey(line, answer);
		puts(answer);
		fflush(stdout);
	}
	return 0;
}
