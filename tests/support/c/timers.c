/* A process whose posix timers fire as fast as it can take their signals: it never runs long without one. */
#define _GNU_SOURCE
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD_NS = 20000 };

static void on_signal(int number) {
    (void)number;
}

int main(void) {
    static const int numbers[] = {SIGALRM, SIGUSR1, SIGUSR2};
    static const char ready[] = "ready\n";
    const struct itimerspec period = {{0, PERIOD_NS}, {0, PERIOD_NS}};

    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = numbers[i]};
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        timer_t timer;

        if (sigaction(numbers[i], &action, NULL) || timer_create(CLOCK_MONOTONIC, &event, &timer) ||
            timer_settime(timer, 0, &period, NULL))
            return 1;
    }
    if (write(1, ready, sizeof ready - 1) < 0) return 1;
    for (;;)
        __asm__ volatile("");
}
