/*
 * sleeper MODE FILE [THREADS]: does one thing for ever and checks at every turn that nobody disturbed it.
 *
 * A target for attach tests: a tracker that borrows a thread must give it back exactly as it was. Any disturbance ends
 * the program with exit code 3 and a sentence on standard error. SIGTERM ends it with 0, after a last check that the
 * open descriptors and the signal mask are those it started with.
 *
 * Prints "ready" when it has begun. FILE is made, and holds unsigned 64-bit integers, native order, always current:
 *   0  iterations so far
 *   1  interruptions that the manual allows (epoll_wait returns EINTR after a stop: signal(7))
 *   2  the longest time by which a turn came late, nanoseconds
 *
 * What wakes a blocked call is a child process, so that the modes other than "threads" have one thread (and "signals"
 * two). It ends with its parent.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum {
	EXIT_DISTURBED = 3,
	SLEEP_MS = 50,
	FEED_MS = 20,
	FDS_MAX = 4096,
	OUTSTANDING_MAX = 64, /* queued signals on their way; far below RLIMIT_SIGPENDING */
	TICK_NS = 1000000,
};

#define SLEEP_NS ((uint64_t)SLEEP_MS * 1000000)

struct progress {
	atomic_uint_fast64_t iterations;
	atomic_uint_fast64_t interruptions;
	atomic_uint_fast64_t late_ns_max;
};

static struct progress *progress;
static volatile sig_atomic_t finishing;
static atomic_int unready = 1;
static bool mode_threads;
static __thread const char *mode_name = "start";

/* ---- small things ------------------------------------------------------------------------------------------- */

/* One write, no buffers: a signal handler calls it too. */
static _Noreturn void disturbed(const char *format, ...)
{
	char text[512];
	int length = snprintf(text, sizeof(text), "sleeper: %s: ", mode_name);
	va_list arguments;

	va_start(arguments, format);
	length += vsnprintf(text + length, sizeof(text) - (size_t)length - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof(text) - 2)
		length = sizeof(text) - 2;
	text[length++] = '\n';
	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		_exit(EXIT_DISTURBED);
	_exit(EXIT_DISTURBED);
}

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "sleeper: %s: %s: %s\n", mode_name, what, strerror(errno));
	_exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
}

static void turn_done(uint64_t late_ns)
{
	uint_fast64_t most = atomic_load(&progress->late_ns_max);

	while (late_ns > most && !atomic_compare_exchange_weak(&progress->late_ns_max, &most, late_ns))
		;
	atomic_fetch_add(&progress->iterations, 1);
}

static void begun(void)
{
	if (atomic_fetch_sub(&unready, 1) != 1)
		return;
	puts("ready");
	fflush(stdout);
}

/* A wait that ended: it must have lasted, with the result that a full wait has. Once finishing, EINTR is ours. */
static void check_wait(const char *what, int result, int error, int error_expected, uint64_t began_ns, uint64_t least_ns)
{
	uint64_t lasted_ns = now_ns() - began_ns;

	if (finishing && error == EINTR)
		return;
	if (error != error_expected)
		disturbed("%s returned %d, errno %d (%s) after %llu us", what, result, error, strerror(error),
			  (unsigned long long)(lasted_ns / 1000));
	if (lasted_ns < least_ns)
		disturbed("%s returned after %llu us instead of %llu", what, (unsigned long long)(lasted_ns / 1000),
			  (unsigned long long)(least_ns / 1000));
	turn_done(lasted_ns - least_ns);
}

/* ---- what wakes blocked calls ------------------------------------------------------------------------------- */

/* Starts a child that calls a function with 1, 2, 3, ... some milliseconds apart, until that returns false. */
static pid_t start_feeder(bool (*feed)(int fd, uint64_t number), int fd)
{
	pid_t parent = getpid(), child = fork();
	struct timespec between = to_timespec((uint64_t)FEED_MS * 1000000);

	if (child < 0)
		die("fork");
	if (child > 0)
		return child;
	signal(SIGTERM, SIG_DFL);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
		_exit(0);
	for (uint64_t number = 1; feed(fd, number); number++)
		nanosleep(&between, NULL);
	_exit(0);
}

static void end_feeder(pid_t feeder)
{
	kill(feeder, SIGKILL);
	while (waitpid(feeder, NULL, 0) < 0 && errno == EINTR)
		;
}

static bool feed_pipe(int fd, uint64_t number)
{
	return write(fd, &number, sizeof(number)) == sizeof(number);
}

/* ---- modes: waiting ----------------------------------------------------------------------------------------- */

static void sleep_in_nanosleep(void)
{
	struct timespec time, left;

	begun();
	for (uint64_t turn = 0; !finishing; turn++) {
		uint64_t began = now_ns();
		int result, error;

		/* The time left is no witness: the kernel writes it whenever it restarts the call. */
		if (turn % 3 == 0) {
			time = to_timespec(SLEEP_NS);
			result = nanosleep(&time, &left);
			error = result == 0 ? 0 : errno;
			check_wait("nanosleep", result, error, 0, began, SLEEP_NS);
		} else if (turn % 3 == 1) {
			time = to_timespec(SLEEP_NS);
			result = error = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &left);
			check_wait("clock_nanosleep", result, error, 0, began, SLEEP_NS);
		} else {
			time = to_timespec(began + SLEEP_NS);
			result = error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
			check_wait("clock_nanosleep to a time", result, error, 0, began, SLEEP_NS);
		}
	}
}

static void sleep_in_poll(void)
{
	int pipes[2];
	struct timespec time;

	if (pipe2(pipes, O_CLOEXEC) != 0)
		die("pipe2");
	begun();
	for (uint64_t turn = 0; !finishing; turn++) {
		struct pollfd polled = { .fd = pipes[0], .events = POLLIN, .revents = -1 };
		uint64_t began = now_ns();
		int result;

		time = to_timespec(SLEEP_NS);
		errno = 0;
		result = turn % 2 == 0 ? poll(&polled, 1, SLEEP_MS) : ppoll(&polled, 1, &time, NULL);
		if (result > 0 || (result == 0 && polled.revents != 0))
			disturbed("poll says that an empty pipe is readable: %d, events %d", result, polled.revents);
		check_wait("poll", result, result == 0 ? 0 : errno, 0, began, SLEEP_NS);
	}
	close(pipes[0]);
	close(pipes[1]);
}

static void sleep_in_futex(void)
{
	static uint32_t word = 7;
	struct timespec time;

	begun();
	for (uint64_t turn = 0; !finishing; turn++) {
		uint64_t began = now_ns();
		long result;

		if (turn % 2 == 0) {
			time = to_timespec(SLEEP_NS);
			result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &time, NULL, 0);
		} else {
			time = to_timespec(began + SLEEP_NS);
			result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 7, &time, NULL,
					 FUTEX_BITSET_MATCH_ANY);
		}
		check_wait("futex", (int)result, result == 0 ? 0 : errno, ETIMEDOUT, began, SLEEP_NS);
	}
}

static void read_number(int fd, uint64_t expected)
{
	uint64_t number = 0;
	ssize_t result = read(fd, &number, sizeof(number));

	if (finishing && result < 0 && errno == EINTR)
		return;
	if (result != sizeof(number))
		disturbed("read returned %zd, errno %d (%s)", result, errno, strerror(errno));
	if (number != expected)
		disturbed("read brought %llu instead of %llu", (unsigned long long)number, (unsigned long long)expected);
	turn_done(0);
}

static void block_in_read(void)
{
	int pipes[2];
	pid_t feeder;

	if (pipe2(pipes, O_CLOEXEC) != 0)
		die("pipe2");
	feeder = start_feeder(feed_pipe, pipes[1]);
	begun();
	for (uint64_t expected = 1; !finishing; expected++)
		read_number(pipes[0], expected);
	end_feeder(feeder);
	close(pipes[0]);
	close(pipes[1]);
}

static void block_in_epoll(void)
{
	int pipes[2], epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t expected = 1;
	pid_t feeder;

	if (epoll < 0 || pipe2(pipes, O_CLOEXEC) != 0)
		die("epoll_create1 or pipe2");
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event) != 0)
		die("epoll_ctl");
	feeder = start_feeder(feed_pipe, pipes[1]);
	begun();
	for (uint64_t turn = 0; !finishing; turn++) {
		int timeout_ms = turn % 2 == 0 ? -1 : FEED_MS / 4;
		uint64_t began = now_ns();
		int result = epoll_wait(epoll, &event, 1, timeout_ms);

		if (result < 0 && errno == EINTR) {
			atomic_fetch_add(&progress->interruptions, 1);
			continue;
		}
		if (result == 0) {
			if (timeout_ms < 0)
				disturbed("epoll_wait without a limit returned 0");
			check_wait("epoll_wait", 0, 0, 0, began, (uint64_t)timeout_ms * 1000000);
			continue;
		}
		if (result != 1 || event.data.u64 != 0x1122334455667788 || event.events != EPOLLIN)
			disturbed("epoll_wait returned %d, errno %d, events %u", result, errno, event.events);
		read_number(pipes[0], expected++);
	}
	end_feeder(feeder);
	close(epoll);
	close(pipes[0]);
	close(pipes[1]);
}

/* The address that the listener was given by autobind. */
static bool feed_connection(int listener, uint64_t number)
{
	struct sockaddr_un address;
	socklen_t length = sizeof(address);
	int connection = socket(AF_UNIX, SOCK_STREAM, 0);
	bool fed = connection >= 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0 &&
		   connect(connection, (struct sockaddr *)&address, length) == 0 &&
		   write(connection, &number, sizeof(number)) == sizeof(number);

	close(connection);
	return fed;
}

static void block_in_accept(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t feeder;

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address.sun_family)) != 0 ||
	    listen(listener, 16) != 0)
		die("socket, bind or listen");
	feeder = start_feeder(feed_connection, listener);
	begun();
	for (uint64_t expected = 1; !finishing; expected++) {
		int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (connection < 0 && finishing && errno == EINTR)
			break;
		if (connection < 0)
			disturbed("accept4: errno %d (%s)", errno, strerror(errno));
		read_number(connection, expected);
		close(connection);
	}
	end_feeder(feeder);
	close(listener);
}

/* ---- modes: running ----------------------------------------------------------------------------------------- */

enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8, R9, R10, R11, R12, R13, R14, R15, FLAGS, REGISTERS };

/* What hold_registers loads and what it finds afterwards. It knows these offsets. */
struct held {
	uint64_t in[REGISTERS], out[REGISTERS];
	uint8_t vectors_in[16][32], vectors_out[16][32];
	uint32_t mxcsr_in, mxcsr_out;
	uint8_t avx;
};

_Static_assert(offsetof(struct held, out) == 128, "hold_registers");
_Static_assert(offsetof(struct held, vectors_in) == 256, "hold_registers");
_Static_assert(offsetof(struct held, vectors_out) == 768, "hold_registers");
_Static_assert(offsetof(struct held, mxcsr_in) == 1280, "hold_registers");
_Static_assert(offsetof(struct held, avx) == 1288, "hold_registers");

/* Carry, parity, adjust, zero, sign, direction, overflow. */
#define FLAGS_FREE 0xcd5ull
#define FLAGS_FIXED 0x202ull
#define FLAGS_RESUME 0x10000ull

void hold_registers(struct held *held);

/* Loads every register but rsp, spins rcx times with "loop", which leaves the flags alone, and stores them all. */
__asm__(".text\n"
	".type hold_registers, @function\n"
	"hold_registers:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	sub $8, %rsp\n"
	"	stmxcsr (%rsp)\n"
	"	push %rdi\n"
	"	ldmxcsr 1280(%rdi)\n"
	"	cmpb $0, 1288(%rdi)\n"
	"	je 1f\n"
	"	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu 256+32*\\n(%rdi), %ymm\\n\n"
	"	.endr\n"
	"	jmp 2f\n"
	"1:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu 256+32*\\n(%rdi), %xmm\\n\n"
	"	.endr\n"
	"2:	pushq 120(%rdi)\n"
	"	popfq\n"
	"	mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
	"	mov 32(%rdi), %rsi; mov 48(%rdi), %rbp; mov 56(%rdi), %r8; mov 64(%rdi), %r9\n"
	"	mov 72(%rdi), %r10; mov 80(%rdi), %r11; mov 88(%rdi), %r12; mov 96(%rdi), %r13\n"
	"	mov 104(%rdi), %r14; mov 112(%rdi), %r15; mov 40(%rdi), %rdi\n"
	"3:	loop 3b\n"
	"	pushfq\n"
	"	push %rdi\n"
	"	cld\n"
	"	mov 16(%rsp), %rdi\n"
	"	mov %rax, 128(%rdi); mov %rbx, 136(%rdi); mov %rcx, 144(%rdi); mov %rdx, 152(%rdi)\n"
	"	mov %rsi, 160(%rdi); mov %rbp, 176(%rdi); mov %r8, 184(%rdi); mov %r9, 192(%rdi)\n"
	"	mov %r10, 200(%rdi); mov %r11, 208(%rdi); mov %r12, 216(%rdi); mov %r13, 224(%rdi)\n"
	"	mov %r14, 232(%rdi); mov %r15, 240(%rdi)\n"
	"	pop %rax; mov %rax, 168(%rdi)\n"
	"	pop %rax; mov %rax, 248(%rdi)\n"
	"	stmxcsr 1284(%rdi)\n"
	"	cmpb $0, 1288(%rdi)\n"
	"	je 4f\n"
	"	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu %ymm\\n, 768+32*\\n(%rdi)\n"
	"	.endr\n"
	"	vzeroupper\n"
	"	jmp 5f\n"
	"4:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu %xmm\\n, 768+32*\\n(%rdi)\n"
	"	.endr\n"
	"5:	pop %rdi\n"
	"	ldmxcsr (%rsp)\n"
	"	add $8, %rsp\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"	ret\n"
	".size hold_registers, . - hold_registers\n");

static uint64_t scramble(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* One stretch of holding registers still, with values that differ from turn to turn. */
static void hold_still(struct held *held, uint64_t turn, uint64_t spins)
{
	static const char *const names[REGISTERS] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
						      "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rflags" };
	static __thread uint64_t thread_mark;
	size_t vector_bytes = held->avx ? 32 : 16;

	thread_mark = turn;
	for (int i = 0; i < REGISTERS; i++)
		held->in[i] = scramble(turn * 64 + (uint64_t)i);
	held->in[RCX] = spins;
	held->in[FLAGS] = FLAGS_FIXED | (held->in[FLAGS] & FLAGS_FREE);
	for (uint64_t i = 0; i < sizeof(held->vectors_in); i += 8) {
		uint64_t value = scramble(~turn * 64 + i);

		memcpy((uint8_t *)held->vectors_in + i, &value, sizeof(value));
	}
	/* Every rounding mode in its turn, all exceptions masked. */
	held->mxcsr_in = 0x1f80 | (uint32_t)(turn & 3) << 13;
	hold_registers(held);
	held->in[RCX] = 0;
	held->out[FLAGS] &= ~FLAGS_RESUME;
	for (int i = 0; i < REGISTERS; i++)
		if (held->in[i] != held->out[i])
			disturbed("%s is %#llx instead of %#llx", names[i], (unsigned long long)held->out[i],
				  (unsigned long long)held->in[i]);
	for (int i = 0; i < 16; i++)
		if (memcmp(held->vectors_in[i], held->vectors_out[i], vector_bytes) != 0)
			disturbed("%s%d has changed", held->avx ? "ymm" : "xmm", i);
	if (held->mxcsr_in != held->mxcsr_out)
		disturbed("mxcsr is %#x instead of %#x", held->mxcsr_out, held->mxcsr_in);
	if (thread_mark != turn)
		disturbed("thread-local memory has moved");
}

static struct held new_held(void)
{
	return (struct held){ .avx = __builtin_cpu_supports("avx") != 0 };
}

static void be_busy(void)
{
	struct held held = new_held();

	begun();
	for (uint64_t turn = 1; !finishing; turn++) {
		uint64_t began = now_ns();

		hold_still(&held, turn, 200000);
		turn_done(now_ns() - began);
		/* Two CPUs are all there is; "threads" leaves some of them to others. */
		if (mode_threads)
			nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
	}
}

static void check_result(const char *what, long result, long expected, int error_expected)
{
	int error = errno;

	if (finishing && result < 0 && error == EINTR)
		return;
	if (result != expected || (result < 0 && error != error_expected))
		disturbed("%s returned %ld, errno %d instead of %ld, errno %d", what, result, error, expected, error_expected);
}

static void make_syscalls(void)
{
	pid_t pid = getpid();
	int pipes[2];
	uint64_t sent[8], received[8];
	struct timespec none = { 0, 0 };

	if (pipe2(pipes, O_CLOEXEC) != 0)
		die("pipe2");
	begun();
	for (uint64_t turn = 1; !finishing; turn++) {
		uint64_t began = now_ns();

		for (uint64_t i = 0; i < 8; i++)
			sent[i] = scramble(turn * 8 + i);
		memset(received, 0, sizeof(received));
		check_result("getpid", syscall(SYS_getpid), pid, 0);
		check_result("write", write(pipes[1], sent, sizeof(sent)), sizeof(sent), 0);
		check_result("read", read(pipes[0], received, sizeof(received)), sizeof(received), 0);
		if (memcmp(sent, received, sizeof(sent)) != 0)
			disturbed("read brought something else than was written");
		check_result("read of no descriptor", read(-1, received, 1), -1, EBADF);
		check_result("close of no descriptor", close(-1), -1, EBADF);
		check_result("an unknown system call", syscall(100000), -1, ENOSYS);
		check_result("nanosleep of nothing", nanosleep(&none, NULL), 0, 0);
		turn_done(now_ns() - began);
		if (mode_threads && turn % 64 == 0)
			nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
	}
	close(pipes[0]);
	close(pipes[1]);
}

/* ---- modes: signals ----------------------------------------------------------------------------------------- */

/* Signals go to the thread that runs the mode; its handlers find its counters here. */
struct signals {
	atomic_uint_fast64_t queued, wall_ticks, cpu_ticks;
	atomic_bool ending;
	pthread_t receiver;
};

static __thread struct signals *signals_here;

static void on_queued(int number, siginfo_t *information, void *context)
{
	uint64_t expected = atomic_fetch_add(&signals_here->queued, 1) + 1;

	(void)context;
	if (information->si_code != SI_QUEUE || information->si_pid != getpid() ||
	    (uint64_t)(uintptr_t)information->si_value.sival_ptr != expected)
		disturbed("signal %d: code %d, pid %d, value %p instead of %llu", number, information->si_code,
			  information->si_pid, information->si_value.sival_ptr, (unsigned long long)expected);
}

static void on_tick(int number, siginfo_t *information, void *context)
{
	atomic_uint_fast64_t *ticks = number == SIGALRM ? &signals_here->wall_ticks : &signals_here->cpu_ticks;

	(void)context;
	if (information->si_code != SI_TIMER || information->si_value.sival_ptr != signals_here)
		disturbed("signal %d: code %d, value %p", number, information->si_code, information->si_value.sival_ptr);
	atomic_fetch_add(ticks, 1 + (uint64_t)information->si_overrun);
}

static void *send_signals(void *argument)
{
	struct signals *signals = argument;
	struct timespec between = { 0, 200000 };
	sigset_t all;

	mode_name = "signals: sender";
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (uint64_t value = 1; !atomic_load(&signals->ending);) {
		if (value - atomic_load(&signals->queued) < OUTSTANDING_MAX) {
			union sigval carried = { .sival_ptr = (void *)(uintptr_t)value };

			errno = pthread_sigqueue(signals->receiver, SIGRTMIN, carried);
			if (errno == 0) {
				value++;
				if (value % 8 != 0)
					continue; /* several at once, so that they do queue */
			} else if (errno != EAGAIN) {
				die("pthread_sigqueue");
			}
		}
		nanosleep(&between, NULL);
	}
	return NULL;
}

static timer_t start_timer(clockid_t clock, int number, void *value)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number, .sigev_value.sival_ptr = value };
	struct itimerspec every = { { 0, TICK_NS }, { 0, TICK_NS } };
	timer_t timer;

	event.sigev_notify_thread_id = gettid();
	if (timer_create(clock, &event, &timer) != 0 || timer_settime(timer, 0, &every, NULL) != 0)
		die("timer_create or timer_settime");
	return timer;
}

static void take_signals(void)
{
	struct signals signals = { .receiver = pthread_self() };
	struct held held = new_held();
	pthread_t sender;

	signals_here = &signals;
	if ((errno = pthread_create(&sender, NULL, send_signals, &signals)) != 0)
		die("pthread_create");
	uint64_t began = now_ns();
	timer_t wall = start_timer(CLOCK_MONOTONIC, SIGALRM, &signals);
	timer_t cpu = start_timer(CLOCK_THREAD_CPUTIME_ID, SIGPROF, &signals);
	uint64_t started = now_ns(); /* not before this may ticks be missed */

	begun();
	for (uint64_t turn = 1; !finishing; turn++) {
		uint64_t ticks = atomic_load(&signals.wall_ticks), turn_began = now_ns();

		hold_still(&held, turn, mode_threads ? 20000 : 200000);
		turn_done(now_ns() - turn_began);
		if (mode_threads)
			nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
		/*
		 * Overruns are counted in: ticks that fell into a stop are not lost, they come as one signal. Where too
		 * many are looked for, the clock is read last, and where too few are, first: this thread may be held
		 * between the two for any time, which then speaks for it.
		 */
		uint64_t turn_ns = now_ns() - turn_began, counted = atomic_load(&signals.wall_ticks);
		uint64_t most = (now_ns() - began) / TICK_NS + 1;

		if (turn % 1024 == 0 && counted == ticks && turn_ns > 100 * TICK_NS)
			disturbed("no tick in %llu ms", (unsigned long long)(turn_ns / 1000000));
		if (counted > most)
			disturbed("%llu ticks, and time for %llu", (unsigned long long)counted, (unsigned long long)most);
	}
	/* A last tick, one that comes after the clock was read, brings the overruns up to then. */
	uint64_t waited = now_ns(), passed = (waited - started) / TICK_NS;
	uint64_t ticks = atomic_load(&signals.wall_ticks);

	while (atomic_load(&signals.wall_ticks) == ticks)
		if (now_ns() - waited > 5000000000)
			disturbed("no tick in 5 s");
	if (atomic_load(&signals.wall_ticks) + 3 < passed)
		disturbed("%llu ticks in %llu ms", (unsigned long long)atomic_load(&signals.wall_ticks),
			  (unsigned long long)passed);
	if (passed > 1000 && atomic_load(&signals.cpu_ticks) == 0)
		disturbed("no SIGPROF in %llu ms", (unsigned long long)passed);
	timer_delete(wall);
	timer_delete(cpu);
	atomic_store(&signals.ending, true);
	pthread_join(sender, NULL);
	if (passed > 1000 && atomic_load(&signals.queued) == 0)
		disturbed("no queued signal in %llu ms", (unsigned long long)passed);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };

	if (sigaction(number, &action, NULL) != 0)
		die("sigaction");
}

/* ---- all modes ---------------------------------------------------------------------------------------------- */

static const struct mode {
	const char *name;
	void (*run)(void);
} modes[] = {
	{ "nanosleep", sleep_in_nanosleep },
	{ "poll", sleep_in_poll },
	{ "epoll", block_in_epoll },
	{ "futex", sleep_in_futex },
	{ "read_pipe", block_in_read },
	{ "accept", block_in_accept },
	{ "busy", be_busy },
	{ "syscalls", make_syscalls },
	{ "signals", take_signals },
};

enum { MODES = sizeof(modes) / sizeof(modes[0]) };

static void on_term(int number)
{
	(void)number;
	finishing = 1;
}

static void *run_mode(void *argument)
{
	const struct mode *mode = argument;

	mode_name = mode->name;
	mode->run();
	return NULL;
}

/* One thread for each of the modes in turn; this one sleeps, and is the one that SIGTERM reaches. */
static void run_threads(size_t count)
{
	pthread_t *threads = calloc(count, sizeof(*threads));
	sigset_t term;

	if (threads == NULL)
		die("calloc");
	mode_threads = true;
	atomic_fetch_add(&unready, (int)count);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	for (size_t i = 0; i < count; i++)
		if ((errno = pthread_create(&threads[i], NULL, run_mode, (void *)&modes[i % MODES])) != 0)
			die("pthread_create");
	pthread_sigmask(SIG_UNBLOCK, &term, NULL);
	mode_name = "nanosleep in the first thread";
	sleep_in_nanosleep();
	for (size_t i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}

/* The open descriptors, but for the one that looks. */
static void list_descriptors(bool *open_here)
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;

	if (directory == NULL)
		die("/proc/self/fd");
	memset(open_here, 0, FDS_MAX * sizeof(*open_here));
	while ((entry = readdir(directory)) != NULL) {
		int number = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && number != dirfd(directory) && number < FDS_MAX)
			open_here[number] = true;
	}
	closedir(directory);
}

static void check_what_is_left(const bool *open_before, const sigset_t *mask_before)
{
	static bool open_now[FDS_MAX];
	sigset_t mask_now;

	mode_name = "end";
	list_descriptors(open_now);
	for (int i = 0; i < FDS_MAX; i++)
		if (open_now[i] != open_before[i])
			disturbed("descriptor %d is %s", i, open_now[i] ? "open and was not" : "closed and was open");
	pthread_sigmask(SIG_SETMASK, NULL, &mask_now);
	for (int number = 1; number < SIGRTMAX; number++)
		if (sigismember(&mask_now, number) != sigismember(mask_before, number))
			disturbed("signal %d is %s", number, sigismember(&mask_now, number) ? "blocked" : "not blocked");
}

static void open_progress(const char *path)
{
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (file < 0 || ftruncate(file, sizeof(*progress)) != 0)
		die(path);
	progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (progress == MAP_FAILED)
		die(path);
	close(file);
}

int main(int count, char **arguments)
{
	static bool open_before[FDS_MAX];
	struct sigaction action = { .sa_handler = on_term }; /* no SA_RESTART: a blocked call ends */
	sigset_t mask_before;
	bool known = false;

	if (count < 3 || count > 4) {
		fputs("usage: sleeper MODE FILE [THREADS]\nmodes: threads", stderr);
		for (int i = 0; i < MODES; i++)
			fprintf(stderr, " %s", modes[i].name);
		fputs("\n", stderr);
		return 2;
	}
	open_progress(arguments[2]);
	/* A writer learns that its reader is gone by the result. */
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &action, NULL);
	handle(SIGRTMIN, on_queued);
	handle(SIGALRM, on_tick);
	handle(SIGPROF, on_tick);
	pthread_sigmask(SIG_SETMASK, NULL, &mask_before);
	list_descriptors(open_before);
	if (strcmp(arguments[1], "threads") == 0) {
		known = true;
		run_threads(count == 4 ? strtoul(arguments[3], NULL, 0) : MODES);
	}
	for (int i = 0; i < MODES; i++)
		if (strcmp(arguments[1], modes[i].name) == 0) {
			known = true;
			run_mode((void *)&modes[i]);
		}
	if (!known) {
		fprintf(stderr, "sleeper: no such mode: %s\n", arguments[1]);
		return 2;
	}
	check_what_is_left(open_before, &mask_before);
	return 0;
}
