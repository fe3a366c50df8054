/* A process that answers each line of standard input, while something watches the system calls it makes.
 *
 *     guarded strict      SECCOMP_MODE_STRICT: any call but read, write and exit kills it
 *     guarded leaderless  the first thread has exited, the other has a filter that kills for userfaultfd(2)
 *     guarded dispatch    syscall user dispatch: it makes a call that is a SIGSYS for each line, and answers only if it was
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#define SYSCALL_DISPATCH_FILTER_ALLOW 0
#define SYSCALL_DISPATCH_FILTER_BLOCK 1
#endif

static const char ready[] = "ready\n", answer[] = "here\n";
static volatile char selector;
static volatile int dispatched;

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    _exit(1);
}

static void serve(void) {
    char byte;
    if (write(1, ready, sizeof ready - 1) < 0) _exit(1);
    while (read(0, &byte, 1) == 1)
        if (byte == '\n' && write(1, answer, sizeof answer - 1) < 0) _exit(1);
}

static void note(int signal) {
    (void)signal;
    selector = SYSCALL_DISPATCH_FILTER_ALLOW;
    dispatched = 1;
}

static void serve_dispatched(void) {
    char byte;
    if (write(1, ready, sizeof ready - 1) < 0) _exit(1);
    while (read(0, &byte, 1) == 1) {
        long number = SYS_getpid;
        if (byte != '\n') continue;
        dispatched = 0;
        selector = SYSCALL_DISPATCH_FILTER_BLOCK;
        /* Here and not in libc, whose calls are let through. */
        __asm__ volatile("syscall" : "+a"(number) : : "rcx", "r11", "memory");
        selector = SYSCALL_DISPATCH_FILTER_ALLOW;
        if (!dispatched) _exit(3);
        if (write(1, answer, sizeof answer - 1) < 0) _exit(1);
    }
}

static void *serve_filtered(void *nothing) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) die("filter");
    usleep(100000); /* the first thread is gone by then */
    serve();
    _exit(0);
    return nothing;
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    if (!strcmp(mode, "strict")) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) die("strict");
        serve();
        syscall(SYS_exit, 0);
    } else if (!strcmp(mode, "leaderless")) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve_filtered, NULL)) die("pthread_create");
        syscall(SYS_exit, 0);
    } else if (!strcmp(mode, "dispatch")) {
        signal(SIGSYS, note);
        /* Calls from libc and the vdso, which lie at the top of user memory, are let through. */
        if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0x700000000000, 0x0fffffffffff, &selector))
            die("dispatch");
        serve_dispatched();
        return 0;
    }
    fprintf(stderr, "usage: guarded strict|leaderless|dispatch\n");
    return 2;
}
