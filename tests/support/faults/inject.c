/* Fails or kills at the n-th system call that touches a folder: preloaded into a whole process.
 *
 * Every call of the C library that opens, reads through, changes or syncs a path below the root of the
 * orders is counted, whoever makes it: Python, numba, torch, safetensors, llama.cpp. The order for one run
 * lies in a file that is mapped by the process and its children, so that a child forked from a warm process
 * gets a new order without a new start.
 *
 *     struct order     written by faults.py:
 *       armed          0: calls pass uncounted
 *       at             the call that is struck, counted from 1; 0 strikes none and counts all
 *       error          errno that it fails with, or 0
 *       signal         signal that the process gets before the call, or 0
 *       shortened      1: the write takes half of its bytes
 *       sticky         1: every call from the n-th on that needs space fails too (a full disk stays full)
 *       count          calls so far
 *       kind, path     of the call that was struck
 *       root           absolute path
 *       log            file that each call is written to with its data, or ""
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct order {
    int32_t armed, at, error, signal, shortened, sticky, count;
    char kind[16];
    char path[512];
    char root[512];
    char log[512];
};

static struct order *order;

__attribute__((constructor)) static void map_order(void) {
    const char *name = getenv("FAULT_ORDER");
    int file = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *order, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) order = memory;
    syscall(SYS_close, file);
}

/* The absolute path of a name relative to an open folder, or of an open file if the name is NULL. */
static void whole_path(int folder, const char *name, char *path) {
    char link[64];
    ssize_t length = 0;
    path[0] = 0;
    if (name && name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, path, PATH_MAX) < 0) path[0] = 0;
        length = (ssize_t)strlen(path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = syscall(SYS_readlink, link, path, (size_t)PATH_MAX - 1);
        if (length < 0) length = 0;
        path[length] = 0;
    }
    if (name) snprintf(path + length, (size_t)(PATH_MAX - length), "/%s", name);
}

/* One line of the log: kind, offset, size, path, second path; then `size` bytes. Appended in one piece. */
static void record(const char *kind, const char *path, const char *second, int64_t offset,
                   const void *bytes, size_t size) {
    char line[2 * PATH_MAX + 128];
    if (!order->log[0]) return;
    int file = (int)syscall(SYS_openat, AT_FDCWD, order->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    int length = snprintf(line, sizeof line, "%s\t%lld\t%zu\t%s\t%s\n", kind, (long long)offset, size, path, second);
    struct iovec parts[2] = {{line, (size_t)length}, {(void *)bytes, size}};
    syscall(SYS_writev, file, parts, 2);
    syscall(SYS_close, file);
}

/* What takes space, and fails again and again on a disk that is full or read-only. */
static int needs_space(const char *kind) {
    return !strcmp(kind, "write") || !strcmp(kind, "create") || !strcmp(kind, "mkdir") || !strcmp(kind, "allocate");
}

/* Counts a call; 0 lets it pass, 1 fails it with errno set, 2 wants a short write. */
static int strike(const char *kind, const char *path) {
    if (!order || !order->armed) return 0;
    size_t length = strlen(order->root);
    if (strncmp(path, order->root, length) || (path[length] && path[length] != '/')) return 0;
    int number = __atomic_add_fetch(&order->count, 1, __ATOMIC_SEQ_CST);
    int again = order->sticky && order->at && number > order->at && needs_space(kind);
    record("call", path, kind, number, "", 0);
    if (number != order->at && !again) return 0;
    if (!again) {
        snprintf(order->kind, sizeof order->kind, "%s", kind);
        snprintf(order->path, sizeof order->path, "%s", path);
        if (order->signal) syscall(SYS_kill, getpid(), order->signal);
    }
    if (order->shortened) return 2;
    if (!order->error) return 0;
    errno = order->error;
    return 1;
}

static int outside(const char *path) {
    if (!order || !order->armed) return 1;
    size_t length = strlen(order->root);
    return strncmp(path, order->root, length) || (path[length] && path[length] != '/');
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int opened(const char *kind, int folder, const char *name, int flags, char *path) {
    whole_path(folder, name, path);
    (void)flags;
    return strike(kind, path) == 1;
}

static void record_open(int flags, const char *path, int result) {
    struct stat facts;
    if (result < 0 || outside(path) || !(flags & (O_CREAT | O_TRUNC))) return;
    int64_t inode = stat(path, &facts) == 0 ? (int64_t)facts.st_ino : 0;
    record(flags & O_TRUNC ? "create" : "touch", path, "", inode, "", 0);
}

#define OPENER(function, takes, ...) \
    int function takes { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        char path[PATH_MAX]; \
        REAL(function); \
        if (opened((flags & O_ACCMODE) == O_RDONLY ? "open" : "create", FOLDER, name, flags, path)) return -1; \
        int result = real(__VA_ARGS__, mode); \
        record_open(flags, path, result); \
        return result; \
    }

#define FOLDER AT_FDCWD
OPENER(open, (const char *name, int flags, ...), name, flags)
OPENER(open64, (const char *name, int flags, ...), name, flags)
#undef FOLDER
#define FOLDER folder
OPENER(openat, (int folder, const char *name, int flags, ...), folder, name, flags)
OPENER(openat64, (int folder, const char *name, int flags, ...), folder, name, flags)
#undef FOLDER

/* The C library's own streams do not open through the functions above. */
#define STREAM(function) \
    FILE *function(const char *name, const char *mode) { \
        char path[PATH_MAX]; \
        REAL(function); \
        int flags = strchr(mode, 'r') && !strchr(mode, '+') ? O_RDONLY : O_CREAT | O_WRONLY; \
        if (strchr(mode, 'w')) flags |= O_TRUNC; \
        if (opened((flags & O_ACCMODE) == O_RDONLY ? "open" : "create", AT_FDCWD, name, flags, path)) return NULL; \
        FILE *result = real(name, mode); \
        record_open(flags, path, result ? 0 : -1); \
        return result; \
    }
STREAM(fopen)
STREAM(fopen64)

static int64_t position(int file) { return (int64_t)syscall(SYS_lseek, file, 0, SEEK_CUR); }

/* Standard streams and pipes are no files below the root: their links read "pipe:[...]" and the like. */
#define WRITER(function, takes, where, ...) \
    ssize_t function takes { \
        char path[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(__VA_ARGS__); \
        whole_path(file, NULL, path); \
        if (outside(path)) return real(__VA_ARGS__); \
        int struck = strike("write", path); \
        if (struck == 1) return -1; \
        if (struck == 2 && size > 1) size /= 2; \
        int64_t from = where; \
        ssize_t result = real(__VA_ARGS__); \
        if (result > 0) record("write", path, "", from, bytes, (size_t)result); \
        return result; \
    }
WRITER(write, (int file, const void *bytes, size_t size), position(file), file, bytes, size)
WRITER(pwrite, (int file, const void *bytes, size_t size, off_t offset), offset, file, bytes, size, offset)
WRITER(pwrite64, (int file, const void *bytes, size_t size, off64_t offset), offset, file, bytes, size, offset)

#define READER(function, takes, ...) \
    ssize_t function takes { \
        char path[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(__VA_ARGS__); \
        whole_path(file, NULL, path); \
        if (strike("read", path) == 1) return -1; \
        return real(__VA_ARGS__); \
    }
READER(read, (int file, void *bytes, size_t size), file, bytes, size)
READER(pread, (int file, void *bytes, size_t size, off_t offset), file, bytes, size, offset)
READER(pread64, (int file, void *bytes, size_t size, off64_t offset), file, bytes, size, offset)

ssize_t writev(int file, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    REAL(writev);
    if (!order || !order->armed) return real(file, parts, count);
    whole_path(file, NULL, path);
    if (strike("write", path) == 1) return -1;
    int64_t from = position(file);
    ssize_t result = real(file, parts, count), left = result;
    for (int part = 0; part < count && left > 0; part++) {
        size_t size = (ssize_t)parts[part].iov_len < left ? parts[part].iov_len : (size_t)left;
        record("write", path, "", from, parts[part].iov_base, size);
        from += (int64_t)size, left -= (ssize_t)size;
    }
    return result;
}

/* Copies inside the kernel are refused, so that the bytes pass through `write` and can be recorded. */
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    REAL(sendfile);
    if (order && order->armed) {
        errno = ENOTSOCK;
        return -1;
    }
    return real(to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { return sendfile(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned int flags) {
    REAL(copy_file_range);
    if (order && order->armed) {
        errno = EXDEV;
        return -1;
    }
    return real(from, in, to, out, size, flags);
}

#define ON_FILE(function, kind, takes, size, failed, ...) \
    int function takes { \
        char path[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(__VA_ARGS__); \
        whole_path(file, NULL, path); \
        if (strike(kind, path) == 1) return failed; \
        int result = real(__VA_ARGS__); \
        if (result == 0 && !outside(path)) record(kind, path, "", size, "", 0); \
        return result; \
    }

/* What a sync made sure of is recorded whole: some libraries (Rust's rustix) write past the C library. */
static void record_synced(int file, const char *path) {
    char link[64];
    struct stat facts;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int again = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    if (again < 0) return;
    size_t size = fstat(again, &facts) == 0 && S_ISREG(facts.st_mode) ? (size_t)facts.st_size : 0;
    void *bytes = size ? mmap(NULL, size, PROT_READ, MAP_SHARED, again, 0) : MAP_FAILED;
    if (bytes != MAP_FAILED) {
        record("fsync", path, "", (int64_t)facts.st_ino, bytes, size);
        munmap(bytes, size);
    } else {
        record("fsync", path, "", 0, "", 0);
    }
    syscall(SYS_close, again);
}

#define SYNCER(function) \
    int function(int file) { \
        char path[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(file); \
        whole_path(file, NULL, path); \
        if (strike("fsync", path) == 1) return -1; \
        int result = real(file); \
        if (result == 0 && !outside(path) && order->log[0]) record_synced(file, path); \
        return result; \
    }
SYNCER(fsync)
SYNCER(fdatasync)
ON_FILE(flock, "lock", (int file, int operation), 0, -1, file, operation)
ON_FILE(ftruncate, "truncate", (int file, off_t length), length, -1, file, length)
ON_FILE(ftruncate64, "truncate", (int file, off64_t length), length, -1, file, length)
ON_FILE(fallocate, "allocate", (int file, int mode, off_t offset, off_t length), offset + length, -1, file, mode, offset, length)
ON_FILE(posix_fallocate, "allocate", (int file, off_t offset, off_t length), offset + length, errno, file, offset, length)
ON_FILE(posix_fallocate64, "allocate", (int file, off64_t offset, off64_t length), offset + length, errno, file, offset, length)

#define ON_PATH(function, kind, takes, folder, ...) \
    int function takes { \
        char path[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(__VA_ARGS__); \
        whole_path(folder, name, path); \
        if (strike(kind, path) == 1) return -1; \
        int result = real(__VA_ARGS__); \
        if (result == 0 && !outside(path)) record(kind, path, "", 0, "", 0); \
        return result; \
    }
ON_PATH(unlink, "unlink", (const char *name), AT_FDCWD, name)
ON_PATH(unlinkat, "unlink", (int folder, const char *name, int flags), folder, folder, name, flags)
ON_PATH(rmdir, "unlink", (const char *name), AT_FDCWD, name)
ON_PATH(mkdir, "mkdir", (const char *name, mode_t mode), AT_FDCWD, name, mode)
ON_PATH(mkdirat, "mkdir", (int folder, const char *name, mode_t mode), folder, folder, name, mode)

static int moved(int result, const char *from, const char *to, unsigned int flags) {
    if (result == 0 && !outside(from)) record(flags & 2 ? "exchange" : "rename", from, to, 0, "", 0);
    return result;
}

#define MOVER(function, takes, from_folder, to_folder, flags, ...) \
    int function takes { \
        char path[PATH_MAX], target[PATH_MAX]; \
        REAL(function); \
        if (!order || !order->armed) return real(__VA_ARGS__); \
        whole_path(from_folder, from, path); \
        whole_path(to_folder, to, target); \
        if (strike("rename", path) == 1) return -1; \
        return moved(real(__VA_ARGS__), path, target, flags); \
    }
MOVER(rename, (const char *from, const char *to), AT_FDCWD, AT_FDCWD, 0, from, to)
MOVER(renameat, (int old, const char *from, int new, const char *to), old, new, 0, old, from, new, to)
MOVER(renameat2, (int old, const char *from, int new, const char *to, unsigned int flags), old, new, flags, old, from, new, to, flags)
