/* A disk between a program and its files, for LD_PRELOAD: it writes down what is written, and fails when it is told to.
 *
 *     DISK_DIRECTORY  only files in this directory are meant
 *     DISK_LOG        every write, truncation, fsync, creation, renaming and removal is appended to this file, in order
 *     DISK_FAULTS     this file is mapped: three ints, the errno with which writes, fsyncs and reads fail; 0: they do not
 *
 * A record of the log: the operation, a length of a name, a length of data, an offset; then the name and the data.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 'w', TRUNCATE = 't', SYNC = 's', SYNC_FAILED = 'f', CREATE = 'c', RENAME = 'r', REMOVE = 'u' };

struct record {
    uint32_t operation, name_bytes, data_bytes, padding;
    uint64_t offset;
};

#define DESCRIPTORS 4096
static char *names[DESCRIPTORS]; /* by descriptor: the path below the directory, "." for the directory; 0: not ours */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static int log_descriptor = -1;
static volatile int *faults;

#define REAL(name, ...) ((__typeof__(&name))real(#name))(__VA_ARGS__)

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) _exit(126);
    return found;
}

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("DISK_DIRECTORY"), *log = getenv("DISK_LOG"), *told = getenv("DISK_FAULTS");
    if (!where || !realpath(where, directory)) return;
    if (log) log_descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (told) {
        int descriptor = syscall(SYS_openat, AT_FDCWD, told, O_RDONLY | O_CLOEXEC);
        void *mapped = mmap(0, 4096, PROT_READ, MAP_SHARED, descriptor, 0);
        if (mapped != MAP_FAILED) faults = mapped;
        syscall(SYS_close, descriptor);
    }
}

/* The part of a path below the directory, where it lies there. */
static const char *below(const char *path) {
    static __thread char whole[PATH_MAX];
    size_t length = strlen(directory);
    if (!length) return 0;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else if (!getcwd(whole, sizeof whole) || strlen(whole) + strlen(path) + 2 > sizeof whole) return 0;
    else strcat(strcat(whole, "/"), path);
    if (strncmp(whole, directory, length)) return 0;
    if (!whole[length]) return ".";
    return whole[length] == '/' ? whole + length + 1 : 0;
}

static const char *name_of(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? names[descriptor] : 0;
}

static void note(int operation, const char *name, uint64_t offset, const void *data, size_t data_bytes) {
    struct record head = {operation, strlen(name), data_bytes, 0, offset};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)name, head.name_bytes}, {(void *)data, data_bytes}};
    if (log_descriptor < 0) return;
    pthread_mutex_lock(&lock);
    if (syscall(SYS_writev, log_descriptor, parts, 3) < 0) _exit(125);
    pthread_mutex_unlock(&lock);
}

static int failing(const char *name, int which) {
    if (!name || !faults || !faults[which]) return 0;
    errno = faults[which];
    return 1;
}

static int opened(int descriptor, const char *path, int was_there) {
    const char *name = below(path);
    if (descriptor < 0 || descriptor >= DESCRIPTORS) return descriptor;
    free(names[descriptor]);
    names[descriptor] = name ? strdup(name) : 0;
    if (name && !was_there) note(CREATE, name, 0, 0, 0);
    return descriptor;
}

static int open_with(const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    int was_there = !(flags & O_CREAT) || !access(path, F_OK);
    if (name && (flags & (O_CREAT | O_WRONLY | O_RDWR)) && failing(name, 0) && faults[0] == EROFS) return -1;
    return opened(syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode), path, was_there);
}

#define OPEN(function)                                                            \
    int function(const char *path, int flags, ...) {                              \
        va_list more;                                                             \
        va_start(more, flags);                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;   \
        va_end(more);                                                             \
        return open_with(path, flags, mode);                                      \
    }
OPEN(open)
OPEN(open64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) {
        free(names[descriptor]);
        names[descriptor] = 0;
    }
    return REAL(close, descriptor);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    const char *name = name_of(descriptor);
    if (failing(name, 0)) return -1;
    ssize_t written = REAL(pwrite64, descriptor, data, size, offset);
    if (name && written > 0) note(WRITE, name, offset, data, written);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    const char *name = name_of(descriptor);
    if (failing(name, 0)) return -1;
    off64_t offset = name ? lseek64(descriptor, 0, SEEK_CUR) : 0;
    ssize_t written = REAL(write, descriptor, data, size);
    if (name && written > 0) note(WRITE, name, offset, data, written);
    return written;
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    if (failing(name_of(descriptor), 2)) return -1;
    return REAL(pread64, descriptor, data, size, offset);
}

ssize_t read(int descriptor, void *data, size_t size) {
    if (failing(name_of(descriptor), 2)) return -1;
    return REAL(read, descriptor, data, size);
}

int ftruncate64(int descriptor, off64_t size) {
    const char *name = name_of(descriptor);
    if (failing(name, 0)) return -1;
    int result = REAL(ftruncate64, descriptor, size);
    if (name && !result) note(TRUNCATE, name, size, 0, 0);
    return result;
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

static int sync_failed(const char *name) {
    note(SYNC_FAILED, name, 0, 0, 0);
    errno = faults[1];
    return -1;
}

int fsync(int descriptor) {
    const char *name = name_of(descriptor);
    if (failing(name, 1)) return sync_failed(name);
    int result = REAL(fsync, descriptor);
    if (name && !result) note(SYNC, name, 0, 0, 0);
    return result;
}

int fdatasync(int descriptor) {
    const char *name = name_of(descriptor);
    if (failing(name, 1)) return sync_failed(name);
    int result = REAL(fdatasync, descriptor);
    if (name && !result) note(SYNC, name, 0, 0, 0);
    return result;
}

int unlink(const char *path) {
    const char *name = below(path);
    if (failing(name, 0)) return -1;
    int result = REAL(unlink, path);
    if (name && !result) note(REMOVE, name, 0, 0, 0);
    return result;
}

int rename(const char *from, const char *to) {
    char old[PATH_MAX] = "";
    const char *name = below(from);
    if (name) snprintf(old, sizeof old, "%s", name);
    if (failing(name, 0)) return -1;
    int result = REAL(rename, from, to);
    const char *now = below(to);
    if (name && now && !result) note(RENAME, old, 0, now, strlen(now));
    return result;
}
