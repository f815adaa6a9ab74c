/* Stands between a process and its disk (LD_PRELOAD): fails operations, or records them in their order.
 *
 * FAULTS_ROOT names the folder that it is about. While the file FAULTS_CONTROL exists, it names what fails: a word that
 * is part of the path, an operation (open: of a new file) and an errno. To FAULTS_RECORD, each change below the folder
 * is appended: "kind offset length path-length other-length\n", the paths and the bytes. A sync has two records with one
 * number, because it covers only what was written before it began.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static unsigned long syncs;

static int below_root(const char *path) {
    const char *root = getenv("FAULTS_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0 && strstr(path, "-shm") == NULL;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static const char *absolute(const char *path, char *buffer) {
    if (path[0] == '/') return path;
    if (!getcwd(buffer, PATH_MAX / 2)) return path;
    strncat(buffer, "/", 2);
    strncat(buffer, path, PATH_MAX / 2 - 2);
    return buffer;
}

static int fails(const char *operation, const char *path) {
    const char *control = getenv("FAULTS_CONTROL");
    if (!control || !below_root(path)) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    char text[128] = {0}, word[32], wanted[32];
    int number = 0;
    syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (sscanf(text, "%31s %31s %d", word, wanted, &number) != 3) return 0;
    if (strcmp(operation, wanted) || !strstr(path, word)) return 0;
    char count[PATH_MAX];
    snprintf(count, sizeof count, "%s.count", control);
    fd = syscall(SYS_openat, AT_FDCWD, count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, "x", 1);
        syscall(SYS_close, fd);
    }
    return number;
}

static int fails_fd(const char *operation, int fd) {
    char path[PATH_MAX];
    return getenv("FAULTS_CONTROL") ? fails(operation, path_of(fd, path)) : 0;
}

static int records(void) { return getenv("FAULTS_RECORD") != NULL; }

/* Called with the turn held. */
static void record(char kind, const char *path, const char *other, long offset, const void *data, size_t length) {
    if (!below_root(path)) return;
    size_t first = strlen(path), second = other ? strlen(other) : 0;
    char *entry = malloc(128 + first + second + length);
    size_t used = sprintf(entry, "%c %ld %zu %zu %zu\n", kind, offset, length, first, second);
    memcpy(entry + used, path, first);
    if (second) memcpy(entry + used + first, other, second);
    if (data) memcpy(entry + used + first + second, data, length);
    used += first + second + (data ? length : 0);
    int fd = syscall(SYS_openat, AT_FDCWD, getenv("FAULTS_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, entry, used);
        syscall(SYS_close, fd);
    }
    free(entry);
}

#define REFUSE(what) do { int error_ = (what); if (error_) { errno = error_; return -1; } } while (0)

static ssize_t written(int fd, const void *data, size_t count, off64_t offset) {
    char path[PATH_MAX];
    REFUSE(fails_fd("write", fd));
    if (!records() || !below_root(path_of(fd, path)))
        return offset < 0 ? REAL(write)(fd, data, count) : REAL(pwrite64)(fd, data, count, offset);
    pthread_mutex_lock(&turn);
    off64_t place = offset < 0 ? lseek64(fd, 0, SEEK_CUR) : offset;
    ssize_t done = offset < 0 ? REAL(write)(fd, data, count) : REAL(pwrite64)(fd, data, count, offset);
    if (done > 0) record('w', path, NULL, place, data, done);
    pthread_mutex_unlock(&turn);
    return done;
}

ssize_t write(int fd, const void *data, size_t count) { return written(fd, data, count, -1); }
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) { return written(fd, data, count, offset); }
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) { return written(fd, data, count, offset); }

ssize_t read(int fd, void *data, size_t count) {
    REFUSE(fails_fd("read", fd));
    return REAL(read)(fd, data, count);
}

static int synced(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    REFUSE(fails_fd("fsync", fd));
    if (!records() || !below_root(path_of(fd, path))) return real(fd);
    pthread_mutex_lock(&turn);
    long number = ++syncs;
    record('b', path, NULL, number, NULL, 0);
    pthread_mutex_unlock(&turn);
    int done = real(fd);
    pthread_mutex_lock(&turn);
    if (done == 0) record('e', path, NULL, number, NULL, 0);
    pthread_mutex_unlock(&turn);
    return done;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

static int truncated(int fd, off64_t length) {
    char path[PATH_MAX];
    if (!records() || !below_root(path_of(fd, path))) return REAL(ftruncate64)(fd, length);
    pthread_mutex_lock(&turn);
    int done = REAL(ftruncate64)(fd, length);
    if (done == 0) record('t', path, NULL, length, NULL, 0);
    pthread_mutex_unlock(&turn);
    return done;
}

int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

static int opened(const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX] = {0};
    if (!(flags & O_CREAT)) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    path = absolute(path, buffer);
    REFUSE(fails("open", path));
    if (!records() || !below_root(path)) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&turn);
    int is_new = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    int error = errno;
    if (fd >= 0 && is_new) record('c', path, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; }

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags | O_LARGEFILE, mode);
}

int rename(const char *from, const char *to) {
    char first[PATH_MAX] = {0}, second[PATH_MAX] = {0};
    from = absolute(from, first);
    to = absolute(to, second);
    REFUSE(fails("rename", to));
    if (!records()) return REAL(rename)(from, to);
    pthread_mutex_lock(&turn);
    int done = REAL(rename)(from, to), error = errno;
    if (done == 0) record('r', from, to, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

int unlink(const char *path) {
    char buffer[PATH_MAX] = {0};
    path = absolute(path, buffer);
    if (!records()) return REAL(unlink)(path);
    pthread_mutex_lock(&turn);
    int done = REAL(unlink)(path), error = errno;
    if (done == 0) record('u', path, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

int mkdir(const char *path, mode_t mode) {
    char buffer[PATH_MAX] = {0};
    path = absolute(path, buffer);
    if (!records()) return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&turn);
    int done = REAL(mkdir)(path, mode), error = errno;
    if (done == 0) record('m', path, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
